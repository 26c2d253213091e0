"""Meta-World's own tasks, and agents without training: noise, one that takes notes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hmrl.envs.benchmarks import ACTION_DIM
from hmrl.evaluation import baselines
from hmrl.types import Acting, ActorStep, Carry, Split


@cache
def _official_ml10(seed: int) -> Any:
    import metaworld

    return metaworld.ML10(seed=seed)


def official_tasks(split: Split, seed: int = 1) -> list[Any]:
    """ML10's own tasks, made by Meta-World without any help from hmrl."""
    own = _official_ml10(seed)
    return own.train_tasks if split == "train" else own.test_tasks


class RandomAgent(baselines.RandomAgent):
    """Uniform actions, the same ones in every episode."""

    def __init__(self, seed: int = 0, decision_interval: int = 1) -> None:
        super().__init__(decision_interval, ACTION_DIM)
        self._seed = seed

    def initial_carry(self, batch_size: int) -> Carry:
        torch.manual_seed(self._seed)
        return super().initial_carry(batch_size)


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
