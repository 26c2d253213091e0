"""The rollouts of an evaluation: every goal once, in every way of acting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hmrl.evaluation.baselines import choose_agent
from hmrl.evaluation.metaworld_protocol import Trials, evaluate_trials
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.rollouts.collect import seeded
from hmrl.rollouts.stream import RolloutStream
from hmrl.system.distributed import rank_and_world_size, together
from hmrl.types import Acting, Rollout, Split, TaskEnvs


class Evaluator:
    """Makes the streams of one evaluation.

    Args:
        data: the data module, whose environments, agent and seed are used.
        config: how to evaluate.
        training, stream: numbers of training's stream of goals and of this evaluation's own.
    """

    def __init__(self, data: Any, config: EvaluationConfig, *, training: int, stream: int) -> None:
        self._data, self._config = data, config
        self._training, self._stream = training, stream
        modes: list[tuple[str, Acting]] = list(data.modes.items())
        # Experts and random agents have no levels to act in several ways with.
        self._modes = modes if config.agent == "policy" else modes[:1]

    def streams(self) -> list[RolloutStream[Any]]:
        """Train families, then test families, in every mode."""
        make = self._trials if self._config.protocol == "meta_world" else self._rollouts
        return [make("train"), make("test")]

    def _rollouts(self, split: Split) -> RolloutStream[Any]:
        data, config = self._data, self._config
        trained_on = data.backend, data.goals_per_family
        goals = config.goals_of(split, data.seed, *trained_on, training=self._training, stream=self._stream)
        stride = config.envs_per_family
        rounds = config.goals // stride
        envs: list[TaskEnvs] = []

        def draw(i: int) -> Rollout:
            (mode, acting), episode = self._modes[i // rounds], i % rounds
            with together():
                if not envs:
                    backend = config.backend or data.backend
                    perturbation = config.perturbation_within(data.perturbation)
                    made = backend, goals, stride, perturbation, self._stream
                    age = int(data.module.iteration) * data.episodes_per_trial
                    envs.append(data.seen_envs(*made, age=age, **data.shown_to(config.agent)))
                world = data.benchmark.world
                agent = choose_agent(config.agent, data.module.policy, envs[0].families, world)
                rollout: Rollout = data.collect(
                    envs[0],
                    agent,
                    (self._stream, int(split == "test"), i),
                    split,
                    episode=episode,
                    acting=acting,
                    mode=mode,
                )
            rank, world_size = rank_and_world_size()
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
        agent, policy = self._config.agent, self._data.module.policy
        acts = agent == "random" or (agent == "policy" and policy.is_random(acting))
        return acts or self._config.perturbation_within(self._data.perturbation).is_random()

    def _trials(self, split: Split) -> RolloutStream[Any]:
        """Meta-World's own evaluation, a mode at a time."""
        data = self._data

        def draw(i: int) -> Trials:
            mode, acting = self._modes[i]
            with seeded(data.seed, self._stream, 0, int(split == "test"), i):
                return evaluate_trials(
                    data.module.policy,
                    replace(self._config, backend=self._config.backend or data.backend),
                    data.trials,
                    data.benchmark,
                    seed=data.seed,
                    horizon=data.horizon,
                    acting=acting,
                    split=split,
                    mode=mode,
                )

        return RolloutStream(len(self._modes), draw)
