"""The tables of a report, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hmrl.results.runs import KEYS, SPLITS, Runs
from hmrl.results.statistics import (
    BOOTSTRAP_SEEDS,
    LEVEL,
    RESAMPLES,
    Array,
    Estimate,
    area_under,
    at_the_end,
    difference,
    estimate,
    probability_of_improvement,
    steps_to_reach,
)

if TYPE_CHECKING:
    from hmrl.types import Split

NOTHING = "–"
FINE_TUNING_RATES = (0.2, 0.5, 0.8)  # success, to which steps of adaptation are counted
OVER_SEEDS = (
    f"Brackets: {100 * LEVEL:.0f} % intervals of the mean over seeds (Student's t). ‡ Two seeds: the range "
    "of two seeds, which is no interval. No brackets: one seed, or too few for an interval."
)
INTERVALS = (
    f"{OVER_SEEDS} † One seed: the interval of its results file, over goals (under paper, over episodes on "
    "one goal), which says nothing about other seeds; none where all episodes of a family are equal. A "
    "seed's value is its unweighted mean over families."
)
_BOOTSTRAP = (
    f"percentile bootstrap with {RESAMPLES:,} resamples of whole seeds, which is too narrow for few of them: "
    f"none below {BOOTSTRAP_SEEDS} seeds"
)
IQM = (
    "IQM: mean over the middle half of seeds; with fewer than four seeds it equals the mean. Its interval: "
    f"{_BOOTSTRAP}."
)
IMPROVEMENT = (
    "How likely a run of X does better than a run of Y on the same family: the mean over families of "
    "P(X > Y) + P(X = Y) / 2 over all pairs of seeds (Agarwal et al., Deep Reinforcement Learning at the "
    f"Edge of the Statistical Precipice, 2021). Its interval: {_BOOTSTRAP} of either method. X - Y: "
    f"difference of the means over families, with a {100 * LEVEL:.0f} % t interval over seeds: of the seeds' "
    "own differences where both methods have the same seeds and goals (paired; ‡ of two, the range of two "
    "seeds), else Welch's; none of one seed, nor, unpaired, where a method has fewer than three."
)
STEPS = (
    "Cells: median over seeds (least to most; how many seeds got there). A seed that never got there counts "
    "as later than all others, so the median is not reached where half of the seeds or more did not. ≤: it "
    "was there at the end of the first whole window, or before. –: a run is shorter than a window."
)

FINE_TUNING = (
    "A protocol of its own: success on families that are learnt, in training rollouts, by environment steps "
    "since training began, from another run's weights or from scratch. These numbers are neither zero-shot "
    "nor few-shot ones. Area: under the curve, divided by its steps, so that it is the mean success on the "
    "way. P(X > Y): how likely a run of X has a larger area than a run of Y on the same family. Its "
    f"interval: {_BOOTSTRAP} of either method. Differences: as in the table of training rollouts."
)
ROLLOUTS = (
    "Families that are learnt, with fresh goals, as agents acted in training; mean over families. "
    "Differences: paired where both methods have the same seeds (‡ of two, their range), else Welch's; of "
    "equal environment steps only."
)
TRIALS = (
    "Success in each episode of a trial, mean over families: of training rollouts at the end of training, or "
    "in the adaptation episodes of a protocol. Nothing has been adapted to in the first one. A protocol with "
    "beliefs searches for the belief to act on: it tries others before it settles."
)
LATENTS = (
    "Of the agents that were tested, ten episodes a family, sampled actions; means over families. Decoder "
    "error: relative to predicting no motion, with z and with its average instead; the nearer the two, the "
    "less z says. It is comparable between methods only where decoders predict the same. Correlation: of z "
    "with where the hand went, mean over axes. Agreement: of the signs of z and of the action, and of "
    "independent ones with the same shares of signs. Probe: balanced accuracy of a linear classifier that "
    "tells the family from z, y, or the ego-state."
)
FORGETTING = (
    "Success in training families after the last block. Backward transfer: success after the last block "
    "minus success after the block that trained the family. Forgetting: best success after any earlier "
    "block minus success after the last one; the best of several noisy evaluations is too high, so it is "
    "biased upward, and more so with few goals or many blocks. Means over families."
)
_LATENT_COLUMNS = {
    "decoder error": "decoder_error",
    "without z": "decoder_error_without_z",
    "correlation": "correlation",
    "agreement": "agreement",
    "by chance": "agreement_by_chance",
    "probe of z": "probe/z",
    "probe of y": "probe/y",
    "probe of ego-state": "probe/ego_state",
    "probe by chance": "probe/chance",
}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column left-aligned, the others right-aligned; empty without rows."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    top, *body = ([cell.replace("|", "\\|") for cell in row] for row in (header, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in (top, ruler, *body)) + "\n" if body else ""


def cell(found: Estimate | None) -> str:
    """``0.47 [0.44, 0.51]``; with a dagger if that is over goals, with a double one if it is a range."""
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    dagger = {"goals": " †", "range": " ‡"}.get(found.over, "")
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]{dagger}"


def plain(value: Any) -> str:
    """A parameter, in words."""
    return value if isinstance(value, str) else json.dumps(value)


def protocol_text(runs: Runs, protocol: str) -> str:
    """The protocol's parameters, as the first results file has them."""
    parameters = runs.of_protocol(protocol)["parameters"].iloc[0]
    return ", ".join(f"{key}: {plain(value)}" for key, value in parameters.items() if key != "name")


