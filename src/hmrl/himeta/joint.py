"""Training end to end: gradients allowed through the levels, as an ablation and for recurrent PPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmrl.himeta.beliefs import belief_loss
from hmrl.himeta.config import MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.himeta.losses import actor_loss, critic_loss, imputation_loss
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.types import TRAJECTORY_TENSORS, Acting, Metrics, Rollout, Trajectories


@dataclass(kw_only=True)
class JointBatch(Trajectories):
    """Trials with what PPO needs of each decision; a minibatch is some of them, whole."""

    log_prob: Tensor  # [T, N], of acting
    advantage: Tensor  # [T, N]
    returns: Tensor  # [T, N]

    def select(self, chosen: Tensor) -> JointBatch:
        """The trials that ``chosen``, marks or indices, names."""
        names = ("observation", "action", "reward", "macro_action", "log_prob", "advantage", "returns")
        columns = {name: getattr(self, name)[:, chosen] for name in names}
        return replace(self, **columns, family=self.family[chosen])


def joint_batch(rollout: Rollout, targets: Mapping[str, Tensor]) -> JointBatch:
    """All trials of a rollout.

    Args:
        targets: of :func:`hmrl.himeta.losses.ppo_samples`.
    """
    names = (*TRAJECTORY_TENSORS, "episodes", "log_prob")
    return JointBatch(
        **{name: getattr(rollout, name) for name in names},
        advantage=targets["advantage"],
        returns=targets["return"],
    )


def joint_loss(
    policy: HierarchicalPolicy,
    batch: JointBatch,
    encoder: TaskEncoderConfig | None,
    vae: MacroVAEConfig | None,
    ppo: PPOConfig,
    acting: Acting,
    families: int | None = None,
) -> tuple[Tensor, Metrics]:
    """Collective. The sum of all levels' losses, with y and z made anew and attached.

    What isolation cuts is left whole: PPO's two losses reach the task encoder and the macro-VAE's encoder,
    J_t reaches the task encoder. Its sg[pi] stays, for it is part of J_t. The critic's loss is the value loss
    of the task encoder.

    Args:
        families: as for :func:`hmrl.himeta.losses.imputation_loss`.
    """
    sequence = policy.encode_episodes(batch.observation, batch.action, batch.reward, acting)
    state, belief = policy.normalize(batch.observation)[:-1], sequence.belief[:-1]
    samples = {
        "state": state,
        "task_belief": belief,
        "macro_action": policy.hold(policy.macro_action(state, belief, acting)),
        "action": batch.action,
        "log_prob": batch.log_prob,
        "advantage": batch.advantage,
        "return": batch.returns,
    }
    parts = [actor_loss(policy, samples, ppo), critic_loss(policy, samples)]
    if encoder:
        parts.append(belief_loss(policy, batch, sequence, encoder))
    if vae:
        parts.append(imputation_loss(policy, batch, sequence, vae, families))
    metrics = {key: value for _, part in parts for key, value in part.items()}
    return torch.stack([loss for loss, _ in parts]).sum(), metrics
