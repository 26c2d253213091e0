"""The vocabulary that every other module shares.

Shapes: ``T`` decisions of an episode, ``B`` environments, ``S`` observation, ``A`` action,
``K`` belief categories. A width of 0 means that the level is absent: an agent without a task
encoder has beliefs of shape ``[T, B, 0]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple, Protocol, Self, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmrl.system.errors import UserError

Split = Literal["train", "test"]
FloatArray = npt.NDArray[np.floating]
Metrics = dict[str, Tensor]  # scalars to log, by name


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
        for name, hint in get_type_hints(Acting).items():
            if getattr(self, name) not in (allowed := get_args(hint)):
                raise UserError(f"acting.{name} is {getattr(self, name)!r}: use {' or '.join(allowed)}")


@dataclass
class Carry:
    """What an agent remembers between two decisions.

    Args:
        hidden: recurrent states (minGRU and GRU one, LSTM two), each ``[1, B, H]``; empty without memory.
        observation: s_{t-1}, zeros before the first decision. ``[B, S]``
        action: a_{t-1}. ``[B, A]``
        reward: r_{t-2} as contexts hold it, while r_{t-1} is to come; 0's before there is one. ``[B, 1]``
        macro_action: z_{t-1}, which may be held. ``[B, A or 0]``
        age: decisions since the start of the trial, or since a later reset to 0. ``[B, 1]`` long
    """

    hidden: tuple[Tensor, ...]
    observation: Tensor
    action: Tensor
    reward: Tensor
    macro_action: Tensor
    age: Tensor


class Gap(NamedTuple):
    """A difference of two entries of an observation that decides at a small scale: x_end - x_start."""

    end: int  # dimensions of the observation
    start: int
    scale: float  # in the units of the observation


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

    def act(
        self, observation: Tensor, reward: Tensor, carry: Carry, acting: Acting
    ) -> tuple[ActorStep, Carry]:
        """Decide: ``observation`` ``[B, S]``, ``reward`` ``[B]`` summed since the last decision."""


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

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, A]`` in [-1, 1]."""

    def close(self) -> None:
        """Free the simulators."""


@dataclass
class Tensors:
    """A record with tensors among its fields."""

    def to(self, device: torch.device | str) -> Self:
        """A copy with every tensor on ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)})


@dataclass
class Outcomes(Tensors):
    """What became of N episodes.

    Args:
        family: index into ``families``. ``[N]`` long
        goal: number of the goal among the family's. ``[N]`` long
        number: of the episode on its goal, 0 for the first. ``[N]`` long
        success: at any step. ``[N]`` bool
        final_success: at the last step. ``[N]`` bool
        episode_return: undiscounted, raw. ``[N]``
        length: simulator steps. ``[N]`` long
        phase: "adaptation" or "evaluation", where a protocol tells them apart.
        distinct: different goals a family, where nothing else is drawn, so that all episodes on one goal (of
            its number, modulo this) are equal and count once; None: every episode counts.
    """

    family: Tensor
    goal: Tensor
    number: Tensor
    success: Tensor
    final_success: Tensor
    episode_return: Tensor
    length: Tensor
    families: tuple[str, ...]
    split: Split
    mode: str
    phase: tuple[str, ...] | None = None
    distinct: int | None = None


@dataclass
class Rollout(Tensors):
    """Whole episodes, time-major, raw: nothing in here is normalised.

    With a decision interval of k simulator steps, index t counts decisions, ``reward`` is summed and
    ``success`` is "at any step" over the interval. A trial of E episodes on one goal is E episodes of T / E
    decisions, one after the other: where one ends, the next observation is the first of the next.
    """

    observation: Tensor  # [T+1, B, S]
    action: Tensor  # [T, B, A], unclipped
    log_prob: Tensor  # [T, B]
    task_belief: Tensor  # [T+1, B, K]; the last one is the belief at s_T, for the bootstrap value
    macro_action: Tensor  # [T, B, A or 0]
    reward: Tensor  # [T, B]
    success: Tensor  # [T, B] bool
    final_success: Tensor  # [E * B] bool, at the last simulator step of each episode
    family: Tensor  # [B] long, index into ``families``
    hidden_goal: Tensor  # [B, G], what no agent sees; G is 0 where it is not asked for
    families: tuple[str, ...]
    split: Split
    mode: str  # name of the way of acting, as "sampled"
    env_steps: int  # simulator steps, over all environments
    episodes: int = 1  # of the trial, E
    goal: Tensor | None = None  # [B] long, the goals' numbers, where they are numbered
    distinct: int | None = None  # as of Outcomes

    @property
    def ever_success(self) -> Tensor:
        """Success at any step of each episode, first episodes first. ``[E * B]`` bool"""
        won: Tensor = self.success.unflatten(0, (self.episodes, -1)).any(1)
        return won.flatten()

    @property
    def episode_return(self) -> Tensor:
        """Undiscounted sum of raw rewards of each episode. ``[E * B]`` double

        Summed in double precision: in single, the last digits depend on how many environments a process has.
        """
        total: Tensor = self.reward.unflatten(0, (self.episodes, -1)).sum(1, dtype=torch.float64)
        return total.flatten()

    @property
    def episode_family(self) -> Tensor:
        """Family of each episode. ``[E * B]`` long"""
        return self.family.repeat(self.episodes)

    def outcomes(self) -> Outcomes:
        """What became of the E * B episodes."""
        batch = len(self.family)
        goal = torch.arange(batch, device=self.family.device) if self.goal is None else self.goal
        number = torch.arange(self.episodes, device=self.family.device).repeat_interleave(batch)
        return Outcomes(
            self.episode_family,
            goal.repeat(self.episodes),
            number,
            self.ever_success,
            self.final_success,
            self.episode_return,
            torch.full_like(number, self.env_steps // (self.episodes * batch)),
            self.families,
            self.split,
            self.mode,
            distinct=self.distinct,
        )


@dataclass
class Trajectories(Tensors):
    """Trials as the replay keeps them: raw, so that they are normalised and relabelled at use."""

    observation: Tensor  # [T+1, N, S]
    action: Tensor  # [T, N, A]
    reward: Tensor  # [T, N]
    macro_action: Tensor  # [T, N, A or 0]
    family: Tensor  # [N]
    hidden_goal: Tensor  # [N, G]
    episodes: int = 1  # of a trial, E

    def select(self, chosen: Tensor) -> Self:
        """The trials that ``chosen``, marks or indices, names."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "episodes"}
        return replace(self, **{k: v[chosen] if k in OF_TRIALS else v[:, chosen] for k, v in values.items()})


OF_TRIALS = ("family", "hidden_goal")  # without time steps
TRAJECTORY_TENSORS = tuple(f.name for f in fields(Trajectories) if f.name != "episodes")


def family_index(names: Sequence[str], families: Sequence[str]) -> Tensor:
    """Index of each of ``names`` in ``families``. ``[len(names)]`` long"""
    return torch.tensor([families.index(name) for name in names])
