"""The loss of each level: networks and data in, a scalar and what to log of it out.

No gradient crosses a level. Whose parameters a loss may change is decided where it is descended
(:mod:`hmrl.module`); what a loss must not differentiate through at all is detached here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from hmrl.config import MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.functional import (
    categorical_regulariser,
    clipped_policy_loss,
    entropy,
    explained_variance,
    gae,
    goal_steps,
    imputation_elbo,
    occupancy_weights,
    standardize,
)
from hmrl.networks.macro_vae import MacroVAE
from hmrl.networks.task_encoder import MixtureEncoder
from hmrl.policy import BeliefSequence, HierarchicalPolicy
from hmrl.types import Acting, Rollout, Trajectories

Metrics = dict[str, Tensor]
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


def belief_loss(
    policy: HierarchicalPolicy, episodes: Trajectories, sequence: BeliefSequence, config: TaskEncoderConfig
) -> tuple[Tensor, Metrics]:
    """What a belief is trained on besides value: categorical and occupancy regularisers (HiMeta, high
    level), and for a mixture its reconstruction. A continuous belief has nothing of its own.
    """
    loss = sequence.belief.new_zeros(())
    metrics: Metrics = {}
    if sequence.probabilities.shape[-1]:
        categorical = categorical_regulariser(sequence.probabilities, config.categorical)
        weights = occupancy_weights(config.categories, config.occupancy).to(loss.device)
        occupancy = (sequence.probabilities * weights).sum(-1).mean()
        loss = config.categorical_coef * categorical + config.occupancy_coef * occupancy
        metrics = {"encoder/categorical": categorical.detach(), "encoder/occupancy": occupancy.detach()}
    if isinstance(policy.task_encoder, MixtureEncoder):
        mixture, more = mixture_loss(policy, policy.task_encoder, episodes, sequence, config)
        loss, metrics = loss + config.mixture_coef * mixture, metrics | more
    return loss, metrics


def mixture_loss(
    policy: HierarchicalPolicy,
    encoder: MixtureEncoder,
    episodes: Trajectories,
    sequence: BeliefSequence,
    config: TaskEncoderConfig,
) -> tuple[Tensor, Metrics]:
    """The negative evidence bound of a Gaussian mixture over sub-tasks (SD, NeurIPS 2023).

    From the belief at a random step t, the reward and the next state of another random step t' of the same
    trial are reconstructed (as VariBAD does, Zintgraf et al. 2020), with every category's own
    x ~ q(x | c, y), weighted by q(y | c):

        E_q(y) [ (r - r_hat)^2 + mean_d (ds_d - ds_hat_d)^2 + w KL(q(x | c, y) || p(x | y)) ]
            + w KL(q(y | c) || uniform)
    """
    length, count, samples = *episodes.reward.shape, config.mixture_samples
    device = episodes.reward.device
    column = torch.arange(count, device=device)
    t = torch.randint(length + 1, (samples, count), device=device)
    step = torch.randint(length, (samples, count), device=device)
    last = (step + 1) % (length // episodes.episodes) == 0
    step = torch.where(last & (step + 1 < length), step - 1, step)  # what follows a reset tells nothing
    with torch.no_grad():
        state = policy.normalize(episodes.observation)
        before, after = state[step, column], state[step + 1, column]
        action = episodes.action[step, column].clamp(-1, 1)
        reward = policy.normalize_reward(episodes.reward)[step, column]
    out, weight = sequence.out[t, column], sequence.probabilities[t, column]
    mean, std = encoder.components(out)
    posterior = Normal(mean, std, validate_args=False)
    x = posterior.rsample()  # [N, B, K, L]

    def with_each(*parts: Tensor) -> Tensor:
        shared = torch.cat(parts, dim=-1).unsqueeze(-2)
        return torch.cat([x, shared.expand(*x.shape[:-1], -1)], dim=-1)

    reward_error = (
        encoder.reward_decoder(with_each(before, action, after)).squeeze(-1) - reward.unsqueeze(-1)
    ).square()
    moved = (after - before).unsqueeze(-2)
    state_error = (encoder.state_decoder(with_each(before, action)) - moved).square().mean(-1)
    prior = Normal(encoder.prior_mean, encoder.prior_log_std.clamp(-5, 2).exp(), validate_args=False)
    component_kl = (weight * kl_divergence(posterior, prior).sum(-1)).sum(-1).mean()
    category_kl = math.log(encoder.categories) - entropy(weight).mean()
    reconstruction = [(weight * error).sum(-1).mean() for error in (reward_error, state_error)]
    loss = reconstruction[0] + reconstruction[1] + config.mixture_kl_coef * (component_kl + category_kl)
    metrics = {
        "mixture_loss": loss,
        "mixture_reward_error": reconstruction[0],
        "mixture_state_error": reconstruction[1],
        "mixture_kl": component_kl,
    }
    return loss, {f"encoder/{k}": v.detach() for k, v in metrics.items()}


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
def decoded_with_and_without(vae: MacroVAE, ego_state: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder, without dropout, predicts given z, and given z's mean over all steps everywhere.

    The mean, and not 0, so that a constant z counts as no information, whatever it is.

    Args:
        ego_state: normalised, ``[T, B, E]``.
        z: ``[T, B, A]``.

    Returns:
        Predicted displacements, each ``[T, B, E]``.
    """
    training = vae.training
    vae.eval()
    found = vae.decode(ego_state, z), vae.decode(ego_state, z.mean((0, 1)).expand_as(z))
    vae.train(training)
    return found


def macro_vae_loss(
    policy: HierarchicalPolicy, episodes: Trajectories, config: MacroVAEConfig, acting: Acting
) -> tuple[Tensor, Metrics]:
    """-E[J_t] (HiMeta, imputation objective), with y, the policy and hence the prior detached."""
    with torch.no_grad():
        sequence = policy.encode_episodes(episodes.observation, episodes.action, episodes.reward, acting)
    return imputation_loss(policy, episodes, sequence, config)


def imputation_loss(
    policy: HierarchicalPolicy, episodes: Trajectories, sequence: BeliefSequence, config: MacroVAEConfig
) -> tuple[Tensor, Metrics]:
    """-E[J_t], attached to the beliefs it is given.

    The decoder predicts how the normalised ego-state is displaced at the goal step.
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
    informed, uninformed = decoded_with_and_without(vae, ego[:-1], posterior.mean)
    metrics = {
        "loss": loss,
        "kl": terms.kl.mean(),
        "log_likelihood": terms.log_likelihood.mean(),
        "decoder_error": relative_error(informed, target),
        "decoder_error_without_z": relative_error(uninformed, target),
        "z_spread": posterior.mean.reshape(-1, z.shape[-1]).std(0).mean(),
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
        Tensors ``[T, B, ...]``, with the y_t and z_t that acted, and what to log.
    """
    policy.eval()
    state = policy.normalize(rollout.observation)
    value = policy.critic(state, rollout.task_belief)
    advantage, target = gae(scaled_reward, value, ppo.gamma, ppo.gae_lambda)
    if ppo.advantage == "family":
        advantage = standardize(advantage, rollout.family, len(rollout.families))
    elif ppo.advantage == "batch":
        advantage = standardize(advantage, torch.zeros_like(rollout.family), 1)
    samples = {
        "state": state[:-1],
        "task_belief": rollout.task_belief[:-1],
        "macro_action": rollout.macro_action,
        "action": rollout.action,
        "log_prob": rollout.log_prob,
        "advantage": advantage,
        "return": target,
        "family": rollout.family.expand(rollout.reward.shape),
    }
    explained = explained_variance(value[:-1], target)
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
