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

    The 95 % interval of success is Wilson's for a family. For the mean over families it is the normal
    approximation of a stratified mean, with add-one smoothed variances. There is none where there is one
    goal a family and nothing is drawn: of one episode and its copies.
    """

    episodes: int  # those that must be equal count once
    success: float  # share solved at any step
    low: float | None
    high: float | None
    final_success: float  # share solved at the last simulator step
    episode_return: float  # mean, undiscounted


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
        won = episodes.success
        columns = (torch.ones_like(won), won, episodes.final_success, episodes.episode_return)
        of_each = torch.stack([column.double() for column in columns], dim=1).to(self.outcomes)
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
        for family, (n, won, final, total) in zip(self.families, outcomes.sum(1).tolist(), strict=True):
            if n == 0:
                raise RuntimeError(f"no episode of {family} was scored")
            interval = binomtest(round(won), round(n)).proportion_ci(method="wilson")
            scores[family] = Score(round(n), won / n, interval.low, interval.high, final / n, total / n)
            smoothed = (won + 1) / (n + 2)
            variance += smoothed * (1 - smoothed) / n
        episodes, *totals = (sum(column) for column in zip(*scores.values(), strict=True))
        success, _, _, final, total = (value / len(scores) for value in totals)
        half = norm.ppf(0.975) * variance**0.5 / len(scores)
        low, high = max(0.0, success - half), min(1.0, success + half)
        scores["mean"] = Score(episodes, success, low, high, final, total)
        if self.distinct == 1:
            return {name: score._replace(low=None, high=None) for name, score in scores.items()}
        return scores