def success_table(runs: Runs, protocol: str) -> str:
    """One row a method: mean and interquartile mean over seeds, on training and held-out families."""
    columns: dict[str, Callable[[str, str, Split], Estimate | None]]
    columns = {"mean": runs.success, "IQM": runs.success_iqm}
    if any(runs.official(m, protocol, split) for m in runs.tested(protocol) for split in SPLITS):
        columns["Meta-World's own"] = runs.official
    rows = []
    for method, results in runs.of_protocol(protocol).groupby("method", sort=False):
        steps = NOTHING if runs.roles[method] else span(results["steps"])
        seeds = f"{len(results)} ({', '.join(map(str, results['seed']))})"
        cells = [cell(of(method, protocol, split)) for split in SPLITS for of in columns.values()]
        rows.append([runs.titles[method], seeds, steps, *cells])
    names = [f"{split}: {name}" for split in SPLITS for name in columns]
    return markdown(["method", "seeds", "environment steps", *names], rows)


def span(steps: Iterable[int]) -> str:
    """``2,000,000``, or the least and the most."""
    return "–".join(f"{n:,}" for n in sorted({min(steps), max(steps)}))


def family_table(runs: Runs, protocol: str) -> str:
    """One row a family and one a split's mean, one column a method."""
    methods = runs.tested(protocol)
    rows = [
        [f"{split} {family}", *(cell(runs.success(method, protocol, split, family)) for method in methods)]
        for split, families in runs.families.items()
        for family in families
    ]
    for split in runs.families:
        means = (cell(runs.success(method, protocol, split)) for method in methods)
        rows.append([f"**{split} mean**", *(f"**{mean}**" for mean in means)])
    return markdown(["family", *(runs.titles[method] for method in methods)], rows)


def rollouts_table(runs: Runs, window: float, baseline: str | None = None) -> str:
    """Success in training rollouts at the end of a method's shortest run, a row a method; empty without logs.

    Args:
        window: of the trailing mean, in environment steps.
        baseline: label of what is taken off, where it ends with as many steps.
    """
    found = {}
    for method in runs.proper:
        if curves := runs.series(method, "rollout/success/mean"):
            until = min(steps[-1] for steps, _ in curves)
            if max(steps[0] for steps, _ in curves) > until:
                continue  # their logs do not overlap
            seeds = runs.seeds(method, "rollout/success/mean")
            found[method] = until, seeds, np.array([at_the_end(*curve, until, window) for curve in curves])
    rows = []
    for method, (until, seeds, values) in found.items():
        each = ", ".join(f"{value:.2f}" for value in values)
        row = [runs.titles[method], ", ".join(map(str, seeds)), f"{until:,.0f}", each, cell(estimate(values))]
        if baseline in found:
            other_until, other_seeds, others = found[baseline]
            comparable = method != baseline and until == other_until
            less = difference(values, others, paired=seeds == other_seeds) if comparable else None
            row.append(cell(less))
        rows.append(row)
    header = ["method", "seeds", "environment steps", "success of each seed", "mean"]
    return markdown([*header, *([f"minus {baseline}"] if baseline in found else [])], rows)


def steps_table(runs: Runs, metric: str, thresholds: Sequence[float], window: float) -> str:
    """Environment steps to each success rate, a row a method, a column a threshold; empty without data."""
    rows = []
    for method, title in runs.titles.items():
        if reached := _reached(runs, method, metric, thresholds, window):
            rows.append([title, *reached])
    return markdown(["method", *(f"success {t:g}" for t in thresholds)], rows)


