"""The example programs run as they are printed, on smaller numbers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.config import TaskEncoderConfig
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.types import Acting

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


@pytest.mark.parametrize("benchmark", ["GridWorld", "ML10"])
def test_the_changed_level_fits_the_others(benchmark: str) -> None:
    """With today's defaults, in seconds: the run above is a slow test."""
    spec = importlib.util.spec_from_file_location("change_a_level", ROOT / "examples/change_a_level.py")
    assert spec
    assert spec.loader
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    grid = {"backend": "gridworld", "horizon": 24, "test": EvaluationConfig(1, 1, "gridworld")}
    data = MetaWorldDataModule(benchmark, **(grid if benchmark == "GridWorld" else {}))  # type: ignore[arg-type]
    policy = program.ReactiveAgent(**data.sizes, task_encoder=TaskEncoderConfig(hidden=64, cell="gru")).policy
    step, _ = policy.act(
        torch.ones(3, data.observation_dim), torch.ones(3), policy.initial_carry(3), Acting()
    )
    assert step.task_belief.shape == (3, policy.task_encoder.belief_dim)


def test_a_published_agent_acts_in_a_plain_environment() -> None:
    agent = ROOT / "results/ml10-20m/default/agent.weights.ckpt"
    assert example("act.py", str(agent), "--family", "drawer-close").endswith("drawer-close: solved\n")
