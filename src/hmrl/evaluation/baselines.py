"""The floor and the ceiling of every table: uniformly random actions, and scripted experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hmrl.envs.benchmarks import ACTION_DIM, GRID_WORLD, World, metaworld_name
from hmrl.envs.gridworld import STEP, Points
from hmrl.types import Acting, ActorStep, Agent, Carry

AgentName = Literal["policy", "expert", "random"]


class Memoryless:
    """An agent that remembers nothing and needs no levels."""

    def initial_carry(self, batch_size: int) -> Carry:
        """No memory."""
        nothing = torch.zeros(batch_size, 0)
        return Carry((), nothing, nothing, nothing, torch.zeros(batch_size, 1, dtype=torch.int64))


def _step(action: Tensor) -> ActorStep:
    """A decision without log-probability, belief or macro-action."""
    nothing = action.new_zeros(len(action), 0)
    return ActorStep(action, action.new_zeros(len(action)), nothing, nothing)


class ScriptedExpert(Memoryless):
    """Meta-World's own policies, one an environment. They must be shown the goal, which agents never are.

    Args:
        families: of each environment.
    """

    decision_interval = 1

    def __init__(self, families: Sequence[str]) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._make = [ENV_POLICY_MAP[metaworld_name(family)] for family in families]
        self._policies: list[Any] = []

    def initial_carry(self, batch_size: int) -> Carry:
        """Experts of their own for ``batch_size`` environments, which must be those of the constructor."""
        self._policies = [make() for make in self._make]
        assert len(self._policies) == batch_size
        return super().initial_carry(batch_size)

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        """What each expert does; ``acting`` makes no difference."""
        pairs = zip(self._policies, observation.double().cpu().numpy(), strict=True)
        actions = np.stack([policy.get_action(seen) for policy, seen in pairs])
        return _step(torch.from_numpy(actions).float()), carry


class GridWorldExpert(Memoryless):
    """Goes the shortest way through the grid world to the goal, which it must be shown.

    Args:
        families: of each environment.
        scale: how many times as wide their layouts are.
    """

    decision_interval = 1

    def __init__(self, families: Sequence[str], scale: int) -> None:
        self._points = Points(families, scale)

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        """Straight to the next cell of the way; ``acting`` makes no difference."""
        seen = observation.double().cpu().numpy()
        position = seen[:, GRID_WORLD.ego_indices[:2]]
        target, _ = self._points.way(position, seen[:, GRID_WORLD.goal_indices])
        return _step(torch.from_numpy((target - position) / STEP).float()), carry


class RandomAgent(Memoryless):
    """Uniform actions in [-1, 1], from torch's global generator.

    Args:
        decision_interval: that of the agents it is compared with.
        action_dim: A.
    """

    def __init__(self, decision_interval: int, action_dim: int = ACTION_DIM) -> None:
        self.decision_interval, self._action_dim = decision_interval, action_dim

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        """A new action; ``acting`` makes no difference."""
        return _step(torch.rand(len(observation), self._action_dim) * 2 - 1), carry


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
