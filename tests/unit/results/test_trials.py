"""Success by episode of a trial: from results files by the protocol meta_world to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hmrl.cli.report import main
from hmrl.results import curves, tables
from hmrl.results.reading import read
from hmrl.results.runs import trial_name, trial_of
from hmrl.system.errors import UserError
from support.reported import FAMILIES, result, rising, write_metrics, write_result


def write_trials(
    run: Path,
    success: dict[str, list[list[int]]],
    seed: int,
    *,
    mode: str = "sampled",
    agent: str = "policy",
    **protocol: Any,
) -> None:
    """Adaptation episodes ``success`` by split, of each goal of the first family; others never succeed."""
    episodes: dict[str, Any] = {}
    for split, names in FAMILIES.items():
        columns = {}
        for k, family in enumerate(names):
            goals = success[split] if k == 0 else np.zeros_like(success[split]).tolist()
            rows = [("adaptation", g, n, x) for g, of in enumerate(goals) for n, x in enumerate(of)]
            rows += [("evaluation", g, 0, 1) for g in range(2)]  # which are not of adaptation
            columns[family] = pd.DataFrame(rows, columns=["phase", "goal", "number", "success"]).to_dict(
                "list"
            )
        episodes[split] = {mode: columns}
    rates = {split: [0.1] * len(names) for split, names in FAMILIES.items()}
    content = result(rates, mode=mode, protocol="meta_world", episodes=episodes, seed=seed, agent=agent)
    content["protocol"] |= protocol
    name = "-".join(["meta_world", *protocol.values()])
    write_result(run, content, name)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two seeds by memory, of which one also by beliefs, and a run without trials."""
    first = {"train": [[0, 1, 1], [0, 0, 1]], "test": [[0, 0, 0], [0, 1, 1]]}
    second = {"train": [[1, 1, 1], [0, 1, 1]], "test": [[0, 0, 1], [0, 1, 1]]}
    write_trials(tmp_path / "ours-seed1", first, 1)
    write_trials(tmp_path / "ours-seed2", second, 2)
    write_trials(tmp_path / "ours-seed1", second, 1, adaptation="beliefs")
    write_result(tmp_path / "other-seed1", result({split: [0.2] * len(f) for split, f in FAMILIES.items()}))
    return [str(tmp_path / name) for name in ("ours-seed1", "ours-seed2", "other-seed1")]


def test_success_is_the_mean_over_families_in_each_adaptation_episode(runs: list[str]) -> None:
    found = read(runs, "sampled").trials("sampled", 0)
    assert {key: table.to_numpy().tolist() for key, table in found.items()} == {
        ("ours", "meta_world", "train"): [[0, 0.25, 0.5], [0.25, 0.5, 0.5]],  # of two families
        ("ours", "meta_world", "test"): [[0, 0.5, 0.5], [0, 0.5, 1]],  # of one
        ("ours", "meta_world-beliefs", "train"): [[0.25, 0.5, 0.5]],
        ("ours", "meta_world-beliefs", "test"): [[0, 0.5, 1]],
    }
    assert all(list(table) == [1, 2, 3] for table in found.values())


def test_the_report_shows_them_and_a_study_keeps_them(runs: list[str], tmp_path: Path) -> None:
    main([*runs, "--out", str(tmp_path / "study"), "--formats", "png"])
    shown = (tmp_path / "study/report.md").read_text()
    section = shown[shown.index("## Adaptation within a trial") : shown.index("## Runs")]
    header, _, first, second, third = (line for line in section.splitlines() if line.startswith("| "))
    assert "train: ours, meta_world | " in header
    assert "test: ours, meta_world-beliefs" in header
    assert first.startswith("| 1 | 0.12 [0.00, 0.25] ‡ |")
    assert second.startswith("| 2 | 0.38 [0.25, 0.50] ‡ |")
    assert third.startswith("| 3 | 0.50 [0.50, 0.50] ‡ |")
    assert "figures/trials.png" in section
    assert (tmp_path / "study/figures/trials.png").is_file()
    again = read([str(tmp_path / "study")], "sampled")
    assert tables.trials_table(again, "sampled", 0) == tables.trials_table(
        read(runs, "sampled"), "sampled", 0
    )


def test_another_protocol_or_way_of_acting_is_not_shown(runs: list[str]) -> None:
    found = read(runs, "sampled", "meta_world-beliefs").trials("sampled", 0)
    assert {protocol for _, protocol, _ in found} == {"meta_world-beliefs"}
    both = read(runs, "sampled")
    assert tables.trials_table(both, "mean_action", 0) == ""
    assert curves.trials(both, "mean_action", 0) is None


def test_nothing_is_shown_unless_every_seed_has_trials(runs: list[str], tmp_path: Path) -> None:
    """As a study from before there were any: its seeds would be missing from the mean without a word."""
    rates = {split: [0.1] * len(names) for split, names in FAMILIES.items()}
    write_result(tmp_path / "ours-seed3", result(rates, protocol="meta_world", seed=3))
    found = read([*runs, str(tmp_path / "ours-seed3")], "sampled").trials("sampled", 0)
    assert {protocol for _, protocol, _ in found} == {"meta_world-beliefs"}


