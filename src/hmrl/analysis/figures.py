"""What the latent variables look like: findings by split, each drawing returned as a Figure.

Matplotlib is loaded inside the functions, so that training without figures does not wait for it, and
without pyplot, so that no display is needed and no figure is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hmrl.analysis.latents import Findings, MacroFindings
from hmrl.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"train": "#2a6fbb", "test": "#d9662b"}  # told apart by the colour-blind, too
_INK, _MUTED = "#222222", "#8a8a8a"
_POINTS = 3000  # of a scatter: more hide one another
_SHOWN = 0.995  # share of the displacements within the axes
_COLUMNS = 5  # of small multiples


def draw(findings: Mapping[str, Findings]) -> dict[str, Figure]:
    """The figures that ``findings``, by split, have something for: by file name."""
    drawn: dict[str, Figure] = {}
    seen = [(split, name, found) for split, found in findings.items() for name in found.belief]
    if seen:
        beliefs = {f"{split} {name}": found.belief[name] for split, name, found in seen}
        solved = {f"{split} {name}": found.success_step[name] for split, name, found in seen}
        drawn["belief"] = belief_panels(beliefs, solved)
    if macro := {split: found.macro for split, found in findings.items() if found.macro}:
        drawn |= {"displacement": displacement_scatter(macro), "decoder_error": decoder_bars(macro)}
    if probed := {split: found.probe for split, found in findings.items() if found.probe}:
        drawn["probe"] = probe_bars(probed)
    return drawn


def belief_panels(belief: Mapping[str, FloatArray], success_step: Mapping[str, int | None]) -> Figure:
    """The belief over one episode, a panel a family: categories upwards, decisions to the right.

    Args:
        belief: probabilities by title of the panel, ``[T+1, K]`` each.
        success_step: by the same titles, the decision at which the episode was solved first, or None.
    """
    rows, columns = ceil(len(belief) / _COLUMNS), min(len(belief), _COLUMNS)
    figure = blank(2.4 * columns + 1, 1.6 * rows + 0.8)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(belief) :]:
        ax.set_axis_off()
    for ax, (title, values) in zip(axes.flat, belief.items(), strict=False):
        solved = success_step[title]
        image = ax.imshow(
            values.T, aspect="auto", origin="lower", interpolation="nearest", cmap="Blues", vmin=0, vmax=1
        )
        if solved is not None:
            ax.axvline(solved, color=_COLOURS["test"], linewidth=1.5)
        ax.set_title(title if solved is None else f"{title}, solved", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.set_yticks(range(0, values.shape[1], ceil(values.shape[1] / 5)))
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("probability", fontsize=8)
    figure.supxlabel("decision", fontsize=9)
    figure.supylabel("category", fontsize=9)
    figure.suptitle("belief y over one episode; the line marks the first success", fontsize=10)
    return figure


def displacement_scatter(found: Mapping[str, MacroFindings]) -> Figure:
    """Macro-action against where the hand went until the goal step: a row a split, a column an axis."""
    dims = next(iter(found.values())).macro_action.shape[1]
    figure = blank(2.6 * dims + 0.6, 2.4 * len(found) + 0.6)
    axes = figure.subplots(len(found), dims, sharex=True, sharey="col", squeeze=False)
    for row, (split, macro) in zip(axes, found.items(), strict=True):
        every = max(1, ceil(len(macro.macro_action) / _POINTS))
        for d, ax in enumerate(row):
            x, y = macro.macro_action[::every, d], macro.displacement[::every, d]
            # Rasterised: thousands of points make a slow PDF.
            ax.scatter(x, y, s=3, alpha=0.25, linewidths=0, color=_COLOURS[split], rasterized=True)
            ax.axhline(0, color=_MUTED, linewidth=0.6, zorder=0)
            ax.axvline(0, color=_MUTED, linewidth=0.6, zorder=0)
            ax.set_title(f"{split}, axis {'xyz'[d]}: r = {macro.correlation[d]:.2f}", fontsize=9)
            _plain(ax)
    for d in range(dims):  # a hand that is reset or thrown back would flatten all the rest
        far = max(float(np.quantile(np.abs(m.displacement[:, d]), _SHOWN)) for m in found.values())
        axes[0, d].set_ylim(-1.1 * far or -1, 1.1 * far or 1)
    figure.supxlabel("macro-action z", fontsize=9)
    figure.supylabel(f"displacement of the hand to the goal step, m ({_SHOWN:.1%} of it)", fontsize=9)
    return figure


def decoder_bars(found: Mapping[str, MacroFindings]) -> Figure:
    """Relative error of the decoder: a bar a family given z, a mark for z's average."""
    bars = [(split, family) for split, macro in found.items() for family in macro.decoder_error]
    given = [found[split].decoder_error[family] for split, family in bars]
    without = [found[split].decoder_error_without_z[family] for split, family in bars]
    figure = blank(0.45 * len(bars) + 2, 3.6)
    ax = figure.subplots()
    for split in found:
        at = [i for i, (s, _) in enumerate(bars) if s == split]
        ax.bar(at, [given[i] for i in at], width=0.7, color=_COLOURS[split], label=f"{split}, given z")
    ax.scatter(range(len(bars)), without, marker="_", s=150, color=_INK, label="given z's average", zorder=3)
    ax.axhline(1, color=_MUTED, linewidth=1, linestyle="--", label="predicting no motion")
    ax.set_xticks(range(len(bars)), [family for _, family in bars], rotation=40, ha="right")
    ax.set_ylabel("decoder error", fontsize=9)
    ax.set_ylim(0, 1.05 * max(1, *without, *given))
    _plain(ax, legend=True)
    return figure


def probe_bars(accuracy: Mapping[str, Mapping[str, float]]) -> Figure:
    """How well a linear classifier tells the family, by what it sees: a bar a split, chance as a line.

    Args:
        accuracy: split -> features -> balanced accuracy; "chance" among the features is the line.
    """
    features = [name for name in next(iter(accuracy.values())) if name != "chance"]
    figure = blank(1.1 * len(features) + 1.6, 3.2)
    ax = figure.subplots()
    width = 0.8 / len(accuracy)
    for n, (split, values) in enumerate(accuracy.items()):
        at = np.arange(len(features)) - 0.4 + width * (n + 0.5)
        heights, colour = [values[f] for f in features], _COLOURS[split]
        bars = ax.bar(at, heights, width=0.94 * width, color=colour, label=split)
        ax.bar_label(bars, fmt="%.2f", fontsize=7, color=_INK, padding=1)
        ax.axhline(values["chance"], color=colour, linewidth=1, linestyle="--", label=f"chance, {split}")
    ax.set_xticks(range(len(features)), [f.replace("_", "-") for f in features])
    ax.set_ylabel("balanced accuracy of the family", fontsize=9)
    ax.set_ylim(0, 1.05)
    _plain(ax, legend=True)
    return figure


def _plain(ax: Axes, *, legend: bool = False) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    if legend:
        ax.legend(fontsize=8, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """As PNG and as PDF, whatever suffix ``path`` has."""
    for kind in ("png", "pdf"):
        figure.savefig(path.with_suffix(f".{kind}"))
