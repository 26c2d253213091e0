"""The method's formulae as pure functions over tensors. Time comes first: ``[T, B, ...]``."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import one_hot

from hmrl.system.distributed import mean_over_ranks, sum_over_ranks

GoalStrategy = Literal["constant_discretisation", "constant_margin", "sub_task"]
Categorical = Literal["conditional", "marginal", "information"]

# --- returns -------------------------------------------------------------------------------------


def gae(reward: Tensor, value: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over episodes cut by a time limit.

    A time limit is no termination, so the last step bootstraps from V(s_T, y_T) too.

    Args:
        reward: ``[T, B]``.
        value: ``[T+1, B]``.

    Returns:
        Advantages and the lambda-returns that the critic regresses on, each ``[T, B]``.
    """
    delta = reward + gamma * value[1:] - value[:-1]
    advantage = discounted_sums(delta.flip(0), gamma * lam).flip(0)
    return advantage, advantage + value[:-1]


def discounted_sums(reward: Tensor, gamma: float) -> Tensor:
    """R_t = gamma R_{t-1} + r_t, the running sum whose deviation scales rewards. ``[T, B]``

    Summed on the CPU: to launch hundreds of steps as small as these takes a GPU longer than to fetch them.
    """
    sums = torch.empty_like(reward, device="cpu")
    carry = torch.zeros_like(sums[0])
    for t, value in enumerate(reward.cpu()):
        carry = gamma * carry + value
        sums[t] = carry
    return sums.to(reward.device)


def sums_by_group(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums over the rows of ``x`` ``[N, ...]`` of each group ``[N]``; the same bits whenever it is asked.

    On a GPU ``index_add`` adds in any order, ``index_put`` sorts first. ``[groups, ...]``
    """
    zeros = x.new_zeros(groups, *x.shape[1:])
    if x.is_cuda:
        return zeros.index_put((group,), x, accumulate=True)
    return zeros.index_add(0, group, x)


def means_by_group(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Collective. Means over time and the columns of each group that some rank has; none of the others.

    What is put together from these, group by group, before it is averaged says nothing of what lies between
    groups: pooled over families, a value that knows the family alone seems to explain most of a return.

    Args:
        x: ``[T, B, D]``.
        group: group of each column, ``[B]`` long.
        groups: their number.

    Returns:
        ``[present, D]``, float64.
    """
    counted = torch.cat([torch.ones_like(x[..., :1]), x], dim=-1).double().sum(0)
    sums = sum_over_ranks(sums_by_group(counted, group, groups))
    sums = sums[sums[:, 0] > 0]
    return sums[:, 1:] / sums[:, :1]


def log_reward(reward: Tensor) -> Tensor:
    """Reward transform of the authors' code: 0.1 log(((e^3 - 1)/3) r + 1), linear with slope 0.3 above 3.

    The logarithm reaches 3 at r = 3; both pieces meet there.
    """
    inner = signed_log(reward.clamp(0, 3))
    return 0.1 * torch.where(reward > 3, 3 + 0.3 * (reward - 3), inner)


def signed_log(reward: Tensor) -> Tensor:
    """sign(r) log(((e^3 - 1)/3) |r| + 1): the logarithm of :func:`log_reward`, for all sizes and both signs.

    What rewards say of a task far from its goal differs in hundredths, near it in whole numbers.
    """
    return reward.sign() * torch.log((math.e**3 - 1) / 3 * reward.abs() + 1)


def standardize(x: Tensor, group: Tensor, groups: int, pooling: float = 0.0) -> Tensor:
    """Collective. Zero mean and unit variance within each group of columns, over all ranks.

    With ``pooling`` c a group is divided by sqrt(var + c * mean of the groups' var), then all together by one
    number, so that the whole has unit variance. A group that hardly varies stays smaller than the others;
    full standardisation would blow up its noise to their size. The larger c, the more they share one scale.

    Args:
        x: ``[T, B]``.
        group: group of each column, ``[B]`` long.
        groups: their number.
        pooling: c, 0 or more.
    """
    ones = torch.ones_like(x[0], dtype=torch.float64) * len(x)
    x64 = x.double()
    members = sum_over_ranks(sums_by_group(ones, group, groups))
    count = members.clamp(min=1)
    mean = sum_over_ranks(sums_by_group(x64.sum(0), group, groups)) / count
    centred = x64 - mean[group]
    var = sum_over_ranks(sums_by_group(centred.square().sum(0), group, groups)) / count
    scale = var.sqrt()
    if pooling:
        scale = (var + pooling * var[members > 0].mean()).sqrt()
        left = members * var / scale.square().clamp(min=1e-16)  # of each group's squares
        scale = scale * (left.sum() / members.sum()).sqrt()
    return (centred / (scale[group] + 1e-8)).to(x.dtype)


def explained_variance(prediction: Tensor, target: Tensor, group: Tensor, groups: int) -> Tensor:
    """Collective. The mean over groups of 1 - Var(target - prediction) / Var(target), each within the group.

    1 is perfect, 0 is a constant's, whatever that is in each group.

    Args:
        prediction, target: ``[T, B]``.
        group, groups: as for :func:`means_by_group`.
    """
    values = torch.stack([target - prediction, target], dim=-1).double()
    mean, square = means_by_group(torch.cat([values, values.square()], dim=-1), group, groups).chunk(2, -1)
    error, total = (square - mean.square()).clamp(min=0).unbind(-1)
    return (1 - error / total.clamp(min=1e-12)).mean().to(target.dtype)


# --- distributions -------------------------------------------------------------------------------


def bounded(x: Tensor, low: float, high: float, start: float = 0.0) -> Tensor:
    """A smooth map of all real numbers onto (low, high): the logarithm of a deviation that a network makes.

    The algebraic sigmoid u / sqrt(1 + u^2), shifted and scaled so that x = 0 gives ``start`` with slope 1. A
    clamp has no gradient outside its range: what once leaves it never comes back. A logistic curve comes to
    the same in float32 from |u| = 17 on; the slope of this one falls with |u|^-3 only.

    Args:
        x: ``[...]``.
        low, high: the range; equal ones give a constant.
        start: moved into the inner nine tenths of the range where it lies outside of them.
    """
    width = high - low
    if width == 0:
        return torch.full_like(x, low)
    level = min(max(2 * (start - low) / width - 1, -0.9), 0.9)  # of the sigmoid, in (-1, 1)
    flat = 1 - level**2
    u = level / flat**0.5 + 2 / (width * flat**1.5) * x
    share: Tensor = (1 + u * (1 + u.square()).rsqrt()) / 2
    return low + width * share


# --- low level -----------------------------------------------------------------------------------


class PolicyLoss(NamedTuple):
    """The clipped objective and what to watch of it; scalars."""

    loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def clipped_policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), negated; inputs ``[N]``.

    ``approx_kl`` is the unbiased, always positive estimate E[(r - 1) - log r] (Schulman 2020).
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    loss = -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    with torch.no_grad():
        approx_kl = ((ratio - 1) - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip).float().mean()
    return PolicyLoss(loss, approx_kl, clip_fraction)


