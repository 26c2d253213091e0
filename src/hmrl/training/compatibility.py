"""Whether a checkpoint or a rollout fits a model, and by which settings it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

from hmrl.himeta.config import ActorCriticConfig, Gradients, MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.system.errors import UserError
from hmrl.types import Acting

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# What gives networks their shape or their inputs a meaning; everything else may change on resume.
_NETWORK: dict[str, tuple[str, ...]] = {
    "": ("families", "observation_dim", "action_dim", "ego_indices", "decision_interval", "macro_interval"),
    "task_encoder": (
        *("belief", "categories", "variables", "cell", "hidden", "embedding_hidden", "head_hidden"),
        *("reward_embedding", "context_reward"),
    ),
    "macro_vae": ("encoder_hidden", "decoder_hidden"),
    "actor_critic": ("actor_hidden", "critic_hidden", "state_dependent_std"),
}
_MIXTURE = ("latent", "decoder_hidden")  # of the task encoder, where its belief is one
_LEVELS: dict[str, type[DataclassInstance]] = {
    "task_encoder": TaskEncoderConfig,
    "macro_vae": MacroVAEConfig,
    "actor_critic": ActorCriticConfig,
    "ppo": PPOConfig,
    "acting": Acting,
}
# Settings that decide what the command line does not set itself.
_SET_BY = {
    "families": " (by data.benchmark)",
    "observation_dim": " (by data.benchmark, data.perturbation.missing.told and data.families_shown)",
    "action_dim": " (by data.benchmark)",
    "ego_indices": " (by data.benchmark and data.ego_state)",
}


def check_settings(hparams: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose settings are not those of this version: its agent could be another one.

    Args:
        hparams: hyper-parameters of the checkpoint.

    Raises:
        UserError: naming the settings that it lacks, or has beyond them.
    """
    odd = [f"lacks model.{name}" for name in (*_NETWORK[""], "gradients", *_LEVELS) if name not in hparams]
    for section, cls in _LEVELS.items():
        if saved := hparams.get(section):
            names = {field.name for field in fields(cls)}
            odd += [f"lacks model.{section}.{name}" for name in sorted(names - saved.keys())]
            odd += [f"has model.{section}.{name}" for name in sorted(saved.keys() - names)]
    if odd:
        raise UserError(
            f"the checkpoint is of another version of hmrl, with other settings (it {', '.join(odd)}): use "
            "the version that wrote it"
        )


def check_deviations(checkpoint: Mapping[str, Any], modes: Iterable[Acting], *, training: bool) -> None:
    """Refuse what another function of deviations would silently make another agent.

    In format 1, deviations that a network makes were clamped to their range; since then they are bounded
    smoothly. Means are the same function in both.

    Args:
        checkpoint: as it was loaded.
        modes: how the agent is to act.
        training: whether training goes on.

    Raises:
        UserError: naming what cannot be done with such a checkpoint.
    """
    if checkpoint.get("format", 1) >= 2:
        return
    saved = checkpoint["hyper_parameters"]
    encoder, modes = saved["task_encoder"], list(modes)
    what = {
        "training goes on from it": training,
        "its belief is a mixture": bool(encoder) and encoder["belief"] == "mixture",
        "z is sampled": bool(saved["macro_vae"]) and any(mode.macro_action == "sample" for mode in modes),
        "its actor's deviation depends on the state and actions are sampled": (
            saved["actor_critic"]["state_dependent_std"] and any(mode.action == "sample" for mode in modes)
        ),
    }
    if found := [words for words, true in what.items() if true]:
        raise UserError(
            "the checkpoint was written when standard deviations were clamped, and would be another agent "
            f"here, for {' and '.join(found)}: use the version that wrote it, or means in data.modes"
        )


