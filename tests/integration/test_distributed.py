"""Two processes on the CPU train one agent: equal weights, different experience, nothing counted twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from integration.runs import assert_same, read_rows
from integration.toy import STEPS

Ranks = list[dict[str, Any]]
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, str(TESTS / "integration" / "two_processes.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Ranks:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_the_automatic_strategy_expects_one_level_at_a_time(ranks: Ranks) -> None:
    for rank in ranks:
        name, options = rank["straight"]["strategy"]
        assert name == "DDPStrategy"
        assert options["find_unused_parameters"] is True


def test_weights_buffers_and_optimizers_are_equal(ranks: Ranks) -> None:
    first, second = (rank["straight"] for rank in ranks)
    assert_same(first["state"], second["state"])
    assert_same(first["optimizers"], second["optimizers"])
    assert first["checksums"] == second["checksums"]
    assert len(set(first["checksums"])) == 2  # both updates changed something


def test_environment_steps_count_both_processes(ranks: Ranks, folder: Path) -> None:
    for rank in ranks:
        assert rank["straight"]["env_steps"] == [STEPS, 2 * STEPS]
    rows = read_rows(folder / "straight")
    assert [int(row["step"]) for row in rows] == [STEPS, STEPS, 2 * STEPS, 2 * STEPS]


def test_experience_differs(ranks: Ranks) -> None:
    first, second = (rank["straight"] for rank in ranks)
    for a, b in zip(first["actions"], second["actions"], strict=True):
        assert a.shape == b.shape == (7, 10, 4)
        assert not torch.equal(a, b)
    # Of equal deviations, equal noise would have equal log-probabilities, whatever the states.
    assert not torch.isclose(first["log_probs"][0], second["log_probs"][0]).any()
    goals = [{(f, g) for training, _, f, g, _ in rank["goals"] if training} for rank in (first, second)]
    assert len(goals[0]) == len(goals[1]) == 20
    assert not goals[0] & goals[1]


def test_the_normaliser_has_seen_the_rollouts_of_both(ranks: Ranks) -> None:
    moments = [m for rank in ranks for m in rank["straight"]["moments"]]
    observation = torch.cat([o.flatten(0, 1) for o, _ in moments]).double()
    reward = torch.cat([r.flatten() for _, r in moments]).double()
    state = ranks[0]["straight"]["state"]
    for name, seen in (("observation", observation), ("reward", reward.unsqueeze(1))):
        assert int(state[f"policy.{name}_moments.count"]) == len(seen)
        torch.testing.assert_close(state[f"policy.{name}_moments.mean"][0], seen.mean(0))
        torch.testing.assert_close(state[f"policy.{name}_moments.var"][0], seen.var(0, unbiased=False))


def test_evaluation_counts_every_goal_of_both_processes_once(ranks: Ranks) -> None:
    first, second = (rank["straight"] for rank in ranks)
    assert_same(first["scores"], second["scores"])
    for split, families in (("train", 10), ("test", 5)):
        episodes = [
            [e for e in rank["goals"] if not e[0] and e[1] == split][-families * 4 :]  # the last evaluation
            for rank in (first, second)
        ]
        # Of each process: two modes, two rounds, one environment a family.
        sampled = [e for own in episodes for e in own[: families * 2]]
        goals = Counter((family, goal) for _, _, family, goal, _ in sampled)
        assert len(goals) == families * 4
        assert set(goals.values()) == {1}
        scores = first["scores"][split]["sampled"]
        for family in {e[2] for e in sampled}:
            won = [e[4] for e in sampled if e[2] == family]
            assert scores[family]["episodes"] == len(won) == 4
            assert scores[family]["success"] == pytest.approx(sum(won) / 4)
        assert scores["mean"]["episodes"] == families * 4


def test_a_resumed_run_is_the_straight_one_on_both(ranks: Ranks, folder: Path) -> None:
    """Each process takes its own replay from the checkpoint that the first one wrote."""
    for rank in ranks:
        for key in ("state", "optimizers", "replay"):
            assert_same(rank["resumed"][key], rank["straight"][key], key)
    assert not torch.equal(ranks[0]["straight"]["replay"]["action"], ranks[1]["straight"]["replay"]["action"])
    assert read_rows(folder / "resumed") == read_rows(folder / "straight")
