"""What can be set about each level. The reference values are in configs/paper.yaml.

Each class is checked when it is built, so that a wrong value is named before anything is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from hmrl.functional import Categorical, GoalStrategy, Occupancy
from hmrl.normalizer import RewardScale
from hmrl.types import UserError

Advantage = Literal["family", "batch", "none"]
C = TypeVar("C")


def as_config(cls: type[C], value: C | Mapping[str, Any]) -> C:
    """``value`` itself, or built from the plain mapping that a checkpoint holds."""
    return cls(**value) if isinstance(value, Mapping) else value


def _require(condition: bool, key: str, value: object, right: str) -> None:
    if not condition:
        raise UserError(f"{key} is {value!r}, but it must be {right}")


def _require_one_of(allowed: Any, key: str, value: object) -> None:
    """``allowed`` is a ``Literal``."""
    _require(value in get_args(allowed), key, value, f"one of {', '.join(get_args(allowed))}")


@dataclass
class TaskEncoderConfig:
    """High level.

    Args:
        categories: K, the categories of the belief y.
        cell: recurrent cell.
        hidden: its width.
        embedding_hidden: hidden widths of the state, action and reward embeddings.
        head_hidden: hidden widths between the cell and the K logits.
        dropout: there, while the encoder is trained.
        temperature: of the Gumbel-softmax sample.
        value_coef: weight of the value loss.
        categorical_coef: weight of log K - H.
        categorical: which H: "conditional" (the authors'), "marginal" or "information"; see
            :func:`hmrl.functional.categorical_regulariser`.
        occupancy_coef: weight of sum_k w_k y_k.
        occupancy: how w_k grows with k.
        updates: gradient steps an iteration.
        trajectories: replayed episodes a step.
        lr: learning rate (AdamW).
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
    """

    categories: int = 10
    cell: Literal["gru", "lstm"] = "gru"
    hidden: int = 256
    embedding_hidden: tuple[int, int, int] = (64, 32, 16)
    head_hidden: tuple[int, ...] = (256,)
    dropout: float = 0.0
    temperature: float = 1.0
    value_coef: float = 1.0
    categorical_coef: float = 0.3
    categorical: Categorical = "information"
    occupancy_coef: float = 0.0
    occupancy: Occupancy = "exp"
    updates: int = 20
    trajectories: int = 10
    lr: float = 7e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        key = "model.task_encoder."
        _require(self.categories >= 1, f"{key}categories", self.categories, "at least 1")
        _require(self.cell in ("gru", "lstm"), f"{key}cell", self.cell, "gru or lstm")
        _require(0 <= self.dropout < 1, f"{key}dropout", self.dropout, "in [0, 1)")
        _require(self.temperature > 0, f"{key}temperature", self.temperature, "positive")
        _require_one_of(Categorical, f"{key}categorical", self.categorical)
        _require_one_of(Occupancy, f"{key}occupancy", self.occupancy)
        _require(self.updates >= 0, f"{key}updates", self.updates, "0 or more")
        _require(self.trajectories >= 1, f"{key}trajectories", self.trajectories, "at least 1")
        _require(self.lr > 0, f"{key}lr", self.lr, "positive")


@dataclass
class MacroVAEConfig:
    """Intermediate level.

    Args:
        encoder_hidden, decoder_hidden: hidden widths.
        dropout: in the decoder, while it is trained.
        log_std_range: clamp of z's log standard deviation.
        goal: goal-state strategy: constant_discretisation (CD), constant_margin (CM) or sub_task (ST).
        n: decisions between cuts (CD) or ahead (CM).
        n_max: most decisions ahead (ST).
        decoder_std: fixed standard deviation of the decoder, in normalised ego coordinates.
        kl_coef: weight of the KL to the policy.
        free_bits: nats of KL, summed over dimensions, that cost nothing.
        updates, trajectories, lr, weight_decay, max_grad_norm: as for the task encoder.
    """

    encoder_hidden: tuple[int, ...] = (128, 128, 64, 32)
    decoder_hidden: tuple[int, ...] = (32, 64, 128, 128)
    dropout: float = 0.0
    log_std_range: tuple[float, float] = (-2.0, 0.5)
    goal: GoalStrategy = "constant_discretisation"
    n: int = 5
    n_max: int = 20
    decoder_std: float = 0.2
    kl_coef: float = 1.0
    free_bits: float = 0.0
    updates: int = 10
    trajectories: int = 20
    lr: float = 7e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        key = "model.macro_vae."
        _require_one_of(GoalStrategy, f"{key}goal", self.goal)
        _require(self.n >= 1, f"{key}n", self.n, "at least 1 decision")
        _require(self.n_max >= 1, f"{key}n_max", self.n_max, "at least 1 decision")
        _require(self.decoder_std > 0, f"{key}decoder_std", self.decoder_std, "positive")
        _require(0 <= self.dropout < 1, f"{key}dropout", self.dropout, "in [0, 1)")
        _require(
            self.log_std_range[0] <= self.log_std_range[1],
            f"{key}log_std_range",
            self.log_std_range,
            "a lower and an upper bound",
        )
        _require(self.updates >= 0, f"{key}updates", self.updates, "0 or more")
        _require(self.trajectories >= 1, f"{key}trajectories", self.trajectories, "at least 1")
        _require(self.lr > 0, f"{key}lr", self.lr, "positive")


@dataclass
class ActorCriticConfig:
    """Networks of the low level.

    Args:
        actor_hidden, critic_hidden: hidden widths, tanh.
        log_std_init: initial log standard deviation of the actions.
        log_std_range: its clamp.
        state_dependent_std: let the network choose the deviation.
    """

    actor_hidden: tuple[int, ...] = (256, 256)
    critic_hidden: tuple[int, ...] = (256, 256)
    log_std_init: float = 0.0
    log_std_range: tuple[float, float] = (-2.0, 0.5)
    state_dependent_std: bool = False

    def __post_init__(self) -> None:
        _require(
            self.log_std_range[0] <= self.log_std_range[1],
            "model.actor_critic.log_std_range",
            self.log_std_range,
            "a lower and an upper bound",
        )


@dataclass
class PPOConfig:
    """How the low level learns.

    Args:
        gamma: discount a decision.
        gae_lambda: of the advantage estimate, and of the value targets everywhere.
        clip: of the probability ratio.
        epochs: passes over the rollout.
        minibatches: gradient steps a pass.
        entropy_coef: weight of the policy's entropy.
        target_kl: stop the epochs of this iteration once the mean approximate KL exceeds it (None: never).
        advantage: standardise advantages within each "family", over the whole "batch", or not ("none").
        reward_scale: divide rewards by the running deviation of discounted returns, a "family" or "global",
            transform them by "log" as the authors do, or leave them ("none"). The agent never sees this.
        agreement_bonus: beta, added to the scaled reward for going the macro-action's way (0: off).
        actor_lr, critic_lr: learning rates (AdamW).
        weight_decay: of AdamW.
        max_grad_norm: gradients of actor and critic are each scaled down to this norm.
    """

    gamma: float = 0.985
    gae_lambda: float = 0.95
    clip: float = 0.2
    epochs: int = 10
    minibatches: int = 20
    entropy_coef: float = 0.002
    target_kl: float | None = None
    advantage: Advantage = "family"
    reward_scale: RewardScale = "family"
    agreement_bonus: float = 0.0
    actor_lr: float = 5e-4
    critic_lr: float = 5e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 0.5

    def __post_init__(self) -> None:
        key = "model.ppo."
        _require(0 < self.gamma <= 1, f"{key}gamma", self.gamma, "in (0, 1]")
        _require(0 <= self.gae_lambda <= 1, f"{key}gae_lambda", self.gae_lambda, "in [0, 1]")
        _require(self.clip > 0, f"{key}clip", self.clip, "positive")
        _require(self.epochs >= 1, f"{key}epochs", self.epochs, "at least 1")
        _require(self.minibatches >= 1, f"{key}minibatches", self.minibatches, "at least 1")
        _require_one_of(Advantage, f"{key}advantage", self.advantage)
        _require_one_of(RewardScale, f"{key}reward_scale", self.reward_scale)
        _require(self.agreement_bonus >= 0, f"{key}agreement_bonus", self.agreement_bonus, "0 or more")
        _require(self.actor_lr > 0, f"{key}actor_lr", self.actor_lr, "positive")
        _require(self.critic_lr > 0, f"{key}critic_lr", self.critic_lr, "positive")
