"""What the runs of a method amount to: the numbers that tables and figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hmrl.results.methods import Method
from hmrl.results.reading import Result, Series
from hmrl.results.statistics import (
    Array,
    Estimate,
    align,
    estimate,
    estimate_iqm,
    interval,
    steps_to_reach,
    trailing_mean,
)

if TYPE_CHECKING:
    from hmrl.types import Split


class Curve(NamedTuple):
    """A metric of a method against environment steps."""

    steps: Array  # [G]
    mean: Array  # [G], over seeds
    low: Array | None  # [G], its interval over seeds, or range of two; None for a single one
    high: Array | None  # [G]


def families_of(methods: Sequence[Method], split: Split) -> tuple[str, ...]:
    """The families of a split, which are the same for all runs that know them."""
    known = (run.families(split) for method in methods for run in method.runs)
    return next((families for families in known if families), ())


def common_families(results: Sequence[Result], split: Split) -> tuple[str, ...]:
    """The families of a split, in the first file's order; empty if some file does not know the split."""
    return results[0].families(split) if all(result.families(split) for result in results) else ()


def per_family(results: Sequence[Result], split: Split, families: Sequence[str]) -> Array:
    """Success rates ``[N, F]``: a row a seed, a column a family."""
    return np.array([[result.scores[split][family].success for family in families] for result in results])


def success(results: Sequence[Result], split: Split, family: str = "mean") -> Estimate | None:
    """Success over seeds in one family, or in the unweighted mean over families.

    The interval is over seeds; of a single seed it is the file's, over goals. None without such results.
    """
    families = common_families(results, split)
    if not families:
        return None
    values = per_family(results, split, families if family == "mean" else [family]).mean(1)
    score = results[0].scores[split][family]
    return estimate(values, goals=(score.low, score.high))


def success_iqm(results: Sequence[Result], split: Split) -> Estimate | None:
    """Interquartile mean over seeds of the mean over families; None of a single seed or without results."""
    families = common_families(results, split)
    if not families or len(results) < 2:
        return None
    return estimate_iqm(per_family(results, split, families).mean(1))


def official_success(results: Sequence[Result], split: Split) -> Estimate | None:
    """Meta-World's own number over seeds; None if no file has it."""
    values = [result.official[split] for result in results if split in result.official]
    return estimate(np.array(values)) if values else None


def curve(series: Sequence[Series], window: float = 0.0) -> Curve | None:
    """Mean over seeds of trailing means over ``window`` environment steps; None if there is none."""
    if not series:
        return None
    smooth = [(steps, trailing_mean(steps, values, window)) for steps, values in series]
    steps, values = align(smooth)
    if not len(steps):
        return None
    return Curve(steps, values.mean(0), *(interval(values) or (None, None)))


def reached(series: Sequence[Series], threshold: float, window: float = 0.0) -> tuple[Array, Array]:
    """Of each seed the environment steps to ``threshold`` (infinity: never) and those that it ran. ``[N]``"""
    found = [steps_to_reach(steps, values, threshold, window) for steps, values in series]
    return np.array(found), np.array([steps[-1] for steps, _ in series])
