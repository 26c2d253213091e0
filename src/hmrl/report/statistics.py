"""The formulae of a report: pure functions of arrays.

The unit of resampling is always the seed: what is drawn again, with replacement, are whole runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, trim_mean

Array = npt.NDArray[np.float64]
Statistic = Callable[..., Any]  # of an array, with ``axis``

LEVEL = 0.95
RESAMPLES = 10_000
RANDOM_STATE = 0
_BATCH = 500  # resamples held at once: curves are long


class Estimate(NamedTuple):
    """A number and its 95 % interval.

    Args:
        value: the number.
        low, high: the interval; None where there is none.
        over: what the interval is over, ``seeds`` or, for a single seed, ``goals``.
    """

    value: float
    low: float | None = None
    high: float | None = None
    over: str = "seeds"


def iqm(values: Array, axis: int = -1) -> Any:
    """Interquartile mean: a quarter of the values is cut off at either end, rounded down to whole values."""
    return trim_mean(values, 0.25, axis=axis)


def interval(values: Array, statistic: Statistic = np.mean) -> tuple[Array, Array] | None:
    """Percentile bootstrap of ``statistic`` over seeds.

    Args:
        values: ``[N]`` or ``[N, ...]``, one row a seed; the same draw of seeds serves all columns.
        statistic: of an array, along its argument ``axis``.

    Returns:
        Lower and upper ends ``[...]``, or None for fewer than two seeds.
    """
    if len(values) < 2:
        return None
    return _percentiles((values,), statistic, axis=0)


def _percentiles(samples: tuple[Array, ...], statistic: Statistic, axis: int) -> tuple[Array, Array]:
    found = bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        axis=axis,
        rng=np.random.default_rng(RANDOM_STATE),
    ).confidence_interval
    return found.low, found.high


def estimate(
    values: Array, statistic: Statistic = np.mean, *, goals: tuple[float, float] | None = None
) -> Estimate:
    """``statistic`` of one value a seed, with its interval over seeds.

    Args:
        values: ``[N]``, at least one.
        statistic: of an array, along its argument ``axis``.
        goals: the interval over goals that stands in when there is one seed only.
    """
    value = float(statistic(values, axis=0))
    ends = interval(values, statistic)
    if ends is not None:
        return Estimate(value, float(ends[0]), float(ends[1]))
    return Estimate(value, *goals, over="goals") if goals else Estimate(value)


def trailing_mean(steps: Array, values: Array, window: float) -> Array:
    """Mean of the values that were logged in ``(step - window, step]``, at each step ``[N]``.

    The window is one of environment steps, so that it means the same however long a run's iterations
    are; at the beginning it is as long as what there is. A window of 0 changes nothing.
    """
    end = np.arange(1, len(steps) + 1)
    start = np.minimum(np.searchsorted(steps, steps - window, side="right"), end - 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[end] - total[start]) / (end - start)  # type: ignore[no-any-return]


def steps_to_reach(steps: Array, values: Array, threshold: float, window: float = 0.0) -> float:
    """Environment steps at which the trailing mean over ``window`` first is at least ``threshold``.

    Only whole windows count: one lucky iteration at the very beginning reaches nothing.

    Returns:
        A logged step, or infinity.
    """
    # What was summed in another order may fall short of an equal threshold by rounding.
    reached = (trailing_mean(steps, values, window) >= threshold - 1e-9) & (steps >= window)
    return float(steps[reached.argmax()]) if reached.any() else float("inf")


def probability_of_improvement(x: Array, y: Array) -> Estimate:
    """How likely a run of X does better than one of Y on the same family (Agarwal et al., 2021).

    The mean over families of P(X > Y) + P(X = Y) / 2 over all pairs of seeds, which is the Mann-Whitney
    U over n m.

    Args:
        x: ``[n, F]``, a row a seed, a column a family.
        y: ``[m, F]``.
    """
    wins = ((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])).mean(-1)  # [n, m]
    if min(wins.shape) < 2:
        return Estimate(float(wins.mean()))

    def over_pairs(i: Any, j: Any, axis: int) -> Any:
        return wins[i[..., :, None], j[..., None, :]].mean((-2, -1))

    seeds = (np.arange(len(x)), np.arange(len(y)))
    low, high = _percentiles(seeds, over_pairs, axis=-1)  # type: ignore[arg-type]
    return Estimate(float(wins.mean()), float(low), float(high))


def difference(x: Array, y: Array) -> Estimate:
    """Mean of X minus mean of Y over seeds that are drawn apart, with its interval.

    Args:
        x: one value a seed, ``[n]``.
        y: ``[m]``.
    """
    value = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return Estimate(value)

    def between(x: Any, y: Any, axis: int) -> Any:
        return x.mean(axis) - y.mean(axis)

    low, high = _percentiles((x, y), between, axis=-1)
    return Estimate(value, float(low), float(high))


def align(curves: Sequence[tuple[Array, Array]], points: int = 200) -> tuple[Array, Array]:
    """Curves of several seeds on one grid of environment steps, by linear interpolation.

    The grid goes from where the last curve begins to where the first one ends, so nothing is
    extrapolated. It consists of every step that any curve has there, or of ``points`` even ones if
    these are more.

    Args:
        curves: of each seed its steps ``[n]``, increasing, and its values ``[n]``.
        points: the most that the grid may have.

    Returns:
        The grid ``[G]`` and the values on it ``[N, G]``; G is 0 where the curves do not overlap.
    """
    begin, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= begin) & (grid <= end)]
    if len(grid) > points:
        grid = np.linspace(begin, end, points)
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in curves])
