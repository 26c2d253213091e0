"""The figures of a report, one colour a method."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hmrl.results.methods import Method, curve, families_of, success
from hmrl.results.reading import SPLITS
from hmrl.results.statistics import Estimate
from hmrl.results.tables import tested
from hmrl.system.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PALETTE = "petroff10"  # told apart with any colour vision (Petroff, 2021)
_LARGE_PALETTE = "tab20"  # where that is too small
_RELATIVE = "relative to predicting no motion"
_MANY = 4  # bars side by side
_SPARSE = 30  # so few points are marked
_MARKS: dict[str, Literal["--", ":"]] = {"ceiling": "--", "floor": ":"}


class Panel(NamedTuple):
    """One set of axes with a curve a method.

    Args:
        title: above it.
        unit: of the vertical axis.
        metrics: columns of ``metrics.csv``; the first is solid, the second dashed.
        window: environment steps of the trailing mean.
        rate: whether values lie in [0, 1].
    """

    title: str
    unit: str
    metrics: tuple[str, ...]
    window: float = 0.0
    rate: bool = True


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


def colours(methods: Sequence[Method]) -> dict[str, Any]:
    """Label -> colour, the same in all figures; ceilings and floors have none.

    Raises:
        UserError: for more methods than there are colours to tell them apart.
    """
    import matplotlib as mpl

    labels = [method.label for method in methods if not method.role]
    palette = mpl.color_sequences[_PALETTE]
    if len(labels) > len(palette):
        palette = mpl.color_sequences[_LARGE_PALETTE]
    if len(labels) > len(palette):
        raise UserError(
            f"{len(labels)} methods are too many to tell apart: at most {len(palette)} in a report"
        )
    return dict(zip(labels, palette, strict=False))


def learning_curves(methods: Sequence[Method], evaluation: str, window: float) -> Figure | None:
    """Mean over families: training rollouts, and evaluations of train and test families.

    Args:
        methods: what to draw.
        evaluation: the evaluations' metric, as ``success``.
        window: of the rollouts' trailing mean, in environment steps.
    """
    panels = [
        Panel("train families, rollouts", "success rate", ("rollout/success/mean",), window),
        Panel("train families, evaluation", "success rate", (f"{evaluation}/train/mean",)),
        Panel("test families, evaluation", "success rate", (f"{evaluation}/test/mean",)),
    ]
    return _grid(panels, methods, columns=3)


def family_curves(methods: Sequence[Method], evaluation: str, window: float) -> Figure | None:
    """A panel a family: rollouts of train families, evaluations of test families."""
    panels = [
        *(
            Panel(f"train: {family}", "success rate", (f"rollout/success/{family}",), window)
            for family in families_of(methods, "train")
        ),
        *(
            Panel(f"test: {family}", "success rate", (f"{evaluation}/test/{family}",))
            for family in families_of(methods, "test")
        ),
    ]
    return _grid(panels, methods, columns=5)


def diagnostics(methods: Sequence[Method]) -> Figure | None:
    """How macro-action and belief are used, and every column ``latents/...``, train and test in one panel."""
    logged = {metric for method in methods for run in method.runs for metric in run.metrics}
    stems = {re.sub("/(train|test)$", "", metric) for metric in logged if metric.startswith("latents/")}
    latents = []
    for stem in sorted(stems):
        _, name, *_ = stem.split("/")
        splits = (f"{stem}/train", f"{stem}/test")
        both = logged & {*splits}
        title = stem.removeprefix("latents/") + (" (dashed: test families)" if both else "")
        metrics = splits if both else (stem,)
        latents.append(Panel(title, _LATENTS.get(name, name), metrics, rate=name == "probe"))
    return _grid([*_DIAGNOSTICS, *latents], methods, columns=3)


def _grid(panels: Sequence[Panel], methods: Sequence[Method], columns: int) -> Figure | None:
    """A figure of the panels that some method has data for; None without any."""
    from matplotlib.figure import Figure

    methods = [method for method in methods if not method.role]
    colour = colours(methods)
    drawn = [m for m in methods if any(m.series(metric) for panel in panels for metric in panel.metrics)]
    panels = [p for p in panels if any(method.series(metric) for method in drawn for metric in p.metrics)]
    if not panels:
        return None
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.4, 2.5 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        for method in drawn:
            _draw(axis, panel, method, colour[method.label])
        axis.set_title(panel.title, fontsize=9)
        axis.set_ylabel(panel.unit, fontsize=8)
        axis.set_xlabel("environment steps, millions", fontsize=8)
        if panel.rate:
            axis.set_ylim(-0.03, 1.03)
        elif panel.unit == _RELATIVE:  # an untrained decoder's thousands would flatten all that follows
            axis.set_ylim(top=min(axis.get_ylim()[1], 2.0))
        _plain(axis)
    right = max(axis.get_xlim()[1] for axis in axes[: len(panels)])
    for axis in axes[: len(panels)]:
        axis.set_xlim(0, right)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    _legend(figure, drawn, colour)
    return figure


def _draw(axis: Axes, panel: Panel, method: Method, colour: Any) -> None:
    for metric, style in zip(panel.metrics, ("-", "--"), strict=False):
        found = curve(method.series(metric), panel.window)
        if found is None:
            continue
        millions = found.steps / 1e6
        marker = "o" if len(millions) < _SPARSE and not panel.window else None
        axis.plot(millions, found.mean, style, color=colour, linewidth=1.5, marker=marker, markersize=3)
        if found.low is not None and found.high is not None:
            axis.fill_between(millions, found.low, found.high, color=colour, alpha=0.2, linewidth=0)


def success_bars(methods: Sequence[Method], protocol: str) -> Figure:
    """Success per family and mean, train and test families apart; ceiling and floor as thin marks."""
    from matplotlib.figure import Figure

    columns = tested(methods, protocol)
    groups = {split: (*families, "mean") for split in SPLITS if (families := families_of(methods, split))}
    bars = [method for method, _ in columns if not method.role]
    width = 0.8 / max(1, len(bars))
    counts = list(map(len, groups.values()))
    if len(bars) > _MANY:  # above each other, so that names can be read
        size = (1.5 + max(counts) * 0.11 * len(bars), 3.5 * len(groups))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(groups), 1, squeeze=False)
    else:
        figure = Figure(figsize=(1.5 + sum(counts) * max(0.5, 0.22 * len(bars)), 3.8), layout="constrained")
        axes = figure.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=counts)
    colour = colours(methods)
    for axis, (split, names) in zip(axes.flat, groups.items(), strict=True):
        for method, results in columns:
            found = [success(results, split, name) for name in names]
            if method.role:
                for i, estimate in enumerate(found):
                    if estimate:
                        axis.hlines(
                            estimate.value, i - 0.45, i + 0.45, "black", _MARKS[method.role], linewidth=1
                        )
            else:
                left = -0.4 + width * (bars.index(method) + 0.5)
                _bars(axis, found, left, width, colour[method.label])
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        axis.axvline(len(names) - 1.5, color="grey", linewidth=0.6)
        axis.set_title(f"{split} families", fontsize=9)
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_ylim(0, 1.03)
        _plain(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("success rate", fontsize=8)
    _legend(figure, [method for method, _ in columns], colour)
    return figure


def success_means(methods: Sequence[Method], protocol: str) -> Figure:
    """The mean over families, a row a method, train and test families apart; ceiling and floor as lines."""
    from matplotlib.figure import Figure

    columns = tested(methods, protocol)
    rows = [(method, results) for method, results in columns if not method.role]
    splits = [split for split in SPLITS if families_of(methods, split)]
    size = (2 + 3 * len(splits), 1.4 + 0.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)
    colour = colours(methods)
    for axis, split in zip(axes.flat, splits, strict=True):
        for row, (method, results) in enumerate(rows):
            if (found := success(results, split, "mean")) is None:
                continue
            if found.low is not None and found.high is not None:
                axis.hlines(row, found.low, found.high, colour[method.label], linewidth=2.5)
            axis.plot(found.value, row, "o", color=colour[method.label])
        for method, results in columns:
            if method.role and (found := success(results, split, "mean")):
                axis.axvline(found.value, color="black", linestyle=_MARKS[method.role], linewidth=1)
        axis.set_yticks(range(len(rows)), [method.label for method, _ in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel("success rate", fontsize=8)
        axis.set_title(f"{split} families", fontsize=9)
        _plain(axis)
        axis.grid(axis="x", alpha=0.3)
    _legend(figure, [method for method, _ in columns if method.role], colour)
    return figure


def _bars(axis: Axes, found: Sequence[Estimate | None], left: float, width: float, colour: Any) -> None:
    known = [(i + left, e) for i, e in enumerate(found) if e is not None]
    axis.bar([x for x, _ in known], [e.value for _, e in known], width, color=colour)
    for x, e in known:
        if e.low is not None and e.high is not None:
            axis.vlines(x, e.low, e.high, "black", linewidth=0.8)


def _plain(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, methods: Sequence[Method], colour: Mapping[str, Any]) -> None:
    """Above the axes: a colour a method, a thin black line a ceiling or floor."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="black", linewidth=1, linestyle=_MARKS[method.role], label=method.title)
        if method.role
        else Line2D([], [], color=colour[method.label], linewidth=4, label=method.label)
        for method in methods
    ]
    if not handles:
        return
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(5, len(handles)), fontsize=9, frameon=False
    )


def save(figure: Figure, path: Path, formats: Sequence[str]) -> None:
    """Write ``path`` with the suffix of each format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in formats:
        # Equal data shall give equal files.
        metadata = {"CreationDate": None} if suffix == "pdf" else None
        figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=130, metadata=metadata)
