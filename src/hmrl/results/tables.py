"""The tables of a report, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from hmrl.results.methods import (
    Method,
    common_families,
    families_of,
    official_success,
    per_family,
    reached,
    success,
    success_iqm,
)
from hmrl.results.reading import SPLITS, Result, Run
from hmrl.results.statistics import (
    BOOTSTRAP_SEEDS,
    LEVEL,
    RESAMPLES,
    Array,
    Estimate,
    difference,
    estimate,
    probability_of_improvement,
)

NOTHING = "–"
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
    "as later than all others, so the median is not reached where half of the seeds or more did not."
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
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    body = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (body[0], ruler, *body[1:])) + "\n"


def cell(found: Estimate | None) -> str:
    """``0.47 [0.44, 0.51]``; with a dagger if that is over goals, with a double one if it is a range."""
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    dagger = {"goals": " †", "range": " ‡"}.get(found.over, "")
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]{dagger}"


def tested(methods: Sequence[Method], protocol: str) -> list[tuple[Method, list[Result]]]:
    """The methods that have results of this protocol, with them."""
    return [(method, results) for method in methods if (results := method.results(protocol))]


def success_table(methods: Sequence[Method], protocol: str) -> str:
    """One row a method: mean and interquartile mean over seeds, on train and test families."""
    rows, official = [], any(r.official for _, results in tested(methods, protocol) for r in results)
    for method, results in tested(methods, protocol):
        seeds = [str(run.seed) for run in method.runs if protocol in run.results]
        row = [method.title, f"{len(seeds)} ({', '.join(seeds)})"]
        row.append(NOTHING if method.role else span(result.env_steps for result in results))
        for split in SPLITS:
            row.append(cell(success(results, split)))
            row.append(cell(success_iqm(results, split)))
            if official:
                row.append(cell(official_success(results, split)))
        rows.append(row)
    header = ["method", "seeds", "environment steps"]
    for split in SPLITS:
        header += [f"{split}: mean", f"{split}: IQM", *([f"{split}: Meta-World's own"] if official else [])]
    return markdown(header, rows)


def span(steps: Iterable[int]) -> str:
    """``2,000,000``, or the least and the most."""
    found = sorted(set(steps))
    return "–".join(f"{n:,}" for n in (found if len(found) < 3 else (found[0], found[-1])))


def family_table(methods: Sequence[Method], protocol: str) -> str:
    """One row a family and one a split's mean, one column a method."""
    columns = tested(methods, protocol)
    rows = []
    for split in SPLITS:
        for family in families_of(methods, split):
            cells = [cell(success(results, split, family)) for _, results in columns]
            rows.append([f"{split} {family}", *cells])
    for split in SPLITS:
        if families_of(methods, split):
            cells = [f"**{cell(success(results, split))}**" for _, results in columns]
            rows.append([f"**{split} mean**", *cells])
    return markdown(["family", *(method.title for method, _ in columns)], rows)


def steps_table(methods: Sequence[Method], metric: str, thresholds: Sequence[float], window: float) -> str:
    """Environment steps to each success rate, a row a method, a column a threshold; empty without data."""
    rows = [
        [method.title, *(reached_cell(*reached(series, threshold, window)) for threshold in thresholds)]
        for method in methods
        if (series := method.series(metric))
    ]
    return markdown(["method", *(f"success {t:g}" for t in thresholds)], rows) if rows else ""


def reached_cell(steps: Array, lengths: Array) -> str:
    """Median over seeds, least and most, and how many got there.

    Args:
        steps: of each seed, infinity if it never got there.
        lengths: environment steps that each seed ran.
    """
    never = np.isinf(steps)
    count = f"{(~never).sum()} of {len(steps)}"
    until = f"not reached by {lengths[never].min():,.0f}" if never.any() else ""
    if never.all():
        return f"{until} ({count})"
    median = until if np.isinf(np.median(steps)) else f"{np.median(steps):,.0f}"
    most = "never" if never.any() else f"{steps.max():,.0f}"
    return f"{median} ({steps.min():,.0f} to {most}; {count})" if len(steps) > 1 else f"{median} ({count})"


