"""How agents are evaluated: protocols, and their settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from hmrl.envs import Backend, Benchmark
from hmrl.envs.benchmarks import Goals, same_goals
from hmrl.envs.wrappers.perturb import Perturbation
from hmrl.evaluation.baselines import AgentName
from hmrl.system.errors import UserError
from hmrl.system.rules import Checked, Count, Rule, as_config
from hmrl.types import Acting, Split

Protocol = Literal["first_episode", "paper", "meta_world"]
Adaptation = Literal["memory", "beliefs"]


@dataclass
class EvaluationConfig(Checked):
    """One way to evaluate.

    Args:
        goals_per_family: fixed goals; each gets one episode per mode. Under ``paper``, so many episodes on
            the family's one goal.
        envs_per_family: environments that share them; must divide ``goals_per_family``.
        backend: simulator; None for the data module's own.
        protocol: ``first_episode``: memory is cleared at each episode. ``paper``: likewise, on one goal a
            family, which is the goal of training where training has one. ``meta_world``: Meta-World's own
            evaluation, with memory kept over a trial (see :class:`MetaWorldConfig`).
        agent: the trained ``policy``, or the ``expert`` (which is shown the goal) or ``random`` actions
            that it is to be compared with.
        perturbation: of what agents see, do and earn; None for that of training.
    """

    KEY = "EvaluationConfig"  # of data.validation and of data.test

    goals_per_family: int = 4
    envs_per_family: int = 4
    backend: Backend | None = None
    protocol: Protocol = "first_episode"
    agent: AgentName = "policy"
    perturbation: Perturbation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.perturbation = as_config(Perturbation, self.perturbation)

    def perturbation_within(self, training: Perturbation) -> Perturbation:
        """What is between simulator and agent; only trained agents are told what is missing."""
        effective = training if self.perturbation is None else self.perturbation
        return effective if self.agent == "policy" else effective.untold()

    def check(
        self,
        key: str,
        bench: Benchmark,
        backend: Backend,
        goals_in_training: int | None,
        perturbation: Perturbation,
        shown: Sequence[str] = (),
    ) -> None:
        """Raise a UserError for what could not be evaluated.

        Args:
            key: where these settings stand, as "data.test".
            backend, perturbation: of training.
            goals_in_training: fixed ones a family; None for fresh ones.
            shown: which of ``goals_shown`` and ``families_shown`` are set.
        """
        perturbation.check_evaluation(key, self.perturbation, self.protocol)
        own = self.backend or backend
        bench.check_backend(f"{key}.backend", own)
        if self.agent == "expert" and own == "own":
            raise UserError(
                f"{key}.agent is expert, but data.benchmark {bench.name} has none: use policy or random"
            )
        if self.protocol == "meta_world" and own not in ("metaworld", "metaworld_async"):
            raise UserError(
                f"{key}.protocol is meta_world, but data.benchmark {bench.name} is simulated by {own}: set "
                f"{key}.backend to metaworld or metaworld_async, or use first_episode or paper"
            )
        if self.protocol == "meta_world" and shown:
            raise UserError(
                f"data.{shown[0]} is true, but {key}.protocol is meta_world, which shows agents neither "
                "goals nor families: use first_episode or paper"
            )
        goals, envs = self.goals_per_family, self.envs_per_family
        if goals < 1 or envs < 1 or goals % envs:
            raise UserError(
                f"{key}.goals_per_family is {goals} and {key}.envs_per_family is {envs}: "
                "use 1 or more, and goals that divide over them, so that every goal counts once"
            )
        if self.protocol == "first_episode":
            bench.check_goals(f"{key}.goals_per_family", goals, own)
        if self.protocol == "paper" and goals_in_training == 1 and not same_goals(own, backend):
            raise UserError(
                f"{key}.backend is {own}, but training has one goal a family on {backend}, whose goals are "
                f"others: use {key}.backend null, or {key}.protocol first_episode"
            )

    def goals_of(
        self,
        split: Split,
        seed: int,
        backend: Backend,
        goals_in_training: int | None,
        *,
        training: int,
        stream: int,
    ) -> Goals:
        """The goals to evaluate on.

        Args:
            backend: of training.
            goals_in_training: fixed ones a family, or None. They are the benchmark's goals, and evaluation
                means the same ones, where it has the same simulator.
            training, stream: numbers of training's stream of goals and of evaluation's own.
        """
        if not same_goals(self.backend or backend, backend):
            goals_in_training = None
        if self.protocol == "paper":
            return Goals(split, seed, 1, training if goals_in_training == 1 else stream)
        if goals_in_training is not None and goals_in_training > 1:
            return Goals(split, seed, min(goals_in_training, self.goals_per_family), training)
        return Goals(split, seed, self.goals_per_family, stream)


_CountOrNull = Annotated[int | None, Rule("1 or more, or null", lambda x: x is None or x >= 1)]


@dataclass
class MetaWorldConfig(Checked):
    """Of the protocol ``meta_world``; the names and defaults are Meta-World's, save ``adaptation``.

    Args:
        adaptation: of the policy over a trial: by its memory alone (``memory``), or also by the choice of a
            training family's average belief (``beliefs``, :mod:`hmrl.evaluation.belief_search`).
        num_evals: trials an environment, each on another of its goals.
        adaptation_episodes: before evaluation, in each trial.
        evaluation_episodes: of each family, first to end, over its environments.
        meta_batch_size: environments over all families; None for the first multiple of their number from 20.
    """

    KEY = "data.meta_world"
    total_tasks_per_cls = 40  # goals a family, which its environments share

    adaptation: Adaptation = "memory"
    num_evals: Count = 10
    adaptation_episodes: Count = 10
    evaluation_episodes: Count = 3
    meta_batch_size: _CountOrNull = None

    def check(
        self,
        key: str,
        agent: AgentName,
        modes: Mapping[str, Acting],
        splits: Iterable[Sequence[str]],
        world_size: int,
    ) -> None:
        """Raise a UserError for what could not be evaluated; ``key`` is where it is set, as "data.test"."""
        permuted = [mode for mode, acting in modes.items() if acting.permute == "task_belief"]
        if self.adaptation == "beliefs" and permuted:
            raise UserError(
                f"data.meta_world.adaptation is beliefs, but mode {permuted[0]} permutes the belief, which "
                "the search would replace: use memory, or leave that mode out"
            )
        if self.adaptation == "beliefs" and agent != "policy":
            raise UserError(
                f"data.meta_world.adaptation is beliefs, but {key}.agent is {agent}, which has none: use "
                "memory"
            )
        for families in splits:
            self.batch(len(families))
        if world_size > 1:
            raise UserError(
                f"{key}.protocol is meta_world, which is one process's work, but there are {world_size}: use "
                f"trainer.devices 1, and {key}.backend metaworld_async for more cores"
            )

    def batch(self, families: int) -> int:
        """Environments for so many families; a UserError if they do not share out."""
        batch = self.meta_batch_size or -(-20 // families) * families
        if batch % families or self.total_tasks_per_cls % (batch // families):
            raise UserError(
                f"data.meta_world.meta_batch_size is {batch}: use a multiple of {families}, the number of "
                f"families, so that the environments of each divide its {self.total_tasks_per_cls} goals"
            )
        return batch


def default_modes() -> dict[str, Acting]:
    """The two ways of acting that every evaluation reports."""
    return {"sampled": Acting(action="sample"), "mean_action": Acting(action="mean")}
