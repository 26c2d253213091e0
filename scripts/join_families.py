"""Runs that learn one family each, joined to runs whose success is the mean over these families.

    python scripts/join_families.py runs/alone/*/*-seed* --out runs/joined
    hmrl report runs/joined/*-seed* --out runs/report

A run FAMILY_METHOD-seedN is part of METHOD-seedN, which gets the training rollouts of its families in
metrics.csv, and the configuration of one of them. hmrl report refuses a mean over different families,
so each METHOD-seedN must have the same ones, and after as many environment steps. The steps of the joined
run are those of one family: its agents learnt apart.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hmrl.cli.messages import one_sentence
from hmrl.results.reading import read_metrics
from hmrl.system.errors import UserError

_ROLLOUT = "rollout/success/"


def family_of(metrics: pd.DataFrame, run: Path) -> str:
    """The one family that a run learns.

    Raises:
        UserError: if it logged none, or several.
    """
    names = [name.removeprefix(_ROLLOUT) for name in metrics if name.startswith(_ROLLOUT)]
    families = [name for name in names if name != "mean"]
    if len(families) != 1:
        raise UserError(f"{run} has training rollouts of {len(families)} families: give runs that learn one")
    return families[0]


def join(runs: Sequence[Path]) -> dict[str, tuple[pd.DataFrame, Path]]:
    """``METHOD-seedN`` -> success of each family and their mean by ``step``, and one of its runs.

    Raises:
        UserError: for names without the family, a family that is there twice, and families or steps that
            differ.
    """
    parts: dict[str, dict[str, tuple[pd.Series, Path]]] = {}
    for run in runs:
        metrics = read_metrics(run / "metrics.csv")
        family = family_of(metrics, run)
        match = re.fullmatch(rf"{re.escape(family)}_(.+-seed\d+)", run.resolve().name)
        if not match:
            raise UserError(f"{run} learns {family}: name it {family}_METHOD-seedN")
        others = parts.setdefault(match[1], {})
        if family in others:
            raise UserError(f"{run} and {others[family][1]} are the same family, method and seed")
        others[family] = metrics.set_index("step")[_ROLLOUT + family].dropna(), run
    first, *_ = parts.values()
    joined = {}
    for name, of in parts.items():
        if of.keys() != first.keys():
            raise UserError(f"{name} has {', '.join(of)}, but {next(iter(parts))} has {', '.join(first)}")
        curves = [of[family][0] for family in first]
        if any(not curve.index.equals(curves[0].index) for curve in curves):
            raise UserError(f"the runs of {name} logged at different environment steps: continue the shorter")
        table = pd.concat(curves, axis=1)
        table[_ROLLOUT + "mean"] = table.mean(axis=1)
        joined[name] = table.reset_index(), of[next(iter(first))][1]
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="FAMILY_METHOD-seedN")
    parser.add_argument("--out", type=Path, required=True, help="folder for METHOD-seedN")
    options = parser.parse_args()
    if options.out.exists():
        raise UserError(f"--out is {options.out}, which is there already: name a new folder")
    joined = join(options.runs)
    for name, (table, run) in joined.items():
        (options.out / name).mkdir(parents=True)
        table.to_csv(options.out / name / "metrics.csv", index=False)
        shutil.copy(run / "config.yaml", options.out / name)
    print(f"{options.out}: {', '.join(joined)}")


if __name__ == "__main__":
    with one_sentence():
        main()
