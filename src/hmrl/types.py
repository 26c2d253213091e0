"""The vocabulary that every other module shares.

Shapes: ``T`` decisions of an episode, ``B`` environments, ``S`` observation, ``A`` action,
``K`` belief categories. A width of 0 means that the level is absent: an agent without a task
encoder has beliefs of shape ``[T, B, 0]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Split = Literal["train", "test"]
FloatArray = npt.NDArray[np.floating]


class UserError(Exception):
    """What the user can mend; the command line prints it as one sentence."""


class SharedError(UserError):
    """The same on every rank: the first one speaks for all."""


@dataclass(frozen=True)
class Acting:
    """How an agent turns its three distributions into numbers when it acts.

    Args:
        task_belief: feed the actor and critic the belief's ``probabilities`` or a Gumbel-softmax ``sample``.
        macro_action: feed the actor the ``mean`` of q(z | s, y) or a ``sample``.
        action: ``sample`` the policy or take its ``mean``.
        permute: give every environment the named variable of another environment in the batch, the same
            one all along, at the same time step. An ablation at evaluation: a level whose permutation costs
            nothing is unused.
    """

    task_belief: Literal["probabilities", "sample"] = "probabilities"
    macro_action: Literal["mean", "sample"] = "mean"
    action: Literal["sample", "mean"] = "sample"
    permute: Literal["none", "task_belief", "macro_action"] = "none"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("task_belief", ("probabilities", "sample")),
            ("macro_action", ("mean", "sample")),
            ("action", ("sample", "mean")),
            ("permute", ("none", "task_belief", "macro_action")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"acting.{name} is {getattr(self, name)!r}: use {' or '.join(allowed)}")


@dataclass
class Carry:
    """What an agent remembers between two decisions.

    Args:
        hidden: recurrent states (GRU one, LSTM two), each ``[1, B, H]``; empty without memory.
        observation: s_{t-1}, zeros before the first decision. ``[B, S]``
        action: a_{t-1}. ``[B, A]``
    """

    hidden: tuple[Tensor, ...]
    observation: Tensor
    action: Tensor


class ActorStep(NamedTuple):
    """One decision for a batch of environments."""

    action: Tensor  # [B, A], as sampled; environments see it clipped to [-1, 1]
    log_prob: Tensor  # [B], of the unclipped action
    task_belief: Tensor  # [B, K]
    macro_action: Tensor  # [B, A] or [B, 0]


class Agent(Protocol):
    """Whatever can act: the hierarchical policy, a scripted expert, a random agent."""

    decision_interval: int

    def initial_carry(self, batch_size: int) -> Carry:
        """Memory at the start of a trial."""
        ...

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        """Decide: ``observation`` ``[B, S]``, ``reward`` ``[B]`` summed since the last decision."""
        ...


class EnvStep(NamedTuple):
    """What a batch of environments answers to one simulator step."""

    observation: FloatArray  # [B, S]
    reward: FloatArray  # [B]
    success: npt.NDArray[np.bool_]  # [B], whether the task is solved at this very step


class TaskEnvs(Protocol):
    """A batch of environments with hidden goals and episodes of one fixed length.

    Episodes end by the time limit alone, as Meta-World's do, so nothing ever terminates. What
    ``reset(episode)`` starts depends on the constructor's arguments and ``episode`` only, not on what
    was run before: that is what makes an interrupted run repeatable.
    """

    families: tuple[str, ...]  # of each environment, length B
    horizon: int  # simulator steps of an episode

    def reset(self, episode: int) -> FloatArray:
        """Start episode number ``episode`` everywhere; returns observations ``[B, S]``."""
        ...

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, A]`` in [-1, 1]."""
        ...

    def close(self) -> None:
        """Free the simulators."""
        ...


@dataclass
class Rollout:
    """Whole episodes, time-major, raw: nothing in here is normalised.

    With a decision interval of k simulator steps, index t counts decisions, ``reward`` is summed and
    ``success`` is "at any step" over the interval.
    """

    observation: Tensor  # [T+1, B, S]
    action: Tensor  # [T, B, A], unclipped
    log_prob: Tensor  # [T, B]
    task_belief: Tensor  # [T+1, B, K]; the last one is the belief at s_T, for the bootstrap value
    macro_action: Tensor  # [T, B, A or 0]
    reward: Tensor  # [T, B]
    success: Tensor  # [T, B] bool
    final_success: Tensor  # [B] bool, at the last simulator step
    family: Tensor  # [B] long, index into ``families``
    families: tuple[str, ...]
    split: Split
    mode: str  # name of the way of acting, as "sampled"
    env_steps: int  # simulator steps, over all environments

    def to(self, device: torch.device) -> Self:
        """A copy with every tensor on ``device``."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def ever_success(self) -> Tensor:
        """Success at any step of the episode. ``[B]`` bool"""
        return self.success.any(0)

    @property
    def episode_return(self) -> Tensor:
        """Undiscounted sum of raw rewards. ``[B]``"""
        return self.reward.sum(0)


@dataclass
class Trajectories:
    """Episodes as the replay keeps them: raw, so that they are normalised and relabelled at use."""

    observation: Tensor  # [T+1, N, S]
    action: Tensor  # [T, N, A]
    reward: Tensor  # [T, N]
    macro_action: Tensor  # [T, N, A or 0]
    family: Tensor  # [N]

    def to(self, device: torch.device) -> Trajectories:
        """A copy with every tensor on ``device``."""
        return Trajectories(*(getattr(self, f.name).to(device) for f in fields(self)))

    def select(self, chosen: Tensor) -> Trajectories:
        """The episodes that ``chosen`` ``[N]`` marks."""
        return Trajectories(
            self.observation[:, chosen],
            self.action[:, chosen],
            self.reward[:, chosen],
            self.macro_action[:, chosen],
            self.family[chosen],
        )


def family_index(names: Sequence[str], families: Sequence[str]) -> Tensor:
    """Index of each of ``names`` in ``families``. ``[len(names)]`` long"""
    return torch.tensor([families.index(name) for name in names])
