"""Every experiment of docs/experiments.md trains as it says, with the settings that it names."""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from hmrl.cli.main import main
from support.paths import CONFIGS, TINY
from support.toy import STEPS

PAGE = (CONFIGS.parent / "docs" / "experiments.md").read_text()
OVERLAYS = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.glob("*/*.yaml")
    if path.parent.name != "sweeps"
)
# For `hmrl test`; in worlds of their own; of widths that take their time.
ELSEWHERE = {"protocols/permuted", "protocols/paper"} | {o for o in OVERLAYS if o.startswith("worlds/")}
FLAGS = re.findall(r"^\| `(--.+?)` \|", PAGE, re.MULTILINE)


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


def trained(folder: Path, *given: str, in_blocks: bool = False) -> Any:
    """The configuration that a short run has saved, which must have learnt and been evaluated."""
    options = ["--run_dir", str(folder), "--trainer.check_val_every_n_epoch", "2"]
    main(["fit", *TINY, *given, *options, "--budget.env_steps", str(6 * STEPS)])
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [float(row["step"]) for row in rows if row["ppo/approx_kl"]]
    assert steps[-1] == 6 * STEPS
    trained_on = f"rollout/success{'_in_block' if in_blocks else ''}/mean"
    for metric in (trained_on, "success/train/mean", "success/test/mean"):
        values = [float(row[metric]) for row in rows if row.get(metric)]
        assert values, metric
        assert all(0 <= value <= 1 for value in values), metric
    assert all(math.isfinite(float(row["ppo/policy_loss"])) for row in rows if row["ppo/policy_loss"])
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
@pytest.mark.parametrize("overlay", [o for o in OVERLAYS if o not in ELSEWHERE])
def test_an_overlay_trains(overlay: str, tmp_path: Path) -> None:
    content = yaml.safe_load((CONFIGS / f"{overlay}.yaml").read_text())
    in_blocks = "curriculum" in content.get("data", {})
    saved = trained(tmp_path, f"--config={CONFIGS / overlay}.yaml", in_blocks=in_blocks)
    for path, value in leaves(content):
        if path[0] not in ("run_dir", "budget"):
            assert at(saved, path) == value, ".".join(path)


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
@pytest.mark.parametrize("flags", FLAGS)
def test_a_flag_of_the_page_trains(flags: str, tmp_path: Path) -> None:
    words = shlex.split(flags)
    saved = trained(tmp_path, *words)
    for name, value in zip(words[::2], words[1::2], strict=True):
        found, wanted = at(saved, tuple(name.removeprefix("--").split("."))), yaml.safe_load(value)
        if isinstance(wanted, Mapping):
            found = {key: found[key] for key in wanted}
        assert found == wanted, name


def config_options(*names: str) -> list[str]:
    return [part for name in names for part in ("--config", str(CONFIGS / name))]


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["baselines/sd", "levels/joint", "baselines/rl2"])
def test_other_beliefs_and_gradients_train_on_the_grid_world(overlay: str, tmp_path: Path) -> None:
    """What the grid world's belief learns from must not stand in their way."""
    given = config_options("ml10.yaml", "worlds/gridworld.yaml", f"{overlay}.yaml")
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
    given = config_options("ml10.yaml", "worlds/gridworld_large.yaml")
    given += [part for key, value in small.items() for part in (f"--model.{key}", str(value))]
    main(["fit", *given, "--run_dir", str(tmp_path), "--budget.env_steps", "9600"])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["ppo/approx_kl"])
    assert float(row["step"]) == 5 * 20 * 96
    assert 0 <= float(row["rollout/success/hall"]) <= 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_a_directory_of_its_own(overlay: str) -> None:
    content = yaml.safe_load((CONFIGS / f"{overlay}.yaml").read_text())
    if overlay != "protocols/permuted":
        assert content["run_dir"] == f"runs/{overlay.partition('/')[2]}"


def test_the_page_names_what_there_is() -> None:
    folders = {path.parent.name for path in CONFIGS.glob("*/*.yaml")}
    named = {name for name in re.findall(r"`(\w+/\w+)`", PAGE) if name.partition("/")[0] in folders}
    sweeps = {f"sweeps/{path.stem}" for path in (CONFIGS / "sweeps").glob("*.yaml")}
    assert named == {*OVERLAYS, *sweeps}
    assert len(FLAGS) > 10
