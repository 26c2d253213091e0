"""Meta-World's own tasks, and agents without training: noise, one that takes notes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hmrl.envs.benchmarks import ACTION_DIM
from hmrl.types import Acting, ActorStep, Carry, Split


@cache
def _official_ml10(seed: int) -> Any:
    import metaworld

    return metaworld.ML10(seed=seed)


def official_tasks(split: Split, seed: int = 1) -> list[Any]:
    """ML10's own tasks, made by Meta-World without any help from hmrl."""
    own = _official_ml10(seed)
    return own.train_tasks if split == "train" else own.test_tasks


def empty_carry(batch_size: int) -> Carry:
    nothing = torch.zeros(batch_size, 0)
    return Carry((), nothing, nothing, nothing, torch.zeros(batch_size, 1, dtype=torch.int64))


def actor_step(action: Tensor) -> ActorStep:
    """A decision without log-probability, belief or macro-action."""
    batch = len(action)
    return ActorStep(action, torch.zeros(batch), torch.zeros(batch, 0), torch.zeros(batch, 0))


class RandomAgent:
    """Uniform actions, the same ones in every episode."""

    def __init__(self, seed: int = 0, decision_interval: int = 1) -> None:
        self.decision_interval = decision_interval
        self._seed, self._generator = seed, torch.Generator()

    def initial_carry(self, batch_size: int) -> Carry:
        self._generator.manual_seed(self._seed)
        return empty_carry(batch_size)

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        action = torch.rand(len(observation), ACTION_DIM, generator=self._generator) * 2 - 1
        return actor_step(action), carry


class RecordingAgent(RandomAgent):
    """Keeps everything that it was ever given."""

    def initial_carry(self, batch_size: int) -> Carry:
        self.given: list[tuple[Tensor, Tensor]] = []
        return super().initial_carry(batch_size)

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        self.given.append((observation.clone(), reward.clone()))
        return super().act(observation, reward, carry, acting)
