"""Success rates per family, as a torchmetrics metric that is right under uneven shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import binomtest, norm
from torch import Tensor
from torchmetrics import Metric

from hmrl.himeta.formulas import sums_by_group
from hmrl.types import Outcomes


class Score(NamedTuple):
    """What episodes of one family, or of all, amount to.

    Args:
        episodes: their number; those that must be equal count once.
        success: share solved at any step.
        low, high: its 95 % interval (Wilson for a family; for the mean over families the normal
            approximation of a stratified mean, with add-one smoothed variances). None where there is one
            goal a family and nothing is drawn: of one episode and its copies there is none.
        final_success: share solved at the last simulator step.
        episode_return: mean undiscounted return.
    """

    episodes: int
    success: float
    low: float | None
    high: float | None
    final_success: float
    episode_return: float


class FamilyOutcomes(Metric):
    """Counts, successes and returns per family, summed over ranks.

    Args:
        families: their names; episodes index them.
        distinct: as of :class:`~hmrl.types.Outcomes`, which must all have the same.
    """

    full_state_update = False
    outcomes: Tensor  # [F, G, 4]: episodes, successes, successes at the last step, sum of returns, by goal

    def __init__(self, families: Sequence[str], distinct: int | None = None) -> None:
        super().__init__()
        self.families, self.distinct = tuple(families), distinct
        zeros = torch.zeros(len(families), distinct or 1, 4, dtype=torch.float64)
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
        goals = self.distinct or 1
        group = episodes.family * goals + episodes.goal % goals
        self.outcomes += sums_by_group(of_each, group, len(self.families) * goals).unflatten(0, (-1, goals))

    def compute(self) -> dict[str, Score]:
        """Collective. The score of each family, and of "mean", their unweighted mean."""
        scores: dict[str, Score] = {}
        variance = 0.0
        outcomes = self.outcomes
        if self.distinct:  # equal episodes are one
            outcomes = outcomes / outcomes[..., :1].clamp(min=1)
        for family, row in zip(self.families, outcomes.sum(1).tolist(), strict=True):
            n, won, final, total = row
            if n == 0:
                raise RuntimeError(f"no episode of {family} was scored")
            interval = binomtest(round(won), round(n)).proportion_ci(method="wilson")
            low, high = (interval.low, interval.high) if self.distinct != 1 else (None, None)
            scores[family] = Score(round(n), won / n, low, high, final / n, total / n)
            smoothed = (won + 1) / (n + 2)
            variance += smoothed * (1 - smoothed) / n
        each, count = list(scores.values()), len(scores)
        success = sum(s.success for s in each) / count
        half = norm.ppf(0.975) * variance**0.5 / count
        low, high = max(0.0, success - half), min(1.0, success + half)
        scores["mean"] = Score(
            sum(s.episodes for s in each),
            success,
            low if self.distinct != 1 else None,
            high if self.distinct != 1 else None,
            sum(s.final_success for s in each) / count,
            sum(s.episode_return for s in each) / count,
        )
        return scores
