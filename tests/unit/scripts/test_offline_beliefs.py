"""The script that compares forms of belief on replayed episodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import offline_beliefs
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.system.errors import UserError
from support.agents import build_module, encoder_config, random_rollout, vae_config


def checkpoint(episodes: int = 5, **changes: Any) -> dict[str, Any]:
    """Rewards are the first number of the next observation: whoever is asked can know them."""
    module = build_module(encoder_config(lr=0.02, context_reward="log", **changes), vae_config())
    replays = [TrajectoryReplay(4 * episodes), TrajectoryReplay(4 * episodes)]  # of two processes
    for seed in range(2 * episodes):
        rollout = random_rollout(seed=seed)
        replays[seed % 2].append(replace(rollout, reward=rollout.observation[1:, :, 0]))
    return {
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
        "ToyDataModule": {"replays": [replay.state_dict() for replay in replays]},
    }


@pytest.mark.slow
def test_updates_lower_the_error_on_episodes_held_out() -> None:
    saved = checkpoint()
    episodes = offline_beliefs.episodes_of(saved, Path("last.ckpt"))
    assert len(episodes.family) == 40
    beliefs = ["categorical:3", "categorical:2x3", "continuous:4"]
    found = offline_beliefs.compare(saved, episodes, beliefs, [1, 2], 150)
    for belief in beliefs:
        for before, after in zip(found[belief]["before"], found[belief]["after"], strict=True):
            assert after < 0.5 * before, belief
    again = offline_beliefs.compare(saved, episodes, ["categorical:2x3"], [2], 150)
    assert again["categorical:2x3"]["after"] == found["categorical:2x3"]["after"][1:]


def test_dropout_is_for_learning_only(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = checkpoint(dropout=0.5)
    episodes = offline_beliefs.episodes_of(saved, Path("last.ckpt"))
    found = offline_beliefs.compare(saved, episodes, ["categorical:3"], [1], 0)["categorical:3"]
    assert found["after"] == found["before"]
    modes = []
    asking = offline_beliefs.error_of

    def seen(policy: Any, *arguments: Any) -> Any:
        modes.append(policy.task_encoder.training)
        return asking(policy, *arguments)

    monkeypatch.setattr(offline_beliefs, "error_of", seen)
    offline_beliefs.compare(saved, episodes, ["categorical:3"], [1], 2)
    assert modes == [False, True, True, False]


def test_what_is_compared_is_what_was_asked_for() -> None:
    base = encoder_config(reward_coef=0.0)
    one, several, continuous = (
        offline_beliefs.config_of(belief, base)
        for belief in ("categorical:7", "categorical:4x6", "continuous:9")
    )
    assert (one.belief, one.variables, one.categories, one.reward_coef) == ("categorical", 1, 7, 1.0)
    assert (several.variables, several.categories) == (4, 6)
    assert (continuous.belief, continuous.categories) == ("continuous", 9)


@pytest.mark.parametrize(
    "belief", ["mixture:3", "categorical:x", "categorical", "continuous:2x3", "categorical:2x3x4"]
)
def test_another_belief_is_refused(belief: str) -> None:
    with pytest.raises(UserError, match=f"belief '{belief}'"):
        offline_beliefs.config_of(belief, encoder_config())


def test_weights_without_episodes_are_refused() -> None:
    saved = checkpoint()
    del saved["ToyDataModule"]
    with pytest.raises(UserError, match=r"no replayed episodes: use the last\.ckpt"):
        offline_beliefs.episodes_of(saved, Path("agent.weights.ckpt"))


def test_the_same_seeds_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was drawn before: the replay is shuffled before it is divided."""
    saved = checkpoint()
    monkeypatch.setattr(offline_beliefs.checkpoint, "load", lambda path: saved)
    found = []
    for before in (1, 2):
        torch.manual_seed(before)
        out = tmp_path / f"{before}.json"
        options = ["--beliefs", "categorical:4", "--seeds", "1", "--updates", "2", "--out", str(out)]
        monkeypatch.setattr("sys.argv", ["offline_beliefs", "last.ckpt", *options])
        offline_beliefs.main()
        result = json.loads(out.read_text())["beliefs"]["categorical:4"]
        found.append((result["before"], result["after"]))
    assert found[0] == found[1]
