"""What a report says about belief, macro-action and forgetting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hmrl.cli.report import main
from hmrl.results.reading import read
from hmrl.results.runs import Runs
from hmrl.results.tables import forgetting_table, latents_table
from hmrl.system.errors import UserError
from support.reported import TRAIN, result, write_result, write_seed


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of one method."""
    folders = [write_seed(tmp_path / f"full-seed{seed}", seed) for seed in (1, 2)]
    for folder in folders:
        write_result(folder, result({"train": [0.2, 0.4], "test": [0.1]}))
    return folders


def rows(text: str) -> list[list[str]]:
    """Cells, without the ruler."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return [lines[0], *lines[2:]]


def table(runs: list[Path]) -> Runs:
    return read([str(run) for run in runs], "sampled")


def findings(probe: float, error: float | None) -> dict[str, Any]:
    """One split of ``latents.json``; without macro-actions if ``error`` is None."""
    found: dict[str, Any] = {"families": list(TRAIN), "probe": {"z": probe, "chance": 0.5}}
    if error is not None:
        found |= {
            "decoder_error": {"all": 9.0, "reach": error - 0.1, "push": error + 0.1},
            "decoder_error_without_z": {"all": 9.0, "reach": error + 0.1},
            "correlation": [0.1, 0.2, 0.6],
            "agreement": 0.75,
            "over_families": "mean",
        }
    return found


def test_the_latents_table_holds_the_files_numbers(runs: list[Path]) -> None:
    """Means over seeds, by split; what no run knows has no column."""
    for run, error in zip(runs, (0.4, 0.6), strict=True):
        (run / "latents").mkdir()
        content = {"env_steps": 1, "train": findings(0.5 + error, error), "test": findings(0.25, None)}
        (run / "latents" / "latents.json").write_text(json.dumps(content))
    header, train, test = rows(latents_table(table(runs)))  # and nothing is said of pooled numbers
    named = ["decoder error", "without z", "correlation", "agreement", "probe of z", "probe by chance"]
    assert header == ["method", "families", "seeds", *named]
    assert train[:4] == ["full", "train", "2", "0.50 [0.40, 0.60] ‡"]
    assert [float(cell.split()[0]) for cell in train[3:]] == [0.5, 0.6, 0.3, 0.75, 1.0, 0.5]
    assert test == ["full", "test", "2", *["–"] * 4, "0.25 [0.25, 0.25] ‡", "0.50 [0.50, 0.50] ‡"]


def test_numbers_that_were_pooled_over_families_are_called_so(runs: list[Path]) -> None:
    (runs[1] / "latents").mkdir()
    found = findings(0.3, 0.4)
    del found["over_families"]
    (runs[1] / "latents" / "latents.json").write_text(json.dumps({"train": found}))
    *_, said = latents_table(table(runs)).strip().splitlines()
    assert said == "Correlation and agreements are pooled over families, not means: full."


def test_the_forgetting_table_holds_the_files_numbers(runs: list[Path]) -> None:
    """The last block counts, and families that are not in a number are not in its mean."""
    first = {"success": {"train": {"reach": 0.8, "push": 0.0}}, "forgetting": {}, "backward_transfer": {}}
    last = {
        "success": {"train": {"reach": 0.2, "push": 0.6}},
        "forgetting": {"reach": 0.6},
        "backward_transfer": {"reach": -0.5},
    }
    content = {"schema": 1, "seed": 1, "blocks": [first, last]}
    (runs[0] / "forgetting.json").write_text(json.dumps(content))
    assert rows(forgetting_table(table(runs)))[1:] == [["full", "1", "2", "0.40", "-0.50", "0.60"]]
    (runs[1] / "forgetting.json").write_text(json.dumps({**content, "blocks": [first]}))
    (row,) = rows(forgetting_table(table(runs)))[1:]
    assert row == ["full", "2", "1–2", "0.40 [0.40, 0.40] ‡", "-0.50", "0.60"]


def test_sections_are_there_if_there_is_something(runs: list[Path], tmp_path: Path) -> None:
    arguments = [*map(str, runs), "--out", str(tmp_path / "out"), "--formats", "png"]
    main(arguments)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Forgetting" not in text
    assert "## Belief and macro-action" not in text
    (runs[0] / "latents").mkdir()
    (runs[0] / "latents" / "latents.json").write_text(json.dumps({"train": findings(0.3, 0.4)}))
    main(arguments)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| full | train | 1 | 0.40 | 0.50 | 0.30 | 0.75 | 0.30 | 0.50 |" in text


def test_a_broken_file_is_named(runs: list[Path]) -> None:
    (runs[1] / "forgetting.json").write_text("{")
    with pytest.raises(UserError, match=r"full-seed2/forgetting\.json is no JSON"):
        forgetting_table(table(runs))
