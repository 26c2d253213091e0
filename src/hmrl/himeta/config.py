"""What can be set about each level. The authors' values are in configs/protocols/paper.yaml.

Each class is checked when it is built (see :mod:`hmrl.system.rules`), so that a wrong value is named before
anything is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hmrl.himeta.formulas import Categorical, GoalStrategy
from hmrl.himeta.normalizer import RewardScale
from hmrl.system.rules import (
    Above0To1,
    AtLeast2OrNull,
    Bounds,
    Checked,
    Count,
    CountOr0,
    Finite,
    From0Below1,
    From0To1,
    NotNegative,
    Positive,
    PositiveOrNull,
    ThreeWidths,
    Widths,
)

Cell = Literal["gru", "lstm", "mingru"]
Belief = Literal["categorical", "continuous", "mixture"]
Prior = Literal["policy", "standard_normal"]
Gradients = Literal["isolated", "joint"]
ContextReward = Literal["change", "log", "plain"]
Advantage = Literal["family", "batch", "none"]
Latents = Literal["acted", "renewed"]
CriticInput = Literal["belief", "task"]


@dataclass
class TaskEncoderConfig(Checked):
    """High level.

    Args:
        belief: "categorical" (HiMeta), "continuous" (the recurrent state's projection, as in RL2) or
            "mixture" (a Gaussian mixture, as in SD); see :mod:`hmrl.himeta.networks`.
        categories: K, the categories of the belief y; the width of a continuous one.
        variables: G, how many categorical variables y consists of, each of K categories.
        cell: recurrent cell; "mingru" is :class:`hmrl.himeta.networks.MinGRU`.
        hidden: its width.
        embedding_hidden: hidden widths of the state, action and reward embeddings.
        reward_embedding: width of the reward's embedding (the others are as wide as what they embed).
        context_reward: how rewards enter the context, before they are standardised: as they are ("plain"), as
            their signed logarithm ("log"), or as that, its change since the last decision, and this change
            times that of the state ("change").
        head_hidden: hidden widths between the cell and the K logits.
        dropout: there, while the encoder is trained.
        temperature: of the Gumbel-softmax sample.
        value_coef: weight of the value loss.
        reward_coef: weight of predicting the rewards of other steps of the same trial from the belief; see
            :func:`hmrl.himeta.losses.reward_loss`.
        goal_coef: weight of estimating the hidden goal, which the trainer knows; the belief then ends with
            the estimate. 0 for a belief without, which worlds without goals have anyway. See
            :func:`hmrl.himeta.losses.goal_loss`.
        latent_dim: width of a mixture's components.
        decoder_hidden: hidden widths of the reward's decoder, or of a mixture's two.
        categorical_coef: weight of log K - H.
        categorical: which H: "conditional" (the authors'), "marginal" or "information"; see
            :func:`hmrl.himeta.formulas.categorical_regulariser`.
        occupancy_coef: weight of sum_k w_k y_k.
        updates: gradient steps an iteration, at most.
        target_kl: end them once the policy has moved by this KL, on average over its decisions (None:
            never). Asked after every other step; these may move it farther (lower ``lr`` then), and are not
            taken back.
        trajectories: replayed episodes a step.
        steps: of each of them, drawn at random, whose beliefs learn; None: all of them.
        lr: learning rate (AdamW, with its usual weight decay).
        max_grad_norm: gradients are scaled down to this norm.
    """

    KEY = "model.task_encoder"

    belief: Belief = "categorical"
    categories: Count = 8
    variables: Count = 8
    cell: Cell = "mingru"
    hidden: Count = 256
    embedding_hidden: ThreeWidths = (64, 32, 16)
    reward_embedding: Count = 16
    context_reward: ContextReward = "change"
    head_hidden: Widths = (256,)
    dropout: From0Below1 = 0.0
    temperature: Positive = 1.0
    value_coef: NotNegative = 1.0
    reward_coef: NotNegative = 1.0
    goal_coef: NotNegative = 1.0
    latent_dim: Count = 5
    decoder_hidden: Widths = (128, 128)
    categorical_coef: Finite = 0.0
    categorical: Categorical = "information"
    occupancy_coef: Finite = 0.0
    updates: CountOr0 = 40
    target_kl: PositiveOrNull = None
    trajectories: Count = 20
    steps: AtLeast2OrNull = 64
    lr: Positive = 2e-3
    max_grad_norm: Positive = 1.0


@dataclass
class MacroVAEConfig(Checked):
    """Intermediate level.

    Args:
        encoder_hidden, decoder_hidden: hidden widths.
        dropout: in the decoder, while it is trained.
        log_std_range: bounds of z's log standard deviation.
        goal_state: how it is chosen: constant_discretisation (CD), constant_margin (CM) or sub_task (ST).
        n: decisions between cuts (CD) or ahead (CM).
        decoder_std: fixed standard deviation of the decoder, in normalised ego coordinates.
        prior: what the KL is to: the "policy" (imputation), or a "standard_normal" (a plain VAE).
        updates, target_kl, trajectories, lr, max_grad_norm: as for the task encoder.
    """

    KEY = "model.macro_vae"

    encoder_hidden: Widths = (128, 128, 64, 32)
    decoder_hidden: Widths = (32, 64, 128, 128)
    dropout: From0Below1 = 0.0
    log_std_range: Bounds = (-2.0, 0.5)
    goal_state: GoalStrategy = "constant_discretisation"
    n: Count = 5
    decoder_std: Positive = 0.2
    prior: Prior = "policy"
    updates: CountOr0 = 5
    target_kl: PositiveOrNull = 0.01
    trajectories: Count = 20
    lr: Positive = 1e-4
    max_grad_norm: Positive = 1.0


@dataclass
class ActorCriticConfig(Checked):
    """Networks of the low level.

    Args:
        actor_hidden, critic_hidden: hidden widths, tanh.
        critic_layer_norm: layer norm and SiLU in the critic, instead of tanh.
        critic_input: what the critic is given beside the state: the "belief", or the true "task" as well, its
            family and its goal. Only learning asks the critic, so the agent acts without them.
        log_std_init: initial log standard deviation of the actions.
        log_std_range: its bounds.
        state_dependent_std: let the network choose the deviation.
    """

    KEY = "model.actor_critic"

    actor_hidden: Widths = (256, 256)
    critic_hidden: Widths = (256, 256)
    critic_layer_norm: bool = True
    critic_input: CriticInput = "task"
    log_std_init: Finite = 0.0
    log_std_range: Bounds = (-2.0, 0.5)
    state_dependent_std: bool = True


@dataclass
class PPOConfig(Checked):
    """How the low level learns.

    Args:
        gamma: discount a decision.
        gae_lambda: of the advantage estimate, and of the value targets everywhere.
        clip: of the probability ratio.
        epochs: passes over the rollout.
        minibatches: gradient steps a pass.
        entropy_coef: weight of the policy's entropy.
        target_kl: stop this iteration's epochs once the mean approximate KL to the policy that acted exceeds
            it (None: never). With latents renewed it holds what the upper levels moved, too: set it higher.
        latents: which y and z the low level learns on: those that "acted", or "renewed" by the upper levels
            as they have become in this iteration. Then the ratios are those of the whole policy, and the clip
            holds back what all three levels change, not the low level alone.
        advantage: standardise advantages within each "family", over the whole "batch", or not ("none").
        advantage_pooling: how much of one scale families share, if advantages are standardised within each
            (:func:`hmrl.himeta.formulas.standardize`); 0: none. With another ``advantage`` it must be 0.
        reward_scale: divide rewards by the running deviation of discounted returns, a "family" or "global",
            transform them by "log" as the authors do, or leave them ("none"). The agent never sees this.
        agreement_bonus: beta, added to the scaled reward for going the macro-action's way (0: off).
        actor_lr, critic_lr: learning rates (AdamW).
        weight_decay: of AdamW.
        max_grad_norm: gradients of actor and critic are each scaled down to this norm.
    """

    KEY = "model.ppo"

    gamma: Above0To1 = 0.985
    gae_lambda: From0To1 = 0.95
    clip: Positive = 0.2
    epochs: Count = 3
    minibatches: Count = 40
    entropy_coef: NotNegative = 0.002
    target_kl: PositiveOrNull = None
    latents: Latents = "renewed"
    advantage: Advantage = "family"
    advantage_pooling: NotNegative = 0.2
    reward_scale: RewardScale = "family"
    agreement_bonus: NotNegative = 0.0
    actor_lr: Positive = 5e-4
    critic_lr: Positive = 5e-4
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 0.5
