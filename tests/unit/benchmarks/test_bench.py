"""The benchmark's arithmetic; that it runs is tried by running it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bench
from hmrl.envs.benchmarks import benchmark


def test_every_size_is_one_of_a_benchmark() -> None:
    for name, _ in bench.SIZES:
        assert len(benchmark(name, ["reach"] if name == "ML1" else []).train) == bench.FAMILIES[name]


def test_ratios_are_medians_of_ratios_and_known_after_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """2, 3 and 10 over 1, 2 and 20; the second part fails."""
    answers = iter([{"fast": 2.0, "slow": 1.0}, {"fast": 3.0, "slow": 2.0}, {"fast": 10.0, "slow": 20.0}])

    def failing() -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(bench, "PARTS", {"race": lambda: next(answers), "fall": failing})
    monkeypatch.setattr(bench, "RATIOS", {"race": [("fast / slow", "fast", "slow", "at least 1.4")]})
    out = tmp_path / "deep" / "bench.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--out", str(out)])
    with pytest.raises(ZeroDivisionError):
        bench.main()
    race = json.loads(out.read_text())["race"]
    assert race["code"]["packages"].keys() >= {"torch", "envpool"}
    assert race["median"] == {"fast": 3, "slow": 2}
    assert race["ratios"] == {
        "fast / slow": {"median": 1.5, "least": 0.5, "most": 2, "target": "at least 1.4"}
    }
    assert "1.50 [0.50, 2.00]   (at least 1.4)" in capsys.readouterr().out

    monkeypatch.setattr(bench, "PARTS", {"swim": lambda: {"slow": 1.0}})
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "swim", "--repeats", "1", "--out", str(out)])
    bench.main()
    found = json.loads(out.read_text())
    assert found["race"] == race, "another call's part stays"
    assert found["swim"]["median"] == {"slow": 1}


@pytest.mark.slow
def test_a_measurement_that_fails_says_why() -> None:
    with pytest.raises(SystemExit, match=r"(?s)the measurement training of .* failed:.*UserError:.*ML99"):
        bench.apart("training", benchmark="ML99")


@pytest.mark.slow
def test_peak_memory_is_the_measured_processs_own() -> None:
    """However much the parent has had."""
    much = np.ones(1 << 27)  # 1 GiB
    _, peak = bench.apart("raw_envpool", each=1, steps=2)
    assert much[-1] == 1
    assert 50 < peak < 1000


def test_the_share_of_learning_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An iteration of 100 environments is 50,000 steps: at 10,000 a second 5 s, of which 1 s is learning."""
    if not torch.cuda.is_available():
        assert bench.gpu() == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "collecting", lambda each, device: 20_000.0)
    monkeypatch.setattr(
        bench, "trained", lambda each, accelerator: {"rate": 1_000.0 * each, "training_step": 1.0}
    )
    found = bench.gpu()
    shares = [found[over] / found[under] for _, over, under, _ in bench.RATIOS["gpu"]]
    assert shares == pytest.approx([0.2] * len(bench.GPU_SIZES))


def test_load_is_measured_beside_a_program_that_keeps_a_core_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[subprocess.Popen[bytes]] = []

    def started(command: list[str]) -> subprocess.Popen[bytes]:
        others.append(popen(command))
        return others[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(bench, "usable_cores", lambda: [0, 1])
    monkeypatch.setattr(bench, "trained", lambda processes: {"rate": (3.0 if others else 4.0) / processes})
    found = bench.load()
    ratios = [found[over] / found[under] for _, over, under, _ in bench.RATIOS["load"]]
    assert ratios == [0.75, 0.75, 0.5, 0.5]  # busy / alone by threads and by processes; processes / threads
    assert others[0].wait() == -signal.SIGKILL, "it ran until it was ended"
