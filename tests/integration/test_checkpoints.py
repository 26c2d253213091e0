"""Checkpoint files: safe to load, never half written, and enough to test an agent from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from hmrl.cli.main import main
from hmrl.himeta.config import ActorCriticConfig, PPOConfig
from hmrl.system.errors import UserError
from hmrl.training.checkpoint import FORMAT, AtomicCheckpointIO, load, weights_path
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting
from support.paths import TINY
from support.runs import Run, assert_same, fit, fit_iterations
from support.toy import STEPS, tiny_module, toy_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_iterations(tmp_path_factory.mktemp("trained"), 2)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An agent that no configuration file here describes."""
    networks = {
        "task_encoder": None,
        "macro_vae": None,
        "actor_critic": ActorCriticConfig((12,), (10, 9), state_dependent_std=True),
        "decision_interval": 3,
    }
    return fit_iterations(tmp_path_factory.mktemp("flat"), 2, networks=networks)


def checkpoints(run: Run) -> tuple[Path, Path]:
    full = run.folder / "checkpoints" / "last.ckpt"
    return full, weights_path(full)


def test_a_full_checkpoint_holds_plain_values_and_all_that_training_needs(trained: Run) -> None:
    content = torch.load(checkpoints(trained)[0], weights_only=True)
    assert len(content["optimizer_states"]) == 4
    assert content["ToyDataModule"]["replays"][0]["size"] == 40
    assert int(content["state_dict"]["env_steps"]) == 2 * STEPS
    assert content["hyper_parameters"]["task_encoder"]["categories"] == 3
    assert content["datamodule_hyper_parameters"]["horizon"] == 13


def test_an_export_holds_networks_and_configuration_alone(trained: Run) -> None:
    full, export = (torch.load(path, weights_only=True) for path in checkpoints(trained))
    assert not {"optimizer_states", "ToyDataModule", "callbacks", "loops", "lr_schedulers"} & set(export)
    assert_same(export, {k: full[k] for k in export})
    assert_same(dict(trained.module.state_dict()), dict(export["state_dict"]))


def test_an_export_of_the_default_networks_is_small(tmp_path: Path) -> None:
    data = toy_data()
    module = HierarchicalMetaRL(**data.sizes, ppo=PPOConfig(epochs=1, minibatches=1))
    full, export = (path.stat().st_size for path in checkpoints(fit(tmp_path, 1, data=data, module=module)))
    assert export < 4 * 2**20
    assert full > 2.5 * export  # AdamW remembers two numbers a weight


