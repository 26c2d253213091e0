"""Steps and minutes to a success, read from a run's metrics."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

import time_to_success


def run(folder: Path, success: list[float], rate: float) -> Path:
    """Metrics of iterations of 50,000 steps, with a row of an evaluation between."""
    steps = [50_000.0 * (i + 1) for i in range(len(success))]
    log = pd.DataFrame(
        {"step": steps, "rollout/success/mean": success, "time/env_steps_per_second": rate},
    )
    folder.mkdir()
    evaluation = pd.DataFrame({"step": [100_000.0], "success/train/mean": [0.9]})
    pd.concat([log, evaluation]).to_csv(folder / "metrics.csv", index=False)
    return folder


def test_success_is_the_mean_over_three_iterations_of_50_000_steps(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", [0.0, 0.3, 0.3, 0.4, 0.4, 0.4], rate=1000)
    found = time_to_success.reached(folder, None)
    assert found["steps to 0.3"] == 200_000  # (0.3 + 0.3 + 0.4) / 3; one iteration of 0.3 is not enough
    assert found["minutes to 0.3"] == pytest.approx(200_000 / 1000 / 60)
    assert found["steps to 0.4"] == 300_000
    assert math.isnan(found["steps to 0.5"])
    assert time_to_success.reached(folder, 500)["minutes to 0.3"] == pytest.approx(400 / 60)


def test_a_method_some_of_whose_runs_got_nowhere_has_no_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(run(tmp_path / "a", [0.4] * 4, 1000)), str(run(tmp_path / "b", [0.3] * 4, 1000))]
    monkeypatch.setattr("sys.argv", ["time_to_success.py", f"flat={runs[0]}", runs[1]])
    time_to_success.main()
    mean = capsys.readouterr().out.splitlines()[-1].split()
    assert mean[:3] == ["flat", "mean", "1.5e+05"]
    assert mean[4] == "–"