def network_differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, str]:
    """Settings that make two networks different, by key, each in words.

    Args:
        saved, present: hyper-parameters of the checkpoint and of the model.
    """
    found: dict[str, str] = {}
    for section, keys in _NETWORK.items():
        there, here = (x[section] if section else x for x in (saved, present))
        if there is None or here is None:
            if there is not here:
                where = "left out" if there is None else "present"
                found[f"model.{section}"] = f"model.{section} is {where} there and not here"
            continue
        if there.get("belief") == here.get("belief") == "mixture":
            keys += _MIXTURE
        coefs = [x.get("reward_coef") for x in (there, here)]  # with one there is a decoder
        if all(coefs):
            keys += ("decoder_hidden",)
        elif any(coefs):
            keys += ("reward_coef",)
        for key in keys:
            name = ".".join(filter(None, ("model", section, key)))
            pair = there[key], here[key]
            a, b = (list(x) if isinstance(x, tuple | list) else x for x in pair)
            if a != b:
                found[name] = f"{name} is {a!r} there and {b!r} here{_SET_BY.get(key, '')}"
    return found


def check_network(checkpoint: Mapping[str, Any], model: Any, *, training: bool) -> None:
    """Refuse a checkpoint of another network.

    Args:
        checkpoint: as it was loaded.
        model: the LightningModule that is to have it.
        training: whether training goes on, so that the families must be the same, too.

    Raises:
        UserError: with every setting that differs, or, if none does, the tensors that do; as
            :func:`check_settings` and :func:`check_deviations`.
    """
    if training and "optimizer_states" not in checkpoint:
        raise UserError(
            "the checkpoint holds weights alone, without optimizers and replay, and cannot be trained on: "
            "use the .ckpt beside the .weights.ckpt"
        )
    saved, present = checkpoint["hyper_parameters"], model.hparams
    check_settings(saved)
    check_deviations(checkpoint, (), training=training)
    saved_state, state = checkpoint["state_dict"], model.state_dict()
    found = network_differences(saved, present)
    if not training:
        found.pop("model.families", None)
    if not found:
        shapes, saved_shapes = ({k: v.shape for k, v in x.items()} for x in (state, saved_state))
        odd = sorted(k for k in shapes.keys() | saved_shapes.keys() if shapes.get(k) != saved_shapes.get(k))
        found = {k: f"{k} has shape {saved_shapes.get(k)} there and {shapes.get(k)} here" for k in odd[:3]}
    if found:
        raise UserError(
            f"the checkpoint is of another network: {'; '.join(found.values())}; "
            "use the settings it was trained with, or start afresh in another run_dir"
        )


def check_levels(encoder: TaskEncoderConfig | None, vae: MacroVAEConfig | None, ppo: PPOConfig) -> None:
    """Refuse settings that need a level which is left out.

    Raises:
        UserError: naming the setting.
    """
    if vae and vae.goal == "sub_task" and not encoder:
        raise UserError(
            "model.macro_vae.goal is sub_task, but without model.task_encoder there are no sub-tasks: use "
            "constant_discretisation or constant_margin"
        )
    if vae and vae.goal == "sub_task" and encoder and encoder.belief == "continuous":
        raise UserError(
            "model.macro_vae.goal is sub_task, but a continuous model.task_encoder.belief has no sub-tasks: "
            "use constant_discretisation or constant_margin"
        )
    if ppo.agreement_bonus and not vae:
        raise UserError(
            f"model.ppo.agreement_bonus is {ppo.agreement_bonus}, but without model.macro_vae there is "
            "nothing to agree with: use 0"
        )


