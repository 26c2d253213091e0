"""The tables that a report leaves beside it, and reports that are made of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hmrl.cli.report import main
from hmrl.results.reading import bin_width, read, write
from hmrl.system.errors import UserError
from support.reported import result, rising, write_metrics, write_result, write_seed

RATES = {"train": [0.2, 0.6], "test": [0.1]}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two seeds of a method with logs, results, latents and forgetting; and an expert."""
    for seed in (1, 2):
        run = write_seed(tmp_path / f"full-seed{seed}", seed)
        content = result({"train": [0.2 * seed, 0.6], "test": [0.1]}, seed=seed)
        content["scores"]["train"]["mean_action"] = content["scores"]["train"]["sampled"]
        content["scores"]["test"]["mean_action"] = content["scores"]["test"]["sampled"]
        write_result(run, content)
        curve = rising(0.5 * seed)
        write_metrics(run, {"rollout/success/mean": curve, "success/test/mean": curve, "ppo/entropy": curve})
        (run / "latents").mkdir()
        (run / "latents" / "latents.json").write_text(json.dumps({"train": {"probe": {"z": 0.25 * seed}}}))
    block = {"success": {"train": {"reach": 0.5}}, "forgetting": {"reach": 0.25}, "backward_transfer": {}}
    (run / "forgetting.json").write_text(json.dumps({"blocks": [block]}))
    write_result(tmp_path / "expert", result(RATES, agent="expert", mode="scripted"))
    return [str(tmp_path / name) for name in ("full-seed1", "full-seed2", "expert")]


def test_summary_has_a_row_a_run_split_family_and_mode(runs: list[str], tmp_path: Path) -> None:
    main([*runs, "--out", str(tmp_path / "out"), "--formats", "png"])
    table = rows(tmp_path / "out" / "summary.csv")
    assert len(table) == 2 * 2 * 5 + 5
    keys = ["method", "seed", "split", "family", "protocol", "mode", "success", "low", "high"]
    assert list(table[0])[:12] == [*keys, "episodes", "steps", "revision"]
    (row,) = (
        r for r in table if [*r.values()][:6] == ["full", "2", "train", "mean", "first_episode", "sampled"]
    )
    assert [float(row[key]) for key in ("success", "low", "high")] == pytest.approx([0.5, 0.45, 0.55])
    assert (row["episodes"], row["steps"], row["revision"]) == ("50", "2000000", "abc123")
    assert (row["agent"], row["backend"], row["conditions"]) == ("policy", "metaworld", "")


def test_what_has_no_interval_has_empty_cells(tmp_path: Path) -> None:
    content = result(RATES)
    content["official"] = {"train": {"sampled": {"success": 0.3}}}
    content["scores"]["train"]["sampled"]["push"] |= {"low": None, "high": None}
    content["protocol"]["perturbation"] = {"reward_noise": 0.1}
    write_result(tmp_path / "run-seed1", content)
    write(read([str(tmp_path / "run-seed1")], "sampled"), tmp_path)
    found = {(row["split"], row["family"]): row for row in rows(tmp_path / "summary.csv")}
    assert (found["train", "push"]["low"], found["train", "push"]["high"]) == ("", "")
    assert found["train", "official"]["success"] == "0.3"
    assert found["train", "official"]["low"] == ""
    assert json.loads(found["test", "mean"]["conditions"]) == {"perturbation": {"reward_noise": 0.1}}


def test_curves_are_means_of_intervals(tmp_path: Path) -> None:
    """250 iterations become 50 rows of five."""
    run = write_seed(tmp_path / "run", 1)
    curve = {1000.0 * i: float(i) for i in range(1, 251)}
    write_metrics(
        run, {"rollout/success/mean": curve, "success/test/mean": {50_000.0: 0.5}, "ppo/loss": curve}
    )
    write(read([str(run)], "sampled"), tmp_path)
    table = rows(tmp_path / "curves.csv")
    assert len(table) == 50
    assert list(table[0]) == ["method", "seed", "steps", "rollout/success/mean", "success/test/mean"]
    assert [row["steps"] for row in table[:2]] == ["5000", "10000"]
    assert [float(row["rollout/success/mean"]) for row in table[:2]] == [3.0, 8.0]
    assert table[-1]["steps"] == "250000"
    assert [(row["steps"], row["success/test/mean"]) for row in table if row["success/test/mean"]] == [
        ("50000", "0.5")
    ]


