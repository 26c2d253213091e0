"""Learning curves of finished or running runs, from their ``metrics.csv``.

    python scripts/plot_runs.py runs/ml10 runs/flat --labels "three levels" "flat PPO" --out results/figures

Writes ``success.png`` (mean over families, in training and on held-out families), ``families.png`` (one
panel a training family) and ``diagnostics.png`` (belief, macro-action, PPO) into the output folder.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

DIAGNOSTICS = {
    "encoder/entropy": "belief entropy, nats",
    "encoder/marginal_entropy": "entropy of the mean belief, nats",
    "encoder/family_information": "information of belief on family, nats",
    "encoder/policy_kl": "KL in the policy by encoder updates",
    "vae/decoder_error": "decoder error / error of standing still",
    "vae/kl": "KL of macro-action to policy, nats",
    "ppo/explained_variance": "explained variance of the critic",
    "ppo/approx_kl": "approximate KL of PPO",
    "ppo/action_std": "standard deviation of actions",
}


def read(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric name -> (environment steps, values), without the rows that lack it."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    series = {}
    for key in rows[0]:
        pairs = [(float(row["step"]), float(row[key])) for row in rows if row[key] != ""]
        series[key] = tuple(np.array(pairs).T) if pairs else (np.empty(0), np.empty(0))
    return series


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Trailing mean over ``width`` iterations."""
    return np.array([values[max(0, i - width + 1) : i + 1].mean() for i in range(len(values))])


def draw(axis: Axes, runs: Iterable[tuple[str, dict]], key: str, title: str, *, smoothed: bool) -> None:
    """One panel: a line a run."""
    for i, (label, series) in enumerate(runs):
        if key not in series:
            continue
        steps, values = series[key]
        colour = f"C{i}"
        if smoothed and len(values) > 20:  # evaluations are few, and as they are
            axis.plot(steps / 1e6, values, color=colour, alpha=0.2, linewidth=0.8)
            values = smooth(values)
        axis.plot(
            steps / 1e6, values, color=colour, label=label, marker=None if smoothed else "o", markersize=3
        )
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)


def figure(
    runs: list, panels: dict[str, str], columns: int, path: Path, *, smoothed: bool, unit: bool
) -> None:
    """A grid of panels, saved to ``path``."""
    rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.5 * rows), sharex=True, squeeze=False)
    for axis, (key, title) in zip(axes.flat, panels.items(), strict=False):
        draw(axis, runs, key, title, smoothed=smoothed)
        if unit:
            axis.set_ylim(-0.03, 1.03)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("environment steps, millions", fontsize=8)
    lines = {
        label: line
        for axis in axes.flat
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    fig.legend(lines.values(), lines.keys(), loc="upper center", ncol=len(lines), fontsize=9, frameon=False)
    fig.tight_layout(rect=(0, 0, 1, 0.97 - 0.06 / rows))
    fig.savefig(path, dpi=130)
    plt.close(fig)


def main() -> None:
    """Parse arguments and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    args = parser.parse_args()
    labels = args.labels or [run.name for run in args.runs]
    if len(labels) != len(args.runs):
        parser.error(f"{len(labels)} labels for {len(args.runs)} runs")
    for run in args.runs:
        if not (run / "metrics.csv").is_file():
            parser.error(f"{run} has no metrics.csv")
    runs = [(label, read(run)) for label, run in zip(labels, args.runs, strict=True)]
    args.out.mkdir(parents=True, exist_ok=True)
    prefix = "rollout/success/"
    families = list(dict.fromkeys(k.removeprefix(prefix) for _, s in runs for k in s if k.startswith(prefix)))
    families.remove("mean")
    success = {
        "rollout/success/mean": "training rollouts, any step",
        "success/train/mean": "train families, sampled actions",
        "success/test/mean": "held-out families, sampled actions",
    }
    figure(runs, success, 3, args.out / "success.png", smoothed=True, unit=True)
    panels = {f"{prefix}{family}": family for family in families}
    figure(runs, panels, 5, args.out / "families.png", smoothed=True, unit=True)
    figure(runs, DIAGNOSTICS, 3, args.out / "diagnostics.png", smoothed=False, unit=False)
    print(f"figures: {args.out}/success.png, families.png, diagnostics.png")


if __name__ == "__main__":
    main()
