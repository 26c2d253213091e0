"""The networks of the three levels: task encoder, macro-VAE, actor and critic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import gumbel_softmax

from hmrl.himeta.formulas import bounded, linear_recurrence

_LOG_STD_RANGE = (-5.0, 2.0)  # of a mixture's components


def mlp(
    in_dim: int,
    hidden: Sequence[int],
    out_dim: int,
    activation: Callable[[], nn.Module],
    *,
    dropout: float = 0.0,
    layer_norm: bool = False,
    out_gain: float = 1.0,
) -> nn.Sequential:
    """Linear layers with ``activation`` (and dropout) between them; orthogonal weights, zero biases.

    Args:
        layer_norm: normalise what enters each activation (Ba et al. 2016).
        out_gain: gain of the last layer; small values start a policy near its prior (0.01 in PPO practice).
    """
    layers: list[nn.Module] = []
    widths = [in_dim, *hidden]
    for a, b in itertools.pairwise(widths):
        layers += [_linear(a, b, math.sqrt(2)), *([nn.LayerNorm(b)] if layer_norm else []), activation()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    layers.append(_linear(widths[-1], out_dim, out_gain))
    return nn.Sequential(*layers)


def _linear(in_dim: int, out_dim: int, gain: float) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


# --- high level ------------------------------------------------------------------------------------

# Of rewards and states: in one decision they change by about so small a part of their deviations.
_CHANGES = 10.0, 5.0
_LONGEST_MEMORY = 250  # decisions: an episode of the default


class MinGRU(nn.Module):
    """A GRU whose gate does not look at the memory (Feng et al. 2024, "Were RNNs All We Needed?", minGRU).

        z_t = sigmoid(W_z x_t + b_z),  h_t = (1 - z_t) h_{t-1} + z_t (W_h x_t + b_h)

    So the matrices are applied to all steps at once, and only the sum runs from step to step. The gates'
    biases start with memories of 2 to 250 steps (Tallec & Ollivier 2018, "Can recurrent neural networks
    warp time?").

    Args:
        in_dim, hidden: widths D of x_t and H of h_t.
    """

    def __init__(self, in_dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.candidate = nn.Linear(in_dim, hidden), nn.Linear(in_dim, hidden)
        steps = torch.empty(hidden).uniform_(1, _LONGEST_MEMORY - 1)
        with torch.no_grad():
            self.gate.bias.copy_(-steps.log())

    def forward(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """As :class:`torch.nn.GRU`: ``[T, B, D]`` and ``[1, B, H]`` give ``[T, B, H]`` and ``[1, B, H]``."""
        gate = self.gate(x).sigmoid()
        states = linear_recurrence(1 - gate, gate * self.candidate(x), start[0])
        return states, states[-1:]


class TaskEncoder(nn.Module):
    """p(y_t | c_0..c_t) with context c_t = (s_{t-1}, a_{t-1}, r_{t-1}, s_t).

    Each part of the context has its own small tanh embedding as wide as itself, the reward's as wide as it
    is told; the two states share theirs. A recurrent cell and an MLP lead to K logits.

    With ``reward_change`` the context also holds dr = r_{t-1} - r_{t-2}, embedded as the reward is, and dr
    times the state's own change, each squashed by tanh. The mean of this product points where rewards grow:
    it estimates their gradient by simultaneous perturbation (Spall 1992), with the noise of actions. A hidden
    goal is found from it with far fewer gradient steps than from heights of rewards.

    With G variables there are K logits for each, and y is all of them side by side, as in DreamerV2 (Hafner
    et al. 2021): together they tell K^G cases apart, one variable as wide no more than G * K.

    Args:
        state_dim, action_dim: widths S and A.
        categories: K, of each variable.
        variables: G; HiMeta has one.
        cell: recurrent cell.
        hidden: its width H.
        embedding_hidden: hidden widths of the state, action and reward embeddings.
        reward_embedding: width of the reward's.
        reward_change: as above.
        head_hidden: hidden widths of the MLP between cell and logits.
        dropout: in that MLP, in training mode only.
        outputs: of the MLP, if others than the G * K logits.
        reward_decoder_hidden: hidden widths of the decoder of rewards
            (:func:`hmrl.himeta.losses.reward_loss`); None for no decoder.
        goal_dim: width of the estimate of the hidden goal that the belief ends with, an output of the MLP
            (:func:`hmrl.himeta.losses.goal_loss`); 0 for none.

    Attributes:
        variables, categories: the belief's first G * K entries are G distributions; K is 0 if none are.
        belief_dim: width of the belief.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        categories: int,
        variables: int = 1,
        cell: Literal["gru", "lstm", "mingru"],
        hidden: int,
        embedding_hidden: tuple[int, int, int],
        reward_embedding: int = 1,
        reward_change: bool = False,
        head_hidden: Sequence[int],
        dropout: float,
        outputs: int | None = None,
        reward_decoder_hidden: Sequence[int] | None = None,
        goal_dim: int = 0,
    ) -> None:
        super().__init__()
        self.categories, self.variables, self.goal_dim = categories, variables, goal_dim
        self.belief_dim = variables * categories + goal_dim
        self.hidden = hidden
        self.embed_state = mlp(state_dim, [embedding_hidden[0]], state_dim, nn.Tanh)
        self.embed_action = mlp(action_dim, [embedding_hidden[1]], action_dim, nn.Tanh)
        self.embed_reward = mlp(1, [embedding_hidden[2]], reward_embedding, nn.Tanh)
        recurrent = {"gru": nn.GRU, "lstm": nn.LSTM, "mingru": MinGRU}[cell]
        self.embed_change: nn.Module | None = None
        width = 2 * state_dim + action_dim + reward_embedding
        if reward_change:
            self.embed_change = mlp(1, [embedding_hidden[2]], reward_embedding, nn.Tanh)
            width += reward_embedding + state_dim
        self.recurrent = recurrent(width, hidden)
        self.num_states = 2 if cell == "lstm" else 1
        self.head = mlp(hidden, head_hidden, outputs or self.belief_dim, nn.ReLU, dropout=dropout)
        self.reward_decoder: nn.Module | None = None
        if reward_decoder_hidden is not None:
            seen = self.belief_dim + 2 * state_dim + action_dim
            self.reward_decoder = mlp(seen, reward_decoder_hidden, 1, nn.Tanh)

    def initial_hidden(self, batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
        """Zero recurrent states, one ``[1, B, H]`` for a (min)GRU and two for an LSTM."""
        return tuple(torch.zeros(1, batch_size, self.hidden, device=device) for _ in range(self.num_states))

    def remember(
        self, state: Tensor, action: Tensor, reward: Tensor, hidden: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The memory that ``head`` makes a belief of ``[T, B, H]``, and the new recurrent state.

        Args:
            state: normalised, from the one before the first context's. ``[T+1, B, S]``
            action: a_{t-1} of each context. ``[T, B, A]``
            reward: normalised, r_{t-1} of each context, and before them r_{t-2} of the first. ``[T+1, B]``
            hidden: as :meth:`initial_hidden`.
        """
        context = self.context(state, action, reward)
        out, last = self.recurrent(context, hidden if self.num_states == 2 else hidden[0])
        return out, last if self.num_states == 2 else (last,)

    def context(self, state: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """c_t, embedded. ``[T, B, 2 S + A + R]``, R the width of the reward's embedding; and R + S more

        Args: as for :meth:`remember`.
        """
        embedded = self.embed_state(state)
        parts = [
            embedded[:-1],
            self.embed_action(action.clamp(-1, 1)),  # what the environment executed
            self.embed_reward(reward[1:].unsqueeze(-1)),
            embedded[1:],
        ]
        if self.embed_change is not None:
            change = _CHANGES[0] * reward.diff(dim=0).unsqueeze(-1)
            moved = _CHANGES[1] * state.diff(dim=0)
            parts += [self.embed_change(change), change.tanh() * moved.tanh()]
        return torch.cat(parts, dim=-1)

    def predicted_reward(self, belief: Tensor, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """r_hat(y, s, a, s') ``[...]``, as contexts hold rewards; only with a reward decoder.

        Args:
            belief: ``[..., belief_dim]``.
            state, next_state: normalised, ``[..., S]``.
            action: as executed, ``[..., A]``.
        """
        assert self.reward_decoder is not None
        decoded: Tensor = self.reward_decoder(torch.cat([belief, state, action, next_state], dim=-1))
        return decoded.squeeze(-1)

    def probabilities(self, out: Tensor) -> Tensor:
        """The categories' probabilities ``[..., G, K]`` from what ``head`` gave."""
        probabilities: Tensor = self.by_variable(out).softmax(-1)
        return probabilities

    def by_variable(self, belief: Tensor) -> Tensor:
        """The entries of a belief, or of logits, that are about categories. ``[..., G, K]``"""
        entries = belief[..., : self.variables * self.categories]
        return entries.reshape(*belief.shape[:-1], self.variables, self.categories)

    def belief(self, out: Tensor, *, sample: bool, temperature: float) -> Tensor:
        """y for critic and actor ``[..., belief_dim]``: probabilities, or a Gumbel-softmax sample; at its end
        the goal's estimate, if there is one.

        Args:
            out: of ``head``.
            sample: draw.
            temperature: of the Gumbel-softmax.
        """
        drawn = gumbel_softmax(self.by_variable(out), tau=temperature) if sample else None
        categories = (self.probabilities(out) if drawn is None else drawn).flatten(-2)
        return torch.cat([categories, out[..., -self.goal_dim :]], -1) if self.goal_dim else categories


class ContinuousEncoder(TaskEncoder):
    """Memory as it is, without categories: the recurrent state's projection, as RL2's policy sees it
    (Duan et al. 2016). ``categories`` of the constructor is its width.
    """

    def __init__(self, *args: int, categories: int, **options: object) -> None:
        super().__init__(*args, categories=categories, **options)  # type: ignore[arg-type]
        self.categories = 0

    def belief(self, out: Tensor, *, sample: bool, temperature: float) -> Tensor:
        """The projection, in (-1, 1); there is nothing to draw."""
        return out.tanh()


class MixtureEncoder(TaskEncoder):
    """A Gaussian-mixture posterior over sub-tasks (Lee, Cho & Sung, NeurIPS 2023, "Parameterizing
    Non-Parametric Meta-RL Tasks via Subtask Decomposition").

    q(y | c) is categorical and q(x | c, y) a diagonal Gaussian for each category; p(x | y) is learnt. The
    belief is q(y | c) followed by the mixture's mean of x. Trained as a variational autoencoder that
    reconstructs rewards and next states (:func:`hmrl.himeta.losses.mixture_loss`).

    Args:
        latent_dim: width L of x.
        decoder_hidden: hidden widths of the two decoders.
        others: as for :class:`TaskEncoder`.
    """

    reward_decoder: nn.Module

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        categories: int,
        latent_dim: int,
        decoder_hidden: Sequence[int],
        **options: object,
    ) -> None:
        outputs = categories * (1 + 2 * latent_dim)
        super().__init__(state_dim, action_dim, categories=categories, outputs=outputs, **options)  # type: ignore[arg-type]
        self.latent_dim = latent_dim
        self.belief_dim = categories + latent_dim
        self.prior_mean = nn.Parameter(torch.randn(categories, latent_dim))
        self.prior_log_std = nn.Parameter(torch.zeros(categories, latent_dim))
        seen = latent_dim + 2 * state_dim + action_dim
        self.reward_decoder = mlp(seen, decoder_hidden, 1, nn.ReLU)
        self.state_decoder = mlp(seen - state_dim, decoder_hidden, state_dim, nn.ReLU)

    def components(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of q(x | c, y) for every y, each ``[..., K, L]``."""
        parts = out[..., self.categories :].unflatten(-1, (self.categories, 2 * self.latent_dim))
        mean, log_std = parts.chunk(2, dim=-1)
        return mean, bounded(log_std, *_LOG_STD_RANGE).exp()

    def predicted_reward(self, belief: Tensor, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """r_hat(x, s, a, s') ``[...]`` at the mean x that a belief ends with."""
        return super().predicted_reward(belief[..., self.categories :], state, action, next_state)

    def prior(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of p(x | y) for every y, each ``[K, L]``."""
        return self.prior_mean, bounded(self.prior_log_std, *_LOG_STD_RANGE).exp()

    def belief(self, out: Tensor, *, sample: bool, temperature: float) -> Tensor:
        """q(y | c), or a Gumbel-softmax sample, and the mean of x under it. ``[..., K + L]``"""
        category = super().belief(out, sample=sample, temperature=temperature)
        mean, _ = self.components(out)
        return torch.cat([category, (category.unsqueeze(-1) * mean).sum(-2)], dim=-1)


# --- intermediate level ----------------------------------------------------------------------------


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


# --- low level -------------------------------------------------------------------------------------


class Actor(nn.Module):
    """pi(a | s, y, z): a diagonal Gaussian with mean in (-1, 1).

    Args:
        state_dim, belief_dim, macro_dim, action_dim: widths; 0 where a level is absent.
        hidden: hidden widths, tanh.
        log_std_init: initial log standard deviation.
        log_std_range: its bounds.
        state_dependent_std: a second head of the network (:func:`hmrl.himeta.formulas.bounded`), instead
            of one free parameter a dimension.
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
    """V(s, y), or V(s, y, task): an asymmetric critic (Pinto et al. 2018), told what the actor is not.

    Args:
        state_dim, belief_dim: as :class:`Actor`'s.
        task_dim: width of what describes the task; 0 for a critic that is not told.
        hidden: hidden widths, tanh.
        layer_norm: layer norm and SiLU instead of tanh.
    """

    def __init__(
        self,
        state_dim: int,
        belief_dim: int,
        task_dim: int = 0,
        *,
        hidden: Sequence[int],
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        activation = nn.SiLU if layer_norm else nn.Tanh
        self.net = mlp(state_dim + belief_dim + task_dim, hidden, 1, activation, layer_norm=layer_norm)

    def forward(self, state: Tensor, belief: Tensor, task: Tensor) -> Tensor:
        """Values ``[...]``."""
        value: Tensor = self.net(torch.cat([state, belief, task], dim=-1)).squeeze(-1)
        return value