def _reached(runs: Runs, method: str, metric: str, thresholds: Sequence[float], window: float) -> list[str]:
    """A cell a threshold; none without data, or without that of the beginning."""
    if not (curves := runs.series(method, metric)) or runs.begun_late(method):
        return []
    lengths = np.array([steps[-1] for steps, _ in curves])
    if lengths.min() < window:
        return [NOTHING] * len(thresholds)
    first = np.array([steps[steps >= window][0] for steps, _ in curves])
    found = [[steps_to_reach(*curve, t, window) for curve in curves] for t in thresholds]
    return [reached_cell(np.array(steps), lengths, first) for steps in found]


def fine_tuning_table(runs: Runs, window: float, baseline: str | None = None) -> str:
    """How soon families are learnt, a row a method; empty if no run began from another run's weights.

    Areas end with the shortest run, so that all are of the same number of environment steps. Methods whose
    rollouts did not all have all families, as under a curriculum, have no area and no row; nor have those
    whose logs do not begin with their training.

    Args:
        window: of the trailing mean that reaches a success rate, in environment steps.
        baseline: label of the only Y of P(X > Y); None: each method that begins from scratch.
    """
    metrics = [f"rollout/success/{family}" for family in runs.learnt]
    whole = [method for method in runs.proper if not runs.begun_late(method)]
    logged = {method: [runs.series(method, metric) for metric in metrics] for method in whole}
    rollouts = {m: [len(steps) for steps, _ in runs.series(m, "rollout/success/mean")] for m in logged}
    logged = {
        method: curves
        for method, curves in logged.items()
        if curves and all([len(steps) for steps, _ in seeds] == rollouts[method] != [] for seeds in curves)
    }
    if not runs.fine_tuned & logged.keys():
        return ""
    until = min(steps[-1] for curves in logged.values() for seeds in curves for steps, _ in seeds)
    areas = {
        method: np.array([[area_under(*seed, until) for seed in seeds] for seeds in curves]).T
        for method, curves in logged.items()
    }  # [N, F]
    seeds = {method: runs.seeds(method, "rollout/success/mean") for method in areas}
    others = [m for m in areas if (m == baseline if baseline else m not in runs.fine_tuned)]
    rows = []
    for method, area in areas.items():
        reached = _reached(runs, method, "rollout/success/mean", FINE_TUNING_RATES, window)
        better = []
        for other in others:
            paired = seeds[method] == seeds[other]
            more = difference(area.mean(1), areas[other].mean(1), paired=paired)
            both = [cell(probability_of_improvement(area, areas[other])), cell(more)]
            better += [NOTHING, NOTHING] if method == other else both
        rows.append([runs.titles[method], str(len(area)), cell(estimate(area.mean(1))), *reached, *better])
    header = ["method", "seeds", f"area to {until:,.0f} steps"]
    header += [f"success {rate:g}" for rate in FINE_TUNING_RATES]
    return markdown([*header, *(name for y in others for name in (f"P(X > {y})", f"area minus {y}'s"))], rows)


def reached_cell(steps: Array, lengths: Array, first: Array | float = 0.0) -> str:
    """Median over seeds, least and most, and how many got there.

    Args:
        steps: of each seed, infinity if it never got there.
        lengths: environment steps that each seed ran.
        first: the first at which each seed could be there; what is there by then has ``≤``.
    """
    bounds = set(steps[steps <= first])
    never = np.isinf(steps)
    count = f"{(~never).sum()} of {len(steps)}"
    until = f"not reached by {lengths[never].min():,.0f}" if never.any() else ""
    if never.all():
        return f"{until} ({count})"

    def number(n: float) -> str:
        return f"{'≤ ' if n in bounds else ''}{n:,.0f}"

    median = until if np.isinf(np.median(steps)) else number(float(np.median(steps)))
    most = "never" if never.any() else number(steps.max())
    return f"{median} ({number(steps.min())} to {most}; {count})" if len(steps) > 1 else f"{median} ({count})"


def improvement_table(runs: Runs, protocol: str, baseline: str | None = None) -> str:
    """P(X > Y) and the difference of X and Y for each pair of methods; empty with fewer than two.

    Args:
        baseline: label of the only Y.
    """
    rows = []
    tested = dict(iter(runs.of_protocol(protocol).groupby("method", sort=False)))
    # Of pairs, both have the same seeds, each tested on the same goals.
    goals = {m: of[["seed", "evaluation_seed", "parameters"]].to_dict("records") for m, of in tested.items()}
    methods = [method for method in tested if method in runs.proper]
    pairs = list(combinations(methods, 2))
    if baseline:
        pairs = [(x, baseline) for x in methods if x != baseline and baseline in methods]
    for x, y in pairs:
        paired = goals[x] == goals[y]
        row = [x, y, f"{len(tested[x])} and {len(tested[y])}{', paired' if paired else ''}"]
        for split in SPLITS:
            of_x, of_y = (runs.per_family(method, protocol, split) for method in (x, y))
            if len(of_x) and len(of_y):
                row.append(cell(probability_of_improvement(of_x, of_y)))
                row.append(cell(difference(of_x.mean(1), of_y.mean(1), paired=paired)))
            else:
                row += [NOTHING, NOTHING]
        rows.append(row)
    columns = [f"{split}: {what}" for split in SPLITS for what in ("P(X > Y)", "X - Y")]
    return markdown(["X", "Y", "seeds", *columns], rows)


