"""``hmrl report`` from end to end, on runs whose numbers are known."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from hmrl.cli.report import main
from hmrl.results import curves
from hmrl.results.file import protocol_label
from hmrl.results.statistics import Estimate
from hmrl.results.tables import cell, reached_cell
from hmrl.system.errors import UserError
from support.reported import (
    SUCCESS,
    TEST,
    TRAIN,
    metrics,
    rates,
    result,
    write_metrics,
    write_result,
    write_seed,
)

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving figures is what takes time."""
    monkeypatch.setattr(curves, "save", lambda figure, path, formats: None)


def report(arguments: list[str], out: Path, *options: str) -> str:
    main([*arguments, "--out", str(out), *options])
    return (out / "report.md").read_text()


def row(text: str, first: str, section: str) -> list[str]:
    """Cells after the first of the row that begins with ``first``, in the section of that title."""
    part = re.split(r"^##+ ", text, flags=re.MULTILINE)
    (body,) = [p for p in part if p.startswith(section)]
    (line,) = [line for line in body.splitlines() if line.startswith(f"| {first} |")]
    return [c.strip() for c in re.split(r"(?<!\\)\|", line)[2:-1]]


def over_seeds(values: list[float]) -> str:
    ends = ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{sum(values) / len(values):.2f} [{ends.low:.2f}, {ends.high:.2f}]"


@pytest.mark.usefixtures("undrawn")
def test_success_over_seeds(runs: list[str], tmp_path: Path) -> None:
    text = report(runs, tmp_path / "out")
    for label, seeds in SUCCESS.items():
        train = over_seeds([(reach + push) / 2 for reach, push, _ in seeds.values()])
        test = over_seeds([test for _, _, test in seeds.values()])
        cells = row(text, label.replace("|", "\\|"), "Success, protocol first_episode")
        of_three = [train.split()[0], test.split()[0]]  # the IQM, their mean; an interval would be too narrow
        assert cells == ["3 (1, 2, 3)", "2,000,000", train, of_three[0], test, of_three[1]]
    ceiling = row(text, "script (ceiling)", "Success, protocol first_episode")
    assert ceiling == ["1 (1)", "–", "0.95 [0.90, 1.00] †", "–", "0.95 [0.90, 1.00] †", "–"]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    order = [re.split(r"(?<!\\)\|", line)[1].strip() for line in lines[2:7]]
    assert order == ["three levels", "flat", "belief\\|less", "script (ceiling)", "chance (floor)"]
    assert "backend: metaworld, episodes: 50, goals_per_family: 50, horizon: 500." in text
    assert "95 % intervals of the mean over seeds (Student's t)" in text
    assert "too narrow for few of them: none below 10 seeds" in text


@pytest.mark.usefixtures("undrawn")
def test_success_per_family(runs: list[str], tmp_path: Path) -> None:
    text = report(runs, tmp_path / "out")
    for i, family in enumerate([f"train {f}" for f in TRAIN] + [f"test {f}" for f in TEST]):
        expected = [over_seeds([v[i] for v in seeds.values()]) for seeds in SUCCESS.values()]
        cells = row(text, family, "Per family, first_episode")
        assert cells == [*expected, "0.95 [0.90, 1.00] †", "0.05 [0.00, 0.10] †"]
    assert row(text, "**train mean**", "Per family")[1] == "**0.33 [0.05, 0.62]**"


@pytest.mark.usefixtures("undrawn")
def test_one_seed_has_the_files_interval_over_goals(runs: list[str], tmp_path: Path) -> None:
    text = report(runs[:1], tmp_path / "out")
    cells = row(text, "three levels", "Success, protocol first_episode")
    assert cells == ["1 (1)", "2,000,000", "0.70 [0.65, 0.75] †", "–", "0.40 [0.35, 0.45] †", "–"]
    assert "† One seed: the interval of its results file, over goals" in text
    assert "Probability of improvement" not in text


