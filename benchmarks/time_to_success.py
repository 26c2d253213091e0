"""How long until an agent succeeds? Steps and minutes to 0.3, 0.4 and 0.5 success of training episodes.

python benchmarks/time_to_success.py default=runs/default-seed1 runs/default-seed2 sb3=runs/sb3-seed1
python benchmarks/time_to_success.py default=runs/default-seed1 --rate 6000

Reads RUN_DIR/metrics.csv. Success is the mean over the last 150,000 environment steps. Minutes are as the
run took them, evaluations included; with --rate, as on a machine of so many environment steps a second.
"""

from __future__ import annotations

import argparse
from math import inf, nan
from pathlib import Path

import pandas as pd

from hmrl.results.reading import read_metrics
from hmrl.results.statistics import steps_to_reach, trailing_mean

WINDOW = 150_000  # environment steps
LEVELS = (0.3, 0.4, 0.5)


def reached(run: Path, rate: float | None) -> dict[str, float]:
    """Steps and minutes to each level; NaN where a run ends before."""
    log = read_metrics(run / "metrics.csv").dropna(subset="rollout/success/mean")
    steps, success = (log[name].to_numpy() for name in ("step", "rollout/success/mean"))
    taken = log["step"].diff().fillna(log["step"])
    minutes = (taken / (rate or log["time/env_steps_per_second"])).cumsum() / 60
    found: dict[str, float] = {}
    for level in LEVELS:
        at = steps_to_reach(steps, success, level, WINDOW)
        found[f"steps to {level}"] = at if at < inf else nan
        found[f"minutes to {level}"] = minutes[log["step"] == at].max()
    return found | {"steps": steps[-1], "success at the end": trailing_mean(steps, success, WINDOW)[-1]}


def main() -> None:
    """Print one row a run, and each method's mean; a mean over runs of which some got nowhere is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="METHOD=RUN_DIR, or a further RUN_DIR of the same method")
    parser.add_argument("--rate", type=float, help="environment steps a second, instead of the runs' own")
    options = parser.parse_args()
    rows, method = [], "runs"
    for run in options.runs:
        if "=" in run:
            method, run = run.split("=", 1)
        rows.append({"method": method, "run": Path(run).name} | reached(Path(run), options.rate))
    table = pd.DataFrame(rows)
    means = table.drop(columns="run").groupby("method", sort=False).agg(lambda x: x.mean(skipna=False))
    everything = pd.concat([table, means.reset_index().assign(run="mean")])
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(everything.to_string(index=False, na_rep="–", float_format=lambda x: f"{x:,.4g}"))


if __name__ == "__main__":
    main()
