"""What a belief learns from besides value: regularisers, and the rewards of other steps of its trial."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from hmrl.himeta.config import TaskEncoderConfig
from hmrl.himeta.formulas import categorical_regulariser, entropy, occupancy_weights
from hmrl.himeta.networks.task_encoder import MixtureEncoder, TaskEncoder
from hmrl.himeta.policy import BeliefSequence, HierarchicalPolicy
from hmrl.types import Metrics, Trajectories


class Questions(NamedTuple):
    """To a belief, about another step of the same trial. M questions a trial, normalised."""

    asked: tuple[Tensor, Tensor]  # index of the beliefs that are asked, each [M, N]
    state: Tensor  # s_t' [M, N, S]
    action: Tensor  # a_t' [M, N, A]
    next_state: Tensor  # s_t'+1 [M, N, S]
    reward: Tensor  # r_t' [M, N], as contexts hold it


@torch.no_grad()
def questions(policy: HierarchicalPolicy, episodes: Trajectories, count: int) -> Questions:
    """``count`` random pairs of a belief's step and another step for each trial (VariBAD, Zintgraf et al.
    2020: the whole trial, its future too, has to be explained by what is known so far).
    """
    length, trials = episodes.reward.shape
    device = episodes.reward.device
    column = torch.arange(trials, device=device)
    t = torch.randint(length + 1, (count, trials), device=device)
    step = torch.randint(length, (count, trials), device=device)
    last = (step + 1) % (length // episodes.episodes) == 0
    step = torch.where(last & (step + 1 < length), step - 1, step)  # what follows a reset tells nothing
    state = policy.normalize(episodes.observation)
    return Questions(
        (t, column.expand_as(t)),
        state[step, column],
        episodes.action[step, column].clamp(-1, 1),
        state[step + 1, column],
        policy.normalize_reward(episodes.reward)[step, column],
    )


def belief_loss(
    policy: HierarchicalPolicy, episodes: Trajectories, sequence: BeliefSequence, config: TaskEncoderConfig
) -> tuple[Tensor, Metrics]:
    """What a belief is trained on besides value: categorical and occupancy regularisers (HiMeta, high
    level), the prediction of rewards, and for a mixture its reconstruction.
    """
    loss = sequence.belief.new_zeros(())
    metrics: Metrics = {}
    encoder = policy.task_encoder
    if sequence.probabilities.shape[-1]:
        categorical = categorical_regulariser(sequence.probabilities, config.categorical)
        weights = occupancy_weights(config.categories, config.occupancy).to(loss.device)
        occupancy = (sequence.probabilities * weights).sum(-1).mean()
        loss = config.categorical_coef * categorical + config.occupancy_coef * occupancy
        metrics = {"encoder/categorical": categorical.detach(), "encoder/occupancy": occupancy.detach()}
    if isinstance(encoder, MixtureEncoder):
        mixture, more = mixture_loss(policy, encoder, episodes, sequence, config)
        loss, metrics = loss + config.mixture_coef * mixture, metrics | more
    elif encoder and config.reward_coef:
        error = reward_loss(policy, encoder, episodes, sequence, config.reward_samples)
        loss = loss + config.reward_coef * error
        metrics["encoder/reward_error"] = error.detach()
    return loss, metrics


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
    assert encoder.reward_decoder is not None
    about = questions(policy, episodes, samples)
    seen = [sequence.belief[about.asked], about.state, about.action, about.next_state]
    predicted = encoder.reward_decoder(torch.cat(seen, dim=-1)).squeeze(-1)
    error: Tensor = (predicted - about.reward).square().mean()
    return error


def mixture_loss(
    policy: HierarchicalPolicy,
    encoder: MixtureEncoder,
    episodes: Trajectories,
    sequence: BeliefSequence,
    config: TaskEncoderConfig,
) -> tuple[Tensor, Metrics]:
    """The negative evidence bound of a Gaussian mixture over sub-tasks (SD, NeurIPS 2023).

    From the belief at a random step t, the reward and the next state of another random step t' of the same
    trial are reconstructed (:func:`questions`), with every category's own x ~ q(x | c, y), weighted by
    q(y | c):

        E_q(y) [ (r - r_hat)^2 + mean_d (ds_d - ds_hat_d)^2 + w KL(q(x | c, y) || p(x | y)) ]
            + w KL(q(y | c) || uniform)
    """
    about = questions(policy, episodes, config.mixture_samples)
    out, weight = sequence.out[about.asked], sequence.probabilities[about.asked].squeeze(-2)
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
    loss = reconstruction[0] + reconstruction[1] + config.mixture_kl_coef * (component_kl + category_kl)
    metrics = {
        "mixture_loss": loss,
        "mixture_reward_error": reconstruction[0],
        "mixture_state_error": reconstruction[1],
        "mixture_kl": component_kl,
    }
    return loss, {f"encoder/{k}": v.detach() for k, v in metrics.items()}
