"""The rollouts of training: one an iteration, in environments of the families whose turn it is."""

from __future__ import annotations

from typing import Any

from hmrl.envs.benchmarks import Goals
from hmrl.rollouts.stream import Batch
from hmrl.system.distributed import together
from hmrl.system.memory import give_back_memory
from hmrl.types import Rollout, TaskEnvs


class Collector:
    """Owns the environments of training.

    Args:
        data: the data module, whose environments, schedule, replay and seed are used.
        stream: number of training's stream of goals and of random numbers.
    """

    def __init__(self, data: Any, stream: int) -> None:
        self._data, self._stream = data, stream
        self._envs: TaskEnvs | None = None

    def draw(self) -> Batch:
        """Collective. One trial in every environment, with the weights that the last iteration left."""
        give_back_memory()
        data = self._data
        iteration = int(data.module.iteration)  # the trial's number, too: it resumes with the weights
        with together():
            rollout: Rollout = data.collect(
                self._current_envs(),
                data.module.policy,
                (self._stream, iteration),
                "train",
                episode=iteration,
                episodes=data.episodes_per_trial,
                acting=data.module.acting,
                mode="training",
            )
            data.replay.append(rollout)
        return Batch(rollout, data.replay)

    def _current_envs(self) -> TaskEnvs:
        """Those of the curriculum's block: others are closed where it begins."""
        data, schedule = self._data, self._data.schedule
        families, options = data.families, data.shown_to("policy")
        if schedule:
            done = int(data.module.env_steps)
            families = schedule.blocks[schedule.number(done)]
            options["families"] = families
            if self._envs is not None and set(self._envs.families) != set(families):
                self.close()
            if data.curriculum.clear_replay and schedule.begins(done):
                data.replay.clear()
        if self._envs is None:
            goals = Goals("train", data.seed, data.goals_per_family, self._stream, data.episodes_per_trial)
            each = len(data.families) * data.envs_per_family // len(families)
            self._envs = data.seen_envs(data.backend, goals, each, data.perturbation, self._stream, **options)
        return self._envs

    def close(self) -> None:
        """Free the simulators."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None