@pytest.mark.usefixtures("undrawn")
def test_steps_to_success_rates(runs: list[str], tmp_path: Path) -> None:
    text = report(runs, tmp_path / "out", "--thresholds", "0.2", "0.35", "0.65", "--window", "300000")
    # Success rises to `last` at 2 M, so its mean over three iterations is last * (i - 1) / 20.
    section = "Environment steps to a success rate"
    expected = []
    for threshold in (0.2, 0.35):
        steps = sorted(
            next(i for i in range(3, 21) if last * (i - 1) / 20 >= threshold - 1e-9) * 100_000
            for last in (0.7, 0.6, 0.5)
        )
        expected.append(f"{steps[1]:,} ({steps[0]:,} to {steps[2]:,}; 3 of 3)")
    part = text[text.index(section) :]
    train, test = part.split("Held-out families, evaluations")
    cells = row(f"## {section}\n{train}", "three levels", section)
    assert cells == [*expected, "not reached by 2,000,000 (2,000,000 to never; 1 of 3)"]
    assert "trailing mean over 300,000 environment steps" in train
    cells = row(f"## {section}\n{test}", "flat", section)  # 0.2, 0.3, 0.25, then 0.4, 0.6, 0.5
    assert cells[0] == "≤ 500,000 (≤ 500,000 to ≤ 500,000; 3 of 3)"  # the first evaluation
    assert cells[1] == "1,000,000 (1,000,000 to 1,000,000; 3 of 3)"
    assert cells[2] == "not reached by 1,000,000 (0 of 3)"


def test_cells_of_steps() -> None:
    inf = float("inf")
    assert reached_cell(*arrays([300, 100, 200], [900] * 3)) == "200 (100 to 300; 3 of 3)"
    assert reached_cell(*arrays([300, inf, 200], [900, 700, 900])) == "300 (200 to never; 2 of 3)"
    assert (
        reached_cell(*arrays([300, inf, inf], [900, 700, 800])) == "not reached by 700 (300 to never; 1 of 3)"
    )
    assert reached_cell(*arrays([300, inf, inf], [400, 700, 800])).startswith("not reached by 700 (")
    assert reached_cell(*arrays([1_500_000], [2_000_000])) == "1,500,000 (1 of 1)"


def arrays(*values: list[float]) -> list[Any]:
    return [np.array(v, dtype=np.float64) for v in values]


@pytest.mark.usefixtures("undrawn")
def test_probability_of_improvement(runs: list[str], tmp_path: Path) -> None:
    text = report(runs, tmp_path / "out")
    (line,) = [x for x in text.splitlines() if x.startswith("| three levels | flat |")]
    cells = [c.strip() for c in line.split("|")[3:-1]]
    assert cells[0] == "3 and 3, paired"
    x, y = SUCCESS["three levels"].values(), SUCCESS["flat"].values()
    won = [[(a[f] > b[f]) + (a[f] == b[f]) / 2 for a in x for b in y] for f in range(3)]
    train, test = (sum(won[0]) + sum(won[1])) / 18, sum(won[2]) / 9
    assert (cells[1], cells[3]) == (f"{train:.2f}", f"{test:.2f}")
    apart = [
        [np.mean(a[part]) - np.mean(b[part]) for a, b in zip(x, y, strict=True)]
        for part in (slice(2), slice(2, 3))
    ]  # the seeds are the same, and so are their goals
    assert [cells[2], cells[4]] == [over_seeds(differences) for differences in apart]
    assert not any(line.startswith("| three levels | script") for line in text.splitlines())


@pytest.mark.usefixtures("undrawn")
def test_compared_with_a_baseline_only(runs: list[str], tmp_path: Path) -> None:
    text = report(runs, tmp_path / "out", "--baseline", "flat")
    part = text.split("### Probability of improvement")[1].split("##")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| three levels", "flat"],
        [r"| belief\|less", "flat"],
    ]
    assert "| 0.27 [" in rows[0]


