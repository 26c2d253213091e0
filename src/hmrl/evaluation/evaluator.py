"""The rollouts of an evaluation: every goal once, in every way of acting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from hmrl.envs import Backend, Benchmark
from hmrl.envs.benchmarks import Goals
from hmrl.envs.wrappers.perturb import Perturbation
from hmrl.evaluation.baselines import choose_agent
from hmrl.evaluation.belief_search import check_beliefs
from hmrl.evaluation.metaworld_protocol import Trials, evaluate_trials, make_trial_envs
from hmrl.evaluation.protocols import EvaluationConfig, MetaWorldConfig
from hmrl.himeta.average_beliefs import AverageBeliefs
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.rollouts.collect import collect, seeded
from hmrl.rollouts.stream import RolloutStream
from hmrl.system.distributed import rank_and_world_size, together
from hmrl.types import Acting, Rollout, Split, TaskEnvs

Evaluated = Rollout | Trials


@dataclass(frozen=True)
class Evaluator:
    """Makes the streams of one evaluation."""

    config: EvaluationConfig
    benchmark: Benchmark
    backend: Backend
    perturbation: Perturbation
    goals: Mapping[Split, Goals]
    modes: Mapping[str, Acting]
    meta_world: MetaWorldConfig  # of this protocol
    horizon: int  # simulator steps of an episode
    seed: int  # of acting, as the stream
    stream: int
    policy: HierarchicalPolicy  # the trained agent; the config may choose another one to compare it with
    average_beliefs: AverageBeliefs  # its own, of training families
    build: Callable[[Goals], TaskEnvs]  # this rank's environments

    def streams(self, *, learnt: bool = True) -> list[RolloutStream[Evaluated]]:
        """Training families, then held-out families, in every mode.

        Args:
            learnt: whether there must be average beliefs already, and not only by the first evaluation.

        Raises:
            UserError: for an agent that cannot adapt as it is set to.
        """
        modes = list(self.modes.items())
        if self.config.agent != "policy":  # it has no levels to act in several ways with
            modes = modes[:1]
        by_trials = self.config.protocol == "meta_world"
        if by_trials and self.meta_world.adaptation == "beliefs":
            decisions = -(-self.horizon // self.policy.decision_interval)
            check_beliefs(self.policy, self.average_beliefs.known() if learnt else None, decisions)
        make = self._trials if by_trials else self._rollouts
        return [make("train", modes), make("test", modes)]

    def _rollouts(self, split: Split, modes: list[tuple[str, Acting]]) -> RolloutStream[Evaluated]:
        goals, stride = self.goals[split], self.config.envs_per_family
        rounds = self.config.goals_per_family // stride
        rank, world_size = rank_and_world_size()
        envs: list[TaskEnvs] = []

        def draw(i: int) -> Rollout:
            (mode, acting), episode = modes[i // rounds], i % rounds
            with together():
                if not envs:
                    envs.append(self.build(goals))
                name, world = self.config.agent, self.benchmark.world
                agent = choose_agent(name, self.policy, envs[0].families, world)
                with seeded(self.seed, self.stream, rank, int(split == "test"), i):
                    rollout = collect(
                        envs[0],
                        agent,
                        episode=episode,
                        acting=acting,
                        families=self.benchmark.families(split),
                        split=split,
                        mode=mode,
                    )
            share = stride // world_size
            slots = [rank * share + b % share for b in range(len(envs[0].families))]
            numbers = torch.tensor([goals.number(s, episode, stride) for s in slots])
            is_random = name == "random" or (name == "policy" and self.policy.is_random(acting))
            varies = is_random or self.perturbation.is_random()  # whether episodes on one goal may differ
            return replace(rollout, goal=numbers, distinct=None if varies else goals.per_family)

        def close() -> None:
            while envs:
                envs.pop().close()

        return RolloutStream(len(modes) * rounds, draw, close)

    def _trials(self, split: Split, modes: list[tuple[str, Acting]]) -> RolloutStream[Evaluated]:
        """Meta-World's own evaluation, a mode at a time."""

        def draw(i: int) -> Trials:
            mode, acting = modes[i]
            envs = make_trial_envs(
                self.benchmark,
                split,
                self.meta_world,
                seed=self.seed,
                horizon=self.horizon,
                asynchronous=self.backend == "metaworld_async",
                goal_visible=self.config.agent == "expert",
            )
            with closing(envs), seeded(self.seed, self.stream, 0, int(split == "test"), i):
                agent = choose_agent(self.config.agent, self.policy, envs.families, self.benchmark.world)
                averages = self.average_beliefs.known()
                return evaluate_trials(agent, envs, self.meta_world, acting, split, mode, averages)

        return RolloutStream(len(modes), draw)
