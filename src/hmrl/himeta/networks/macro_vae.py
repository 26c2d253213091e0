"""Intermediate level: macro-actions by imputation (HiMeta, macro-action discovery)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from hmrl.himeta.formulas import bounded
from hmrl.himeta.networks.mlp import mlp


class MacroVAE(nn.Module):
    """Encoder q(z | s, y) and decoder p(g_ego | s_ego, z).

    Args:
        state_dim, belief_dim, action_dim, ego_dim: widths S, K, A and E.
        encoder_hidden, decoder_hidden: hidden widths, leaky ReLU.
        dropout: in the decoder, in training mode only.
        log_std_range: of z's log standard deviation (:func:`hmrl.himeta.formulas.bounded`).
    """

    def __init__(
        self,
        state_dim: int,
        belief_dim: int,
        action_dim: int,
        ego_dim: int,
        *,
        encoder_hidden: Sequence[int],
        decoder_hidden: Sequence[int],
        dropout: float,
        log_std_range: tuple[float, float],
    ) -> None:
        super().__init__()
        self.encoder = mlp(state_dim + belief_dim, encoder_hidden, 2 * action_dim, nn.LeakyReLU)
        self.decoder = mlp(ego_dim + action_dim, decoder_hidden, ego_dim, nn.LeakyReLU, dropout=dropout)
        self.log_std_range = log_std_range

    def encode(self, state: Tensor, belief: Tensor) -> Normal:
        """q(z | s, y), a diagonal Gaussian over ``[..., A]`` whose mean lies in (-1, 1)."""
        mean, log_std = self.encoder(torch.cat([state, belief], dim=-1)).chunk(2, dim=-1)
        return Normal(mean.tanh(), bounded(log_std, *self.log_std_range).exp(), validate_args=False)

    def decode(self, ego_state: Tensor, macro_action: Tensor) -> Tensor:
        """Predicted displacement of the normalised ego-state to the goal. ``[..., E]``"""
        decoded: Tensor = self.decoder(torch.cat([ego_state, macro_action], dim=-1))
        return decoded