def paired(x: Method, y: Method, protocol: str) -> bool:
    """Whether both methods have results of the same seeds, each tested on the same goals."""
    keys = []
    for method in (x, y):
        results = [(run.seed, run.results[protocol]) for run in method.runs if protocol in run.results]
        keys.append([(seed, found.evaluation_seed, found.protocol) for seed, found in results])
    return keys[0] == keys[1]


def improvement_table(methods: Sequence[Method], protocol: str, baseline: str | None = None) -> str:
    """P(X > Y) and the difference of X and Y for each pair of methods; empty with fewer than two.

    Args:
        baseline: label of the only Y.
    """
    rows = []
    found = [(method, results) for method, results in tested(methods, protocol) if not method.role]
    pairs = list(combinations(found, 2))
    if baseline:
        pairs = [(x, y) for x in found for y in found if y[0].label == baseline != x[0].label]
    for (x, of_x), (y, of_y) in pairs:
        same = paired(x, y, protocol)
        row = [x.title, y.title, f"{len(of_x)} and {len(of_y)}{', paired' if same else ''}"]
        for split in SPLITS:
            if families := common_families([*of_x, *of_y], split):
                tables = per_family(of_x, split, families), per_family(of_y, split, families)
                means = [table.mean(1) for table in tables]
                row.append(cell(probability_of_improvement(*tables)))
                row.append(cell(difference(*means, paired=same)))
            else:
                row += [NOTHING, NOTHING]
        rows.append(row)
    columns = [f"{split}: {what}" for split in SPLITS for what in ("P(X > Y)", "X - Y")]
    return markdown(["X", "Y", "seeds", *columns], rows) if rows else ""


def latents_table(methods: Sequence[Method]) -> str:
    """Belief and macro-action, a row a method and split; empty if no run has anything."""
    rows = []
    for method in methods:
        for split in SPLITS:
            found = [_of_split(run, split) for run in method.runs]
            numbers = [each for each in found if each.keys() & {*_LATENT_COLUMNS.values()}]
            if numbers:
                cells = [cell(_estimate(numbers, name)) for name in _LATENT_COLUMNS.values()]
                rows.append([method.title, split, str(len(numbers)), *cells])
    pooled = [m.title for m in methods if any((s, "pooled") in run.numbers for run in m.runs for s in SPLITS)]
    said = f"\nCorrelation and agreements are pooled over families, not means: {', '.join(pooled)}.\n"
    kept = [i for i in range(3 + len(_LATENT_COLUMNS)) if any(row[i] != NOTHING for row in rows)]
    header = ["method", "families", "seeds", *_LATENT_COLUMNS]
    table = markdown([header[i] for i in kept], [[row[i] for i in kept] for row in rows]) if rows else ""
    return table + (said if pooled else "")


def forgetting_table(methods: Sequence[Method]) -> str:
    """What was left after a curriculum's last block, a row a method; empty if no run has anything."""
    rows = []
    names = [f"forgetting/{name}" for name in ("success", "backward_transfer", "forgetting")]
    for method in methods:
        found = [_of_split(run, "train") for run in method.runs]
        numbers = [each for each in found if "forgetting/blocks" in each]
        if numbers:
            lengths = "–".join(f"{n:g}" for n in sorted({each["forgetting/blocks"] for each in numbers}))
            cells = [cell(_estimate(numbers, name)) for name in names]
            rows.append([method.title, str(len(numbers)), lengths, *cells])
    header = ["method", "seeds", "blocks", "success", "backward transfer", "forgetting"]
    return markdown(header, rows) if rows else ""


def _of_split(run: Run, split: str) -> dict[str, float]:
    return {name: value for (of, name), value in run.numbers.items() if of == split}


def _estimate(numbers: Sequence[Mapping[str, float]], name: str) -> Estimate | None:
    values = [found[name] for found in numbers if name in found]
    return estimate(np.array(values)) if values else None
