"""The floor and the ceiling of every table: uniformly random actions, and Meta-World's scripted experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hmrl.envs.benchmarks import ACTION_DIM, OBSERVATION_DIM, metaworld_name
from hmrl.types import Acting, ActorStep, Agent, Carry

AgentName = Literal["policy", "expert", "random"]


def _without_memory(batch_size: int) -> Carry:
    return Carry((), torch.zeros(batch_size, OBSERVATION_DIM), torch.zeros(batch_size, ACTION_DIM))


def _step(action: Tensor) -> ActorStep:
    """A decision without log-probability, belief or macro-action."""
    nothing = action.new_zeros(len(action), 0)
    return ActorStep(action, action.new_zeros(len(action)), nothing, nothing)


class ScriptedExpert:
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
        return _without_memory(batch_size)

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        """What each expert does; ``acting`` makes no difference."""
        pairs = zip(self._policies, observation.double().cpu().numpy(), strict=True)
        actions = np.stack([policy.get_action(seen) for policy, seen in pairs])
        return _step(torch.from_numpy(actions).float()), carry


class RandomAgent:
    """Uniform actions in [-1, 1], from torch's global generator.

    Args:
        decision_interval: that of the agents it is compared with.
    """

    def __init__(self, decision_interval: int) -> None:
        self.decision_interval = decision_interval

    def initial_carry(self, batch_size: int) -> Carry:
        """No memory."""
        return _without_memory(batch_size)

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        """A new action; ``acting`` makes no difference."""
        return _step(torch.rand(len(observation), ACTION_DIM) * 2 - 1), carry


def choose_agent(name: AgentName, policy: Agent, families: Sequence[str]) -> Agent:
    """Who acts in an evaluation.

    Args:
        name: the trained policy, or one that it is compared with.
        policy: the trained one.
        families: of each environment.
    """
    if name == "expert":
        return ScriptedExpert(families)
    return RandomAgent(policy.decision_interval) if name == "random" else policy
