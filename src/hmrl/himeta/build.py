"""The policy that a configuration describes."""

from __future__ import annotations

from typing import Any

from hmrl.himeta.config import ActorCriticConfig, MacroVAEConfig, TaskEncoderConfig
from hmrl.himeta.networks.actor_critic import Actor, Critic
from hmrl.himeta.networks.macro_vae import MacroVAE
from hmrl.himeta.networks.task_encoder import ContinuousEncoder, MixtureEncoder, TaskEncoder
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.system.errors import UserError


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
) -> HierarchicalPolicy:
    """The policy that a configuration describes; a level that is None is absent, not zeroed.

    Raises:
        UserError: for an ego index outside the observation or an interval below 1.
    """
    for name, interval in (("decision_interval", decision_interval), ("macro_interval", macro_interval)):
        if interval < 1:
            raise UserError(f"model.{name} is {interval}, but it must be at least 1")
    if not ego_indices or not all(0 <= i < observation_dim for i in ego_indices):
        raise UserError(
            f"ego_indices is {list(ego_indices)}: use one or more of 0 to {observation_dim - 1}, dimensions "
            "of the observation"
        )
    task_encoder = _build_encoder(encoder, observation_dim, action_dim) if encoder else None
    belief_dim = task_encoder.belief_dim if task_encoder else 0
    macro_vae = (
        None
        if vae is None
        else MacroVAE(
            observation_dim,
            belief_dim,
            action_dim,
            len(ego_indices),
            encoder_hidden=vae.encoder_hidden,
            decoder_hidden=vae.decoder_hidden,
            dropout=vae.dropout,
            log_std_range=vae.log_std_range,
        )
    )
    actor = Actor(
        observation_dim,
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
        Critic(observation_dim, belief_dim, hidden=networks.critic_hidden),
        observation_dim=observation_dim,
        action_dim=action_dim,
        ego_indices=ego_indices,
        decision_interval=decision_interval,
        macro_interval=macro_interval,
        temperature=encoder.temperature if encoder else 1.0,
        context_reward=encoder.context_reward if encoder else "plain",
    )


def _build_encoder(config: TaskEncoderConfig, observation_dim: int, action_dim: int) -> TaskEncoder:
    options: dict[str, Any] = {
        "categories": config.categories,
        "variables": config.variables,
        "cell": config.cell,
        "hidden": config.hidden,
        "embedding_hidden": config.embedding_hidden,
        "reward_embedding": config.reward_embedding,
        "head_hidden": config.head_hidden,
        "dropout": config.dropout,
    }
    if config.belief == "mixture":
        options |= {"latent": config.latent, "decoder_hidden": config.decoder_hidden}
        return MixtureEncoder(observation_dim, action_dim, **options)
    options["reward_decoder_hidden"] = config.decoder_hidden if config.reward_coef else None
    kind = ContinuousEncoder if config.belief == "continuous" else TaskEncoder
    return kind(observation_dim, action_dim, **options)
