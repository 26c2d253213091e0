"""The floor and the ceiling of every table: uniformly random actions, and scripted experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hmrl.envs.benchmarks import ACTION_DIM, GRID_WORLD, World, metaworld_name
from hmrl.envs.gridworld import STEP, Points
from hmrl.types import Acting, ActorStep, Agent, Carry

AgentName = Literal["policy", "expert", "random"]


class Baseline(ABC):
    """An agent without memory and without levels."""

    decision_interval = 1

    @abstractmethod
    def action(self, observation: Tensor) -> Tensor:
        """Actions ``[B, A]``, from observations ``[B, S]``."""

    def initial_carry(self, batch_size: int) -> Carry:
        """No memory."""
        nothing = torch.zeros(batch_size, 0)
        return Carry((), nothing, nothing, nothing, nothing, torch.zeros(batch_size, 1, dtype=torch.int64))

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        """:meth:`action`, without log-probability, belief or macro-action; ``acting`` makes no difference."""
        action = self.action(observation)
        nothing = action.new_zeros(len(action), 0)
        return ActorStep(action, action.new_zeros(len(action)), nothing, nothing), carry


class ScriptedExpert(Baseline):
    """Meta-World's own policies, one an environment. They must be shown the goal, which agents never are.

    Args:
        families: of each environment.
    """

    def __init__(self, families: Sequence[str]) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._policies = [ENV_POLICY_MAP[metaworld_name(family)]() for family in families]

    def action(self, observation: Tensor) -> Tensor:
        """What each expert does."""
        pairs = zip(self._policies, observation.double().cpu().numpy(), strict=True)
        return torch.from_numpy(np.stack([policy.get_action(seen) for policy, seen in pairs])).float()


class GridWorldExpert(Baseline):
    """Goes the shortest way through the grid world to the goal, which it must be shown.

    Args:
        families: of each environment.
        scale: how many times as wide their layouts are.
    """

    def __init__(self, families: Sequence[str], scale: int) -> None:
        self._points = Points(families, scale)

    def action(self, observation: Tensor) -> Tensor:
        """Straight to the next cell of the way."""
        seen = observation.double().cpu().numpy()
        position = seen[:, GRID_WORLD.ego_indices[:2]]
        target, _ = self._points.way(position, seen[:, GRID_WORLD.goal_indices])
        return torch.from_numpy((target - position) / STEP).float()


class RandomAgent(Baseline):
    """Uniform actions in [-1, 1], from torch's global generator.

    Args:
        decision_interval: that of the agents it is compared with.
        action_dim: A.
    """

    def __init__(self, decision_interval: int, action_dim: int = ACTION_DIM) -> None:
        self.decision_interval, self._action_dim = decision_interval, action_dim

    def action(self, observation: Tensor) -> Tensor:
        """A new one."""
        return torch.rand(len(observation), self._action_dim) * 2 - 1


def choose_agent(name: AgentName, policy: Agent, families: Sequence[str], world: World) -> Agent:
    """Who acts in an evaluation.

    Args:
        name: the trained policy, or one that it is compared with.
        policy: the trained one.
        families: of each environment.
        world: theirs.
    """
    if name == "expert":
        grid = "gridworld" in world.backends
        return GridWorldExpert(families, world.scale) if grid else ScriptedExpert(families)
    return RandomAgent(policy.decision_interval, world.action_dim) if name == "random" else policy
