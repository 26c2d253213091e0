"""Low level: the policy over primitive actions and its value function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from hmrl.himeta.formulas import bounded
from hmrl.himeta.networks.mlp import mlp


class Actor(nn.Module):
    """pi(a | s, y, z): a diagonal Gaussian with mean in (-1, 1).

    Args:
        state_dim, belief_dim, macro_dim, action_dim: widths; 0 where a level is absent.
        hidden: hidden widths, tanh.
        log_std_init: initial log standard deviation.
        log_std_range: its bounds.
        state_dependent_std: a second head of the network (:func:`hmrl.himeta.formulas.bounded`), instead of one
            free parameter a dimension.
    """

    def __init__(
        self,
        state_dim: int,
        belief_dim: int,
        macro_dim: int,
        action_dim: int,
        *,
        hidden: Sequence[int],
        log_std_init: float,
        log_std_range: tuple[float, float],
        state_dependent_std: bool,
    ) -> None:
        super().__init__()
        self.log_std_init, self.log_std_range = log_std_init, log_std_range
        self.log_std: nn.Parameter | None = None
        if not state_dependent_std:
            self.log_std = nn.Parameter(torch.full((action_dim,), float(log_std_init)))
        self.net = mlp(
            state_dim + belief_dim + macro_dim,
            hidden,
            action_dim * (2 if state_dependent_std else 1),
            nn.Tanh,
            out_gain=0.01,
        )

    @torch.no_grad()
    def project(self) -> None:
        """Bring the free parameter, if there is one, back to its range after a step."""
        if self.log_std is not None:
            self.log_std.clamp_(*self.log_std_range)

    def forward(self, state: Tensor, belief: Tensor, macro_action: Tensor) -> Normal:
        """The distribution of primitive actions ``[..., A]``."""
        out = self.net(torch.cat([state, belief, macro_action], dim=-1))
        if self.log_std is None:
            out, raw = out.chunk(2, dim=-1)
            log_std = bounded(raw, *self.log_std_range, start=self.log_std_init)
        else:
            log_std = self.log_std.clamp(*self.log_std_range)
        return Normal(out.tanh(), log_std.exp().expand_as(out), validate_args=False)


class Critic(nn.Module):
    """V(s, y). Arguments as :class:`Actor`'s."""

    def __init__(self, state_dim: int, belief_dim: int, *, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp(state_dim + belief_dim, hidden, 1, nn.Tanh)

    def forward(self, state: Tensor, belief: Tensor) -> Tensor:
        """Values ``[...]``."""
        value: Tensor = self.net(torch.cat([state, belief], dim=-1)).squeeze(-1)
        return value