def latents_table(runs: Runs) -> str:
    """Belief and macro-action, a row a method and split; empty if no run has anything."""
    rows = []
    for method, title in runs.titles.items():
        for split in SPLITS:
            found = _numbers(runs, method, split, list(_LATENT_COLUMNS.values())).dropna(how="all")
            if len(found):
                rows.append([title, split, str(len(found)), *_cells(found)])
    table = pd.DataFrame(rows, columns=["method", "families", "seeds", *_LATENT_COLUMNS])
    table = table.loc[:, (table != NOTHING).any()]
    pooled = runs.numbers.loc[runs.numbers["name"] == "pooled", "method"].unique()
    titles = ", ".join(runs.titles[method] for method in pooled)
    said = f"\nCorrelation and agreements are pooled over families, not means: {titles}.\n" if titles else ""
    return markdown(list(table), table.to_numpy()) + said


def trials_table(runs: Runs, mode: str, window: float) -> str:
    """Success by episode of a trial, a row an episode; empty if nothing is of trials."""
    found = runs.trials(mode, window)
    episodes = sorted({episode for table in found.values() for episode in table})
    rows = [
        [str(n), *(cell(estimate(table[n].to_numpy()) if n in table else None) for table in found.values())]
        for n in episodes
    ]
    columns = [f"{split}: {runs.titles[method]}, {protocol}" for method, protocol, split in found]
    return markdown(["episode", *columns], rows)


def forgetting_table(runs: Runs) -> str:
    """What was left after a curriculum's last block, a row a method; empty if no run has anything."""
    rows = []
    names = ["success", "backward_transfer", "forgetting"]
    for method, title in runs.titles.items():
        found = _numbers(runs, method, "train", [f"forgetting/{name}" for name in ("blocks", *names)])
        found = found.dropna(subset="forgetting/blocks")
        if len(found):
            blocks = found.pop("forgetting/blocks")
            lengths = "–".join(f"{n:g}" for n in sorted(set(blocks)))
            rows.append([title, str(len(found)), lengths, *_cells(found)])
    header = ["method", "seeds", "blocks", "success", "backward transfer", "forgetting"]
    return markdown(header, rows)


def _numbers(runs: Runs, method: str, split: str, names: list[str]) -> pd.DataFrame:
    """A row a seed, a column a name."""
    found = runs.numbers[(runs.numbers["method"] == method) & (runs.numbers["split"] == split)]
    return found.pivot(index="seed", columns="name", values="value").reindex(columns=names)


def _cells(table: pd.DataFrame) -> list[str]:
    found = [column.dropna().to_numpy(float) for _, column in table.items()]
    return [cell(estimate(values) if len(values) else None) for values in found]


def runs_table(runs: Runs) -> str:
    """One row a results file, and one a run that has none."""
    rows = []
    merged = runs.runs.drop(columns="agent").merge(runs.results, on=KEYS, how="left")
    logged = runs.metrics.groupby(KEYS)["step"].max()
    for row in merged.itertuples():
        config = "`config.yaml`" if (row.path / "config.yaml").is_file() else NOTHING
        start = [f"`{row.path}`", runs.titles[row.method], str(row.seed), config]
        if pd.isna(row.protocol):
            steps = f"{logged[row.method, row.seed]:,.0f}"
            rows.append([*start, "training only", NOTHING, steps, NOTHING, NOTHING])
            continue
        checkpoint = f"`{row.checkpoint}`" if pd.notna(row.checkpoint) else NOTHING
        revision = "unknown" if pd.isna(row.revision) else row.revision
        time = NOTHING if pd.isna(row.wall_time_s) else f"{row.wall_time_s:,.0f} s"
        rows.append([*start, row.protocol, checkpoint, f"{row.steps:,.0f}", revision, time])
    header = ["run", "method", "seed", "configuration", "protocol", "checkpoint", "environment steps"]
    return markdown([*header, "git revision", "wall time of the test"], rows)