@pytest.mark.usefixtures("undrawn")
def test_meta_worlds_own_number_stands_beside_ours(runs: list[str], tmp_path: Path) -> None:
    for seed, theirs in ((1, 0.3), (2, 0.5)):
        run = tmp_path / f"three-seed{seed}"
        official = {
            split: {"sampled": {"success": theirs, "return": 0, "families": {}}}
            for split in ("train", "test")
        }
        write_result(run, result(rates(0.1, 0.2, 0.3), protocol="meta_world", official=official))
        write_result(run, result(rates(0.1, 0.2, 0.3)))
    text = report([str(tmp_path / f"three-seed{seed}") for seed in (1, 2)], tmp_path / "out")
    cells = row(text, "three", "Success, protocol meta_world")
    assert cells[2:5] == ["0.15 [0.15, 0.15] ‡", "0.15", "0.40 [0.30, 0.50] ‡"]
    assert cells[7] == "0.40 [0.30, 0.50] ‡"
    assert "‡ Two seeds: the range of two seeds, which is no interval" in text
    assert len(row(text, "three", "Success, protocol first_episode")) == 6
    assert "(figures/success-meta_world.png)" in text


@pytest.mark.usefixtures("undrawn")
def test_adaptation_by_beliefs_has_a_section_of_its_own(tmp_path: Path) -> None:
    """From the results files, and from the tables that were made of them."""
    run = tmp_path / "three-seed1"
    for adaptation, success in (({}, 0.1), ({"adaptation": "beliefs"}, 0.3)):
        content = result(rates(success, success, success), protocol="meta_world")
        content["protocol"] |= adaptation
        write_result(run, content, protocol_label(content["protocol"]))
    assert (run / "test-meta_world-beliefs.json").is_file()
    for read, out in ((run, "out"), (tmp_path / "out", "again")):
        text = report([str(read)], tmp_path / out)
        for title, success in (("meta_world", "0.10"), ("meta_world-beliefs", "0.30")):
            cells = row(text, "three", f"Success, protocol {title}\n")
            assert cells[2].startswith(success)
        assert "adaptation: beliefs" in text.split("protocol meta_world-beliefs")[1]
        assert "adaptation differs" not in text


@pytest.mark.usefixtures("undrawn")
def test_other_goals_are_compared_by_welchs_interval(runs: list[str], tmp_path: Path) -> None:
    for seed, success in SUCCESS["flat"].items():
        content = result(rates(*success), evaluation_seed=9)
        write_result(tmp_path / "runs" / f"flat-seed{seed}", content)
    text = report(runs, tmp_path / "out", "--baseline", "flat")
    (line,) = [x for x in text.splitlines() if x.startswith("| three levels | flat |")]
    cells = [c.strip() for c in line.split("|")[3:-1]]
    x, y = ([np.mean(of[:2]) for of in SUCCESS[label].values()] for label in ("three levels", "flat"))
    ends = ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert cells[0] == "3 and 3"
    assert cells[2] == f"{np.mean(x) - np.mean(y):.2f} [{ends.low:.2f}, {ends.high:.2f}]"


@pytest.mark.usefixtures("undrawn")
def test_where_the_file_has_no_interval_there_is_none(tmp_path: Path) -> None:
    """As of copies of one episode."""
    content = result(rates(1.0, 0.0, 1.0), protocol="paper")
    for split in content["scores"].values():
        for score in split["sampled"].values():
            score |= {"low": None, "high": None}
    write_result(tmp_path / "one-seed1", content)
    found = row(report([str(tmp_path / "one-seed1")], tmp_path / "out"), "one", "Success, protocol paper")
    assert [found[2], found[4]] == ["0.50", "1.00"]


