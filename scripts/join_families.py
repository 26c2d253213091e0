"""Runs that learn one family each, joined to runs whose success is the mean over these families.

    python scripts/join_families.py runs/alone/*/*-seed* --out runs/joined
    hmrl report runs/joined/*-seed* --out runs/report

A run FAMILY_METHOD-seedN is part of METHOD-seedN, which gets the training rollouts of its families in
metrics.csv, and the configuration of one of them. Every METHOD-seedN must have the same families. Its runs
must have the same settings otherwise, and as many environment steps. The steps of the joined run are those
of one family: its agents learnt apart.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from hmrl.cli.messages import one_sentence
from hmrl.cli.shipped import read_yaml
from hmrl.results.reading import read_metrics
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path

_ROLLOUT = "rollout/success/"


def read(run: Path) -> tuple[str, pd.Series, dict[str, Any]]:
    """The one family that a run learns, its success by step, and the run's settings without the family.

    Raises:
        UserError: without a log of one family's training rollouts, or without settings.
    """
    if not run.is_dir():
        raise UserError(f"there is no run directory {run}")
    metrics = read_metrics(run / "metrics.csv")
    names = [name.removeprefix(_ROLLOUT) for name in metrics if name.startswith(_ROLLOUT)]
    families = [name for name in names if name != "mean"]
    if len(families) != 1:
        raise UserError(f"{run} has logged training rollouts of {len(families)} families, not of one")
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} has no config.yaml, which says how its agent was trained")
    settings = read_yaml(run / "config.yaml")
    if not isinstance(settings, dict) or not isinstance(settings.get("data", {}), dict):
        raise UserError(f"{run / 'config.yaml'} is no configuration of hmrl fit")
    settings.pop("run_dir", None)
    settings.get("data", {}).pop("train_families", None)
    return families[0], metrics.set_index("step")[_ROLLOUT + families[0]].dropna(), settings


def join(runs: Sequence[Path]) -> dict[str, tuple[pd.DataFrame, Path]]:
    """``METHOD-seedN`` -> success of each family and their mean by ``step``, and one of its runs.

    Raises:
        UserError: for names without the family, a family that is there twice, and families, settings or
            environment steps that differ.
    """
    parts: dict[str, dict[str, tuple[Path, pd.Series, dict[str, Any]]]] = {}
    for run in runs:
        family, curve, settings = read(run)
        match = re.fullmatch(rf"{re.escape(family)}_(.+-seed(\d+))", run.resolve().name)
        if not match:
            raise UserError(f"{run} learns {family}: name it {family}_METHOD-seedN")
        if settings.get("seed_everything") != int(match[2]):
            raise UserError(f"{run} has seed_everything {settings.get('seed_everything')}")
        others = parts.setdefault(match[1], {})
        if family in others:
            raise UserError(f"{run} and {others[family][0]} are the same family, method and seed")
        others[family] = run, curve, settings
    first, *_ = parts.values()
    joined = {}
    for name, of in parts.items():
        if of.keys() != first.keys():
            raise UserError(f"{name} has {', '.join(of)}, but {next(iter(parts))} has {', '.join(first)}")
        one, *others = (of[family] for family in first)
        for other in others:
            if differ := [key for key in {*one[2], *other[2]} if one[2].get(key) != other[2].get(key)]:
                raise UserError(f"{one[0]} and {other[0]} differ in {', '.join(sorted(differ))}")
            if not one[1].index.equals(other[1].index):
                last = " and ".join(f"{curve.index[-1]:,.0f}" for _, curve, _ in (one, other))
                raise UserError(
                    f"{one[0]} and {other[0]} logged at different environment steps, the last {last}"
                )
        table = pd.concat([of[family][1] for family in first], axis=1)
        table[_ROLLOUT + "mean"] = table.mean(axis=1)
        joined[name] = table.reset_index(), one[0]
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="FAMILY_METHOD-seedN")
    folder = partial(local_path, name="--out")
    parser.add_argument("--out", type=folder, required=True, help="folder for METHOD-seedN")
    options = parser.parse_args()
    if options.out.exists():
        raise UserError(f"--out is {options.out}, which is there already: name a new folder")
    for name, (table, run) in join(options.runs).items():
        (options.out / name).mkdir(parents=True)
        table.to_csv(options.out / name / "metrics.csv", index=False)
        shutil.copy(run / "config.yaml", options.out / name)
        print(f"{options.out / name}: {len(table.columns) - 2} families, {len(table)} rollouts")


if __name__ == "__main__":
    with one_sentence():
        main()
