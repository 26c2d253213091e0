"""The rollouts of an evaluation: every goal once, in every way of acting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from hmrl.envs import Backend, Benchmark
from hmrl.envs.benchmarks import Goals
from hmrl.envs.wrappers.perturb import Perturbation
from hmrl.evaluation.baselines import choose_agent
from hmrl.evaluation.metaworld_protocol import Trials, evaluate_trials
from hmrl.evaluation.protocols import EvaluationConfig, TrialConfig
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.rollouts.collect import collect, seeded
from hmrl.rollouts.stream import RolloutStream
from hmrl.system.distributed import rank_and_world_size, together
from hmrl.types import Acting, Rollout, Split, TaskEnvs

Evaluated = Rollout | Trials


@dataclass(frozen=True)
class Evaluation:
    """What is fixed of an evaluation, whoever is evaluated.

    Args:
        config: how to evaluate.
        benchmark: whose families.
        backend, perturbation: that it is run with.
        goals: of each split.
        modes: by name, the ways of acting.
        trials: of the protocol ``meta_world``.
        horizon: simulator steps of an episode.
        seed, stream: of acting.
    """

    config: EvaluationConfig
    benchmark: Benchmark
    backend: Backend
    perturbation: Perturbation
    goals: Mapping[Split, Goals]
    modes: Mapping[str, Acting]
    trials: TrialConfig
    horizon: int
    seed: int
    stream: int


class Evaluator:
    """Makes the streams of one evaluation.

    Args:
        evaluation: its settings.
        policy: the trained agent; the settings may choose another one to compare it with.
        build: makes this rank's environments with the goals that it is given.
    """

    def __init__(
        self, evaluation: Evaluation, policy: HierarchicalPolicy, build: Callable[[Goals], TaskEnvs]
    ) -> None:
        self._evaluation, self._policy, self._build = evaluation, policy, build
        modes = list(evaluation.modes.items())
        # Experts and random agents have no levels to act in several ways with.
        self._modes = modes if evaluation.config.agent == "policy" else modes[:1]

    def streams(self) -> list[RolloutStream[Evaluated]]:
        """Train families, then test families, in every mode."""
        official = self._evaluation.config.protocol == "meta_world"
        make = self._trials if official else self._rollouts
        return [make("train"), make("test")]

    def _rollouts(self, split: Split) -> RolloutStream[Evaluated]:
        evaluation, config, bench = self._evaluation, self._evaluation.config, self._evaluation.benchmark
        goals, stride = evaluation.goals[split], config.envs_per_family
        rounds = config.goals // stride
        rank, world_size = rank_and_world_size()
        envs: list[TaskEnvs] = []

        def draw(i: int) -> Rollout:
            (mode, acting), episode = self._modes[i // rounds], i % rounds
            with together():
                if not envs:
                    envs.append(self._build(goals))
                agent = choose_agent(config.agent, self._policy, envs[0].families, bench.world)
                with seeded(evaluation.seed, evaluation.stream, rank, int(split == "test"), i):
                    rollout = collect(
                        envs[0],
                        agent,
                        episode=episode,
                        acting=acting,
                        families=bench.families(split),
                        split=split,
                        mode=mode,
                    )
            share = stride // world_size
            slots = [rank * share + b % share for b in range(len(envs[0].families))]
            numbers = torch.tensor([goals.number(s, episode, stride) for s in slots])
            distinct = None if self._is_random(acting) else goals.per_family
            return replace(rollout, goal=numbers, distinct=distinct)

        def close() -> None:
            while envs:
                envs.pop().close()

        return RolloutStream(len(self._modes) * rounds, draw, close)

    def _is_random(self, acting: Acting) -> bool:
        """Whether two episodes on one goal may differ."""
        agent = self._evaluation.config.agent
        acts = agent == "random" or (agent == "policy" and self._policy.is_random(acting))
        return acts or self._evaluation.perturbation.is_random()

    def _trials(self, split: Split) -> RolloutStream[Evaluated]:
        """Meta-World's own evaluation, a mode at a time."""
        evaluation = self._evaluation

        def draw(i: int) -> Trials:
            mode, acting = self._modes[i]
            with seeded(evaluation.seed, evaluation.stream, 0, int(split == "test"), i):
                return evaluate_trials(
                    self._policy,
                    evaluation.config.agent,
                    evaluation.trials,
                    evaluation.benchmark,
                    asynchronous=evaluation.backend == "metaworld_async",
                    seed=evaluation.seed,
                    horizon=evaluation.horizon,
                    acting=acting,
                    split=split,
                    mode=mode,
                )

        return RolloutStream(len(self._modes), draw)