@pytest.mark.usefixtures("undrawn")
def test_what_differs_from_training_is_a_warning(tmp_path: Path) -> None:
    differs = {"sampled": "task belief sample (training: probabilities)", "mean_action": "another mode"}
    write_result(tmp_path / "one-seed1", result(rates(0.1, 0.2, 0.3), differs_from_training=differs))
    text = report([str(tmp_path / "one-seed1")], tmp_path / "out")
    assert "one seed 1, first_episode, differs from training: sampled: task belief sample" in text
    assert "another mode" not in text


@pytest.mark.usefixtures("undrawn")
def test_one_protocol_only(runs: list[str], tmp_path: Path) -> None:
    """The expert, with results of another protocol only, is not there."""
    for seed in (1, 2):
        content = result(rates(0.1, 0.2, 0.3), protocol="paper")
        write_result(tmp_path / f"runs/flat-seed{seed}", content)
    text = report(runs, tmp_path / "out", "--protocol", "paper")
    assert "first_episode" not in text
    assert "script" not in text.split("\n", 3)[3]  # but in the command
    assert row(text, "flat", "Success, protocol paper")[0] == "2 (1, 2)"
    assert row(text, f"`{tmp_path / 'runs/flat-seed3'}`", "Runs")[3:6] == ["training only", "–", "2,000,000"]


@pytest.mark.usefixtures("undrawn")
def test_runs_and_what_differs_between_them(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"env_steps": 1_000_000, "packages": {"torch": "2.12.0", "envpool": None, "mujoco": "3.3"}}
    content = result(rates(0.1, 0.1, 0.1), git={"revision": "abc123", "modified": True}, **changes)
    content["protocol"]["backend"] = "envpool"
    content["model"] = {"actor_critic": {"critic_input": "task"}, "task_encoder": {"goal_coef": 1.0}}
    write_result(tmp_path / "runs/flat-seed2", content)
    (tmp_path / "runs/beli-seed3/test-first_episode.json").unlink()
    text = report(runs, tmp_path / "out")
    warnings = text[text.index("## Warnings") : text.index("## Success")]
    assert (
        "different numbers of environment steps: three levels 2,000,000; flat 1,000,000–2,000,000" in warnings
    )
    assert "No results of first_episode: belief|less seed 3." in warnings
    assert "The first_episode's backend differs: metaworld (three levels seed 1" in warnings
    assert "The version of torch differs: 2.13.0 (three levels seed 1" in warnings
    assert "2.12.0 (flat seed 2)" in warnings
    assert "The version of mujoco differs: none (three levels seed 1" in warnings
    assert "The input of critics in training differs: belief (three levels seed 1" in warnings
    assert "task, and goals for the encoder (flat seed 2)" in warnings
    assert "The git revision differs: abc123 (three levels seed 1" in warnings
    assert "python" not in warnings
    assert "version of envpool" not in warnings  # none installed, or not looked for
    assert "hmrl: warning: The version of torch differs" in capsys.readouterr().out
    table = text[text.index("## Runs") :]
    path = tmp_path / "runs/flat-seed2"
    expected = ["flat", "2", "`config.yaml`", "first_episode", "`checkpoints/best.ckpt`", "1,000,000"]
    assert row(table, f"`{path}`", "Runs") == [*expected, "abc123 (modified)", "512 s"]
    trained = row(table, f"`{tmp_path / 'runs/beli-seed3'}`", "Runs")
    assert trained[3:6] == ["training only", "–", "2,000,000"]


@pytest.mark.usefixtures("undrawn")
def test_runs_that_agree_are_without_warning(runs: list[str], tmp_path: Path) -> None:
    assert "Warnings" not in report(runs, tmp_path / "out")


@pytest.mark.usefixtures("undrawn")
def test_pictures_of_latents_are_copied(runs: list[str], tmp_path: Path) -> None:
    pictures = tmp_path / "runs/flat-seed2/latents"
    pictures.mkdir()
    (pictures / "belief.png").write_bytes(PNG)
    text = report(runs, tmp_path / "out")
    assert text.rstrip().endswith("### flat, seed 2\n\n![belief](latents/1-flat-seed2/belief.png)")
    assert (tmp_path / "out/latents/1-flat-seed2/belief.png").read_bytes() == PNG


