"""The reference simulator: Meta-World in Python, through Gymnasium's vector environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from hmrl.envs.benchmarks import ACTION_DIM, OBSERVATION_DIM, Benchmark, EnvBatch, metaworld_name, short_name
from hmrl.envs.workers import process_of_a_simulator, simulator_of, workers
from hmrl.types import EnvStep, FloatArray


@cache
def _benchmark_tasks(bench: Benchmark, seed: int) -> Any:
    """Meta-World's own benchmark object, which holds its 50 goals a family and split."""
    import metaworld

    if bench.name == "ML1":
        return metaworld.ML1(metaworld_name(bench.train[0]), seed=seed)
    if bench.name == "custom":
        names = [[metaworld_name(f) for f in families] for families in (bench.train, bench.test)]
        return metaworld.CustomML(*names, seed=seed)
    return getattr(metaworld, bench.name)(seed=seed)


class GoalEnv(gym.Env[FloatArray, FloatArray]):
    """One Meta-World environment that takes its goal at ``reset``, hidden from the observation.

    Args:
        family: name without ``-v3``.
        tasks: Meta-World's ``Task`` objects of this family.
        horizon: simulator steps of an episode.
        goal_visible: show the goal in the observation.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_DIM,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def __init__(self, family: str, tasks: Sequence[Any], horizon: int, goal_visible: bool = False) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self.family = family
        with simulator_of(family):
            self.simulator = ALL_V3_ENVIRONMENTS[metaworld_name(family)]()
        self._tasks, self._horizon, self._goal_visible = tasks, horizon, goal_visible

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: draws a fresh goal, or, with ``options={"slot": True}``, chooses one of the tasks.
        """
        assert seed is not None, "the goal is a function of the seed"
        by_slot = bool(options and options.get("slot"))
        simulator = self.simulator
        # As the tasks have it: where set_task() changes it, it deletes a space that need not be cached.
        simulator._partially_observable = True
        simulator.set_task(self._tasks[seed if by_slot else 0])
        if self._goal_visible:
            simulator._partially_observable = False
            simulator.__dict__.pop("sawyer_observation_space", None)  # cached for hidden goals
        if not by_slot:
            # What Meta-World does to draw its own goals, on a generator of this environment's.
            simulator._freeze_rand_vec, simulator.seeded_rand_vec = False, True
            simulator.seed(seed)
        with simulator_of(self.family):
            observation, info = simulator.reset()
        return observation, info

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """One simulator step; ``info`` holds ``success`` alone."""
        with simulator_of(self.family):
            observation, reward, _, _, info = self.simulator.step(action)
        truncated = self.simulator.curr_path_length >= self._horizon
        return observation, float(reward), False, truncated, {"success": float(info["success"])}

    def close(self) -> None:
        """Free the simulator."""
        self.simulator.close()


@dataclass(eq=False)
class MetaWorldEnvs(EnvBatch):
    """The same as :class:`~hmrl.envs.envpool.EnvPoolEnvs`, on the reference simulator.

    Fixed goals are the benchmark's own 50 (the first ``goals.per_family`` of them).

    Args:
        bench: whose goals.
        asynchronous: a process an environment (many cores), or all in this one.
    """

    _: KW_ONLY
    bench: Benchmark
    asynchronous: bool = False

    def __post_init__(self) -> None:
        tasks: dict[str, list[Any]] = {family: [] for family in self.families}
        official = _benchmark_tasks(self.bench, self.goals.seed)
        for task in official.train_tasks if self.goals.split == "train" else official.test_tasks:
            if (family := short_name(task.env_name)) in tasks:
                tasks[family].append(task)
        make: list[Callable[[], GoalEnv]] = [
            partial(GoalEnv, family, tasks[family], self.horizon, self.goal_visible)
            for family in self.families
        ]
        self._envs: AsyncVectorEnv | SyncVectorEnv
        if self.asynchronous:
            with process_of_a_simulator(), workers():
                self._envs = AsyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)
        else:
            self._envs = SyncVectorEnv(make, autoreset_mode=AutoresetMode.DISABLED)

    @property
    def simulators(self) -> tuple[Any, ...]:
        """Meta-World's own objects, to be looked at; of environments in this process only."""
        return tuple(self._envs.get_attr("simulator"))

    def reset(self, episode: int) -> FloatArray:
        """Start episode number ``episode`` everywhere; returns observations ``[B, 39]``."""
        fixed = self.goals.per_family is not None
        numbers = [number for (number,) in self.keys(episode)] if fixed else self.seeds(episode)
        with process_of_a_simulator():
            observation, _ = self._envs.reset(seed=list(numbers), options={"slot": fixed})
        return np.asarray(observation)

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, 4]``."""
        with process_of_a_simulator():
            observation, reward, _, _, info = self._envs.step(action)
        return EnvStep(observation, reward, np.asarray(info["success"]) > 0.5)

    def close(self) -> None:
        """Free the simulators."""
        try:
            self._envs.close()
        except (EOFError, ConnectionError):  # one of them is gone
            self._envs.close(terminate=True)