def agreement(action: Tensor, macro_action: Tensor) -> Tensor:
    """Share of dimensions where the action goes the macro-action's way, mean_d 1[a_d z_d >= 0]. ``[...]``"""
    share: Tensor = (action * macro_action >= 0).to(action.dtype).mean(-1)
    return share


def chance_agreement(p: Tensor, q: Tensor) -> Tensor:
    """:func:`agreement` of an action and a macro-action with these signs that are independent. ``[...]``

    mean_d [p_d q_d + (1 - p_d) (1 - q_d)]: 0.5 where either has both signs equally often, up to 1 where both
    nearly always point the same way.

    Args:
        p, q: shares of a_d >= 0 and of z_d >= 0, ``[..., A]``.
    """
    return (p * q + (1 - p) * (1 - q)).mean(-1)


def agreements(action: Tensor, macro_action: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Collective. :func:`agreement`, and that by chance, each within groups, then the mean over groups.

    Args:
        action, macro_action: ``[T, B, A]``.
        group, groups: as for :func:`means_by_group`.
    """
    agreed = agreement(action, macro_action).unsqueeze(-1)
    signs = torch.cat([action >= 0, macro_action >= 0], dim=-1)
    shares = means_by_group(torch.cat([agreed, signs.to(agreed.dtype)], dim=-1), group, groups)
    chance = chance_agreement(*shares[:, 1:].chunk(2, -1))
    return shares[:, 0].mean(), chance.mean()


# --- intermediate level --------------------------------------------------------------------------


_FARTHEST = 20  # decisions ahead that a sub-task's goal may be


def goal_steps(
    strategy: GoalStrategy, probabilities: Tensor, n: int, n_max: int = _FARTHEST, episodes: int = 1
) -> Tensor:
    """The decision index in 1..T whose ego-state is the goal of step t (HiMeta, goal-state strategies).

    - ``constant_discretisation`` (CD): the next multiple of n;
    - ``constant_margin`` (CM): n decisions ahead;
    - ``sub_task`` (ST): the first step of the next segment, segments ending where the most probable
      category, of any variable, changes; never more than ``n_max`` ahead.
    All end at T, and in a trial of several episodes at the last observation of the episode: its last
    decision, after which only the trial's last episode has an observation on record, has itself for goal.

    Args:
        probabilities: beliefs, ``[T+1, B, ..., K]``; only ST looks at them.
        episodes: of the trial, E, each of T / E decisions.

    Returns:
        Indices ``[T, B]``, long.
    """
    last, batch = probabilities.shape[0] - 1, probabilities.shape[1]
    t = torch.arange(last, device=probabilities.device).unsqueeze(1).expand(last, batch)
    length = last // episodes
    start = t // length * length
    end = torch.where(start + length == last, last, start + length - 1)
    if strategy == "constant_discretisation":
        goal = start + ((t - start) // n + 1) * n
    elif strategy == "constant_margin":
        goal = t + n
    else:
        category = probabilities.argmax(-1)
        changed = (category[1:] != category[:-1]).reshape(last, batch, -1).any(-1)  # at t+1, t in 0..T-1
        at = torch.where(changed, t + 1, last)
        next_change = at.flip(0).cummin(0).values.flip(0)
        goal = torch.minimum(next_change, t + n_max)
    return torch.minimum(goal, end)


class ElboTerms(NamedTuple):
    """The terms of J_t, each ``[...]``: summed over dimensions, not averaged."""

    log_likelihood: Tensor
    kl: Tensor


def imputation_elbo(
    target: Tensor, prediction: Tensor, decoder_std: float, posterior: Normal, prior: Normal
) -> ElboTerms:
    """J_t = log p(g_ego | s_ego, z) - KL(q(z | s, y) || sg[pi(. | s, y, z)]) (HiMeta, imputation objective).

    The decoder is a Gaussian of fixed standard deviation, so that its scale cannot trade off against the KL.

    Args:
        target, prediction: ``[..., E]``, in normalised ego coordinates.
        posterior, prior: over ``[..., A]``; gradients of the prior are stopped here.
    """
    log_likelihood = Normal(prediction, decoder_std, validate_args=False).log_prob(target).sum(-1)
    fixed = Normal(prior.loc.detach(), prior.scale.detach(), validate_args=False)
    return ElboTerms(log_likelihood, kl_divergence(posterior, fixed).sum(-1))


# --- high level ----------------------------------------------------------------------------------


def linear_recurrence(keep: Tensor, update: Tensor, start: Tensor) -> Tensor:
    """h_t = keep_t h_{t-1} + update_t, with h_{-1} = ``start``.

    Args:
        keep, update: ``[T, B, H]``.
        start: ``[B, H]``.

    Returns:
        h_0 to h_{T-1}, ``[T, B, H]``.
    """
    found: Tensor = _LinearRecurrence.apply(keep, update, start)
    return found


class _LinearRecurrence(torch.autograd.Function):
    """Its own backward pass, the same recurrence backwards: autograd would record every step."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, update: Tensor, start: Tensor) -> Tensor:
        states = torch.empty_like(update)
        last = start
        for t in range(len(update)):
            last = torch.addcmul(update[t], keep[t], last, out=states[t])
        ctx.save_for_backward(keep, states, start)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, states, start = ctx.saved_tensors
        of_state = torch.empty_like(states)  # dL/dh_t, all paths together: also that of update_t
        later = torch.zeros_like(start)
        for t in reversed(range(len(states))):
            torch.add(grads[0][t], later, out=of_state[t])
            later = of_state[t] * keep[t]
        return of_state * torch.cat([start.unsqueeze(0), states[:-1]]), of_state, later


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy of the last dimension, in nats; 0 log 0 = 0. ``[...]``"""
    # Clamped inside the logarithm: the gradient of p log p is infinite at 0, where softmax's is 0.
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1)


def categorical_regulariser(probabilities: Tensor, form: Categorical) -> Tensor:
    """Collective. log K - H, a scalar to be minimised, in [0, log K]; E is over all ranks' samples.

    Of several variables, the mean.

    - ``conditional``: H = E H(q_t), the authors' code; alone, best when each belief says nothing.
    - ``marginal``: H = H(E q_t); all categories get used, each belief may be certain.
    - ``information``: H = H(E q_t) - E H(q_t), the mutual information of category and context; all
      categories get used, and each belief is pushed to be certain.

    Args:
        probabilities: ``[T, B, ..., K]``.
    """
    k = probabilities.shape[-1]
    flat = probabilities.flatten(0, 1)
    conditional, marginal = entropy(flat).mean(), entropy(mean_over_ranks(flat.mean(0))).mean()
    h = {"conditional": conditional, "marginal": marginal, "information": marginal - conditional}[form]
    return math.log(k) - h


def occupancy_weights(categories: int) -> Tensor:
    """w_k = log K exp(k - K) for k = 1..K: later categories cost more, so that few do the work. ``[K]``"""
    k = torch.arange(1, categories + 1, dtype=torch.float64)
    return (math.log(categories) * (k - categories).exp()).float()


def mutual_information(probabilities: Tensor, group: Tensor, groups: int) -> Tensor:
    """Collective. I(category; group) = H(E q) - E_group H(E[q | group]) in nats, weighted by samples.

    Of several variables, that of the one that says most, so never more than all of them say.

    Args:
        probabilities: ``[N, ..., K]``.
        group: ``[N]`` long.
    """
    onehot = one_hot(group, groups).to(probabilities.dtype)
    flat = probabilities.reshape(len(group), -1)
    count, sums = sum_over_ranks(onehot.sum(0)), sum_over_ranks(onehot.T @ flat)
    sums = sums.unflatten(-1, (-1, probabilities.shape[-1]))  # [groups, G, K]
    means = sums / count.clamp(min=1).view(-1, 1, 1)
    conditional = ((count / count.sum()).unsqueeze(-1) * entropy(means)).sum(0)
    return (entropy(sums.sum(0) / count.sum()) - conditional).max()
