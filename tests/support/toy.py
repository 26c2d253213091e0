"""A world of points in pure numpy: ML10's families and goals without Meta-World's simulators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hmrl.envs import Backend
from hmrl.envs.benchmarks import ACTION_DIM, OBSERVATION_DIM, EnvBatch, Goals
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.system.distributed import rank_and_world_size
from hmrl.training.checkpoint import FORMAT
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import EnvStep, FloatArray, TaskEnvs

HORIZON = 13  # odd: the last decision of two simulator steps is cut short


@dataclass
class Episode:
    """What an environment saw of one episode: the tests' own record."""

    family: str
    split: str
    training: bool
    number: int
    goal: int  # its seed
    rewards: list[float] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)


@dataclass(eq=False)
class ToyEnvs(EnvBatch):
    """Points that are to be moved to a hidden goal; rewards depend on seed, episode and actions alone.

    Args:
        record: of episodes, to be added to.
        solved: overrides success: the first so many families always succeed, the others never.
    """

    record: list[Episode] = field(default_factory=list)
    training: bool = True
    on_step: Callable[[], None] | None = None
    solved: int | None = None
    closed = False

    def __post_init__(self) -> None:
        names = list(dict.fromkeys(self.families))
        self._index = np.array([names.index(f) for f in self.families])

    def reset(self, episode: int) -> FloatArray:
        seeds = self.seeds(episode)
        drawn = np.stack([np.random.default_rng(seed).uniform(-1, 1, 2 * ACTION_DIM) for seed in seeds])
        self._goal, self._position = drawn[:, :ACTION_DIM], drawn[:, ACTION_DIM:]
        self._before = self._position
        self._now = [
            Episode(family, self.goals.split, self.training, episode, seed)
            for family, seed in zip(self.families, seeds, strict=True)
        ]
        self.record.extend(self._now)
        return self._observation()

    def step(self, action: FloatArray) -> EnvStep:
        assert len(self._now[0].rewards) < self.horizon, "stepped beyond the end of the episode"
        assert np.abs(action).max() <= 1
        self._before = self._position
        self._position = np.clip(self._position + 0.3 * action, -1, 1)
        distance = np.linalg.norm(self._position - self._goal, axis=1)
        reward = (1 + self._index) * (2 - distance)
        success = distance < 1.0 if self.solved is None else self._index < self.solved
        for episode, r, s in zip(self._now, reward, success, strict=True):
            episode.rewards.append(float(r))
            episode.successes.append(bool(s))
        if self.on_step:
            self.on_step()
        return EnvStep(self._observation(), reward, success)

    def close(self) -> None:
        self.closed = True

    def _observation(self) -> FloatArray:
        observation = np.zeros((len(self.families), OBSERVATION_DIM))
        observation[:, 0:4], observation[:, 18:22] = self._position, self._before
        observation[:, 4:8] = np.sin(5 * self._position)
        if self.goal_visible:
            observation[:, 36:39] = self._goal[:, :3]
        return observation


class ToyDataModule(MetaWorldDataModule):
    """The real data module on the toy world.

    ``episodes`` records everything that environments saw, ``made`` every batch of them. Tests may set
    ``on_training_step``, called after each simulator step of training, and ``solved``, by split how many
    families succeed in the n-th evaluation.
    """

    on_training_step: Any = None
    solved: dict[str, list[int]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.episodes: list[Episode] = []
        self.made: list[ToyEnvs] = []

    def make_envs(
        self,
        backend: Backend,
        goals: Goals,
        envs_per_family: int,
        *,
        goal_visible: bool = False,
        families: Sequence[str] | None = None,
    ) -> TaskEnvs:
        rank, world_size = rank_and_world_size()
        share = envs_per_family // world_size
        names = families or self.benchmark.families(goals.split)
        each = [(family, rank * share + i) for family in names for i in range(share)]
        training = self.trainer is not None and self.trainer.training
        solved = None
        if self.solved is not None and not training:
            evaluation = sum(not e.training and e.goals.split == goals.split for e in self.made)
            solved = self.solved[goals.split][evaluation]
        envs = ToyEnvs(
            tuple(family for family, _ in each),
            goals,
            [slot for _, slot in each],
            envs_per_family,
            self.horizon,
            goal_visible,
            record=self.episodes,
            training=training,
            on_step=self.on_training_step if training else None,
            solved=solved,
        )
        self.made.append(envs)
        return envs


def toy_data(cls: type[MetaWorldDataModule] = ToyDataModule, **changes: Any) -> Any:
    """20 episodes of training an iteration; the replay has room for two rollouts."""
    options: dict[str, Any] = {
        "envs_per_family": 2,
        "horizon": HORIZON,
        "replay_trajectories": 50,
        "validation": EvaluationConfig(2, 1),
        "test": EvaluationConfig(4, 2),
    }
    return cls(**(options | changes))


def checkpoint_of(module: HierarchicalMetaRL, data: MetaWorldDataModule) -> dict[str, Any]:
    """What every checkpoint says of an agent and its world."""
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(data.hparams),
        "format": FORMAT,
    }


STEPS = 20 * HORIZON  # environment steps of an iteration of `toy_data()`


def tiny_networks() -> dict[str, Any]:
    return {
        "task_encoder": TaskEncoderConfig(
            categories=3, hidden=8, embedding_hidden=(8, 4, 4), head_hidden=(8,), updates=2, trajectories=6
        ),
        "macro_vae": MacroVAEConfig(encoder_hidden=(8,), decoder_hidden=(8,), n=2, updates=2, trajectories=6),
        "actor_critic": ActorCriticConfig((8,), (8,)),
        "ppo": PPOConfig(epochs=2, minibatches=3),
    }


def tiny_module(data: MetaWorldDataModule, **changes: Any) -> HierarchicalMetaRL:
    return HierarchicalMetaRL(**data.sizes, **(tiny_networks() | changes))
