"""Running moments as module buffers: they are in every checkpoint and frozen unless told otherwise."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hmrl.himeta.formulas import discounted_sums, log_reward, sums_by_group
from hmrl.system.distributed import sum_over_ranks

RewardScale = Literal["family", "global", "log", "none"]


class RunningMoments(nn.Module):
    """Mean and variance of each dimension, separately for each of ``groups`` groups of samples.

    Merged batch by batch with Chan et al.'s parallel formula, in float64. Before the first update the
    mean is 0 and the variance 1, so that normalising is the identity.

    Args:
        dim: width D of a sample.
        groups: number of groups G, as families.
    """

    count: Tensor  # [G]
    mean: Tensor  # [G, D]
    var: Tensor  # [G, D]

    def __init__(self, dim: int, groups: int = 1) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(groups, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(groups, dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(groups, dim, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, group: Tensor | None = None) -> None:
        """Collective. Merge samples ``x`` ``[N, D]`` of groups ``group`` ``[N]`` (group 0 if absent)."""
        x = x.to(self.mean.dtype)
        if group is None:
            group = torch.zeros(len(x), dtype=torch.long, device=x.device)
        groups = len(self.count)
        counted = torch.cat([x.new_ones(len(x), 1), x], dim=1)
        sums = sum_over_ranks(sums_by_group(counted, group, groups))
        count, total = sums[:, 0], sums[:, 1:]
        n = count.clamp(min=1).unsqueeze(1)
        batch_mean = total / n
        # Centred before squaring, so that a large offset does not swamp the variance.
        batch_m2 = sum_over_ranks(sums_by_group((x - batch_mean[group]).square(), group, groups))
        delta = batch_mean - self.mean
        old = self.count.unsqueeze(1)
        new = (self.count + count).clamp(min=1).unsqueeze(1)
        seen = (count > 0).unsqueeze(1)
        m2 = self.var * old + batch_m2 + delta.square() * old * n / new
        self.mean.copy_(torch.where(seen, self.mean + delta * n / new, self.mean))
        self.var.copy_(torch.where(seen, (m2 / new).clamp(min=0), self.var))
        self.count.add_(count)

    def std(self, floor: float) -> Tensor:
        """Standard deviations, at least ``floor``. ``[G, D]`` float32"""
        return self.var.sqrt().clamp(min=floor).float()

    def normalize(self, x: Tensor, clip: float, floor: float, group: Tensor | int = 0) -> Tensor:
        """(x - mean) / max(std, floor), clipped to [-clip, clip]. ``[..., D]``

        Args:
            x: ``[..., D]``, or ``[N, D]`` of groups ``group`` ``[N]``.
        """
        return ((x - self.mean[group].float()) / self.std(floor)[group]).clamp(-clip, clip)


class RewardScaler(nn.Module):
    """The rewards that value and policy learn from. The agent never sees them.

    Args:
        scale: divide by the running deviation of discounted returns, a "family" or "global"; transform by
            "log" as the authors' code does; or leave rewards as they are ("none").
        gamma: discount of those returns.
        families: number of families.
    """

    def __init__(self, scale: RewardScale, gamma: float, families: int) -> None:
        super().__init__()
        self.scale, self.gamma = scale, gamma
        self.moments = RunningMoments(1, groups=families)

    def observe(self, reward: Tensor, family: Tensor) -> None:
        """Collective. Move the deviations by the raw rewards ``[T, B]`` of families ``[B]``."""
        if self.scale in ("family", "global"):
            sums = discounted_sums(reward, self.gamma)
            self.moments.update(sums.reshape(-1, 1), self._group(family).expand_as(sums).reshape(-1))

    def forward(self, reward: Tensor, family: Tensor) -> Tensor:
        """Scaled rewards ``[T, B]``."""
        if self.scale == "log":
            return log_reward(reward)
        if self.scale == "none":
            return reward
        return reward / self.moments.std(floor=1e-2)[self._group(family), 0]

    def _group(self, family: Tensor) -> Tensor:
        return family if self.scale == "family" else torch.zeros_like(family)


class GoalScaler(nn.Module):
    """Goals within their families, of which only memory can tell. The agent never sees them.

    Args:
        goal_dim: their width G; 0 where none are asked for.
        families: number of families.
    """

    def __init__(self, goal_dim: int, families: int) -> None:
        super().__init__()
        self.moments = RunningMoments(goal_dim, groups=families) if goal_dim else None

    def observe(self, goal: Tensor, family: Tensor) -> None:
        """Collective. Move the moments by goals ``[N, G]`` of families ``[N]``."""
        if self.moments:
            self.moments.update(goal, family)

    def forward(self, goal: Tensor, family: Tensor) -> Tensor:
        """Goals standardised within families, 0 where these hold them fixed. ``[N, G]``, or ``[N, 0]``"""
        if self.moments is None:
            return goal[:, :0]
        return self.moments.normalize(goal, clip=5.0, floor=1e-2, group=family)
