"""The loss of each level: networks and data in, a scalar and what to log of it out.

No gradient crosses a level. Whose parameters a loss may change is decided where it is descended
(:mod:`hmrl.training.module`); what a loss must not differentiate through at all is detached here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from hmrl.himeta.beliefs import belief_loss
from hmrl.himeta.config import MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.himeta.formulas import (
    clipped_policy_loss,
    explained_variance,
    gae,
    goal_steps,
    imputation_elbo,
    means_by_group,
    standardize,
)
from hmrl.himeta.networks.macro_vae import MacroVAE
from hmrl.himeta.policy import BeliefSequence, HierarchicalPolicy
from hmrl.system.distributed import mean_over_ranks
from hmrl.types import Acting, Metrics, Rollout, Trajectories

Minibatch = dict[str, Tensor] | Trajectories
LossFunction = Callable[[Any], tuple[Tensor, Metrics]]  # of a minibatch


def task_encoder_loss(
    policy: HierarchicalPolicy,
    episodes: Trajectories,
    scaled_reward: Tensor,
    config: TaskEncoderConfig,
    ppo: PPOConfig,
    acting: Acting,
) -> tuple[Tensor, Metrics]:
    """(V(s_t, y_t) - lambda-return)^2 + the belief's own loss (HiMeta, high level).

    The returns are made anew with the current critic and beliefs.

    Args:
        scaled_reward: the low level's rewards of these episodes, ``[T, N]``.
    """
    sequence = policy.encode_episodes(episodes.observation, episodes.action, episodes.reward, acting)
    value = policy.critic(policy.normalize(episodes.observation), sequence.belief)
    _, target = gae(scaled_reward, value.detach(), ppo.gamma, ppo.gae_lambda)
    value_loss = (value[:-1] - target).square().mean()
    own, metrics = belief_loss(policy, episodes, sequence, config)
    loss = config.value_coef * value_loss + own
    return loss, metrics | {"encoder/loss": loss.detach(), "encoder/value_loss": value_loss.detach()}


def displacement(state: Tensor, goal: Tensor) -> Tensor:
    """From the state at each step to that at its goal step: s_{goal(t)} - s_t. ``[T, B, ...]``

    Args:
        state: ``[T+1, B, D]``.
        goal: decision indices in 0..T, ``[T, B]`` long.
    """
    return state.gather(0, goal.unsqueeze(-1).expand(-1, -1, state.shape[-1])) - state[:-1]


def relative_error(prediction: Tensor, displaced: Tensor) -> Tensor:
    """Mean squared error of a predicted displacement, divided by that of predicting no motion; a scalar."""
    baseline = displaced.square().mean()
    return (prediction - displaced).square().mean() / baseline.clamp(min=1e-8)


@torch.no_grad()
def decoded_with_and_without(
    vae: MacroVAE, ego_state: Tensor, z: Tensor, average: Tensor
) -> tuple[Tensor, Tensor]:
    """What the decoder, without dropout, predicts given z, and given z's mean over all steps everywhere.

    The mean, and not 0, so that a constant z counts as no information, whatever it is.

    Args:
        ego_state: normalised, ``[T, B, E]``.
        z: ``[T, B, A]``.
        average: z's mean, ``[A]``.

    Returns:
        Predicted displacements, each ``[T, B, E]``.
    """
    training = vae.training
    vae.eval()
    found = vae.decode(ego_state, z), vae.decode(ego_state, average.expand_as(z))
    vae.train(training)
    return found


def macro_vae_loss(
    policy: HierarchicalPolicy,
    episodes: Trajectories,
    config: MacroVAEConfig,
    acting: Acting,
    families: int | None = None,
) -> tuple[Tensor, Metrics]:
    """Collective. -E[J_t] (HiMeta, imputation objective), with y, the policy and hence the prior detached.

    Args: as for :func:`imputation_loss`.
    """
    with torch.no_grad():
        sequence = policy.encode_episodes(episodes.observation, episodes.action, episodes.reward, acting)
    return imputation_loss(policy, episodes, sequence, config, families)


def imputation_loss(
    policy: HierarchicalPolicy,
    episodes: Trajectories,
    sequence: BeliefSequence,
    config: MacroVAEConfig,
    families: int | None = None,
) -> tuple[Tensor, Metrics]:
    """Collective. -E[J_t], attached to the beliefs it is given.

    The decoder predicts how the normalised ego-state is displaced at the goal step. Its errors and the spread
    of z that are logged are within families, then averaged.

    Args:
        families: how many there are; None, in a single process: as many as the episodes tell.
    """
    vae = policy.macro_vae
    assert vae is not None
    with torch.no_grad():
        state = policy.normalize(episodes.observation)
        ego = state[..., policy.ego_indices]
        goal = goal_steps(config.goal, sequence.probabilities, config.n, config.n_max, episodes.episodes)
        target = displacement(ego, goal)
    posterior = vae.encode(state[:-1], sequence.belief[:-1])
    z = posterior.rsample()
    with torch.no_grad():
        prior = Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False)
        if config.prior == "policy":
            prior = policy.actor(state[:-1], sequence.belief[:-1], z)
    terms = imputation_elbo(target, vae.decode(ego[:-1], z), config.decoder_std, posterior, prior)
    loss = -terms.log_likelihood.mean() + config.kl_coef * terms.kl.clamp(min=config.free_bits).mean()
    with torch.no_grad():
        means = posterior.mean
        average = mean_over_ranks(means.mean((0, 1)))
        errors = [p - target for p in decoded_with_and_without(vae, ego[:-1], means, average)]
        squares = [x.square().mean(-1, keepdim=True) for x in (*errors, target)]
        groups = int(episodes.family.max()) + 1 if families is None else families
        seen = means_by_group(
            torch.cat([*squares, means, means.double().square()], -1), episodes.family, groups
        )
        (informed, uninformed, still), (mean, square) = seen[:, :3].T, seen[:, 3:].chunk(2, -1)
    metrics = {
        "loss": loss,
        "kl": terms.kl.mean(),
        "log_likelihood": terms.log_likelihood.mean(),
        "decoder_error": (informed / still.clamp(min=1e-8)).mean(),
        "decoder_error_without_z": (uninformed / still.clamp(min=1e-8)).mean(),
        "z_spread": (square - mean.square()).clamp(min=0).sqrt().mean(),
        "z_std": posterior.stddev.mean(),
    }
    return loss, {f"vae/{k}": v.detach() for k, v in metrics.items()}


@torch.no_grad()
def ppo_samples(
    policy: HierarchicalPolicy, rollout: Rollout, scaled_reward: Tensor, ppo: PPOConfig
) -> tuple[dict[str, Tensor], Metrics]:
    """Collective. What the low level learns from: a rollout's decisions, each with advantage and return.

    Args:
        scaled_reward: ``[T, B]``.

    Returns:
        Tensors ``[T, B, ...]``, with the y_t and z_t that acted or are renewed, and what to log.
    """
    policy.eval()
    state = policy.normalize(rollout.observation)
    belief, z = rollout.task_belief, rollout.macro_action
    if ppo.latents == "renewed":
        belief, z = policy.renewed(rollout.observation, rollout.action, rollout.reward)
    value = policy.critic(state, belief)
    advantage, target = gae(scaled_reward, value, ppo.gamma, ppo.gae_lambda)
    if ppo.advantage == "family":
        advantage = standardize(advantage, rollout.family, len(rollout.families))
    elif ppo.advantage == "batch":
        advantage = standardize(advantage, torch.zeros_like(rollout.family), 1)
    samples = {
        "state": state[:-1],
        "task_belief": belief[:-1],
        "macro_action": z,
        "action": rollout.action,
        "log_prob": rollout.log_prob,
        "advantage": advantage,
        "return": target,
        "family": rollout.family.expand(rollout.reward.shape),
    }
    explained = explained_variance(value[:-1], target, rollout.family, len(rollout.families))
    return samples, {"ppo/explained_variance": explained}


def actor_loss(
    policy: HierarchicalPolicy, batch: dict[str, Tensor], ppo: PPOConfig
) -> tuple[Tensor, Metrics]:
    """PPO's clipped loss and entropy bonus on the y_t and z_t in ``batch``, which holds ``[N, ...]``."""
    distribution = Independent(policy.actor(batch["state"], batch["task_belief"], batch["macro_action"]), 1)
    terms = clipped_policy_loss(
        distribution.log_prob(batch["action"]), batch["log_prob"], batch["advantage"], ppo.clip
    )
    policy_entropy = distribution.entropy().mean()
    loss = terms.loss - ppo.entropy_coef * policy_entropy
    metrics = {
        "policy_loss": terms.loss,
        "approx_kl": terms.approx_kl,
        "clip_fraction": terms.clip_fraction,
        "entropy": policy_entropy,
        "action_std": distribution.stddev.mean(),
    }
    return loss, {f"ppo/{k}": v.detach() for k, v in metrics.items()}


def critic_loss(policy: HierarchicalPolicy, batch: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
    """(V(s_t, y_t) - lambda-return)^2 on the y_t in ``batch``."""
    value = policy.critic(batch["state"], batch["task_belief"])
    loss = (value - batch["return"]).square().mean()
    return loss, {"ppo/value_loss": loss.detach()}


def average(metrics: list[Metrics]) -> Metrics:
    """The mean of each key over a list of equal-keyed dictionaries."""
    return {k: torch.stack([m[k] for m in metrics]).mean() for k in metrics[0]} if metrics else {}
