"""The figures of a report, one colour a method."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hmrl.results.runs import SPLITS, Runs
from hmrl.results.statistics import align, interval, trailing_mean
from hmrl.system.errors import UserError

_RELATIVE = "relative to predicting no motion"
_MANY = 4  # bars side by side
_SPARSE = 30  # so few points are marked
_FAMILIES = {"train": "training families", "test": "held-out families"}
_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_MARKS: dict[str, Literal["--", ":"]] = {"ceiling": "--", "floor": ":"}


class Panel(NamedTuple):
    """One set of axes with a curve a method."""

    title: str
    unit: str  # of the vertical axis
    metrics: tuple[str, ...]  # columns of metrics.csv; the first is solid, the second dashed
    window: float = 0.0  # environment steps of the trailing mean
    rate: bool = True  # whether values lie in [0, 1]


_DIAGNOSTICS = (
    Panel("agreement of action and macro-action", "share of same signs", ("vae/agreement",)),
    Panel(
        "decoder error (dashed: without z)",
        _RELATIVE,
        ("vae/decoder_error", "vae/decoder_error_without_z"),
        rate=False,
    ),
    Panel("information of belief on family", "nats", ("encoder/family_information",), rate=False),
)
# Of the columns latents/NAME...; others are drawn with their own name.
_LATENTS = {
    "probe": "balanced accuracy",
    "agreement": "share of same signs",
    "correlation": "correlation",
    "decoder_error": _RELATIVE,
    "decoder_error_without_z": _RELATIVE,
}


def colours(runs: Runs) -> dict[str, Any]:
    """Method -> colour, the same in all figures; ceilings and floors have none.

    Raises:
        UserError: for more methods than there are colours to tell them apart.
    """
    count = len(runs.proper)
    # The first is told apart with any colour vision (Petroff, 2021).
    palette = mpl.color_sequences["petroff10" if count <= 10 else "tab20"]
    if count > len(palette):
        raise UserError(f"{count} methods are too many to tell apart: at most {len(palette)} in a report")
    return dict(zip(runs.proper, palette, strict=False))


def learning(runs: Runs, evaluation: str, window: float) -> dict[str, Figure | None]:
    """What was logged in training, by the name of the figure.

    ``learning``: means over families. ``families``: each family, train ones of rollouts, test ones of
    evaluations. ``diagnostics``: how macro-action and belief are used, and every column ``latents/...``,
    training and held-out families in one panel.

    Args:
        runs: what to draw.
        evaluation: the evaluations' metric, as ``success``.
        window: of the rollouts' trailing mean, in environment steps.
    """
    means = [
        Panel("training families, rollouts", "success rate", ("rollout/success/mean",), window),
        Panel("training families, evaluation", "success rate", (f"{evaluation}/train/mean",)),
        Panel("held-out families, evaluation", "success rate", (f"{evaluation}/test/mean",)),
    ]
    families = [Panel(f"train: {f}", "success rate", (f"rollout/success/{f}",), window) for f in runs.learnt]
    test = runs.families.get("test", ())
    families += [Panel(f"test: {f}", "success rate", (f"{evaluation}/test/{f}",)) for f in test]
    latents = []
    logged = {name for name in runs.metrics if name.startswith("latents/")}
    for stem in sorted({re.sub("/(train|test)$", "", name) for name in logged}):
        name = stem.split("/")[1]
        splits = (f"{stem}/train", f"{stem}/test")
        both = logged & {*splits}
        title = stem.removeprefix("latents/") + (" (dashed: held-out families)" if both else "")
        unit, metrics = _LATENTS.get(name, name), splits if both else (stem,)
        latents.append(Panel(title, unit, metrics, rate=name == "probe"))
    return {
        "learning": _grid(means, runs, columns=3),
        "families": _grid(families, runs, columns=5),
        "diagnostics": _grid([*_DIAGNOSTICS, *latents], runs, columns=3),
    }


def _grid(panels: Sequence[Panel], runs: Runs, columns: int) -> Figure | None:
    """A figure of the panels that some method has data for; None without any."""
    colour = colours(runs)

    def there(panels: Iterable[Panel], methods: Iterable[str]) -> bool:
        return any(runs.series(method, name) for method in methods for p in panels for name in p.metrics)

    drawn = [method for method in runs.proper if there(panels, [method])]
    panels = [panel for panel in panels if there([panel], drawn)]
    if not panels:
        return None
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.4, 2.5 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    axes = axes[: len(panels)]
    for axis, panel in zip(axes, panels, strict=True):
        for method in drawn:
            _draw(axis, panel, runs, method, colour[method])
        axis.set_ylabel(panel.unit, fontsize=8)
        axis.set_xlabel("environment steps, millions", fontsize=8)
        if panel.rate:
            axis.set_ylim(-0.03, 1.03)
        elif panel.unit == _RELATIVE:  # an untrained decoder's thousands would flatten all that follows
            axis.set_ylim(top=min(axis.get_ylim()[1], 2.0))
        _plain(axis, panel.title)
    right = max(axis.get_xlim()[1] for axis in axes)
    for axis in axes:
        axis.set_xlim(0, right)
    _legend(figure, runs, drawn)
    return figure


def _draw(axis: Axes, panel: Panel, runs: Runs, method: str, colour: Any) -> None:
    """Means over seeds of trailing means, and their intervals over seeds, or the range of two."""
    for metric, style in zip(panel.metrics, ("-", "--"), strict=False):
        if not (logs := runs.series(method, metric)):
            continue
        grid, values = align([(steps, trailing_mean(steps, log, panel.window)) for steps, log in logs])
        if not len(grid):
            continue
        marker = "o" if len(grid) < _SPARSE and not panel.window else None
        axis.plot(grid / 1e6, values.mean(0), style, color=colour, linewidth=1.5, marker=marker, markersize=3)
        if ends := interval(values):
            axis.fill_between(grid / 1e6, *ends, color=colour, alpha=0.2, linewidth=0)


def trials(runs: Runs, mode: str, window: float) -> Figure | None:
    """Success by episode of a trial, each split apart: a colour a method, a style of line a protocol.

    Ceilings and floors are thin black lines.
    """
    if not (found := runs.trials(mode, window)):
        return None
    colour, methods = colours(runs), list(dict.fromkeys(method for method, _, _ in found))
    styles = dict(zip(dict.fromkeys(protocol for _, protocol, _ in found), cycle(_STYLES), strict=False))
    splits = [split for split in SPLITS if any(split == of for _, _, of in found)]
    figure = Figure(figsize=(3.6 * len(splits) + 0.4, 3.4), layout="constrained")
    axes = dict(zip(splits, figure.subplots(1, len(splits), sharey=True, squeeze=False).flat, strict=True))
    for (method, protocol, split), table in found.items():
        axis, values = axes[split], table.to_numpy()
        if role := runs.roles[method]:
            axis.plot(table.columns, values.mean(0), _MARKS[role], color="black", linewidth=1)
            continue
        own, mark = colour[method], "o" if len(table.columns) < _SPARSE else None
        axis.plot(table.columns, values.mean(0), styles[protocol], color=own, marker=mark, markersize=3)
        if ends := interval(values):
            axis.fill_between(table.columns, *ends, color=own, alpha=0.15, linewidth=0)
    for split, axis in axes.items():
        axis.set_xlabel("episode of a trial", fontsize=8)
        axis.set(ylim=(-0.03, 1.03))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axis, _FAMILIES[split])
    axes[splits[0]].set_ylabel("success rate", fontsize=8)
    handles = [Line2D([], [], color="grey", linestyle=style, label=name) for name, style in styles.items()]
    _legend(figure, runs, methods, handles)
    return figure


def success_bars(runs: Runs, protocol: str) -> Figure:
    """Success per family and mean, training and held-out families apart; ceiling and floor as thin marks."""
    methods = runs.tested(protocol)
    bars = [method for method in methods if method in runs.proper]
    width = 0.8 / max(1, len(bars))
    counts = [len(families) + 1 for families in runs.families.values()]
    if len(bars) > _MANY:  # above each other, so that names can be read
        size = (1.5 + max(counts) * 0.11 * len(bars), 3.5 * len(counts))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(counts), 1, squeeze=False)
    else:
        figure = Figure(figsize=(1.5 + sum(counts) * max(0.5, 0.22 * len(bars)), 3.8), layout="constrained")
        axes = figure.subplots(1, len(counts), sharey=True, squeeze=False, width_ratios=counts)
    colour = colours(runs)
    for axis, (split, families) in zip(axes.flat, runs.families.items(), strict=True):
        names = [*families, "mean"]
        for method in methods:
            known = [
                (i, e) for i, name in enumerate(names) if (e := runs.success(method, protocol, split, name))
            ]
            if role := runs.roles[method]:
                for i, e in known:
                    axis.hlines(e.value, i - 0.45, i + 0.45, "black", _MARKS[role], linewidth=1)
                continue
            left = -0.4 + width * (bars.index(method) + 0.5)
            axis.bar([i + left for i, _ in known], [e.value for _, e in known], width, color=colour[method])
            for i, e in known:
                if e.low is not None and e.high is not None:
                    axis.vlines(i + left, e.low, e.high, "black", linewidth=0.8)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        axis.axvline(len(names) - 1.5, color="grey", linewidth=0.6)
        axis.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.03))
        _plain(axis, _FAMILIES[split])
    for axis in axes[:, 0]:
        axis.set_ylabel("success rate", fontsize=8)
    _legend(figure, runs, methods)
    return figure


def success_means(runs: Runs, protocol: str) -> Figure:
    """The mean over families, a row a method, each split apart; ceiling and floor as lines."""
    methods = runs.tested(protocol)
    rows = [method for method in methods if method in runs.proper]
    figure = Figure(figsize=(2 + 3 * len(runs.families), 1.4 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(runs.families), sharey=True, squeeze=False)
    colour = colours(runs)
    for axis, split in zip(axes.flat, runs.families, strict=True):
        for method in methods:
            if (found := runs.success(method, protocol, split)) is None:
                continue
            if role := runs.roles[method]:
                axis.axvline(found.value, color="black", linestyle=_MARKS[role], linewidth=1)
                continue
            if found.low is not None and found.high is not None:
                axis.hlines(rows.index(method), found.low, found.high, colour[method], linewidth=2.5)
            axis.plot(found.value, rows.index(method), "o", color=colour[method])
        axis.set_yticks(range(len(rows)), rows)
        axis.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
        axis.set_xlabel("success rate", fontsize=8)
        _plain(axis, _FAMILIES[split])
        axis.grid(axis="x", alpha=0.3)
    _legend(figure, runs, [method for method in methods if method not in rows])
    return figure


def _plain(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, runs: Runs, methods: Sequence[str], more: Sequence[Line2D] = ()) -> None:
    """Above the axes: a colour a method, a thin black line a ceiling or floor, and ``more``."""
    colour = colours(runs)
    handles = [
        Line2D([], [], color="black", linewidth=1, linestyle=_MARKS[role], label=runs.titles[method])
        if (role := runs.roles[method])
        else Line2D([], [], color=colour[method], linewidth=4, label=runs.titles[method])
        for method in methods
    ] + list(more)
    if handles:
        widest = 0.75 + 0.075 * max(len(str(handle.get_label())) for handle in handles)  # inches
        columns = max(1, min(5, len(handles), int(figure.get_figwidth() / widest)))
        more_rows = -(-len(handles) // columns) - 1  # which would be taken from the axes
        figure.set_figheight(figure.get_figheight() + 0.2 * more_rows)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=9, frameon=False)


def save(figure: Figure, path: Path, formats: Sequence[str]) -> None:
    """Write ``path`` with the suffix of each format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in formats:
        # Equal data shall give equal files.
        metadata = {"CreationDate": None} if suffix == "pdf" else None
        figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=130, metadata=metadata)
