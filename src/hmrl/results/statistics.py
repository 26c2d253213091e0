"""The formulae of a report: pure functions of arrays. What varies is always the seed: whole runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 10_000
BOOTSTRAP_SEEDS = 10  # of fewer, a percentile bootstrap is far too narrow: of three, 0.73 where 0.95 is said


class Estimate(NamedTuple):
    """A number and its 95 % interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None
    over: str = "seeds"  # or, for a single seed, "goals"; or "range": of two seeds, which is no interval


def iqm(values: Array, axis: int = -1) -> Any:
    """Interquartile mean: a quarter of the values is cut off at either end, rounded down to whole values."""
    return stats.trim_mean(values, 0.25, axis=axis)


def interval(values: Array) -> tuple[Array, Array] | None:
    """Student's t interval ``[...]`` of the mean over seeds ``[N, ...]``; the range of two; None for one."""
    if len(values) < 2:
        return None
    if len(values) == 2:
        return values.min(0), values.max(0)
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values, axis=0)
    return values.mean(0) - half, values.mean(0) + half


def _percentiles(samples: Sequence[Array], statistic: Callable[..., Any]) -> Estimate:
    """Percentile bootstrap of ``statistic``, whole seeds drawn again; no interval for few of them."""
    value = float(statistic(*samples, axis=-1))
    if min(map(len, samples)) < BOOTSTRAP_SEEDS:
        return Estimate(value)
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        batch=500,  # resamples held at once
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def estimate(values: Array, *, goals: tuple[float, float] = (np.nan, np.nan)) -> Estimate:
    """The mean of one value a seed, with its interval over seeds, or the range of two.

    Args:
        values: ``[N]``, at least one.
        goals: the interval over goals that stands in when there is one seed only; NaN for none.
    """
    value = float(values.mean())
    if (ends := interval(values)) is None:
        return Estimate(value) if np.isnan(goals).any() else Estimate(value, *goals, over="goals")
    return Estimate(value, float(ends[0]), float(ends[1]), "range" if len(values) == 2 else "seeds")


def estimate_iqm(values: Array) -> Estimate:
    """The interquartile mean of one value a seed ``[N]``, with an interval from ten seeds on."""
    return _percentiles((values,), iqm)


def trailing_mean(steps: Array, values: Array, window: float) -> Array:
    """Mean of the values that were logged in ``(step - window, step]``, at each step ``[N]``.

    The window is one of environment steps, so that it means the same however long a run's iterations
    are; at the beginning it is as long as what there is. A window of 0 changes nothing.
    """
    end = np.arange(1, len(steps) + 1)
    start = np.minimum(np.searchsorted(steps, steps - window, side="right"), end - 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[end] - total[start]) / (end - start)  # type: ignore[no-any-return]


def at_the_end(steps: Array, values: Array, until: float, window: float) -> float:
    """The trailing mean over ``window`` environment steps at the last value up to ``until``."""
    return float(trailing_mean(steps, values, window)[steps <= until][-1])


def steps_to_reach(steps: Array, values: Array, threshold: float, window: float = 0.0) -> float:
    """Environment steps at which the trailing mean over ``window`` first is at least ``threshold``.

    Only whole windows count: one lucky iteration at the very beginning reaches nothing. Never is infinity.
    """
    # What was summed in another order may fall short of an equal threshold by rounding.
    reached = (trailing_mean(steps, values, window) >= threshold - 1e-9) & (steps >= window)
    return float(steps[reached.argmax()]) if reached.any() else float("inf")


def area_under(steps: Array, values: Array, until: float) -> float:
    """Area under a curve over its first ``until`` environment steps, divided by them: the mean on the way.

    Each value is that of the rollout which ends at its step, and so counts for the steps since the last one.
    """
    ends = np.minimum(steps, until)
    return float(np.diff(ends, prepend=0.0) @ values / ends[-1])


def probability_of_improvement(x: Array, y: Array) -> Estimate:
    """How likely a run of X does better than one of Y on the same family (Agarwal et al., 2021).

    The mean over families of P(X > Y) + P(X = Y) / 2 over all pairs of seeds: the Mann-Whitney U over n m.
    With an interval, seeds of X and of Y drawn apart, where both have ten seeds or more.

    Args:
        x: ``[n, F]``, a row a seed, a column a family.
        y: ``[m, F]``.
    """
    wins = ((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])).mean(-1)  # [n, m]

    def over_pairs(i: Any, j: Any, axis: int) -> Any:
        return wins[i[..., :, None], j[..., None, :]].mean((-2, -1))

    return _percentiles((np.arange(len(x)), np.arange(len(y))), over_pairs)  # type: ignore[arg-type]


def difference(x: Array, y: Array, *, paired: bool) -> Estimate:
    """Mean of X minus mean of Y over seeds, with its t interval: of pairs, or Welch's.

    Args:
        x: one value a seed, ``[n]``.
        y: ``[m]``.
        paired: both are of the same seeds, in the same order, and of the same goals.
    """
    if paired:
        return estimate(x - y)
    value = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 3:
        return Estimate(value)
    if np.ptp(x) == np.ptp(y) == 0:
        return Estimate(value, value, value)
    ends = stats.ttest_ind(x, y, equal_var=False).confidence_interval(LEVEL)
    return Estimate(value, float(ends.low), float(ends.high))


def align(curves: Sequence[tuple[Array, Array]], points: int = 200) -> tuple[Array, Array]:
    """Curves of several seeds on one grid of environment steps, by linear interpolation, never beyond an end.

    Args:
        curves: of each seed its steps ``[n]``, increasing, and its values ``[n]``.
        points: the most that the grid may have: even ones, where there are more steps of any curve.

    Returns:
        The grid ``[G]`` and the values on it ``[N, G]``; G is 0 where the curves do not overlap.
    """
    begin, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= begin) & (grid <= end)]
    if len(grid) > points:
        grid = np.linspace(begin, end, points)
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in curves])
