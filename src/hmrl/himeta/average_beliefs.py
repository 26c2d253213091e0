"""What an agent believes in each training family, on average: to be acted on elsewhere, never learnt from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hmrl.himeta.formulas import sums_by_group
from hmrl.system.distributed import sum_over_ranks
from hmrl.types import Rollout

_REMEMBERED = 10  # rollouts; weights, and so what a belief means, change meanwhile


class AverageBeliefs:
    """For each training family the mean of y by decision of an episode, over its latest rollouts.

    The mean over the first ten rollouts with the family, then an exponential moving average with weight 1/10.
    Empty until the first rollout; begun anew where episodes change their length. No part of a network, so
    networks and their digests stay what they are.

    Attributes:
        mean: of probabilities, samples of them, or whatever y is. ``[F, T, belief_dim]``, on the CPU
        count: rollouts that each family was in. ``[F]`` long
    """

    def __init__(self, families: int) -> None:
        self.mean = torch.zeros(families, 0, 0)
        self.count = torch.zeros(families, dtype=torch.long)

    @torch.no_grad()
    def update(self, rollout: Rollout) -> None:
        """Collective. Move by a fresh rollout, with every episode of its trials; draws nothing."""
        families = len(rollout.families)
        by_episode = rollout.task_belief[:-1].unflatten(0, (rollout.episodes, -1))  # [E, T, B, K]
        episodes = by_episode.transpose(1, 2).flatten(0, 1).double()  # [E * B, T, K]
        counted = torch.cat([episodes.new_ones(len(episodes), 1), episodes.flatten(1)], dim=1)
        sums = sum_over_ranks(sums_by_group(counted, rollout.episode_family, families)).cpu()
        seen = sums[:, 0] > 0
        mean = (sums[:, 1:] / sums[:, :1].clamp(min=1)).float().view(families, *episodes.shape[1:])
        if self.mean.shape != mean.shape:  # the first one, or episodes have become longer
            self.mean, self.count = torch.zeros_like(mean), torch.zeros(families, dtype=torch.long)
        self.count = self.count + seen.long()
        weight = seen.float() / self.count.clamp(min=1, max=_REMEMBERED)
        self.mean = self.mean.lerp(mean, weight[:, None, None])

    def known(self) -> Tensor:
        """The means of the families that were met. ``[F', T, belief_dim]``, F' of 0 to F"""
        return self.mean[self.count > 0]

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave, of whatever families."""
        self.mean, self.count = state["mean"], state["count"]
