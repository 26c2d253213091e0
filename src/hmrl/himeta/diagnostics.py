"""What a training rollout says about the agent; logged every iteration, never learnt from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from hmrl.himeta.formulas import agreements, entropy, mutual_information, sums_by_group
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.system.distributed import mean_over_ranks, sum_over_ranks
from hmrl.types import Acting, Metrics, Rollout

_EPISODES = 10  # along which movement is looked at, on each rank


def rollout_metrics(rollout: Rollout, probabilities: Tensor) -> dict[str, Tensor]:
    """Collective. Success and return per family, and how belief and macro-action are used.

    ``success`` is at any step; ``success_time_avg`` is the time average of "succeeded so far", which the
    authors' code logs as training success. In trials of several episodes, ``success_in_episode_n`` tells
    them apart: it grows with n where the agent adapts. Families without an episode on any rank, as in a
    curriculum, are not logged, and means over the others are named ``..._in_block``.

    Args:
        probabilities: of the belief's categories at each step (:func:`beliefs_of`). ``[T+1, B, G, K or 0]``
    """
    success = rollout.ever_success.double()
    by_episode = rollout.success.double().unflatten(0, (rollout.episodes, -1))  # [E, T / E, B]
    so_far = by_episode.cummax(1).values.mean(1).flatten()
    columns = torch.stack([torch.ones_like(success), success, so_far, rollout.episode_return], dim=1)
    families = len(rollout.families)
    sums = sum_over_ranks(sums_by_group(columns, rollout.episode_family, families))
    count, won, time_average, total = sums.T
    present = count > 0
    block = "" if present.all() else "_in_block"
    metrics = {
        f"rollout/success{block}/mean": (won / count)[present].mean(),
        f"rollout/success_time_avg{block}/mean": (time_average / count)[present].mean(),
        f"rollout/return{block}/mean": (total / count)[present].mean(),
    }
    if rollout.episodes > 1:
        in_order = success.unflatten(0, (rollout.episodes, -1)).T
        sums = sum_over_ranks(sums_by_group(in_order, rollout.family, families))
        rates = sums[present] / count[present].unsqueeze(1) * rollout.episodes
        for n, rate in enumerate(rates.mean(0), start=1):
            metrics[f"rollout/success{block}_in_episode_{n}/mean"] = rate
    for i in present.nonzero().flatten().tolist():
        family = rollout.families[i]
        metrics[f"rollout/success/{family}"] = won[i] / count[i]
        metrics[f"rollout/return/{family}"] = total[i] / count[i]
    if probabilities.shape[-1]:
        metrics |= belief_metrics(probabilities, rollout)
        if present.sum() < 2:
            del metrics["encoder/family_information"]  # of one family there is nothing to be known
    if rollout.macro_action.shape[-1]:
        found = agreements(rollout.action, rollout.macro_action, rollout.family, families)
        metrics |= dict(zip(("vae/agreement", "vae/agreement_by_chance"), found, strict=True))
    return metrics


def belief_metrics(probabilities: Tensor, rollout: Rollout) -> dict[str, Tensor]:
    """Collective. Entropy of beliefs, E H(q), and of their mean, H(E q), and I(category; family).

    A collapsed encoder shows a marginal entropy near 0, an uninformative one no family information. Entropies
    of several variables are added up; family information is that of the one that says most.
    """
    belief = probabilities.flatten(0, 1)
    family = rollout.family.expand(probabilities.shape[:2]).flatten()
    mean = mean_over_ranks(belief.mean(0))
    return {
        "encoder/entropy": entropy(belief).sum(-1).mean(),
        "encoder/marginal_entropy": entropy(mean).sum(),
        "encoder/largest_category": mean.max(),
        "encoder/family_information": mutual_information(belief, family, len(rollout.families)),
    }


@torch.no_grad()
def beliefs_of(policy: HierarchicalPolicy, rollout: Rollout, acting: Acting) -> Tensor:
    """Probabilities of the belief's categories along a rollout that ``policy``, unchanged since, has made.

    Where it acted on samples of them, they are made anew: a sample is no distribution.
    ``[T+1, B, G, K or 0]``
    """
    if acting.task_belief == "probabilities" or not policy.categorical_entries:
        return policy.by_variable(rollout.task_belief)
    policy.eval()
    return policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting()).probabilities


class Movement:
    """How far a policy has moved since this was made, whenever it is measured.

    KL(then || now) of its actions, y and z made anew, on average over the decisions of about ten episodes of
    different families.

    Args:
        policy: that learns.
        rollout: along which it is looked at.
        beliefs_stay: the task encoder does not learn meanwhile: its pass along the episodes, most of the
            cost, is made once.
    """

    def __init__(self, policy: HierarchicalPolicy, rollout: Rollout, beliefs_stay: bool = False) -> None:
        some = slice(None, None, max(1, len(rollout.family) // _EPISODES))
        self._policy = policy
        self._episodes = [x[:, some] for x in (rollout.observation, rollout.action, rollout.reward)]
        self._belief = self._beliefs() if beliefs_stay else None
        self._then = self._distribution()
        self.kl = self._then.loc.new_zeros(())  # when it was last measured

    def measure(self) -> None:
        """Set ``kl``, a scalar, to how far it has moved by now."""
        self.kl = kl_divergence(self._then, self._distribution()).sum(-1).mean()

    @torch.no_grad()
    def _beliefs(self) -> Tensor:
        return self._policy.renewed_belief(*self._episodes)

    @torch.no_grad()
    def _distribution(self) -> Normal:
        belief = self._beliefs() if self._belief is None else self._belief
        z = self._policy.renewed_macro_action(self._episodes[0], belief)
        state = self._policy.normalize(self._episodes[0])[:-1]
        distribution: Normal = self._policy.actor(state, belief[:-1], z)
        return distribution


def average(metrics: list[Metrics]) -> Metrics:
    """The mean of each key over a list of equal-keyed dictionaries."""
    return {k: torch.stack([m[k] for m in metrics]).mean() for k in metrics[0]} if metrics else {}
