"""However many processes share the environments out, the goals are those of one, each met once.

The data module and the environments are the real ones; simulators only note which goal they are asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import envpool
import gymnasium as gym
import numpy as np
import pytest

import hmrl.envs.metaworld
import hmrl.evaluation.evaluator
import hmrl.rollouts.collector
import hmrl.training.datamodule
from hmrl.envs import Backend
from hmrl.envs.benchmarks import ACTION_DIM, OBSERVATION_DIM
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.average_beliefs import AverageBeliefs
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.types import Acting

WORLD_SIZES = (1, 2, 5)
ENVS = 10  # a family
ITERATIONS = (0, 1, 2, 64)  # the last one begins new pools
Goal = tuple[str, int, int]  # family, seed or slot, and the how-many-th goal of that seed
Use = tuple[str, str, int]  # split, mode and episode


@dataclass
class NoRollout:
    goal: Any = None
    distinct: int | None = None


class Pool:
    """In EnvPool's place: the n-th goal of an environment is a function of its seed and n."""

    def __init__(self, task: str, api: str, *, env_seed: list[int], **options: Any) -> None:
        self.task, self.seeds, self.resets = task, env_seed, 0

    def async_reset(self) -> None:
        self.resets += 1

    def recv(self) -> Any:
        zeros = np.zeros(count := len(self.seeds))
        info = {"env_id": np.arange(count), "success": zeros}
        return np.zeros((count, OBSERVATION_DIM)), zeros, zeros, zeros, info

    def close(self) -> None:
        pass


class Simulator(gym.Env[Any, Any]):
    """In the place of Meta-World's: its goal is a function of the seed it is reset with."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
    asked: list[Goal] = []  # noqa: RUF012

    def __init__(self, family: str, *arguments: Any) -> None:
        self.family = family

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.asked.append((self.family, seed, 0))
        return np.zeros(OBSERVATION_DIM), {}


def goals_met(
    rank: int, world_size: int, backend: Backend, per_family: int | None, monkeypatch: pytest.MonkeyPatch
) -> dict[Use, list[Goal]]:
    """Which goals one rank meets in training, validation and test."""
    met: dict[Use, list[Goal]] = {}

    def collect(envs: Any, policy: Any, *, episode: int, split: str, mode: str, **options: Any) -> Any:
        Simulator.asked.clear()
        envs.reset(episode)
        pools = getattr(envs, "_pools", [])
        goals = [(pool.task, seed, pool.resets) for pool in pools for seed in pool.seeds]
        met[split, f"{module.stage} {mode}", episode] = goals or Simulator.asked[:]
        return NoRollout()

    tasks = SimpleNamespace(train_tasks=[], test_tasks=[])
    monkeypatch.setattr(envpool, "make", Pool)
    monkeypatch.setattr(hmrl.envs.metaworld, "GoalEnv", Simulator)
    monkeypatch.setattr(hmrl.envs.metaworld, "_benchmark_tasks", lambda *_: tasks)
    for module_of_hmrl in (hmrl.rollouts.collector, hmrl.evaluation.evaluator):
        monkeypatch.setattr(module_of_hmrl, "collect", collect)
    for module_of_hmrl in (hmrl.training.datamodule, hmrl.rollouts.collector, hmrl.evaluation.evaluator):
        monkeypatch.setattr(module_of_hmrl, "rank_and_world_size", lambda: (rank, world_size))

    evaluation = EvaluationConfig(2 * ENVS, ENVS)
    data = MetaWorldDataModule(
        backend=backend,
        envs_per_family=ENVS,
        goals_per_family=per_family,
        validation=evaluation,
        test=evaluation,
        modes={"sampled": Acting()},
    )
    module = SimpleNamespace(
        policy=SimpleNamespace(is_random=lambda acting: True),
        acting=Acting(),
        stage="train",
        uses_goals=False,
        average_beliefs=AverageBeliefs(0),
    )
    data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    monkeypatch.setattr(data.replay, "append", lambda _: None)
    for iteration in ITERATIONS:
        module.iteration = iteration
        list(data.train_dataloader())
    streams = {"validate": data.val_dataloader(), "test": data.test_dataloader()}
    for module.stage in streams:
        for stream in streams[module.stage]:
            list(stream)
    data.teardown("fit")
    return met


@pytest.mark.simulator
@pytest.mark.parametrize("per_family", [None, 2 * ENVS], ids=["fresh", "fixed"])
@pytest.mark.parametrize("backend", ["envpool", "metaworld"])
def test_processes_share_the_goals_of_one(
    backend: Backend, per_family: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone,) = [goals_met(0, 1, backend, per_family, monkeypatch)]
    assert len(alone) == len(ITERATIONS) + 2 * 2 * 2  # two stages, two splits, two rounds
    for world_size in WORLD_SIZES:
        ranks = [goals_met(rank, world_size, backend, per_family, monkeypatch) for rank in range(world_size)]
        for use, goals in alone.items():
            shared = [goal for rank in ranks for goal in rank[use]]
            assert sorted(shared) == sorted(goals), (world_size, use)
            assert len(set(shared)) == len(shared), (world_size, use)
            families = Counter(family for family, *_ in goals)
            assert set(families.values()) == {ENVS}
            assert len(families) == (10 if use[0] == "train" else 5)
            for rank in ranks:  # an equal part of every family
                counts = Counter(family for family, *_ in rank[use])
                assert counts == dict.fromkeys(families, ENVS // world_size)


@pytest.mark.simulator
@pytest.mark.parametrize("backend", ["envpool", "metaworld"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_no_fresh_goal_is_met_twice_by_any_two_ranks(
    backend: Backend, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all of training, validation and test: independent streams, save that the reference simulator's
    fixed goals, those of every evaluation, are Meta-World's own."""
    drawn = [
        goal
        for rank in range(world_size)
        for (_, stage, _), goals in goals_met(rank, world_size, backend, None, monkeypatch).items()
        for goal in goals
        if backend == "envpool" or stage == "train training"
    ]
    assert len(drawn) == (1000 if backend == "envpool" else 400)
    assert len(set(drawn)) == len(drawn)
    # Seeds, too: two environments of one seed would have equal goals at other times.
    by_environment: dict[tuple[str, int], set[int]] = {}
    for family, seed, nth in drawn:
        by_environment.setdefault((family, seed), set()).add(nth)
    assert len({seed for _, seed in by_environment}) == len(by_environment)