@pytest.mark.parametrize("file", [0, 1], ids=["full", "export"])
def test_either_file_gives_the_agent_that_was_trained(trained: Run, file: int) -> None:
    loaded = HierarchicalMetaRL.load_from_checkpoint(checkpoints(trained)[file])
    assert dict(loaded.hparams) == dict(trained.module.hparams)
    assert_same(dict(loaded.state_dict()), dict(trained.module.state_dict()))
    observation, reward = torch.randn(6, 39), torch.randn(6)
    for acting in (Acting(), Acting("sample", "sample", "sample"), Acting(action="mean")):
        steps = []
        for module in (loaded, trained.module):
            torch.manual_seed(3)
            carry = module.policy.initial_carry(6)
            first, carry = module.policy.act(observation, reward, carry, acting)
            second, _ = module.policy.act(observation + 0.1, reward + 1, carry, acting)
            steps.append([first._asdict(), second._asdict()])
        assert_same(*steps)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    old = {"state_dict": {"w": torch.ones(3)}, "hyper_parameters": {}}
    plugin.save_checkpoint(old, path)

    def full_disk(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match=r"last.ckpt could not be written .*No space left.*is intact"):
        plugin.save_checkpoint({"state_dict": {"w": torch.zeros(3)}, "hyper_parameters": {}}, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.weights.ckpt"]
    assert_same({name: value for name, value in load(path).items() if name not in ("git", "format")}, old)


def test_a_run_whose_disk_is_full_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fit_iterations(tmp_path, 2).last

    def full_disk(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(UserError, match="No space left"):
            fit_iterations(tmp_path, 3, resume=True)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    resumed = fit_iterations(tmp_path, 3, resume=True)
    assert resumed.recorder.env_steps == [3 * STEPS]
    assert int(before["state_dict"]["iteration"]) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no checkpoint at"),
        (b"PK\x03\x04 cut", "no readable checkpoint"),
        ({}, "no checkpoint of hmrl"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=says):
        load(path)


# --- hmrl test -----------------------------------------------------------------------------------


def run_test(folder: Path, ckpt_path: Path, *options: str) -> dict[str, Any]:
    main(["test", *TINY, "--run_dir", str(folder), "--ckpt_path", str(ckpt_path), *options])
    results: dict[str, Any] = json.loads((folder / "test-first_episode.json").read_text())
    return results


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
def test_the_command_gives_equal_scores_from_either_file(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, export = (run_test(tmp_path / path.stem, path) for path in checkpoints(trained))
    assert full.pop("checkpoint") == str(checkpoints(trained)[0])
    assert export.pop("checkpoint") == str(checkpoints(trained)[1])
    for file in (full, export):
        assert file.pop("wall_time_s") > 0
        assert file.pop("started").endswith("+00:00")
    assert full == export
    assert full["schema"] == 1
    assert full["packages"]["metaworld"]
    assert full["protocol"] == {
        "name": "first_episode",
        "backend": "envpool",
        "goals_per_family": 4,
        "episodes_per_family": 4,
    }
    # Every episode is there, and the scores are theirs.
    for split, modes in full["scores"].items():
        for mode, families in modes.items():
            for family in set(families) - {"mean"}:
                columns = full["episodes"][split][mode][family]
                assert (columns["goal"], columns["number"]) == ([0, 1, 2, 3], [0] * 4)
                assert columns["length"] == [13] * 4
                means = {k: sum(columns[k]) / 4 for k in ("success", "final_success", "return")}
                score = families[family]
                assert (score["success"], score["final_success"]) == (
                    means["success"],
                    means["final_success"],
                )
                assert score["episode_return"] == pytest.approx(means["return"], rel=1e-6)
    assert full["env_steps"] == 2 * STEPS
    # What is printed is what is written.
    printed = capsys.readouterr().out
    number = r"(\d\.\d\d) \[(\d\.\d\d), (\d\.\d\d)\]"
    for split, modes in full["scores"].items():
        for family in modes["sampled"]:
            cells = [number, number, r"(\d\.\d\d)", r"(-?\d+)"]
            row = re.search(rf"│ {split} {family} +│ " + r" │ +".join(cells) + " │", printed)
            assert row, (split, family)
            expected = []
            for mode in ("sampled", "mean_action"):
                score = modes[mode][family]
                expected += [f"{score[k]:.2f}" for k in ("success", "low", "high")]
            first = modes["sampled"][family]
            expected += [f"{first['final_success']:.2f}", f"{first['episode_return']:.0f}"]
            assert list(row.groups()) == expected
    # And it is what an evaluation from Python gives.
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    data = toy_data()
    trainer.test(trained.module, datamodule=data, verbose=False)
    reach = [e for e in data.episodes if e.family == "reach"][:4]
    assert full["scores"]["train"]["sampled"]["reach"]["success"] == sum(any(e.successes) for e in reach) / 4


@pytest.mark.usefixtures("toy_world")
def test_the_checkpoint_decides_the_architecture(flat: Run, trained: Run, tmp_path: Path) -> None:
    """The configuration describes three levels, the checkpoint a flat agent; and the reverse."""
    results = run_test(tmp_path, checkpoints(flat)[1])
    assert results["model"]["task_encoder"] is None
    assert results["model"]["macro_vae"] is None
    assert results["model"]["decision_interval"] == 3
    assert results["model"]["actor_critic"]["critic_hidden"] == [10, 9]
    none = ("--model.task_encoder", "null", "--model.macro_vae", "null", "--model.decision_interval", "1")
    results = run_test(tmp_path, checkpoints(trained)[1], *none, "--overwrite", "true")
    assert results["model"]["task_encoder"]["categories"] == 3
    assert results["model"]["decision_interval"] == 2


@pytest.mark.usefixtures("toy_world")
def test_testing_leaves_the_run_alone(trained: Run) -> None:
    def files() -> dict[str, bytes]:
        return {
            str(p.relative_to(trained.folder)): p.read_bytes()
            for p in sorted(trained.folder.rglob("*"))
            if p.is_file()
        }

    before = files()
    run_test(trained.folder, checkpoints(trained)[0])
    added = {"test-first_episode.json", *(k for k in files() if k.startswith("latents/"))}
    assert {k: v for k, v in files().items() if k not in added} == before


def test_a_module_of_other_widths_is_refused(trained: Run) -> None:
    content = torch.load(checkpoints(trained)[1], weights_only=True)
    other = tiny_module(toy_data(), actor_critic=ActorCriticConfig((9,), (8,)))
    with pytest.raises(RuntimeError, match=r"size mismatch for policy\.actor"):
        other.load_state_dict(content["state_dict"])


# --- checkpoints of another version --------------------------------------------------------------

SAMPLED = "{sampled: {macro_action: sample}}"
FREE = ("--model.actor_critic.state_dependent_std", "false")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it was written when deviations were clamped, and its weights."""
    folder = tmp_path_factory.mktemp("old")
    networks = {"actor_critic": ActorCriticConfig((8,), (8,), state_dependent_std=False)}
    fit(folder, STEPS, data=toy_data(), module=tiny_module(toy_data(), **networks))
    for path in (folder / "checkpoints" / name for name in ("last.ckpt", "last.weights.ckpt")):
        content = load(path)
        assert content.pop("format") == FORMAT
        torch.save(content, path)
    return folder


@pytest.mark.usefixtures("toy_world")
def test_a_checkpoint_of_clamped_deviations_acts_on_means_alone(old: Path, tmp_path: Path) -> None:
    weights = old / "checkpoints" / "last.weights.ckpt"
    run_test(tmp_path, weights, *FREE)
    data, module = toy_data(), HierarchicalMetaRL.load_from_checkpoint(weights)
    with pytest.raises(UserError, match="for training goes on from it"):
        fit(tmp_path / "on", STEPS, data=data, module=module)
    with pytest.raises(SystemExit):
        run_test(tmp_path / "sampled", weights, *FREE, "--data.modes", SAMPLED)


@pytest.mark.usefixtures("toy_world")
def test_training_does_not_go_on_with_other_deviations(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--budget.env_steps", str(2 * STEPS))
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *TINY, "--run_dir", str(old), "--ckpt_path", "last", *FREE, *more])
    assert exit_.value.code == 2
    assert "deviations were clamped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("agent", "written", "millions"),
    [
        ("ml10-20m/default", 1, 20),
        ("ml10-20m/flat", 1, 20),
        ("ml10-5m/default-seed4", 2, 5),
        ("ml10-5m/flat-seed4", 2, 5),
    ],
)
def test_the_published_agents_load(agent: str, written: int, millions: int) -> None:
    path = Path(__file__).parents[2] / f"results/{agent}/agent.weights.ckpt"
    assert load(path)["format"] == written
    module = HierarchicalMetaRL.load_from_checkpoint(path, map_location="cpu")
    assert int(module.env_steps) == millions * 1_000_000
