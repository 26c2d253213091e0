"""The rollouts of training: one an iteration, in environments of the families whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch

from hmrl.envs.wrappers.shown import HiddenGoals
from hmrl.rollouts.collect import collect, seeded
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.rollouts.stream import Batch
from hmrl.system.distributed import rank_and_world_size, together
from hmrl.system.memory import give_back_memory
from hmrl.types import Acting, Agent, TaskEnvs


@dataclass(eq=False)
class Collector:
    """Owns the environments of training.

    Args:
        build: makes this rank's environments of the families that it is given, as agents see them, and what
            hides their goals, if learning uses these.
        replay: where each rollout goes.
        families: all training families; rollouts index them.
        seed, stream: of acting.
        episodes: of a trial.
    """

    build: Callable[[Sequence[str]], tuple[TaskEnvs, HiddenGoals | None]]
    replay: TrajectoryReplay
    families: Sequence[str]
    _: KW_ONLY
    seed: int
    stream: int
    episodes: int

    def __post_init__(self) -> None:
        self._envs: TaskEnvs | None = None
        self._built_for: tuple[str, ...] = ()

    def draw(self, agent: Agent, acting: Acting, trial: int, families: Sequence[str]) -> Batch:
        """Collective. One trial in every environment.

        Args:
            agent, acting: who acts, and how.
            trial: its number, by which goals and actions are drawn.
            families: those whose turn it is; environments of others are closed.
        """
        give_back_memory()
        rank, _ = rank_and_world_size()
        with together():
            if self._envs is None or self._built_for != tuple(families):
                self.close()
                (self._envs, self._goals), self._built_for = self.build(families), tuple(families)
            with seeded(self.seed, self.stream, rank, trial):
                rollout = collect(
                    self._envs,
                    agent,
                    episode=trial,
                    acting=acting,
                    families=self.families,
                    split="train",
                    mode="training",
                    episodes=self.episodes,
                )
            if self._goals:
                rollout.hidden_goal = torch.from_numpy(self._goals.goal)
            self.replay.append(rollout)
        return Batch(rollout, self.replay)

    def close(self) -> None:
        """Free the simulators."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None
