"""The command line: complete configurations, overlays, faults, budgets. Mistakes are in test_bad_input.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hmrl.cli.main import main
from support.paths import CONFIGS, TINY
from support.runs import read_rows
from support.toy import STEPS

ML10 = CONFIGS / "ml10.yaml"
OVERLAYS = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path != ML10 and path.parent.name != "sweeps"
)


@cache
def printed_config(*arguments: str, command: str = "fit") -> dict[str, Any]:
    """What ``hmrl fit ... --print_config`` says."""
    with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as exit_:
        main([command, *arguments, "--print_config"])
    assert exit_.value.code == 0
    config: dict[str, Any] = yaml.safe_load(out.getvalue())
    return config


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values."""
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, config


# --- configurations ------------------------------------------------------------------------------


def test_ml10_is_complete() -> None:
    """Every key there is can be read in it, and it says what is run."""
    written = yaml.safe_load(ML10.read_text())
    printed = printed_config("--config", str(ML10))
    for section in ("model", "data", "budget", "last_checkpoint"):
        assert dict(leaves(written[section])) == dict(leaves(printed[section])), section


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_changes_what_it_says_and_nothing_else(overlay: str) -> None:
    base = dict(leaves(printed_config("--config", str(ML10))))
    config = dict(leaves(printed_config("--config", str(ML10), "--config", str(CONFIGS / overlay))))
    changes = dict(leaves(yaml.safe_load((CONFIGS / overlay).read_text())))
    for key, value in changes.items():
        assert config[key] == value, key
    for key in config.keys() & base.keys():
        if not any(key == k or key.startswith(f"{k}.") for k in changes):
            assert config[key] == base[key], key


@pytest.mark.parametrize(
    ("named", "written"),
    [
        ((), ("ml10.yaml",)),
        (("--config", "ml10", "--config=baselines/flat"), ("ml10.yaml", "baselines/flat.yaml")),
        (("-c", "configs/ml10.yaml", "--config", "configs/smoke.yaml"), ("ml10.yaml", "smoke.yaml")),
    ],
)
def test_the_packages_configurations_go_by_name(
    named: tuple[str, ...],
    written: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [f"--config={CONFIGS / name}" for name in written]
    monkeypatch.chdir(tmp_path)
    assert printed_config(*named) == printed_config(*files)


def test_the_paper_overlay_holds_the_authors_hyper_parameters() -> None:
    config = printed_config("--config", str(ML10), "--config", str(CONFIGS / "protocols/paper.yaml"))
    reference = {
        "budget.env_steps": 164_000_000,
        "data.goals_per_family": 1,
        "data.horizon": 500,
        "data.envs_per_family": 4,  # 10 families x 4 x 500 = 20,000 steps an iteration
        "model.decision_interval": 1,
        "model.acting.task_belief": "sample",
        "model.acting.macro_action": "sample",
        "model.acting.action": "sample",
        "model.task_encoder.categories": 5,
        "model.task_encoder.cell": "gru",
        "model.task_encoder.hidden": 256,
        "model.task_encoder.embedding_hidden": [64, 32, 16],
        "model.task_encoder.head_hidden": [512, 512],
        "model.task_encoder.dropout": 0.7,
        "model.task_encoder.value_coef": 20,
        "model.task_encoder.categorical": "conditional",
        "model.task_encoder.categorical_coef": 1,
        "model.task_encoder.occupancy_coef": 1,
        "model.task_encoder.lr": 7e-4,
        "model.macro_vae.encoder_hidden": [128, 128, 64, 32],
        "model.macro_vae.decoder_hidden": [32, 64, 128, 128],
        "model.macro_vae.dropout": 0.7,
        "model.macro_vae.log_std_range": [-0.25, 0.25],  # exp(0.25) is what their variance of exp(0.5) gives
        "model.macro_vae.goal_state": "constant_discretisation",
        "model.macro_vae.lr": 7e-4,
        "model.actor_critic.actor_hidden": [256, 256],
        "model.actor_critic.critic_hidden": [256, 256],
        "model.actor_critic.log_std_range": [-0.25, 0.25],
        "model.ppo.gamma": 0.99,
        "model.ppo.gae_lambda": 0.9,
        "model.ppo.clip": 0.2,
        "model.ppo.epochs": 5,
        "model.ppo.minibatches": 1,
        "model.ppo.latents": "acted",
        "model.ppo.entropy_coef": 0.01,
        "model.ppo.reward_scale": "log",
        "model.ppo.agreement_bonus": 0,
        "model.ppo.actor_lr": 3e-4,
        "model.ppo.critic_lr": 5e-4,
    }
    found = dict(leaves(config))
    assert {key: found[key] for key in reference} == reference


def test_the_permuted_overlay_evaluates_each_permutation() -> None:
    overlay = str(CONFIGS / "protocols/permuted.yaml")
    modes = printed_config("--config", str(ML10), "--config", overlay, command="test")["data"]["modes"]
    assert {name: mode["permute"] for name, mode in modes.items() if name != "mean_action"} == {
        "sampled": "none",
        "permuted_belief": "task_belief",
        "permuted_macro_action": "macro_action",
    }


# --- faults --------------------------------------------------------------------------------------


def test_a_genuine_fault_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_world: None
) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("hmrl.training.module.HierarchicalMetaRL.training_step", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["fit", *TINY, "--run_dir", str(tmp_path)])


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toy_world")
def test_a_dotted_override_reaches_the_module(tmp_path: Path) -> None:
    override = ("--model.ppo.epochs", "3", "--seed_everything", "5", "--budget.env_steps", "1")
    main(["fit", *TINY, "--run_dir", str(tmp_path), *override])
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["ppo"]["epochs"] == 3
    assert content["hyper_parameters"]["ppo"]["minibatches"] == 3  # from tiny.yaml
    assert content["hyper_parameters"]["seed"] == 5
    assert content["datamodule_hyper_parameters"]["seed"] == 5
    (epochs,) = [float(row["ppo/epochs"]) for row in read_rows(tmp_path) if "ppo/epochs" in row]
    assert epochs == 3
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["model"]["ppo"]["epochs"] == 3


