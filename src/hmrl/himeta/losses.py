"""The loss of each level: networks and data in, a scalar and what to log of it out.

No gradient crosses a level. Whose parameters a loss may change is decided where it is descended
(:meth:`hmrl.training.module.HierarchicalMetaRL.training_step`); what a loss must not differentiate through
at all is detached here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import embedding

from hmrl.himeta.config import MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.himeta.formulas import (
    categorical_regulariser,
    clipped_policy_loss,
    entropy,
    explained_variance,
    gae,
    goal_steps,
    imputation_elbo,
    means_by_group,
    occupancy_weights,
    standardize,
)
from hmrl.himeta.networks import MacroVAE, MixtureEncoder, TaskEncoder
from hmrl.himeta.policy import BeliefSequence, HierarchicalPolicy
from hmrl.system.distributed import mean_over_ranks
from hmrl.types import TRAJECTORY_TENSORS, Acting, Metrics, Rollout, Trajectories

# --- high level: the task belief y -----------------------------------------------------------------

QUESTIONS = 50  # pairs of a belief and another step of its trial, for each replayed trial
_MIXTURE_KL = 0.1  # w, the weight of both KLs in a mixture's loss


def task_encoder_loss(
    policy: HierarchicalPolicy,
    episodes: Trajectories,
    scaled_reward: Tensor,
    config: TaskEncoderConfig,
    ppo: PPOConfig,
    acting: Acting,
    goal: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """(V(s_t, y_t) - lambda-return)^2 + the belief's own loss (HiMeta, high level) + that of goals.

    The returns are made anew with the current critic and beliefs. Where not all steps learn, a random part
    does, the same of all episodes.

    Args:
        scaled_reward: the low level's rewards of these episodes, ``[T, N]``.
        goal: of each episode, standardised within its family, ``[N, G]``; G is 0 where none is estimated.
    """
    memory = policy.remember_episodes(episodes.observation, episodes.action, episodes.reward)
    state, task = policy.normalize(episodes.observation), policy.task(episodes)
    steps = torch.arange(len(memory), device=memory.device)
    every = config.steps is None or config.steps >= len(memory)
    with torch.set_grad_enabled(every):
        sequence = policy.sequence(memory, acting)
        value = policy.value(state, sequence.belief, task)
    _, target = gae(scaled_reward, value.detach(), ppo.gamma, ppo.gae_lambda)
    if not every:
        steps = torch.randperm(len(memory))[: config.steps].to(memory.device)
        sequence = policy.sequence(memory[steps], acting)
        value = policy.value(state[steps], sequence.belief, task)
    known = steps < len(target)  # of the last state there is no return
    value_loss = (value[known] - target[steps[known]]).square().mean()
    own, metrics = belief_loss(policy, episodes, sequence, config)
    loss = config.value_coef * value_loss + own
    if goal is not None and goal.shape[1]:
        error = goal_loss(sequence, goal)
        loss = loss + config.goal_coef * error
        metrics["encoder/goal_error"] = error.detach()
    return loss, metrics | {"encoder/loss": loss.detach(), "encoder/value_loss": value_loss.detach()}


def belief_loss(
    policy: HierarchicalPolicy, episodes: Trajectories, sequence: BeliefSequence, config: TaskEncoderConfig
) -> tuple[Tensor, Metrics]:
    """What a belief is trained on besides value: categorical and occupancy regularisers (HiMeta, high
    level), the prediction of rewards, and for a mixture its reconstruction.

    Args:
        sequence: beliefs of the episodes, at all steps or some.
    """
    loss = sequence.belief.new_zeros(())
    metrics: Metrics = {}
    encoder = policy.task_encoder
    if sequence.probabilities.shape[-1]:
        categorical = categorical_regulariser(sequence.probabilities, config.categorical)
        weights = occupancy_weights(config.categories).to(loss.device)
        occupancy = (sequence.probabilities * weights).sum(-1).mean()
        loss = config.categorical_coef * categorical + config.occupancy_coef * occupancy
        metrics = {"encoder/categorical": categorical.detach(), "encoder/occupancy": occupancy.detach()}
    if isinstance(encoder, MixtureEncoder):
        mixture, more = mixture_loss(policy, encoder, episodes, sequence)
        loss, metrics = loss + mixture, metrics | more
    elif encoder and config.reward_coef:
        error = reward_loss(policy, encoder, episodes, sequence, QUESTIONS)
        loss = loss + config.reward_coef * error
        metrics["encoder/reward_error"] = error.detach()
    return loss, metrics


class Questions(NamedTuple):
    """To a belief, about another step of the same trial. M questions a trial, normalised."""

    asked: Tensor  # which beliefs are asked: their row, of [K, N] rows one after another. [M, N]
    state: Tensor  # s_t' [M, N, S]
    action: Tensor  # a_t' [M, N, A]
    next_state: Tensor  # s_t'+1 [M, N, S]
    reward: Tensor  # r_t' [M, N], as contexts hold it


@torch.no_grad()
def questions(policy: HierarchicalPolicy, episodes: Trajectories, beliefs: int, count: int) -> Questions:
    """``count`` random pairs of a belief's step and another step for each trial (VariBAD, Zintgraf et al.
    2020: the whole trial, its future too, has to be explained by what is known so far).

    Args:
        beliefs: K, how many of each trial can be asked.
    """
    length, trials = episodes.reward.shape
    device = episodes.reward.device
    column = torch.arange(trials, device=device)
    t = torch.randint(beliefs, (count, trials), device=device)
    step = torch.randint(length, (count, trials), device=device)
    last = (step + 1) % (length // episodes.episodes) == 0
    step = torch.where(last & (step + 1 < length), step - 1, step)  # what follows a reset tells nothing
    state = policy.normalize(episodes.observation)
    return Questions(
        t * trials + column,
        state[step, column],
        episodes.action[step, column].clamp(-1, 1),
        state[step + 1, column],
        policy.normalize_reward(episodes.reward)[step, column],
    )


def at(values: Tensor, rows: Tensor) -> Tensor:
    """``rows`` ``[M, N]`` of ``values`` ``[K, N, ...]``, with the same gradient each time. ``[M, N, D]``

    On several threads an index adds up large gradients in any order, and a resumed run would not end in the
    same bits; an embedding does not.
    """
    found: Tensor = embedding(rows, values.flatten(2).flatten(0, 1))
    return found


def reward_loss(
    policy: HierarchicalPolicy,
    encoder: TaskEncoder,
    episodes: Trajectories,
    sequence: BeliefSequence,
    samples: int,
) -> Tensor:
    """(r_t' - r_hat(y_t, s_t', a_t', s_t'+1))^2 over random t, t' of each trial, in the units of contexts.

    What tells tasks apart is what they reward, so a belief that predicts it wherever the body is knows the
    task: VariBAD's reward decoder (Zintgraf et al. 2020, eq. 9), without a variational bottleneck, for the
    belief has one of its own in its categories. Not in HiMeta: value alone does not ask for the task where
    the critic can read the reward's height off the latest context.
    """
    about = questions(policy, episodes, len(sequence.belief), samples)
    belief = at(sequence.belief, about.asked)
    predicted = encoder.predicted_reward(belief, about.state, about.action, about.next_state)
    return (predicted - about.reward).square().mean()


def goal_loss(sequence: BeliefSequence, goal: Tensor) -> Tensor:
    """||g - g_hat_t||^2, where g_hat_t is what the belief ends with.

    The trainer knows goals, the agent never does: it acts on its estimate. That also serves to predict values
    and rewards, and so learns from these, too. Not in HiMeta; supervised task inference is due to Humplik et
    al. 2019 (arXiv 1905.06424). Goals are standardised within families, so that only memory can tell.

    Args:
        goal: standardised within families. ``[N, G]``
    """
    return (sequence.belief[..., -goal.shape[1] :] - goal).square().sum(-1).mean()


def mixture_loss(
    policy: HierarchicalPolicy,
    encoder: MixtureEncoder,
    episodes: Trajectories,
    sequence: BeliefSequence,
) -> tuple[Tensor, Metrics]:
    """The negative evidence bound of a Gaussian mixture over sub-tasks (SD, NeurIPS 2023).

    From the belief at a random step t, the reward and the next state of another random step t' of the same
    trial are reconstructed (:func:`questions`), with every category's own x ~ q(x | c, y), weighted by
    q(y | c):

        E_q(y) [ (r - r_hat)^2 + mean_d (ds_d - ds_hat_d)^2 + w KL(q(x | c, y) || p(x | y)) ]
            + w KL(q(y | c) || uniform)
    """
    about = questions(policy, episodes, len(sequence.belief), QUESTIONS)
    out, weight = at(sequence.out, about.asked), at(sequence.probabilities, about.asked)
    mean, std = encoder.components(out)
    posterior = Normal(mean, std, validate_args=False)
    x = posterior.rsample()  # [M, N, K, L]

    def with_each(*parts: Tensor) -> Tensor:
        shared = torch.cat(parts, dim=-1).unsqueeze(-2)
        return torch.cat([x, shared.expand(*x.shape[:-1], -1)], dim=-1)

    before, action, after = about.state, about.action, about.next_state
    reward_error = (
        encoder.reward_decoder(with_each(before, action, after)).squeeze(-1) - about.reward.unsqueeze(-1)
    ).square()
    moved = (after - before).unsqueeze(-2)
    state_error = (encoder.state_decoder(with_each(before, action)) - moved).square().mean(-1)
    prior = Normal(*encoder.prior(), validate_args=False)
    component_kl = (weight * kl_divergence(posterior, prior).sum(-1)).sum(-1).mean()
    category_kl = math.log(encoder.categories) - entropy(weight).mean()
    reconstruction = [(weight * error).sum(-1).mean() for error in (reward_error, state_error)]
    loss = reconstruction[0] + reconstruction[1] + _MIXTURE_KL * (component_kl + category_kl)
    metrics = {
        "mixture_loss": loss,
        "mixture_reward_error": reconstruction[0],
        "mixture_state_error": reconstruction[1],
        "mixture_kl": component_kl,
    }
    return loss, {f"encoder/{k}": v.detach() for k, v in metrics.items()}


# --- intermediate level: the macro-action z --------------------------------------------------------


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
        strategy, probabilities = config.goal_state, sequence.probabilities
        goal = goal_steps(strategy, probabilities, config.n, episodes=episodes.episodes)
        target = displacement(ego, goal)
    posterior = vae.encode(state[:-1], sequence.belief[:-1])
    z = posterior.rsample()
    with torch.no_grad():
        prior = Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False)
        if config.prior == "policy":
            prior = policy.actor(state[:-1], sequence.belief[:-1], z)
    terms = imputation_elbo(target, vae.decode(ego[:-1], z), config.decoder_std, posterior, prior)
    loss = -terms.log_likelihood.mean() + terms.kl.mean()
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


# --- low level: PPO --------------------------------------------------------------------------------


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
    task = policy.task(rollout)
    value = policy.value(state, belief, task)
    advantage, target = gae(scaled_reward, value, ppo.gamma, ppo.gae_lambda)
    if ppo.advantage == "family":
        advantage = standardize(advantage, rollout.family, len(rollout.families), ppo.advantage_pooling)
    elif ppo.advantage == "batch":
        advantage = standardize(advantage, torch.zeros_like(rollout.family), 1)
    samples = {
        "state": state[:-1],
        "task_belief": belief[:-1],
        "task": task.expand(len(z), -1, -1),
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
    value = policy.critic(batch["state"], batch["task_belief"], batch["task"])
    loss = (value - batch["return"]).square().mean()
    return loss, {"ppo/value_loss": loss.detach()}


# --- all levels at once: an ablation, and how recurrent PPO is trained -----------------------------


@dataclass(kw_only=True)
class JointBatch(Trajectories):
    """Trials with what PPO needs of each decision; a minibatch is some of them, whole."""

    log_prob: Tensor  # [T, N], of acting
    advantage: Tensor  # [T, N]
    returns: Tensor  # [T, N]


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
        "task": policy.task(batch).expand(len(belief), -1, -1),
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