def check_training(
    gradients: Gradients,
    encoder: TaskEncoderConfig | None,
    vae: MacroVAEConfig | None,
    ppo: PPOConfig,
    acting: Acting,
) -> None:
    """Refuse what training, end to end or not, or a belief without categories, cannot do.

    Raises:
        UserError: naming the setting.
    """
    if gradients not in get_args(Gradients):
        raise UserError(f"model.gradients is {gradients!r}: use {' or '.join(get_args(Gradients))}")
    if acting.permute != "none":
        raise UserError(
            f"model.acting.permute is {acting.permute}, but what acted must be what learns: use none, and "
            "permute in data.modes of a test"
        )
    if gradients == "joint":
        _refuse_drawn(acting, "model.gradients joint", "use probabilities and mean")
    if gradients == "joint" and ppo.latents != "renewed":
        raise UserError(
            f"model.ppo.latents is {ppo.latents}, but with model.gradients joint y and z are made anew when "
            "learning: use renewed"
        )
    for level, config in (("task_encoder", encoder), ("macro_vae", vae)):
        if gradients == "joint" and config and config.dropout:
            raise UserError(
                f"model.{level}.dropout is {config.dropout}, but with model.gradients joint it would change "
                "the policy whose ratios are formed: use 0"
            )
        if gradients == "joint" and config and config.target_kl is not None:
            raise UserError(
                f"model.{level}.target_kl is {config.target_kl}, but with model.gradients joint no level has "
                "updates of its own that it could end: use null"
            )
    if gradients == "joint" and encoder and encoder.value_coef != 1:
        raise UserError(
            f"model.task_encoder.value_coef is {encoder.value_coef}, but with model.gradients joint the "
            "critic's loss is the task encoder's: use 1"
        )
    if encoder and encoder.belief == "continuous" and (encoder.categorical_coef or encoder.occupancy_coef):
        raise UserError(
            "model.task_encoder.belief is continuous and has no categories: set "
            "model.task_encoder.categorical_coef and occupancy_coef to 0"
        )
    if encoder and encoder.belief != "categorical" and encoder.variables != 1:
        raise UserError(
            f"model.task_encoder.variables is {encoder.variables}, but only a categorical belief has "
            f"several: use 1, or set model.task_encoder.belief, which is {encoder.belief}, to categorical"
        )
    if encoder and encoder.belief == "mixture" and encoder.reward_coef:
        raise UserError(
            f"model.task_encoder.reward_coef is {encoder.reward_coef}, but a mixture reconstructs rewards by "
            "itself: use 0, and model.task_encoder.mixture_coef"
        )


def _refuse_drawn(acting: Acting, setting: str, right: str) -> None:
    if (acting.task_belief, acting.macro_action) != ("probabilities", "mean"):
        raise UserError(
            f"model.acting draws y as {acting.task_belief} and z as {acting.macro_action}, but with "
            f"{setting} they are made anew when learning, without noise: {right}"
        )


def check_rollout(
    ppo: PPOConfig,
    vae: MacroVAEConfig | None,
    gradients: Gradients,
    acting: Acting,
    decisions: int,
    episodes: int,
) -> None:
    """Refuse settings that do not fit a rollout of one process.

    Here, and not when an agent is built, for it is only learning that such settings cannot do.

    Args:
        decisions: of an episode, T.
        episodes: B.

    Raises:
        UserError: naming the setting.
    """
    if ppo.latents == "renewed":
        right = "use probabilities and mean, or set model.ppo.latents to acted"
        _refuse_drawn(acting, "model.ppo.latents renewed", right)
    if (count := decisions * episodes) < ppo.minibatches:
        raise UserError(
            f"model.ppo.minibatches is {ppo.minibatches}, but the rollout of a process has only {count} "
            "decisions: use at most that many"
        )
    if gradients == "joint" and episodes < ppo.minibatches:
        raise UserError(
            f"model.ppo.minibatches is {ppo.minibatches}, but with model.gradients joint they are of whole "
            f"trials, of which the rollout of a process has only {episodes}: use at most that many"
        )
    if vae and vae.goal != "sub_task" and vae.n > decisions:
        raise UserError(
            f"model.macro_vae.n is {vae.n}, but an episode has only {decisions} decisions (data.horizon over "
            "model.decision_interval): use at most that many"
        )
