"""High level: a recurrent, categorical belief about the task (HiMeta, task representation learning)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hmrl.networks.mlp import mlp


class TaskEncoder(nn.Module):
    """p(y_t | c_0..c_t) with context c_t = (s_{t-1}, a_{t-1}, r_{t-1}, s_t).

    Each part of the context has its own small tanh embedding as wide as itself; the two states share
    theirs. A recurrent cell and an MLP lead to K logits.

    Args:
        state_dim, action_dim: widths S and A.
        categories: K.
        cell: recurrent cell.
        hidden: its width H.
        embedding_hidden: hidden widths of the state, action and reward embeddings.
        head_hidden: hidden widths of the MLP between cell and logits.
        dropout: in that MLP, in training mode only.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        categories: int,
        cell: Literal["gru", "lstm"],
        hidden: int,
        embedding_hidden: tuple[int, int, int],
        head_hidden: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.categories, self.hidden = categories, hidden
        self.embed_state = mlp(state_dim, [embedding_hidden[0]], state_dim, nn.Tanh)
        self.embed_action = mlp(action_dim, [embedding_hidden[1]], action_dim, nn.Tanh)
        self.embed_reward = mlp(1, [embedding_hidden[2]], 1, nn.Tanh)
        recurrent = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.recurrent = recurrent(2 * state_dim + action_dim + 1, hidden)
        self.num_states = 2 if cell == "lstm" else 1
        self.head = mlp(hidden, head_hidden, categories, nn.ReLU, dropout=dropout)

    def initial_hidden(self, batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
        """Zero recurrent states, one ``[1, B, H]`` for a GRU and two for an LSTM."""
        return tuple(torch.zeros(1, batch_size, self.hidden, device=device) for _ in range(self.num_states))

    def forward(
        self,
        previous_state: Tensor,
        previous_action: Tensor,
        previous_reward: Tensor,
        state: Tensor,
        hidden: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits ``[T, B, K]`` and the new recurrent state, from normalised contexts.

        Args:
            previous_state, state: ``[T, B, S]``.
            previous_action: ``[T, B, A]``.
            previous_reward: ``[T, B]``.
            hidden: as :meth:`initial_hidden`.
        """
        context = torch.cat(
            [
                self.embed_state(previous_state),
                self.embed_action(previous_action.clamp(-1, 1)),  # what the environment executed
                self.embed_reward(previous_reward.unsqueeze(-1)),
                self.embed_state(state),
            ],
            dim=-1,
        )
        out, last = self.recurrent(context, hidden if self.num_states == 2 else hidden[0])
        return self.head(out), last if self.num_states == 2 else (last,)
