"""Success rates per family, as a torchmetrics metric that is right under uneven shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import binomtest, norm
from torch import Tensor
from torchmetrics import Metric

from hmrl.functional import sums_by_group
from hmrl.types import Outcomes


class Score(NamedTuple):
    """What episodes of one family, or of all, amount to.

    Args:
        episodes: their number.
        success: share solved at any step.
        low, high: its 95 % interval (Wilson for a family; for the mean over families the normal
            approximation of a stratified mean, with add-one smoothed variances).
        final_success: share solved at the last simulator step.
        episode_return: mean undiscounted return.
    """

    episodes: int
    success: float
    low: float
    high: float
    final_success: float
    episode_return: float


class FamilyOutcomes(Metric):
    """Counts, successes and returns per family, summed over ranks.

    Args:
        families: their names; episodes index them.
    """

    full_state_update = False
    outcomes: Tensor  # [F, 4]: episodes, successes, successes at the last step, sum of returns

    def __init__(self, families: Sequence[str]) -> None:
        super().__init__()
        self.families = tuple(families)
        zeros = torch.zeros(len(families), 4, dtype=torch.float64)
        self.add_state("outcomes", zeros, dist_reduce_fx="sum")

    def update(self, episodes: Outcomes) -> None:
        """Add ``episodes``, whose families must be this metric's."""
        if episodes.families != self.families:
            raise ValueError(f"episodes of {episodes.families} scored by a metric of {self.families}")
        won = episodes.success.double()
        columns = [
            torch.ones_like(won),
            won,
            episodes.final_success.double(),
            episodes.episode_return.double(),
        ]
        of_each = torch.stack(columns, dim=1).to(self.outcomes)
        self.outcomes += sums_by_group(of_each, episodes.family, len(self.families))

    def compute(self) -> dict[str, Score]:
        """Collective. The score of each family, and of "mean", their unweighted mean."""
        scores: dict[str, Score] = {}
        variance = 0.0
        for family, row in zip(self.families, self.outcomes.tolist(), strict=True):
            n, won, final, total = row
            if n == 0:
                raise RuntimeError(f"no episode of {family} was scored")
            interval = binomtest(round(won), round(n)).proportion_ci(method="wilson")
            scores[family] = Score(round(n), won / n, interval.low, interval.high, final / n, total / n)
            smoothed = (won + 1) / (n + 2)
            variance += smoothed * (1 - smoothed) / n
        each, count = list(scores.values()), len(scores)
        success = sum(s.success for s in each) / count
        half = norm.ppf(0.975) * variance**0.5 / count
        scores["mean"] = Score(
            sum(s.episodes for s in each),
            success,
            max(0.0, success - half),
            min(1.0, success + half),
            sum(s.final_success for s in each) / count,
            sum(s.episode_return for s in each) / count,
        )
        return scores
