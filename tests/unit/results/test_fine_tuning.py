"""A report of fine-tuned agents: a protocol of its own, and how soon families are learnt."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from hmrl.cli.report import main
from hmrl.results import curves
from hmrl.results.file import BEGINNING
from hmrl.results.reading import read
from hmrl.results.runs import FINE_TUNED
from hmrl.results.statistics import area_under
from hmrl.system.errors import UserError
from support.reported import rates, result, rising, write_metrics, write_result, write_seed

TUNED: dict[str, Any] = {"init_from": {"path": "a.ckpt", "weights": "12ab", "families": ["sweep"]}}
# Method -> seed -> success in reach and push at the last of so many iterations.
LAST = {"tuned": {1: (1.0, 0.9), 2: (0.8, 1.0)}, "scratch": {1: (0.9, 0.2), 2: (0.45, 0.3), 3: (0.1, 0.3)}}
ROWS = {"tuned": 20, "scratch": 10}


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving figures is what takes time."""
    monkeypatch.setattr(curves, "save", lambda figure, path, formats: None)


def write_runs(folder: Path) -> list[str]:
    found = []
    for method, seeds in LAST.items():
        for seed, (reach, push) in seeds.items():
            run, rows = write_seed(folder / f"{method}-seed{seed}", seed), ROWS[method]
            named = {"reach": reach, "push": push, "mean": (reach + push) / 2}
            logged = {f"rollout/success/{name}": rising(last, rows=rows) for name, last in named.items()}
            write_metrics(run, {**logged, "success/test/mean": {500_000.0: 0.3}})
            origin = TUNED if method == "tuned" else {"init_from": None}
            write_result(run, result(rates(reach, push, 0.5), **origin))
            found.append(str(run))
    return found


def report(arguments: list[str], out: Path, *options: str) -> str:
    main([*arguments, "--out", str(out), *options])
    return (out / "report.md").read_text()


def table(text: str, section: str) -> list[list[str]]:
    """The first table of a section, as rows of cells, without its ruler."""
    body = text[text.index(f"\n{section}\n") :]
    (found, *_) = re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()]
    return [rows[0], *rows[2:]]


def test_the_area_is_the_mean_success_on_the_way() -> None:
    steps, values = np.array([100.0, 200.0, 400.0]), np.array([0.1, 0.2, 0.8])
    every_step = np.repeat(values, [100, 100, 200])
    for until in (400, 300, 150, 50):
        assert area_under(steps, values, until) == pytest.approx(every_step[:until].mean())


