"""The agent: the three levels put together, acting one decision at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.functional import one_hot

from hmrl.himeta.config import ActorCriticConfig, ContextReward, MacroVAEConfig, TaskEncoderConfig
from hmrl.himeta.formulas import signed_log
from hmrl.himeta.networks import Actor, ContinuousEncoder, Critic, MacroVAE, MixtureEncoder, TaskEncoder
from hmrl.himeta.normalizer import RunningMoments
from hmrl.system.errors import UserError
from hmrl.types import Acting, ActorStep, Carry, Gap, Rollout, Trajectories

_CLIP = 5.0  # of normalised observations and rewards
_STD_FLOOR = 0.01  # metres, mostly: a dimension that hardly moves in training must not explode in test


class BeliefSequence(NamedTuple):
    """Beliefs along whole episodes."""

    probabilities: Tensor  # [T+1, B, G, K]; K is 0 where the belief has no categories
    belief: Tensor  # [T+1, B, belief_dim], what critic and actor are given
    out: Tensor  # [T+1, B, ...], what the encoder made both of


class Imposed(NamedTuple):
    """Beliefs that some environments act on instead of their own."""

    where: Tensor  # [B] bool, in which environments
    belief: Tensor  # [B, D], in the place of the first D entries; anything elsewhere


class HierarchicalPolicy(nn.Module):
    """Task encoder, macro-VAE, actor and critic, with the normaliser that they share.

    Args:
        task_encoder, macro_vae: None where the level is absent.
        actor, critic: the low level.
        observation_dim: S.
        action_dim: A.
        gaps: differences of an observation's entries that the networks see magnified; their state is wider
            than an observation by these.
        ego_indices: which observation dimensions are the ego-state.
        decision_interval: simulator steps between two decisions, k.
        macro_interval: decisions that a macro-action is held.
        temperature: of the Gumbel-softmax.
        context_reward: how contexts hold rewards (:class:`hmrl.himeta.config.TaskEncoderConfig`).
        told: number of training families F and width G of a goal, of which the critic is told; None if it
            is not.
    """

    ego_indices: Tensor
    gap_indices: Tensor
    gap_scales: Tensor

    def __init__(
        self,
        task_encoder: TaskEncoder | None,
        macro_vae: MacroVAE | None,
        actor: Actor,
        critic: Critic,
        *,
        observation_dim: int,
        action_dim: int,
        ego_indices: tuple[int, ...],
        decision_interval: int,
        macro_interval: int,
        temperature: float,
        context_reward: ContextReward = "plain",
        told: tuple[int, int] | None = None,
        gaps: Sequence[Gap] = (),
    ) -> None:
        super().__init__()
        self.task_encoder, self.macro_vae = task_encoder, macro_vae
        self.actor, self.critic = actor, critic
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.decision_interval, self.macro_interval = decision_interval, macro_interval
        self.temperature, self.context_reward = temperature, context_reward
        self.register_buffer("ego_indices", torch.tensor(ego_indices), persistent=False)
        self.state_dim = observation_dim + len(gaps)
        indices = torch.tensor([[gap.end for gap in gaps], [gap.start for gap in gaps]], dtype=torch.int64)
        self.register_buffer("gap_indices", indices, persistent=False)
        self.register_buffer("gap_scales", torch.tensor([gap.scale for gap in gaps]), persistent=False)
        self.observation_moments = RunningMoments(observation_dim)
        self.reward_moments = RunningMoments(1)
        self._families = told[0] if told else 0
        self.goal_moments = RunningMoments(told[1]) if told else None

    @property
    def categorical_entries(self) -> int:
        """How many of the belief's entries, the first ones, are distributions: G * K."""
        return self.task_encoder.variables * self.task_encoder.categories if self.task_encoder else 0

    def by_variable(self, belief: Tensor) -> Tensor:
        """The distributions among the entries of a belief ``[..., belief_dim]``. ``[..., G, K]``"""
        return self.task_encoder.by_variable(belief) if self.task_encoder else belief[..., None, :0]

    def is_random(self, acting: Acting) -> bool:
        """Whether acting so draws something: an action, a y or z that there is, or whose these are."""
        belief = acting.task_belief == "sample" and self.categorical_entries > 0
        z = acting.macro_action == "sample" and self.macro_vae is not None
        return belief or z or acting.action == "sample" or acting.permute != "none"

    # --- acting ----------------------------------------------------------------------------------

    def initial_carry(self, batch_size: int) -> Carry:
        """Empty memory for ``batch_size`` environments."""
        device = self.ego_indices.device
        hidden = self.task_encoder.initial_hidden(batch_size, device) if self.task_encoder else ()
        return Carry(
            hidden,
            torch.zeros(batch_size, self.state_dim, device=device),
            torch.zeros(batch_size, self.action_dim, device=device),
            self.normalize_reward(torch.zeros(batch_size, 1, device=device)),
            torch.zeros(batch_size, self.action_dim if self.macro_vae else 0, device=device),
            torch.zeros(batch_size, 1, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def act(
        self,
        observation: Tensor | npt.ArrayLike,
        reward: Tensor | npt.ArrayLike,
        carry: Carry,
        acting: Acting,
        imposed: Imposed | None = None,
    ) -> tuple[ActorStep, Carry]:
        """One decision from raw ``observation`` ``[B, S]`` and the raw ``reward`` ``[B]`` since the last.

        They may be tensors or NumPy's arrays, of any precision: they are made what the carry is. Switches to
        evaluation mode, so that dropout never acts.

        Args:
            imposed: what z and action follow from instead of the belief, or of its first entries, that is
                made of memory, which runs on.

        Raises:
            UserError: for another S, or another B than the carry's.
        """
        like = carry.observation
        observation = torch.as_tensor(observation, dtype=like.dtype, device=like.device)
        reward = torch.as_tensor(reward, dtype=like.dtype, device=like.device)
        shape = torch.Size([len(like), self.observation_dim])
        if observation.shape != shape or reward.shape != shape[:1]:
            raise UserError(
                f"the agent is given observations of shape {list(observation.shape)} and rewards of shape "
                f"{list(reward.shape)}, but with this carry they must be {list(shape)} and {list(shape[:1])}"
            )
        absent = {"task_belief": self.task_encoder is None, "macro_action": self.macro_vae is None}
        if absent.get(acting.permute):
            raise UserError(f"permute is {acting.permute}, but this agent has none: leave that mode out")
        if acting.permute != "none" and len(observation) == 1:
            raise UserError(f"permute is {acting.permute}, but a single environment has no other: use more")
        if any(level.training for level in self.children()):  # to ask is cheaper than to switch
            self.eval()
        state = self.normalize(observation)
        hidden, in_context = carry.hidden, carry.reward[:, 0]
        belief = state.new_zeros(len(state), 0)
        if self.task_encoder:
            in_context = self.normalize_reward(reward)
            memory, hidden = self.task_encoder.remember(
                torch.stack([carry.observation, state]),
                carry.action.unsqueeze(0),
                torch.stack([carry.reward[:, 0], in_context]),
                carry.hidden,
            )
            belief = self.belief(self.task_encoder.head(memory[0]), acting)
        if acting.permute == "task_belief":
            belief = belief[_donors(len(belief)).to(belief.device)]
        if imposed is not None:
            first, rest = belief.tensor_split([imposed.belief.shape[1]], dim=1)
            belief = torch.cat([torch.where(imposed.where[:, None], imposed.belief, first), rest], dim=1)
        macro_action = self.macro_action(state, belief, acting)
        if acting.permute == "macro_action":
            macro_action = macro_action[_donors(len(state)).to(state.device)]
        held = carry.age % self.macro_interval != 0
        macro_action = torch.where(held, carry.macro_action, macro_action)
        distribution = self.actor(state, belief, macro_action)
        # Not sample(), which refuses a deviation that is no number before collect can say whose it is.
        action = distribution.rsample() if acting.action == "sample" else distribution.mean
        log_prob = Independent(distribution, 1).log_prob(action)
        remembered = Carry(hidden, state, action, in_context[:, None], macro_action, carry.age + 1)
        return ActorStep(action, log_prob, belief, macro_action), remembered

    # --- the parts, on normalised states ---------------------------------------------------------

    def normalize(self, observation: Tensor) -> Tensor:
        """Raw observations ``[..., S]`` as the networks see them: standardised, then gaps. ``[..., S+gaps]``

        A gap is tanh((x_end - x_start) / scale). All families share one normaliser, so a centimetre is a
        twentieth of a deviation: networks are slow to find what a grasp depends on.
        """
        state = self.observation_moments.normalize(observation, _CLIP, _STD_FLOOR)
        if not len(self.gap_scales):
            return state
        end, start = (observation[..., index] for index in self.gap_indices)
        gaps = ((end - start) / self.gap_scales.to(observation.dtype)).tanh()
        return torch.cat([state, gaps], dim=-1)

    def normalize_reward(self, reward: Tensor) -> Tensor:
        """Raw rewards ``[...]`` of a decision as contexts hold them.

        One scale for all families, which the agent cannot know.
        """
        seen = self._in_context(reward).unsqueeze(-1)
        return self.reward_moments.normalize(seen, _CLIP, _STD_FLOOR).squeeze(-1)

    def _in_context(self, reward: Tensor) -> Tensor:
        return reward if self.context_reward == "plain" else signed_log(reward)

    def task(self, episodes: Rollout | Trajectories) -> Tensor:
        """What the critic is told of the task of each column: its family, one-hot, and its goal, normalised.

        ``[B, F + G]``, or ``[B, 0]`` for a critic that is not told.
        """
        if self.goal_moments is None:
            return episodes.hidden_goal[:, :0]
        goal = self.goal_moments.normalize(episodes.hidden_goal, _CLIP, _STD_FLOOR)
        return torch.cat([one_hot(episodes.family, self._families).to(goal.dtype), goal], dim=-1)

    def value(self, state: Tensor, belief: Tensor, task: Tensor) -> Tensor:
        """The critic's values ``[T, B]``, of normalised states and beliefs ``[T, B, ...]``.

        Args:
            task: of each column (:meth:`task`).
        """
        value: Tensor = self.critic(state, belief, task.expand(*state.shape[:-1], -1))
        return value

    def belief(self, logits: Tensor, acting: Acting) -> Tensor:
        """y from the encoder's ``logits`` ``[..., K]``: probabilities, or a sample (HiMeta, eq. of y_t)."""
        assert self.task_encoder is not None
        sample = acting.task_belief == "sample"
        return self.task_encoder.belief(logits, sample=sample, temperature=self.temperature)

    def macro_action(self, state: Tensor, belief: Tensor, acting: Acting) -> Tensor:
        """z for the actor ``[..., A]``, or ``[..., 0]`` without the level."""
        if self.macro_vae is None:
            return state.new_zeros(*state.shape[:-1], 0)
        posterior = self.macro_vae.encode(state, belief)
        return posterior.rsample() if acting.macro_action == "sample" else posterior.mean

    def hold(self, macro_action: Tensor) -> Tensor:
        """z as it is held along episodes ``[T, B, A]``: that of the first decision of each interval."""
        t = torch.arange(len(macro_action), device=macro_action.device)
        return macro_action[t - t % self.macro_interval]

    def remember_episodes(self, observation: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """The memory that beliefs are made of, along whole episodes. ``[T+1, B, H]``

        From the same contexts that :meth:`act` sees, ending at s_t; only with a task encoder.

        Args: as for :meth:`encode_episodes`.
        """
        assert self.task_encoder is not None
        state, seen = self.normalize(observation), self.normalize_reward(reward)
        no_reward = self.normalize_reward(torch.zeros_like(reward[:1]))
        memory, _ = self.task_encoder.remember(
            torch.cat([torch.zeros_like(state[:1]), state]),
            torch.cat([torch.zeros_like(action[:1]), action]),
            torch.cat([no_reward, no_reward, seen]),
            self.task_encoder.initial_hidden(state.shape[1], state.device),
        )
        return memory

    def sequence(self, memory: Tensor, acting: Acting) -> BeliefSequence:
        """The beliefs that some steps' ``memory`` ``[..., B, H]`` makes."""
        assert self.task_encoder is not None
        logits = self.task_encoder.head(memory)
        belief = self.belief(logits, acting)
        sampled = acting.task_belief == "sample" and self.categorical_entries
        probabilities = self.task_encoder.probabilities(logits) if sampled else self.by_variable(belief)
        return BeliefSequence(probabilities, belief, logits)

    def encode_episodes(
        self, observation: Tensor, action: Tensor, reward: Tensor, acting: Acting
    ) -> BeliefSequence:
        """Beliefs along whole episodes; without a task encoder, of no width.

        Args:
            observation: raw, ``[T+1, B, S]``.
            action: ``[T, B, A]``.
            reward: raw, ``[T, B]``.
        """
        if self.task_encoder is None:
            nothing = observation.new_zeros(*observation.shape[:-1], 0)
            return BeliefSequence(nothing.unsqueeze(-2), nothing, nothing)
        return self.sequence(self.remember_episodes(observation, action, reward), acting)

    def renewed(self, observation: Tensor, action: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        """y ``[T+1, B, belief_dim]`` and z ``[T, B, A or 0]`` along whole episodes, noise-free, as the upper
        levels make them now.

        Args: as for :meth:`encode_episodes`.
        """
        belief = self.renewed_belief(observation, action, reward)
        return belief, self.renewed_macro_action(observation, belief)

    @torch.no_grad()
    def renewed_belief(self, observation: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """The y of :meth:`renewed`."""
        self.eval()
        return self.encode_episodes(observation, action, reward, Acting()).belief

    @torch.no_grad()
    def renewed_macro_action(self, observation: Tensor, belief: Tensor) -> Tensor:
        """The z of :meth:`renewed`, given its y."""
        self.eval()
        return self.hold(self.macro_action(self.normalize(observation)[:-1], belief[:-1], Acting()))

    @torch.no_grad()
    def observe(self, observation: Tensor, reward: Tensor, hidden_goal: Tensor) -> None:
        """Collective. Move the normaliser's moments by raw ``[..., S]``, ``[...]`` and ``[B, G]``."""
        self.observation_moments.update(observation.reshape(-1, self.observation_dim))
        self.reward_moments.update(self._in_context(reward).reshape(-1, 1))
        if self.goal_moments is not None:
            self.goal_moments.update(hidden_goal)


def _donors(batch: int) -> Tensor:
    """For each environment another one, the same at every step: a random cycle through the batch."""
    cycle = torch.randperm(batch, generator=torch.Generator().manual_seed(0))
    donors = torch.empty_like(cycle)
    donors[cycle] = cycle.roll(1)
    return donors


# --- from a configuration --------------------------------------------------------------------------


def build_policy(
    encoder: TaskEncoderConfig | None,
    vae: MacroVAEConfig | None,
    networks: ActorCriticConfig,
    *,
    observation_dim: int,
    action_dim: int,
    ego_indices: tuple[int, ...],
    decision_interval: int,
    macro_interval: int = 1,
    families: int = 0,
    goal_dim: int = 0,
    gaps: Sequence[Gap] = (),
) -> HierarchicalPolicy:
    """The policy that a configuration describes; a level that is None is absent, not zeroed.

    Args:
        gaps: as of :class:`HierarchicalPolicy`.
        families, goal_dim: training families and the width of a goal, for a critic that is told of them and
            an encoder that predicts goals.

    Raises:
        UserError: for an ego index or a gap outside the observation, or an interval below 1.
    """
    for name, interval in (("decision_interval", decision_interval), ("macro_interval", macro_interval)):
        if interval < 1:
            raise UserError(f"model.{name} is {interval}, but it must be at least 1")
    if not ego_indices or not all(0 <= i < observation_dim for i in ego_indices):
        raise UserError(
            f"ego_indices is {list(ego_indices)}: use one or more of 0 to {observation_dim - 1}, dimensions "
            "of the observation"
        )
    entries = range(observation_dim)
    for end, start, scale in gaps:
        if not (end in entries and start in entries and 0 < scale < float("inf")):
            raise UserError(
                f"a gap is {[end, start, scale]}: use two of 0 to {observation_dim - 1}, dimensions of the "
                "observation, and a positive scale"
            )
    state_dim = observation_dim + len(gaps)
    task_encoder = _build_encoder(encoder, state_dim, action_dim, goal_dim) if encoder else None
    belief_dim = task_encoder.belief_dim if task_encoder else 0
    macro_vae = (
        None
        if vae is None
        else MacroVAE(
            state_dim,
            belief_dim,
            action_dim,
            len(ego_indices),
            encoder_hidden=vae.encoder_hidden,
            decoder_hidden=vae.decoder_hidden,
            dropout=vae.dropout,
            log_std_range=vae.log_std_range,
        )
    )
    told = (families, goal_dim) if networks.critic_input == "task" else None
    actor = Actor(
        state_dim,
        belief_dim,
        action_dim if vae else 0,
        action_dim,
        hidden=networks.actor_hidden,
        log_std_init=networks.log_std_init,
        log_std_range=networks.log_std_range,
        state_dependent_std=networks.state_dependent_std,
    )
    return HierarchicalPolicy(
        task_encoder,
        macro_vae,
        actor,
        Critic(
            state_dim,
            belief_dim,
            sum(told or ()),
            hidden=networks.critic_hidden,
            layer_norm=networks.critic_layer_norm,
        ),
        observation_dim=observation_dim,
        action_dim=action_dim,
        ego_indices=ego_indices,
        decision_interval=decision_interval,
        macro_interval=macro_interval,
        temperature=encoder.temperature if encoder else 1.0,
        context_reward=encoder.context_reward if encoder else "plain",
        told=told,
        gaps=gaps,
    )


def _build_encoder(config: TaskEncoderConfig, state_dim: int, action_dim: int, goal_dim: int) -> TaskEncoder:
    options: dict[str, Any] = {
        "categories": config.categories,
        "variables": config.variables,
        "cell": config.cell,
        "hidden": config.hidden,
        "embedding_hidden": config.embedding_hidden,
        "reward_embedding": config.reward_embedding,
        "reward_change": config.context_reward == "change",
        "head_hidden": config.head_hidden,
        "dropout": config.dropout,
    }
    if config.belief == "mixture":
        options |= {"latent_dim": config.latent_dim, "decoder_hidden": config.decoder_hidden}
        return MixtureEncoder(state_dim, action_dim, **options)
    options["reward_decoder_hidden"] = config.decoder_hidden if config.reward_coef else None
    if config.belief == "continuous":
        return ContinuousEncoder(state_dim, action_dim, **options)
    return TaskEncoder(state_dim, action_dim, **options, goal_dim=goal_dim if config.goal_coef else 0)
