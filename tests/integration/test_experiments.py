"""Every overlay of configs/experiments trains as the README says, with the settings that it names."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hmrl.cli.main import main
from support.paths import CONFIGS, TINY
from support.toy import STEPS

OVERLAYS = sorted((CONFIGS / "experiments").glob("*.yaml"))
ELSEWHERE = {"permuted", "gridworld_large"}  # for `hmrl test`; in a world of its own


def leaves(config: Mapping[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, *path, key)
        else:
            yield (*path, key), value


def at(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config[key]
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
@pytest.mark.parametrize(
    "overlay", [o for o in OVERLAYS if o.stem not in ELSEWHERE], ids=lambda overlay: overlay.stem
)
def test_an_overlay_trains(overlay: Path, tmp_path: Path) -> None:
    given = [*TINY, "--config", str(overlay), "--budget.env_steps", str(6 * STEPS)]
    main(["fit", *given, "--run_dir", str(tmp_path), "--trainer.check_val_every_n_epoch", "2"])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trained = [float(row["step"]) for row in rows if row["ppo/approx_kl"]]
    assert trained[-1] == 6 * STEPS
    curriculum = "curriculum" in yaml.safe_load(overlay.read_text()).get("data", {})
    trained_on = f"rollout/success{'_in_block' if curriculum else ''}/mean"
    for metric in (trained_on, "success/train/mean", "success/test/mean"):
        values = [float(row[metric]) for row in rows if row.get(metric)]
        assert values, metric
        assert all(0 <= value <= 1 for value in values), metric
    assert all(math.isfinite(float(row["ppo/policy_loss"])) for row in rows if row["ppo/policy_loss"])

    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for path, value in leaves(yaml.safe_load(overlay.read_text())):
        if path[0] not in ("run_dir", "budget"):
            assert at(saved, path) == value, ".".join(path)


def config_options(*names: str) -> list[str]:
    return [part for name in names for part in ("--config", str(CONFIGS / name))]


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["sd", "joint", "rl2"])
def test_other_beliefs_and_gradients_train_on_the_grid_world(overlay: str, tmp_path: Path) -> None:
    """What the grid world's belief learns from must not stand in their way."""
    given = config_options("ml10.yaml", "gridworld.yaml", f"experiments/{overlay}.yaml")
    main(["fit", *given, "--run_dir", str(tmp_path), "--budget.env_steps", "2400"])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert any(row["ppo/approx_kl"] for row in csv.DictReader(file))


@pytest.mark.slow
def test_the_large_grid_world_trains(tmp_path: Path) -> None:
    small = {
        "task_encoder.updates": 1,
        "task_encoder.trajectories": 4,
        "macro_vae.updates": 1,
        "ppo.epochs": 1,
    }
    given = config_options("ml10.yaml", "experiments/gridworld_large.yaml")
    given += [part for key, value in small.items() for part in (f"--model.{key}", str(value))]
    main(["fit", *given, "--run_dir", str(tmp_path), "--budget.env_steps", "9600"])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["ppo/approx_kl"])
    assert float(row["step"]) == 5 * 20 * 96
    assert 0 <= float(row["rollout/success/hall"]) <= 1


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda overlay: overlay.stem)
def test_an_overlay_is_in_the_readme_and_in_a_directory_of_its_own(overlay: Path) -> None:
    assert f"`{overlay.stem}`" in (CONFIGS.parent / "README.md").read_text()
    if overlay.stem != "permuted":
        assert yaml.safe_load(overlay.read_text())["run_dir"] == f"runs/{overlay.stem}"