@pytest.mark.usefixtures("undrawn")
def test_results_alone_and_training_alone(runs: list[str], tmp_path: Path) -> None:
    for path in (tmp_path / "runs").rglob("metrics.csv"):
        path.unlink()
    text = report(runs, tmp_path / "tested")
    assert "Learning curves" not in text
    assert "Environment steps to" not in text
    run = write_seed(tmp_path / "alone", 1)
    write_metrics(run, metrics(0.5, 0.5, 0.5, rows=20))
    text = report([str(run)], tmp_path / "trained")
    assert "Success, protocol" not in text
    assert "![learning](figures/learning.png)" in text


@pytest.mark.usefixtures("undrawn")
def test_evaluations_are_of_the_mode(tmp_path: Path) -> None:
    run = write_seed(tmp_path / "run", 1)
    logged = {"success/test/mean": {1.0: 0.9}, "success_mean_action/test/mean": {1.0: 0.4}}
    write_metrics(run, logged)
    text = report([str(run)], tmp_path / "out", "--mode", "mean_action", "--thresholds", "0.3", "0.5")
    assert "`success_mean_action/test/mean`" in text
    assert "| run | ≤ 1 (1 of 1) | not reached by 1 (0 of 1) |" in text


def test_a_cell_shows_an_estimate_its_interval_and_of_what_it_is() -> None:
    assert cell(None) == "–"
    assert cell(Estimate(0.456)) == "0.46"
    assert cell(Estimate(0.5, 0.25, 0.75)) == "0.50 [0.25, 0.75]"
    assert cell(Estimate(0.5, 0.25, 0.75, "goals")) == "0.50 [0.25, 0.75] †"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--protocol", "paper"], "no run has results of protocol paper: there are first_episode"),
        (["--thresholds", "0.2", "30"], r"success rates above 0, at most 1, but got \[0.2, 30.0\]"),
        (["--window", "-1"], "--window is -1, but it must be a number of environment steps, or 0"),
        (["--mode", "best"], "has no mode 'best'"),
        (["--baseline", "best"], "--baseline is 'best', but the methods are three levels, flat, belief.less"),
    ],
)
def test_refuses_options(runs: list[str], tmp_path: Path, options: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        report(runs, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_refuses_a_file_as_folder(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file, but it must be a folder"):
        report(runs, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_every_figure_is_there_in_every_format(runs: list[str], tmp_path: Path) -> None:
    text = report(runs, tmp_path / "out")
    embedded = re.findall(r"!\[[^]]*\]\((figures/.*?)\)", text)
    names = ["success-first_episode-mean", "success-first_episode", "learning", "families", "diagnostics"]
    assert embedded == [f"figures/{name}.png" for name in names]
    for name in names:
        assert (tmp_path / f"out/figures/{name}.png").read_bytes().startswith(PNG)
        assert (tmp_path / f"out/figures/{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("undrawn")
def test_a_format_that_markdown_cannot_show_is_linked(runs: list[str], tmp_path: Path) -> None:
    assert "\n[learning](figures/learning.pdf)" in report(runs, tmp_path / "out", "--formats", "pdf")
    assert "\n![learning](figures/learning.png)" in report(runs, tmp_path / "out", "--formats", "pdf", "png")


def test_refuses_more_methods_than_colours(tmp_path: Path) -> None:
    for i in range(21):
        write_result(tmp_path / f"run{i}", result(rates(0.1, 0.1, 0.1)))
    with pytest.raises(UserError, match="21 methods are too many to tell apart: at most 20"):
        report([str(tmp_path / f"run{i}") for i in range(21)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_waits_for_neither_pandas_nor_matplotlib() -> None:
    code = "import sys, hmrl.cli.report; print(sys.modules.keys() & {'matplotlib', 'pandas'})"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"
