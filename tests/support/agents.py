"""What several unit tests share: a small agent, random data, a toy world and a way into a real fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from hmrl.himeta.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.rollouts.collect import collect, seeded
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.rollouts.stream import RolloutStream
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import TRAJECTORY_TENSORS, EnvStep, Rollout, Trajectories

S, A, K, T, B, G = 7, 2, 3, 6, 4, 2  # G: of a hidden goal
EGO = (0, 1, 4)
FAMILIES = ("reach", "push")


def encoder_config(**changes: Any) -> TaskEncoderConfig:
    small: dict[str, Any] = {
        "categories": K,
        "variables": 1,
        "hidden": 8,
        "embedding_hidden": (5, 4, 3),
        "reward_embedding": 1,
        "context_reward": "plain",
        "head_hidden": (6,),
        "reward_coef": 0.0,
        "goal_coef": 0.0,
        "categorical_coef": 0.3,
        "categorical": "information",
        "updates": 1,
        "target_kl": None,
        "trajectories": B,
        "lr": 1e-2,
    }
    return TaskEncoderConfig(**small | changes)


def vae_config(**changes: Any) -> MacroVAEConfig:
    small: dict[str, Any] = {
        "encoder_hidden": (8,),
        "decoder_hidden": (8,),
        "n": 2,
        "updates": 1,
        "target_kl": None,
        "trajectories": B,
        "lr": 1e-2,
    }
    return MacroVAEConfig(**small | changes)


# The low level as PPO has it; what the default adds is tested where it is made.
PLAIN: dict[str, Any] = {"critic_layer_norm": False, "critic_input": "belief", "state_dependent_std": False}


def build_module(
    task_encoder: TaskEncoderConfig | None = None,
    macro_vae: MacroVAEConfig | None = None,
    ppo: dict[str, Any] | None = None,
    networks: dict[str, Any] | None = None,
    families: Sequence[str] = FAMILIES,
    **changes: Any,
) -> HierarchicalMetaRL:
    """An agent small enough to step in milliseconds, its normaliser already fed."""
    torch.manual_seed(0)
    module = HierarchicalMetaRL(
        families=families,
        observation_dim=S,
        action_dim=A,
        ego_indices=EGO,
        task_encoder=task_encoder,
        macro_vae=macro_vae,
        actor_critic=ActorCriticConfig(
            **PLAIN | {"actor_hidden": (8,), "critic_hidden": (8,)} | (networks or {})
        ),
        ppo=PPOConfig(**{"epochs": 2, "minibatches": 2, "advantage_pooling": 0.0} | (ppo or {})),
        **changes,
    )
    module.policy.observe(0.5 + 2 * torch.randn(50, S), 1 + torch.rand(50), torch.randn(50, G))
    livelier(module.policy)
    return module


def full_module(**changes: Any) -> HierarchicalMetaRL:
    return build_module(encoder_config(), vae_config(), **changes)


def livelier(policy: HierarchicalPolicy) -> None:
    """Larger weights: a fresh policy hardly depends on anything, which would hide what it depends on."""
    nets: list[nn.Module] = [policy.actor, policy.critic]
    nets += [policy.task_encoder.head] if policy.task_encoder else []
    nets += [policy.macro_vae.encoder] if policy.macro_vae else []
    for net in nets:
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.normal_(last.weight, std=0.5)


def random_rollout(episodes: int = B, steps: int = T, seed: int = 0, **changes: Any) -> Rollout:
    """Noise in the shapes of a rollout; its log-probabilities belong to no policy."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    values: dict[str, Any] = {
        "observation": 0.5 + 2 * randn(steps + 1, episodes, S),
        "action": randn(steps, episodes, A),
        "log_prob": randn(steps, episodes),
        "task_belief": randn(steps + 1, episodes, K).softmax(-1),
        "macro_action": randn(steps, episodes, A).tanh(),
        "reward": 10 * torch.rand(steps, episodes, generator=g),
        "success": torch.rand(steps, episodes, generator=g) < 0.2,
        "final_success": torch.rand(episodes, generator=g) < 0.5,
        "family": torch.arange(episodes) % len(FAMILIES),
        "hidden_goal": randn(episodes, G),
        "families": FAMILIES,
        "split": "train",
        "mode": "training",
        "env_steps": steps * episodes,
    }
    return Rollout(**values | changes)


def trajectories(rollout: Rollout) -> Trajectories:
    return Trajectories(**{name: getattr(rollout, name) for name in TRAJECTORY_TENSORS})


def iteration_batch(rollout: Rollout, capacity: int = 8) -> Any:
    """What the data module hands to ``training_step``."""
    replay = TrajectoryReplay(capacity)
    replay.append(rollout)
    return SimpleNamespace(rollout=rollout, replay=replay)


def fit(module: HierarchicalMetaRL, batches: Sequence[Any]) -> pl.Trainer:
    """A real trainer over ``batches``, one epoch, nothing written."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, RolloutStream(len(batches), batches.__getitem__))
    return trainer


def inside_fit(module: HierarchicalMetaRL, action: Callable[[], object]) -> None:
    """Run ``action`` where ``training_step`` would run, with optimizers and trainer attached."""

    runs = []

    def step(batch: Any, batch_idx: int) -> None:
        runs.append(batch)
        action()

    module.training_step = step  # type: ignore[method-assign]
    fit(module, ["nothing"])  # Lightning would skip None
    assert runs == ["nothing"]


class ToyEnvs:
    """A point in S dimensions that actions push; reward is closeness to a goal of its own."""

    def __init__(self, batch: int = B, horizon: int = 7) -> None:
        self.families = tuple(FAMILIES[i % len(FAMILIES)] for i in range(batch))
        self.horizon = horizon
        self.actions: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []

    def reset(self, episode: int) -> np.ndarray:
        rng = np.random.default_rng(episode)
        self.state = rng.normal(size=(len(self.families), S))
        self.goal = rng.normal(size=(len(self.families), A))
        self.actions, self.rewards = [], []
        return self.state.copy()

    def step(self, action: np.ndarray) -> EnvStep:
        assert np.abs(action).max() <= 1, "environments are promised actions in [-1, 1]"
        self.actions.append(action.copy())
        self.state[:, :A] += 0.3 * action
        self.state[:, A:] = 0.9 * self.state[:, A:] + 0.1 * np.sin(self.state[:, :1])
        reward = np.exp(-np.square(self.state[:, :A] - self.goal).sum(1))
        self.rewards.append(reward)
        return EnvStep(self.state.copy(), reward, reward > 0.5)

    def close(self) -> None:
        pass


def play(
    agent: HierarchicalMetaRL, envs: ToyEnvs | None = None, *, key: Sequence[int], **changes: Any
) -> Rollout:
    """A training rollout of ``agent`` in a toy world, on the random stream ``key``.

    Args:
        changes: of what :func:`hmrl.rollouts.collect.collect` is given.
    """
    options: dict[str, Any] = {"episode": 0, "acting": agent.acting, "families": FAMILIES}
    options |= {"split": "train", "mode": "training"} | changes
    with seeded(*key):
        return collect(envs or ToyEnvs(), agent.policy, **options)