def test_seeds_are_compared_as_far_as_all_go(runs: list[str], tmp_path: Path) -> None:
    write_trials(tmp_path / "ours-seed3", {split: [[1, 1], [1, 1]] for split in FAMILIES}, 3)
    found = read([*runs, str(tmp_path / "ours-seed3")], "sampled").trials("sampled", 0)
    assert list(found["ours", "meta_world", "test"]) == [1, 2]
    assert len(found["ours", "meta_world", "test"]) == 3


def test_an_agent_with_one_way_of_acting_is_shown_in_any_mode(runs: list[str], tmp_path: Path) -> None:
    rates = {split: [[1, 1, 1], [1, 1, 1]] for split in FAMILIES}
    write_trials(tmp_path / "expert-seed1", rates, 1, agent="expert")
    write_trials(tmp_path / "mean-seed1", rates, 1, mode="mean_action")
    found = read([str(tmp_path / name) for name in ("expert-seed1", "mean-seed1")], "mean_action")
    assert {method for method, _, _ in found.trials("mean_action", 0)} == {"expert", "mean"}
    drawn = curves.trials(found, "mean_action", 0)
    assert drawn is not None
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [
        "mean",
        "expert (ceiling)",
        "meta_world",
    ]


@pytest.mark.parametrize(
    "episodes",
    [
        [1],
        {"train": {"sampled": {"reach": {"phase": ["adaptation"], "number": [0, 1], "success": [1]}}}},
        {"train": {"sampled": {"reach": {"phase": ["adaptation"], "number": [0]}}}},
    ],
    ids=["list", "lengths", "success"],
)
def test_broken_episodes_are_refused(episodes: Any, tmp_path: Path) -> None:
    rates = {split: [0.1] * len(names) for split, names in FAMILIES.items()}
    write_result(tmp_path / "run-seed1", result(rates, protocol="meta_world", episodes=episodes))
    with pytest.raises(UserError, match=r"the episodes of .*test-meta_world\.json are not those of schema 1"):
        read([str(tmp_path / "run-seed1")], "sampled")


def test_results_of_single_episodes_have_no_section(runs: list[str], tmp_path: Path) -> None:
    main([runs[-1], "--out", str(tmp_path / "report"), "--formats", "png"])
    assert "within a trial" not in (tmp_path / "report/report.md").read_text()
    assert not (tmp_path / "report/figures/trials.png").exists()


def test_trials_of_training_are_shown_as_they_end(tmp_path: Path) -> None:
    """Of seeds with iterations of different length, beside a method that learns from single episodes.

    The second seed has trained for longer, which does not count.
    """
    for seed, last, every in ((1, (0.2, 0.4, 0.8), 1e5), (2, (0.4, 0.4, 0.4), 2e5)):
        logs = {f"rollout/success_in_episode_{n}/mean": rising(x, every=every) for n, x in enumerate(last, 1)}
        logs["rollout/success/mean"] = rising(sum(last) / 3, every=every)
        write_metrics(tmp_path / f"trials-seed{seed}", logs)
        write_metrics(tmp_path / f"single-seed{seed}", {"rollout/success/mean": rising(0.9, every=every)})
    paths = [str(tmp_path / f"{name}-seed{seed}") for name in ("trials", "single") for seed in (1, 2)]
    found = read(paths, "sampled").trials("sampled", 400_000)
    # Of an even rise over 20 iterations the last four average 0.925; iterations 9 and 10 average 0.475.
    expected = [[0.925 * x for x in (0.2, 0.4, 0.8)], [0.475 * 0.4] * 3]
    assert list(found) == [("trials", "training rollouts", "train")]
    (table,) = found.values()
    assert list(table) == [1, 2, 3]
    np.testing.assert_allclose(table, expected)
    main([*paths, "--out", str(tmp_path / "study"), "--formats", "png", "--window", "400000"])
    report = (tmp_path / "study/report.md").read_text()
    assert "| 2 | 0.28 [0.19, 0.37] ‡ |" in report[report.index("## Adaptation within a trial") :]
    kept = read([str(tmp_path / "study")], "sampled").trials("sampled", 400_000)
    np.testing.assert_allclose(kept["trials", "training rollouts", "train"], expected, rtol=1e-3)


def test_rollouts_are_shown_only_if_every_seed_was_trained_on_trials(tmp_path: Path) -> None:
    logs = {f"rollout/success_in_episode_{n}/mean": rising(0.5) for n in (1, 2)}
    write_metrics(tmp_path / "ours-seed1", logs | {"rollout/success/mean": rising(0.5)})
    write_metrics(tmp_path / "ours-seed2", {"rollout/success/mean": rising(0.5)})
    assert read([str(tmp_path / f"ours-seed{n}") for n in (1, 2)], "sampled").trials("sampled", 0) == {}


def test_names_are_read_as_they_are_written() -> None:
    assert trial_of(trial_name("meta_world-beliefs after fine-tuning", "sampled", 0)) == (
        "meta_world-beliefs after fine-tuning",
        "sampled",
        1,
    )
    assert trial_of(trial_name("meta_world", "my/mode", 2)) == ("meta_world", "my/mode", 3)
    assert trial_of("forgetting/success") is None
