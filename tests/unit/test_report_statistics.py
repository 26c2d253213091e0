"""The formulae of a report against loops, and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from hmrl.report import statistics
from hmrl.report.statistics import (
    align,
    difference,
    estimate,
    interval,
    iqm,
    probability_of_improvement,
    steps_to_reach,
    trailing_mean,
)


def generator(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def percentiles(values: list[float]) -> tuple[float, float]:
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def test_iqm_cuts_a_quarter_at_either_end() -> None:
    assert iqm(np.array([9.0, 1.0, 2.0, 4.0])) == 3.0  # of 2 and 4
    assert iqm(np.array([0.0, 100.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])) == 5.5  # of 4, 5, 6, 7
    assert iqm(np.array([1.0, 2.0, 9.0])) == 4.0  # three values: nothing to cut, the mean
    assert iqm(np.array([[1.0, 5.0], [2.0, 6.0], [4.0, 8.0], [9.0, 0.0]]), axis=0).tolist() == [3.0, 5.5]


@pytest.mark.parametrize("statistic", [np.mean, iqm])
def test_interval_is_that_of_resampled_seeds(statistic: statistics.Statistic) -> None:
    values = np.array([0.31, 0.42, 0.44, 0.58, 0.66])
    rng, means = generator(), []
    for _ in range(5_000):
        means.append(float(statistic(values[[rng.integers(5) for _ in range(5)]], axis=0)))
    found = interval(values, statistic)
    assert found is not None
    assert found == pytest.approx(percentiles(means), abs=0.015)
    assert found[0] < statistic(values, axis=0) < found[1]


def test_interval_of_curves_is_that_of_each_point() -> None:
    values = generator().random((4, 3))
    found = interval(values)
    assert found is not None
    assert found[0].shape == (3,)
    for i in range(3):
        assert interval(values[:, i]) == pytest.approx((found[0][i], found[1][i]))


def test_interval_is_the_same_each_time_and_none_for_one_seed() -> None:
    values = generator().random(5)
    assert interval(values) == interval(values.copy())
    assert interval(values[:1]) is None
    assert interval(np.full(3, 0.25)) == (0.25, 0.25)


def test_estimate_takes_the_interval_over_goals_for_one_seed_only() -> None:
    one, goals = np.array([0.4]), (0.3, 0.5)
    assert estimate(one, goals=goals) == (0.4, 0.3, 0.5, "goals")
    assert estimate(one) == (0.4, None, None, "seeds")
    several = estimate(np.array([0.2, 0.6]), goals=goals)
    assert several == (pytest.approx(0.4), 0.2, 0.6, "seeds")


def test_trailing_mean_is_over_steps_not_rows() -> None:
    steps = np.array([10.0, 20.0, 30.0, 100.0, 105.0])
    values = np.array([1.0, 3.0, 8.0, 4.0, 6.0])
    assert trailing_mean(steps, values, 20.0) == pytest.approx([1.0, 2.0, 5.5, 4.0, 5.0])
    assert trailing_mean(steps, values, 0.0).tolist() == values.tolist()
    irregular = np.sort(generator().random(30)) * 100
    noise = generator(8).random(30)
    expected = [
        np.mean([v for t, v in zip(irregular, noise, strict=True) if s - 17 < t <= s]) for s in irregular
    ]
    assert trailing_mean(irregular, noise, 17.0) == pytest.approx(expected)


def test_steps_to_reach() -> None:
    steps = np.array([10.0, 20.0, 30.0, 40.0])
    values = np.array([0.9, 0.1, 0.3, 0.5])
    assert steps_to_reach(steps, values, 0.9) == 10.0
    assert steps_to_reach(steps, values, 0.91) == np.inf
    # Means over 20: 0.9 (of half a window, which does not count), 0.5, 0.2, 0.4.
    assert steps_to_reach(steps, values, 0.5, 20.0) == 20.0
    assert steps_to_reach(steps, values, 0.6, 20.0) == np.inf
    assert steps_to_reach(steps, np.array([0.0, 0.0, 0.3, 0.5]), 0.4, 20.0) == 40.0
    assert steps_to_reach(steps, values, 0.1, 50.0) == np.inf  # never a whole window


def test_a_threshold_is_reached_in_spite_of_rounding() -> None:
    assert steps_to_reach(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3]), 0.2, 3.0) == 3.0
    sums = np.array([0.1] * 10)
    assert steps_to_reach(np.arange(1.0, 11.0), sums, 0.1, 7.0) == 7.0


def test_probability_of_improvement_is_mann_whitney_u_over_nm() -> None:
    rng = generator()
    x, y = rng.integers(0, 6, (5, 4)) / 5, rng.integers(0, 5, (3, 4)) / 5  # with ties
    by_loop = 0.0
    for f in range(4):
        for a in x[:, f]:
            for b in y[:, f]:
                by_loop += (1.0 if a > b else 0.5 if a == b else 0.0) / (4 * 5 * 3)
    u = [mannwhitneyu(x[:, f], y[:, f]).statistic / 15 for f in range(4)]
    found = probability_of_improvement(x, y)
    assert found.value == pytest.approx(by_loop)
    assert found.value == pytest.approx(np.mean(u))
    assert probability_of_improvement(y, x).value == pytest.approx(1 - by_loop)


def test_probability_of_improvement_resamples_whole_seeds_of_both() -> None:
    rng = generator()
    x, y = rng.random((5, 3)) + 0.15, rng.random((4, 3))
    values = []
    for _ in range(5_000):
        a, b = x[rng.integers(0, 5, 5)], y[rng.integers(0, 4, 4)]
        values.append(float(np.mean([mannwhitney(a[:, f], b[:, f]) for f in range(3)])))
    found = probability_of_improvement(x, y)
    assert (found.low, found.high) == pytest.approx(percentiles(values), abs=0.015)


def mannwhitney(a: np.ndarray, b: np.ndarray) -> float:
    order = np.sort(b)
    below, up_to = np.searchsorted(order, a, side="left"), np.searchsorted(order, a, side="right")
    return float((below + up_to).mean() / 2 / len(b))


def test_probability_of_improvement_has_no_interval_with_one_seed() -> None:
    better, worse = np.array([[0.5, 0.5]]), np.array([[0.4, 0.5], [0.1, 0.9]])
    assert probability_of_improvement(better, worse) == ((1 + 0.5 + 1 + 0) / 4, None, None, "seeds")
    assert probability_of_improvement(worse, better).low is None


def test_difference_resamples_seeds_of_both() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.6, 0.1, 6), rng.normal(0.5, 0.2, 4)
    found = difference(x, y)
    assert found.value == pytest.approx(x.mean() - y.mean())
    draws = [rng.choice(x, 6).mean() - rng.choice(y, 4).mean() for _ in range(20_000)]
    assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=0.01)
    assert found.high == pytest.approx(np.quantile(draws, 0.975), abs=0.01)
    assert difference(x[:1], y) == statistics.Estimate(float(x[0] - y.mean()))


def test_align_interpolates_and_never_extrapolates() -> None:
    long = np.array([10.0, 20.0, 40.0]), np.array([0.0, 1.0, 3.0])
    short = np.array([15.0, 30.0]), np.array([5.0, 8.0])
    grid, values = align([long, short])
    assert grid.tolist() == [15.0, 20.0, 30.0]
    assert values[0] == pytest.approx([0.5, 1.0, 2.0])
    assert values[1] == pytest.approx([5.0, 6.0, 8.0])


def test_align_limits_the_points() -> None:
    steps = np.arange(1.0, 1001.0)
    grid, values = align([(steps, 2 * steps), (steps + 0.5, steps)], points=50)
    assert len(grid) == 50
    assert (grid[0], grid[-1]) == (1.5, 1000.0)
    assert values[0] == pytest.approx(2 * grid)
    assert values[1] == pytest.approx(grid - 0.5)


def test_align_without_overlap_is_empty() -> None:
    first, second = (np.array([1.0, 2.0]), np.zeros(2)), (np.array([3.0, 4.0]), np.zeros(2))
    grid, values = align([first, second])
    assert len(grid) == 0
    assert values.shape == (2, 0)
