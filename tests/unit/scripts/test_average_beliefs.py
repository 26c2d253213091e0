"""The script that gives an older checkpoint its average beliefs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import average_beliefs
from hmrl.envs.wrappers.perturb import Change, Perturbation
from hmrl.rollouts.collect import collect, seeded
from hmrl.system.errors import UserError
from hmrl.training import checkpoint, loading
from support.toy import ToyDataModule, checkpoint_of, tiny_module, toy_data


def written(path: Path, **networks: Any) -> dict[str, Any]:
    data = toy_data()
    module = tiny_module(data, **networks)
    content = checkpoint_of(module, data) | {"git": {"revision": "abc", "modified": False}}
    torch.save(content, path)
    return content


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["average_beliefs", *map(str, arguments)])
    average_beliefs.main()


def test_a_copy_holds_the_means_of_rollouts_in_the_world_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MetaWorldDataModule", lambda **hparams: toy_data(**hparams))
    path = tmp_path / "agent.weights.ckpt"
    content = written(path)
    before = path.read_bytes()
    run(monkeypatch, path, "--rollouts", 2)
    assert path.read_bytes() == before
    copy = checkpoint.load(tmp_path / "agent.weights.beliefs.ckpt")
    assert copy.keys() == content.keys() | {"average_beliefs"}
    assert copy["git"] == content["git"]
    assert all(torch.equal(copy["state_dict"][k], v) for k, v in content["state_dict"].items())

    data = toy_data()
    module = tiny_module(data)
    module.load_state_dict(copy["state_dict"])
    module.on_load_checkpoint(copy)
    goals = average_beliefs.Goals("train", 1, None, average_beliefs._STREAM)
    envs = data.make_envs("envpool", goals, data.envs_per_family)
    acted = []
    for number in range(2):
        with seeded(1, average_beliefs._STREAM, number):
            options = {"families": data.families, "split": "train", "mode": ""}
            rollout = collect(envs, module.policy, episode=number, acting=module.acting, **options)
        acted.append(rollout.task_belief[:-1])
    beliefs = torch.cat(acted, 1)
    for i in range(len(data.families)):
        own = beliefs[:, rollout.family.repeat(2) == i]
        assert torch.allclose(module.average_beliefs.mean[i], own.mean(1), atol=1e-6)


def test_a_world_that_changes_is_as_training_left_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards have lost 0.1 an iteration, four times: the toy world's own record says what they were."""
    wear = Perturbation(reward_scale=Change("linear", -0.5, over_episodes=5))
    made, rollouts = list[ToyDataModule](), list[Any]()

    def make(**hparams: Any) -> ToyDataModule:
        made.append(toy_data(**hparams))
        return made[-1]

    def recorded(*arguments: Any, **options: Any) -> Any:
        rollouts.append(collect(*arguments, **options))
        return rollouts[-1]

    monkeypatch.setattr(loading, "MetaWorldDataModule", make)
    monkeypatch.setattr(average_beliefs, "collect", recorded)
    data = toy_data(perturbation=wear)
    module = tiny_module(data)
    module.iteration += 4
    torch.save(checkpoint_of(module, data), tmp_path / "agent.ckpt")
    run(monkeypatch, tmp_path / "agent.ckpt", "--rollouts", 2)
    earned = sum(sum(episode.rewards) for episode in made[-1].episodes)
    assert sum(float(rollout.reward.sum()) for rollout in rollouts) == pytest.approx(0.6 * earned, rel=1e-5)


@pytest.mark.parametrize(
    ("networks", "arguments", "said"),
    [
        ({"task_encoder": None}, (), "without a task encoder"),
        ({}, ("--rollouts", 0), "--rollouts is 0: use 1 or more"),
        ({}, ("--out", "there.ckpt"), "there.ckpt is there already"),
    ],
)
def test_what_cannot_be_is_refused(
    networks: dict[str, Any],
    arguments: tuple[object, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.ckpt").touch()
    written(Path("agent.ckpt"), **networks)
    with pytest.raises(UserError, match=said):
        run(monkeypatch, "agent.ckpt", *arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["agent.ckpt", "there.ckpt"]


def test_a_checkpoint_that_could_not_be_tested_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("agent.ckpt"))
    saved = torch.load("agent.ckpt", weights_only=True)
    del saved["hyper_parameters"]["actor_critic"]["critic_layer_norm"]
    torch.save(saved, "agent.ckpt")
    with pytest.raises(UserError, match="critic_layer_norm"):
        run(monkeypatch, "agent.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["agent.ckpt"]