@pytest.mark.usefixtures("toy_world")
@pytest.mark.parametrize(("budget", "iterations"), [(1, 1), (STEPS, 1), (STEPS + 1, 2), (2 * STEPS, 2)])
def test_training_stops_with_the_iteration_that_reaches_the_budget(
    budget: int, iterations: int, tmp_path: Path
) -> None:
    """With an evaluation and a checkpoint at the end, whether or not their turn has come."""
    later = ("--trainer.check_val_every_n_epoch", "10", "--last_checkpoint.every_n_iterations", "10")
    main(["fit", *TINY, "--run_dir", str(tmp_path), "--budget.env_steps", str(budget), *later])
    rows = read_rows(tmp_path)
    trained = [int(row["step"]) for row in rows if "ppo/approx_kl" in row]
    evaluated = [int(row["step"]) for row in rows if "success/train/mean" in row]
    assert trained == [n * STEPS for n in range(1, iterations + 1)]
    assert evaluated == [iterations * STEPS]
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert int(content["state_dict"]["env_steps"]) == iterations * STEPS


@pytest.mark.usefixtures("toy_world")
def test_last_starts_afresh_where_there_is_nothing_and_goes_on_where_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["fit", *TINY, "--run_dir", str(tmp_path), "--ckpt_path", "last"]
    main([*run, "--budget.env_steps", str(STEPS)])
    assert f"no checkpoint in {tmp_path}/checkpoints: starting afresh" in capsys.readouterr().out
    main([*run, "--budget.env_steps", str(2 * STEPS)])
    assert f"continuing from {tmp_path}/checkpoints/last.ckpt" in capsys.readouterr().out
    assert [int(row["step"]) for row in read_rows(tmp_path)] == [STEPS, STEPS, 2 * STEPS, 2 * STEPS]


@pytest.mark.usefixtures("toy_world")
def test_the_saved_configuration_repeats_the_run(tmp_path: Path) -> None:
    main(["fit", *TINY, "--run_dir", str(tmp_path / "first"), "--seed_everything", "9"])
    saved = str(tmp_path / "first" / "config.yaml")
    main(["fit", "--config", saved, "--run_dir", str(tmp_path / "again")])
    assert read_rows(tmp_path / "again") == read_rows(tmp_path / "first")


@pytest.mark.usefixtures("toy_world")
def test_validate_scores_a_checkpoint_as_training_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *TINY, "--run_dir", str(tmp_path)])
    table = capsys.readouterr().out
    table = table[table.rindex("success after 520") : table.rindex("└")]
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    main(["validate", *TINY, "--run_dir", str(tmp_path), "--ckpt_path", last])
    assert table in capsys.readouterr().out


@pytest.mark.simulator
def test_a_real_run_from_the_command_line(tmp_path: Path) -> None:
    """ML10 in EnvPool: fit, then test both in EnvPool and with fixed goals."""
    short = ("--data.horizon", "20", "--data.envs_per_family", "1", "--budget.env_steps", "400")
    main(["fit", *TINY, "--run_dir", str(tmp_path), *short])
    assert [int(row["step"]) for row in read_rows(tmp_path) if "ppo/approx_kl" in row] == [200, 400]
    goals = ("--data.test.goals_per_family", "2", "--data.test.envs_per_family", "2")
    best = str(tmp_path / "checkpoints" / "best.weights.ckpt")
    main(["test", *TINY, "--run_dir", str(tmp_path), "--ckpt_path", best, *short[:2], *goals])
    results = yaml.safe_load((tmp_path / "test-first_episode.json").read_text())
    assert set(results["scores"]["test"]["sampled"]) == {
        *("drawer-open", "door-close", "shelf-place", "sweep-into", "lever-pull", "mean")
    }
    assert results["scores"]["train"]["mean_action"]["mean"]["episodes"] == 20
