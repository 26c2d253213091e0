"""The figures of a report, on runs whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from hmrl.results import curves
from hmrl.results.reading import read
from support.reported import (
    SUCCESS,
    metrics,
    rates,
    result,
    write_metrics,
    write_result,
    write_seed,
)


def test_equal_data_give_equal_files(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(runs[:6], "sampled")
    for epoch, name in (("0", "first"), ("1000000000", "again")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)  # what the PDF would take for the date of today
        figure = curves.learning(found, "success", 200_000.0)["learning"]
        assert figure is not None
        curves.save(figure, tmp_path / name, ["png", "pdf"])
    for suffix in ("png", "pdf"):
        first, again = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("first", "again"))
        assert first == again


def test_a_method_has_one_colour_in_all_figures(runs: list[str], tmp_path: Path) -> None:
    """Also where the first method is missing."""
    for path in (tmp_path / "runs").glob("thre-*/test-*.json"):
        path.unlink()
    found = read(runs, "sampled")
    lines = curves.learning(found, "success", 0.0)["learning"]
    assert lines is not None
    bars = curves.success_bars(found, "first_episode")
    assert set(legend(lines)) == set(SUCCESS)
    assert set(legend(bars)) == {"flat", "belief|less", "script (ceiling)", "chance (floor)"}
    assert legend(lines)["flat"] == legend(bars)["flat"] == to_rgb(curves.colours(found)["flat"])
    drawn = [to_rgb(line.get_color()) for line in lines.axes[0].get_lines()]
    assert drawn == [legend(lines)[label] for label in SUCCESS]
    assert [to_rgb(patch.get_facecolor()) for patch in bars.axes[0].patches[::3]] == [
        legend(bars)["flat"],
        legend(bars)["belief|less"],
    ]


@pytest.mark.parametrize("name", ["m", "frozen_upper_levels_of_another_run"])
def test_a_legend_lies_within_its_figure(name: str, tmp_path: Path) -> None:
    """Also where names are long and methods many."""
    success = {f"rollout/success/{family}": {1.0: 0.1, 2.0: 0.2} for family in ("mean", "reach")}
    paths = [tmp_path / f"{name}{i}-seed1" for i in range(6)]
    for path in paths:
        write_metrics(write_seed(path, 1), success)
    figure = curves.learning(read([str(path) for path in paths], "sampled"), "success", 0.0)["learning"]
    assert figure is not None
    figure.draw_without_rendering()
    (found,) = figure.legends
    assert len(found.get_texts()) == 6
    inside, box = found.get_window_extent(), figure.bbox
    assert box.x0 <= inside.x0
    assert inside.x1 <= box.x1


def test_bars_stand_beside_each_other(runs: list[str]) -> None:
    bars = curves.success_bars(read(runs, "sampled"), "first_episode")
    first = [patch for patch in bars.axes[0].patches if -0.5 < patch.get_x() < 0.4]  # of reach, a method each
    assert [patch.get_height() for patch in first] == pytest.approx([1.4 / 3, 1.1 / 3, 0.4 / 3])
    ends = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in first]
    assert ends[0][0] == pytest.approx(-0.4)
    assert ends[2][1] == pytest.approx(0.4)
    assert [left for left, _ in ends[1:]] == pytest.approx([right for _, right in ends[:-1]])


def test_an_untrained_decoder_does_not_flatten_its_panel(tmp_path: Path) -> None:
    run = write_seed(tmp_path / "m-seed1", 1)
    error = {1.0: 5000.0, 2.0: 0.9}
    write_metrics(run, {"vae/decoder_error": error, "encoder/family_information": error})
    figure = curves.learning(read([str(run)], "sampled"), "success", 0.0)["diagnostics"]
    assert figure is not None
    tops = {axis.get_ylabel(): axis.get_ylim()[1] for axis in figure.axes}
    assert tops["relative to predicting no motion"] == 2
    assert tops["nats"] > 5000


def test_means_are_a_row_a_method(runs: list[str]) -> None:
    found = read(runs, "sampled")
    means = curves.success_means(found, "first_episode")
    assert [axis.get_title() for axis in means.axes] == ["training families", "held-out families"]
    expected = {method: found.success(method, "first_episode", "test") for method in found.proper}
    axis = means.axes[1]
    assert [text.get_text() for text in means.axes[0].get_yticklabels()] == list(expected)
    dots = {
        int(y): x
        for line in axis.get_lines()
        for x, y in [line.get_xydata()[0]]
        if len(line.get_xdata()) == 1
    }
    bars = {int(y): (x, right) for path in axis.collections for (x, y), (right, _) in path.get_segments()}
    for row, mean in enumerate(expected.values()):
        assert mean is not None
        assert dots[row] == pytest.approx(mean.value)
        assert bars[row] == pytest.approx((mean.low, mean.high))
    assert set(legend(means)) == {"script (ceiling)", "chance (floor)"}


@pytest.mark.parametrize(("count", "above"), [(4, False), (5, True)])
def test_bars_of_many_methods_stand_above_each_other(count: int, above: bool, tmp_path: Path) -> None:
    for i in range(count):
        write_result(write_seed(tmp_path / f"m{i}-seed1", 1), result(rates(0.1, 0.2, 0.3)))
    found = read([str(tmp_path / f"m{i}-seed1") for i in range(count)], "sampled")
    figure = curves.success_bars(found, "first_episode")
    train, test = (axis.get_subplotspec() for axis in figure.axes)
    assert train is not None
    assert test is not None
    assert (train.rowspan != test.rowspan) == above
    assert (train.colspan != test.colspan) == (not above)


def legend(figure: Figure) -> dict[str, tuple[float, float, float]]:
    (found,) = figure.legends
    texts = [text.get_text() for text in found.get_texts()]
    return dict(zip(texts, [to_rgb(line.get_color()) for line in found.get_lines()], strict=True))


def test_curves_are_means_over_seeds_with_bands(runs: list[str], tmp_path: Path) -> None:
    shorter = metrics(*SUCCESS["flat"][2], rows=20)
    shorter["rollout/success/mean"] = dict(list(shorter["rollout/success/mean"].items())[:15])
    write_metrics(tmp_path / "runs/flat-seed2", shorter)
    found = read(runs, "sampled")
    figure = curves.learning(found, "success", 0.0)["learning"]
    assert figure is not None
    line = figure.axes[0].get_lines()[1]
    assert line.get_xdata()[-1] == pytest.approx(1.5)  # millions, the shortest run
    assert line.get_ydata()[-1] == pytest.approx((0.4 + 0.4 + 0.2) / 3 * 0.75)
    smooth = curves.learning(found, "success", 300_000.0)["learning"]
    assert smooth is not None
    rates = smooth.axes[0].get_lines()[1].get_ydata()
    assert rates[-1] == pytest.approx((0.4 + 0.4 + 0.2) / 3 * 0.7)  # of iterations 13, 14 and 15 of 20
    band = figure.axes[0].collections[1].get_paths()[0].vertices
    upper = ttest_1samp([0.4, 0.4, 0.2], 0).confidence_interval(0.95).high
    assert band[:, 1].max() == pytest.approx(upper * 0.75)
    assert [axis.get_title() for axis in figure.axes] == [
        "training families, rollouts",
        "training families, evaluation",
        "held-out families, evaluation",
    ]


def test_panels_are_those_with_data(runs: list[str]) -> None:
    found = read(runs, "sampled")
    families, use = (
        curves.learning(found, "success", 0.0)["families"],
        curves.learning(found, "success", 0.0)["diagnostics"],
    )
    assert families is not None
    assert use is not None
    assert titles(families) == ["train: reach", "train: push", "test: drawer-open"]
    assert titles(use) == [
        "agreement of action and macro-action",
        "decoder error (dashed: without z)",
        "decoder_error (dashed: held-out families)",
        "probe/z",
    ]
    assert [axis.get_ylabel() for axis in use.axes[1:4]] == [
        *["relative to predicting no motion"] * 2,
        "balanced accuracy",
    ]
    solid, dashed = use.axes[2].get_lines()[:2]
    assert (solid.get_linestyle(), solid.get_ydata()[-1]) == ("-", pytest.approx(0.6))
    assert (dashed.get_linestyle(), dashed.get_ydata()[-1]) == ("--", pytest.approx(0.8))
    assert len(use.axes[1].get_lines()) == 6  # two for each method


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_a_long_legend_is_not_taken_from_the_axes(tmp_path: Path) -> None:
    """Of one panel, above which names of many methods stand below each other."""
    heights = []
    for count in (1, 7):
        runs = []
        for number in range(count):
            runs.append(tmp_path / f"{count}-a_method_with_a_long_name_{number}-seed1")
            write_metrics(runs[-1], {"rollout/success/mean": {100.0: 0.1, 200.0: 0.2}})
        figure = curves.learning(read(list(map(str, runs)), "sampled"), "success", 0)["learning"]
        assert figure is not None
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_position().height * figure.get_figheight())
    assert heights[1] == pytest.approx(heights[0], rel=0.15)
