"""The example programs run as they are printed, on smaller numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def example(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.py", "change_a_level.py"])
def test_a_training_example_leaves_a_run(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    out = example(name, "--env_steps", "3000", "--run_dir", str(run))
    assert "success after 3,600 environment steps" in out
    assert (run / "checkpoints/last.ckpt").is_file()


def test_a_published_agent_acts_in_a_plain_environment() -> None:
    agent = ROOT / "results/ml10-20m/default/agent.weights.ckpt"
    assert example("act.py", str(agent), "--family", "drawer-close").endswith("drawer-close: solved\n")