def test_fine_tuned_agents_share_no_table_of_success_with_others(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    text = report(runs, tmp_path / "out")
    own = table(text, "## Success, protocol first_episode after fine-tuning")
    assert [row[0] for row in own[1:]] == ["tuned (fine-tuned)"]
    assert [row[0] for row in table(text, "## Success, protocol first_episode")[1:]] == ["scratch"]
    held_out = text[text.index("Held-out families, evaluations in training") :].split("##")[0]
    assert "| scratch |" in held_out
    assert "tuned" not in held_out
    assert "No results of" not in text  # of either protocol, where the other methods are expected
    summary = (tmp_path / "out" / "summary.csv").read_text().splitlines()
    assert {line.split(",")[4] for line in summary if line.startswith("tuned,")} == {
        "first_episode after fine-tuning"
    }


def test_areas_steps_and_improvement_over_scratch(tmp_path: Path) -> None:
    text = report(write_runs(tmp_path), tmp_path / "out", "--window", "200000")
    header, *rows = table(text, "## Fine-tuning")
    assert header == [
        *("method", "seeds", "area to 1,000,000 steps"),
        *("success 0.2", "success 0.5", "success 0.8", "P(X > scratch)", "area minus scratch's"),
    ]
    areas: dict[str, list[list[float]]] = {}
    for method, seeds in LAST.items():
        rise = np.arange(1, 11).mean() / ROWS[method]  # over the ten iterations that all runs have
        areas[method] = [[last * rise for last in of] for of in seeds.values()]
    pairs = [(x[f], y[f]) for f in (0, 1) for x, y in product(areas["tuned"], areas["scratch"])]
    wins = np.mean([(x > y) + (x == y) / 2 for x, y in pairs])
    assert 0.5 < wins < 1
    means = {method: [float(np.mean(of)) for of in seeds] for method, seeds in areas.items()}
    tuned, scratch = rows
    low, high = sorted(means["tuned"])
    assert tuned[:3] == [
        "tuned (fine-tuned)",
        "2",
        f"{np.mean(means['tuned']):.2f} [{low:.2f}, {high:.2f}] ‡",
    ]
    ends = ttest_1samp(means["scratch"], 0).confidence_interval(0.95)
    assert scratch[2] == f"{np.mean(means['scratch']):.2f} [{ends.low:.2f}, {ends.high:.2f}]"
    assert (tuned[6], *scratch[6:]) == (f"{wins:.2f}", "–", "–")
    assert tuned[7] == f"{np.mean(means['tuned']) - np.mean(means['scratch']):.2f}"  # of two seeds and three
    # Success is last * i / rows; its mean over two iterations last * (i - 0.5) / rows.
    for cell, rate in zip(tuned[3:6], (0.2, 0.5, 0.8), strict=True):
        steps = [
            next(i for i in range(2, 21) if last * (i - 0.5) / 20 >= rate) * 100_000 for last in (0.95, 0.9)
        ]
        assert cell.startswith(f"{np.median(steps):,.0f} ({min(steps):,} to {max(steps):,}; 2 of 2)")
    assert scratch[5] == "not reached by 1,000,000 (0 of 3)"


def test_a_method_that_met_a_family_later_has_no_area(tmp_path: Path) -> None:
    """A curriculum of blocks: nobody knows its success there before."""
    runs, late = write_runs(tmp_path), write_seed(tmp_path / "blocks-seed1", 1)
    whole, last = rising(0.5, rows=10), rising(0.9, rows=10)
    second = dict(list(last.items())[5:])
    logged = {"reach": whole, "push": second, "mean": whole}
    write_metrics(late, {f"rollout/success/{name}": values for name, values in logged.items()})
    text = report([*runs, str(late)], tmp_path / "out")
    assert [row[0] for row in table(text, "## Fine-tuning")[1:]] == ["tuned (fine-tuned)", "scratch"]


def test_figures_of_held_out_families_are_without_fine_tuned_agents(tmp_path: Path) -> None:
    runs = read(write_runs(tmp_path), "sampled")
    assert not runs.series("tuned", "success/test/mean")
    assert len(runs.series("scratch", "success/test/mean")) == 3
    assert len(runs.series("tuned", "rollout/success/mean")) == 2
    alone = read([str(run) for run in tmp_path.glob("tuned-*")], "sampled")
    assert len(alone.series("tuned", "success/test/mean")) == 2


def test_the_baseline_can_be_chosen(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    text = report(runs, tmp_path / "out", "--baseline", "tuned")
    header, tuned, scratch = table(text, "## Fine-tuning")
    assert (header[-2], tuned[-2]) == ("P(X > tuned)", "–")
    assert 0 < float(scratch[-2]) < 0.5


def test_reports_without_fine_tuned_agents_say_nothing_of_it(tmp_path: Path) -> None:
    runs = [run for run in write_runs(tmp_path) if "scratch" in run]
    text = report(runs, tmp_path / "out")
    assert "fine-tun" not in text.lower()


@pytest.mark.parametrize("said_by", ["config", "results"])
def test_a_table_of_an_earlier_report_tells_fine_tuned_runs(said_by: str, tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    for run in map(Path, runs):
        if "tuned" in run.name and said_by == "config":
            (run / "test-first_episode.json").unlink()
            with (run / "config.yaml").open("a") as file:
                file.write("init_from: a.ckpt\n")
        elif said_by == "config":
            with (run / "config.yaml").open("a") as file:
                file.write("init_from: null\n")
    first, second = report(runs, tmp_path / "one"), report([str(tmp_path / "one")], tmp_path / "two")
    assert table(first, "## Fine-tuning")[0] == table(second, "## Fine-tuning")[0]
    numbers = read([str(tmp_path / "two")], "sampled").numbers
    assert set(numbers.loc[numbers["name"] == FINE_TUNED, "method"]) == {"tuned"}


def test_one_label_is_fine_tuned_or_not(tmp_path: Path) -> None:
    runs = [f"both={write_runs(tmp_path)[0]}", f"both={tmp_path / 'scratch-seed2'}"]
    with pytest.raises(UserError, match="some runs of both began from another run's weights"):
        read(runs, "sampled")


def test_what_was_trained_on_other_families_is_not_compared(tmp_path: Path) -> None:
    """Though it was tested on the same ones."""
    runs, other = write_runs(tmp_path), write_seed(tmp_path / "other-seed1", 1)
    curve = rising(0.5, rows=10)
    write_metrics(other, {f"rollout/success/{name}": curve for name in ("reach", "mean")})
    write_result(other, result(rates(0.5, 0.1, 0.5)))
    with pytest.raises(UserError, match=r"the train families of training differ, .* push, reach in .*, but"):
        read([*runs, str(other)], "sampled")
    (other / "metrics.csv").unlink()
    assert "other" in read([*runs, str(other)], "sampled").tested("first_episode")


def test_areas_are_of_the_families_that_were_trained(tmp_path: Path) -> None:
    """Tests may be on others."""
    runs = write_runs(tmp_path)
    before = table(report(runs, tmp_path / "one"), "## Fine-tuning")
    for path in map(Path, runs):
        content = json.loads((path / "test-first_episode.json").read_text())
        del content["scores"]["train"]["sampled"]["push"]
        write_result(path, content)
    assert table(report(runs, tmp_path / "two"), "## Fine-tuning") == before


def test_a_log_without_its_beginning_has_no_area(tmp_path: Path) -> None:
    """As of a run that went on in a new directory: nobody knows its success before."""
    runs, late = write_runs(tmp_path), write_seed(tmp_path / "late-seed1", 1)
    second = dict(list(rising(0.9, rows=10).items())[5:])
    write_metrics(late, {f"rollout/success/{name}": second for name in ("reach", "push", "mean")})
    text = report([*runs, str(late)], tmp_path / "out")
    assert [row[0] for row in table(text, "## Fine-tuning")[1:]] == ["tuned (fine-tuned)", "scratch"]
    assert "late" not in [row[0] for row in table(text, "## Environment steps to a success rate")]
    assert "The log of late lacks the beginning of training" in text
    # What says where it begins is believed: a single row may be late, and a long first rollout not.
    for begins, curve, is_late in ((900_000, {1_000_000.0: 0.9}, True), (0, second, False)):
        write_metrics(late, {f"rollout/success/{name}": curve for name in ("reach", "push", "mean")})
        (late / BEGINNING).write_text(json.dumps({"env_steps": begins, "init_from": None}))
        out = tmp_path / f"begins{begins}"
        assert ("The log of late lacks" in report([*runs, str(late)], out)) == is_late
        assert ("The log of late lacks" in report([str(out)], tmp_path / f"{out.name}-again")) == is_late


def test_logs_that_do_not_overlap_have_no_end_in_common(tmp_path: Path) -> None:
    runs = []
    for seed, part in ((1, slice(0, 4)), (2, slice(5, 10))):
        run = write_seed(tmp_path / f"a-seed{seed}", seed)
        curve = dict([*rising(0.9, rows=10).items()][part])
        write_metrics(run, {f"rollout/success/{name}": curve for name in ("reach", "mean")})
        runs.append(str(run))
    assert "Training rollouts, at the end" not in report(runs, tmp_path / "out")


def test_a_curriculum_that_has_not_met_all_families_can_be_compared_by_its_tests(tmp_path: Path) -> None:
    runs, blocks = write_runs(tmp_path), write_seed(tmp_path / "blocks-seed1", 1)
    write_metrics(blocks, {"rollout/success/reach": rising(0.5, rows=10)})
    write_result(blocks, result(rates(0.5, 0.1, 0.5)))
    report([*runs, str(blocks)], tmp_path / "out")
    assert "blocks" in report([str(tmp_path / "out")], tmp_path / "again")


def test_steps_within_the_first_window_are_a_bound(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    tuned, scratch = table(report(runs, tmp_path / "one", "--window", "900000"), "## Fine-tuning")[1:]
    assert tuned[3].startswith("≤ 900,000 (≤ 900,000 to ≤ 900,000; 2 of 2)")
    # Over the first nine iterations the mean is half of the last value, over nine until the tenth 0.6 of it.
    assert scratch[3] == "1,000,000 (≤ 900,000 to never; 2 of 3)"
    tuned, scratch = table(report(runs, tmp_path / "two", "--window", "1500000"), "## Fine-tuning")[1:]
    assert (scratch[3], tuned[3][:1]) == ("–", "≤")  # scratch has a million steps


def test_a_baseline_without_an_area_is_not_replaced(tmp_path: Path) -> None:
    runs, tested = write_runs(tmp_path), write_seed(tmp_path / "tested-seed1", 1)
    write_result(tested, result(rates(0.5, 0.1, 0.5)))
    text = report([*runs, str(tested)], tmp_path / "out", "--baseline", "tested")
    assert table(text, "## Fine-tuning")[0][-1] == "success 0.8"


def test_success_of_training_rollouts_at_the_end(tmp_path: Path) -> None:
    """Of each seed where the shortest ends, and less the baseline's where both end at the same step."""
    runs, last = [], {"a": {1: 0.8, 2: 0.6, 3: 0.9}, "b": {1: 0.5, 2: 0.2, 3: 0.3}, "c": {1: 0.8}}
    for method, seeds in last.items():
        for seed, value in seeds.items():
            run = write_seed(tmp_path / f"{method}-seed{seed}", seed)
            # The tenth of twenty rollouts has half of the last value.
            rows = 20 if (method, seed) == ("a", 1) else 10
            curve = rising(2 * value if rows == 20 else value, rows=rows)
            curve = {step: success for step, success in curve.items() if method != "c" or step < 950_000}
            write_metrics(run, {f"rollout/success/{name}": curve for name in ("reach", "mean")})
            runs.append(str(run))
    header, *rows = table(
        report(runs, tmp_path / "out", "--window", "200000", "--baseline", "b"),
        "## Training rollouts, at the end of training",
    )
    assert header[1:] == ["seeds", "environment steps", "success of each seed", "mean", "minus b"]
    values = {m: 0.95 * np.array([*last[m].values()]) for m in "ab"}  # of the ninth and the tenth
    more = values["a"] - values["b"]
    intervals = [ttest_1samp(of, 0).confidence_interval(0.95) for of in (values["a"], more)]
    mean, less = (
        f"{of.mean():.2f} [{i.low:.2f}, {i.high:.2f}]"
        for of, i in zip((values["a"], more), intervals, strict=True)
    )
    each = ", ".join(f"{value:.2f}" for value in values["a"])
    assert rows[0] == ["a", "1, 2, 3", "1,000,000", each, mean, less]
    assert (rows[1][0], rows[1][-1]) == ("b", "–")
    assert rows[2] == ["c", "1", "900,000", "0.68", "0.68", "–"]


def test_tables_without_numbers_and_logs_without_a_configuration_tell_fine_tuned_runs(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    report(runs, tmp_path / "one")
    (tmp_path / "one" / "diagnostics.csv").unlink()
    assert read([str(tmp_path / "one")], "sampled").fine_tuned == {"tuned"}
    for path in map(Path, runs):
        (path / "config.yaml").unlink()  # as of a run from Python
        (path / "test-first_episode.json").unlink()
        if path.name.startswith("tuned"):
            (path / BEGINNING).write_text(json.dumps({"env_steps": 0, **TUNED}))
    assert read(runs, "sampled").fine_tuned == {"tuned"}