@pytest.mark.parametrize(
    ("steps", "width"), [(20e6, 500e3), (8e6, 250e3), (5e6, 100e3), (480e3, 10e3), (50, 1), (51, 2.5)]
)
def test_intervals_have_round_widths(steps: float, width: float) -> None:
    assert bin_width(steps) == pytest.approx(width)


def test_a_short_log_is_kept_as_it_is(runs: list[str], tmp_path: Path) -> None:
    main([*runs, "--out", str(tmp_path / "out"), "--formats", "png"])
    table = rows(tmp_path / "out" / "curves.csv")
    assert len(table) == 2 * 20
    assert [float(row["rollout/success/mean"]) for row in table[:20]] == pytest.approx(
        [*rising(0.5).values()]
    )


@pytest.mark.parametrize("mode", ["sampled", "mean_action"])
def test_a_study_is_reported_as_its_runs_are(runs: list[str], tmp_path: Path, mode: str) -> None:
    """But for paths, checkpoints and times, which its tables do not hold."""
    first, second = tmp_path / "first", tmp_path / "second"
    main([*runs, "--out", str(first), "--formats", "png", "--mode", mode])
    main([str(first), "--out", str(second), "--formats", "png", "--mode", mode])
    for name in ("summary.csv", "curves.csv", "diagnostics.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    texts = [(folder / "report.md").read_text().split("## Runs")[0] for folder in (first, second)]
    cells = [[line for line in text.splitlines() if line.startswith("|")] for text in texts]
    assert cells[0] == cells[1]
    assert len(cells[0]) >= 20
    assert f"{first} holds thinned curves" in texts[1]


def test_tables_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text("method,seed,value\na,1,2\n")
    with pytest.raises(
        UserError, match=r"the tables of .* are not those of hmrl report: summary.csv lacks split, family"
    ):
        read([str(tmp_path)], "sampled")


def test_a_report_does_not_replace_the_study_that_it_reads(runs: list[str], tmp_path: Path) -> None:
    main([*runs, "--out", str(tmp_path / "out"), "--formats", "png"])
    before = (tmp_path / "out" / "summary.csv").read_bytes()
    with pytest.raises(UserError, match="a study that is read, whose tables it would replace"):
        main([str(tmp_path / "out"), "--out", str(tmp_path / "out"), "--protocol", "first_episode"])
    assert (tmp_path / "out" / "summary.csv").read_bytes() == before


def test_results_of_another_mode_are_left_out_of_a_study(tmp_path: Path) -> None:
    """As long as some have the mode: a test with permuted beliefs lacks the mean action."""
    for name, mode in (("a-seed1", "mean_action"), ("b-seed1", "sampled")):
        write_result(tmp_path / name, result(RATES, mode=mode))
    write(read([str(tmp_path / "a-seed1")], "mean_action"), tmp_path / "a")
    write(read([str(tmp_path / "b-seed1")], "sampled"), tmp_path / "b")
    both = (tmp_path / "a" / "summary.csv").read_text() + (tmp_path / "b" / "summary.csv").read_text()
    lines = [line for i, line in enumerate(both.splitlines(True)) if not i or not line.startswith("method,")]
    (tmp_path / "summary.csv").write_text("".join(lines))
    assert list(read([str(tmp_path)], "mean_action").titles) == ["a"]
    assert list(read([str(tmp_path)], "sampled").titles) == ["b"]
    with pytest.raises(UserError, match="has no mode 'other': use --mode with one of mean_action, sampled"):
        read([str(tmp_path)], "other")


def test_an_earlier_reports_tables_do_not_stay(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("of another report")
    write(read([runs[2]], "sampled"), tmp_path)
    assert not (tmp_path / "curves.csv").exists()
    assert (tmp_path / "summary.csv").is_file()


STUDIES = sorted(path.parent for path in (Path(__file__).parents[3] / "results").glob("*/summary.csv"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_published_study_can_be_read_and_its_page_is_short(folder: Path) -> None:
    runs = read([str(folder)], "sampled")  # same families, no seed twice
    assert len(runs.results)
    assert len(runs.metrics) or runs.trials("sampled", 0)
    assert len((folder / "README.md").read_text().splitlines()) <= 60
