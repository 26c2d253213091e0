"""The formulae of a report against loops, and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, t, ttest_1samp

from hmrl.results import statistics
from hmrl.results.statistics import (
    align,
    difference,
    estimate,
    estimate_iqm,
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


def student(values: list[float]) -> tuple[float, float]:
    found = ttest_1samp(values, 0).confidence_interval(0.95)
    return float(found.low), float(found.high)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_interval_covers_the_mean_as_often_as_it_says(seeds: int) -> None:
    """Of 20,000 methods, at once."""
    found = interval(generator().normal(0.4, 0.1, (seeds, 20_000)))
    assert found is not None
    covered = ((found[0] <= 0.4) & (found[1] >= 0.4)).mean()
    assert 0.93 <= covered <= 0.97


def test_interval_of_curves_is_students_at_each_point() -> None:
    values = generator().random((4, 3))
    found = interval(values)
    assert found is not None
    assert found[0].shape == (3,)
    for i in range(3):
        assert (found[0][i], found[1][i]) == pytest.approx(student(values[:, i].tolist()))


def test_two_seeds_have_a_range_and_one_has_nothing() -> None:
    found = interval(np.array([[0.4, 0.1], [0.3, 0.6]]))
    assert found is not None
    assert [ends.tolist() for ends in found] == [[0.3, 0.1], [0.4, 0.6]]
    assert interval(np.array([0.4])) is None
    assert interval(np.full(3, 0.25)) == (0.25, 0.25)


def test_estimate_takes_the_interval_over_goals_for_one_seed_only() -> None:
    one, goals = np.array([0.4]), (0.3, 0.5)
    assert estimate(one, goals=goals) == (0.4, 0.3, 0.5, "goals")
    assert estimate(one) == estimate(one, goals=(np.nan, np.nan)) == (0.4, None, None, "seeds")
    assert estimate(np.array([0.2, 0.6]), goals=goals) == (pytest.approx(0.4), 0.2, 0.6, "range")
    three = [0.2, 0.3, 0.7]
    assert estimate(np.array(three), goals=goals) == (
        pytest.approx(0.4),
        *map(pytest.approx, student(three)),
        "seeds",
    )


def test_interquartile_mean_is_bootstrapped_from_ten_seeds_on() -> None:
    values = generator().random(10)
    assert estimate_iqm(values[:9]) == (float(iqm(values[:9])), None, None, "seeds")
    rng, means = generator(), []
    for _ in range(5_000):
        means.append(float(iqm(values[[rng.integers(10) for _ in range(10)]])))
    found = estimate_iqm(values)
    assert (found.low, found.high) == pytest.approx(percentiles(means), abs=0.02)
    assert found == estimate_iqm(values.copy())


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
    x, y = rng.random((11, 3)) + 0.15, rng.random((10, 3))
    values = []
    for _ in range(5_000):
        a, b = x[rng.integers(0, 11, 11)], y[rng.integers(0, 10, 10)]
        values.append(float(np.mean([mannwhitney(a[:, f], b[:, f]) for f in range(3)])))
    found = probability_of_improvement(x, y)
    assert (found.low, found.high) == pytest.approx(percentiles(values), abs=0.015)


def mannwhitney(a: np.ndarray, b: np.ndarray) -> float:
    order = np.sort(b)
    below, up_to = np.searchsorted(order, a, side="left"), np.searchsorted(order, a, side="right")
    return float((below + up_to).mean() / 2 / len(b))


def test_probability_of_improvement_has_no_interval_below_ten_seeds() -> None:
    better, worse = np.array([[0.5, 0.5]]), np.array([[0.4, 0.5], [0.1, 0.9]])
    assert probability_of_improvement(better, worse) == ((1 + 0.5 + 1 + 0) / 4, None, None, "seeds")
    many = generator().random((10, 2))
    assert probability_of_improvement(many, many[:9]).low is None
    assert probability_of_improvement(many, many).low is not None


def test_difference_of_other_seeds_is_welchs() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.6, 0.1, 6), rng.normal(0.5, 0.2, 4)
    found = difference(x, y, paired=False)
    assert found.value == pytest.approx(x.mean() - y.mean())
    a, b = x.var(ddof=1) / 6, y.var(ddof=1) / 4
    half = t.ppf(0.975, (a + b) ** 2 / (a**2 / 5 + b**2 / 3)) * (a + b) ** 0.5
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert difference(x[:2], y, paired=False) == statistics.Estimate(float(x[:2].mean() - y.mean()))
    assert difference(np.full(3, 0.5), np.full(4, 0.25), paired=False) == (0.25, 0.25, 0.25, "seeds")


def test_difference_of_the_same_seeds_is_of_pairs() -> None:
    """What a seed's goals do to both methods is not in it."""
    of_goals = np.array([0.0, 0.3, -0.2, 0.1])
    x, y = 0.6 + of_goals, 0.5 + of_goals + [0.01, -0.01, 0.0, 0.02]
    found = difference(x, y, paired=True)
    assert (found.low, found.high) == pytest.approx(student((x - y).tolist()))
    assert difference(x[:2], y[:2], paired=True).over == "range"
    assert difference(x[:1], y[:1], paired=True).low is None


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
