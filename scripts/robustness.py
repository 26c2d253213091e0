"""Success of agents against a growing perturbation of tests: a figure, a CSV and a JSON file.

python scripts/robustness.py ml10=runs/ml10/checkpoints/best.ckpt flat=runs/flat/checkpoints/best.ckpt \\
  --out runs/robustness --levels 0 0.005 0.01 0.02 0.05 -- --data.test.goals_per_family 10

What follows -- goes to `hmrl test`, after `--config configs/ml10.yaml`. A level that has its results file is
not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hmrl.cli.messages import one_sentence
from hmrl.results.file import results_path
from hmrl.results.reading import read_json
from hmrl.system.errors import UserError

_NAMES = {"noise_std": "standard deviation of the noise (m)", "missing.probability": "share that is missing"}


def test(checkpoint: str, run_dir: Path, setting: str, level: float, options: list[str]) -> dict[str, Any]:
    """The results file of one agent at one level."""
    path = results_path(run_dir, "first_episode")
    if path.exists() and read_json(path)["checkpoint"] != checkpoint:
        raise UserError(f"{path} is of another checkpoint: choose another --out, or another label")
    if not path.exists():
        command = [sys.executable, "-m", "hmrl", "test", "--config", "configs/ml10.yaml", *options]
        command += ["--ckpt_path", checkpoint, "--run_dir", str(run_dir)]
        command += [f"--data.test.perturbation.{setting}", str(level)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            raise UserError(f"hmrl test of {checkpoint} failed: nothing is drawn")
        if not path.exists():
            raise UserError(f"hmrl test did not write {path}: use the protocol first_episode")
    results: dict[str, Any] = read_json(path)
    return results


def rows(agent: str, level: float, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Success with its 95 % interval over goals, by split, mode and family."""
    return [
        {"agent": agent, "level": level, "split": split, "mode": mode, "family": family}
        | {name: score[name] for name in ("success", "low", "high", "episodes")}
        for split, modes in results["scores"].items()
        for mode, families in modes.items()
        for family, score in families.items()
    ]


def draw(table: pd.DataFrame, mode: str, setting: str) -> Figure:
    """A panel a split, a line an agent: means over families."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    means = table[(table["family"] == "mean") & (table["mode"] == mode)]
    for ax, split in zip(figure.subplots(1, 2, sharex=True, sharey=True), ("train", "test"), strict=True):
        for agent, own in means[means["split"] == split].groupby("agent", sort=False):
            (line,) = ax.plot(own["level"], own["success"], marker="o", markersize=4, label=agent)
            ax.fill_between(own["level"], own["low"], own["high"], color=line.get_color(), alpha=0.2, lw=0)
        ax.set_title({"train": "training families", "test": "held-out families"}[split], fontsize=10)
        ax.set_xlabel(_NAMES.get(setting, setting))
        ax.grid(alpha=0.3)
        ax.set_ylim(0, 1)
    figure.axes[0].set_ylabel("success (95 % over goals)")
    figure.axes[0].legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("agents", nargs="+", metavar="LABEL=CHECKPOINT")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0, 0.005, 0.01, 0.02, 0.05])
    parser.add_argument("--setting", default="noise_std", help="of data.test.perturbation: what is varied")
    parser.add_argument("--mode", default="sampled", help="way of acting that is drawn")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, options = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    table: list[dict[str, Any]] = []
    for agent, _, checkpoint in (named.partition("=") for named in arguments.agents):
        if not Path(checkpoint).is_file():
            raise UserError(f"{agent}={checkpoint} names no checkpoint: use LABEL=CHECKPOINT")
        for level in sorted(arguments.levels):
            run_dir = arguments.out / agent / arguments.setting / f"{level:g}"
            scored = rows(agent, level, test(checkpoint, run_dir, arguments.setting, level, options))
            for row in scored:
                if (row["family"], row["mode"]) == ("mean", arguments.mode):
                    interval = f"{row['success']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
                    print(f"{agent}, {arguments.setting} {level:g}, {row['split']}: {interval}", flush=True)
            table += scored
    (arguments.out / "robustness.json").write_text(json.dumps(table, indent=1) + "\n")
    frame = pd.DataFrame(table)
    frame.to_csv(arguments.out / "robustness.csv", index=False)
    figure = draw(frame, arguments.mode, arguments.setting)
    for kind in ("png", "pdf"):
        figure.savefig(arguments.out / f"robustness.{kind}", dpi=150)
    print(f"figure and numbers: {arguments.out}")


if __name__ == "__main__":
    with one_sentence():
        main()
