"""Whether the settings of levels go together, and whether a checkpoint or a rollout fits them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

import pytorch_lightning as pl

from hmrl.himeta.config import ActorCriticConfig, Gradients, MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.system.errors import UserError
from hmrl.types import Acting, Gap

# What gives networks their shape or their inputs a meaning; everything else may change on resume.
_NETWORK: dict[str, tuple[str, ...]] = {
    "": (
        *("families", "observation_dim", "action_dim", "ego_indices", "decision_interval", "macro_interval"),
        "gaps",
    ),
    "task_encoder": (
        *("belief", "categories", "variables", "cell", "hidden", "embedding_hidden", "head_hidden"),
        *("reward_embedding", "context_reward"),
    ),
    "macro_vae": ("encoder_hidden", "decoder_hidden"),
    "actor_critic": (
        *("actor_hidden", "critic_hidden", "critic_layer_norm", "critic_input", "state_dependent_std"),
    ),
}
_LATER: dict[str, Any] = {"gaps": [], "close_up": False}  # what came later, and what networks without it have
PARTS = ("task_encoder", "macro_vae", "actor", "critic")  # what has an optimizer of its own
_LEVELS: dict[str, type[Any]] = {
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
    "gaps": " (by model.close_up and data.benchmark)",
}


# --- settings among themselves -------------------------------------------------------------------


def check_levels(
    gradients: Gradients,
    task_encoder: TaskEncoderConfig | None,
    macro_vae: MacroVAEConfig | None,
    ppo: PPOConfig,
    acting: Acting,
) -> None:
    """Refuse settings that need another level, another belief or other gradients."""
    if gradients not in get_args(Gradients):
        raise UserError(f"model.gradients is {gradients!r}: use {' or '.join(get_args(Gradients))}")
    # With an absent level nothing is wrong.
    encoder = task_encoder or TaskEncoderConfig(target_kl=None, goal_coef=0.0)
    vae = macro_vae or MacroVAEConfig(target_kl=None)
    continuous, mixture = encoder.belief == "continuous", encoder.belief == "mixture"
    joint, sub_tasks = gradients == "joint", vae.goal_state == "sub_task"
    other_policy = "with model.gradients joint it would change the policy whose ratios are formed: use 0"
    no_updates = "with model.gradients joint no level has updates of its own that it could end: use null"
    of_critic = "with model.gradients joint the critic's loss is the task encoder's: use 1"
    no_goals = "only a categorical belief whose level has updates of its own is asked for goals: use 0"
    no_sub_tasks = "without model.task_encoder, or with a continuous belief, there are no sub-tasks: use "
    no_sub_tasks += "constant_discretisation or constant_margin"
    no_categories = "a continuous model.task_encoder.belief has no categories: use 0"
    one_variable = "only a categorical model.task_encoder.belief has several: use 1"
    by_itself = "a mixture reconstructs rewards by itself: use 0"
    wrong: dict[str, tuple[Any, str]] = {
        "macro_vae.goal_state": (sub_tasks and (not task_encoder or continuous), no_sub_tasks),
        "ppo.agreement_bonus": (
            ppo.agreement_bonus and not macro_vae,
            "without model.macro_vae there is nothing to agree with: use 0",
        ),
        "ppo.advantage_pooling": (
            ppo.advantage_pooling and ppo.advantage != "family",
            f"with model.ppo.advantage {ppo.advantage} no family has a scale of its own: use 0",
        ),
        "ppo.latents": (
            joint and ppo.latents != "renewed",
            "with model.gradients joint y and z are made anew when learning: use renewed",
        ),
        "acting.permute": (
            acting.permute != "none",
            "what acted must be what learns: use none, and permute in data.modes of a test",
        ),
        "task_encoder.dropout": (joint and encoder.dropout, other_policy),
        "task_encoder.target_kl": (joint and encoder.target_kl is not None, no_updates),
        "macro_vae.dropout": (joint and vae.dropout, other_policy),
        "macro_vae.target_kl": (joint and vae.target_kl is not None, no_updates),
        "task_encoder.value_coef": (joint and encoder.value_coef != 1, of_critic),
        "task_encoder.categorical_coef": (continuous and encoder.categorical_coef, no_categories),
        "task_encoder.occupancy_coef": (continuous and encoder.occupancy_coef, no_categories),
        "task_encoder.variables": ((continuous or mixture) and encoder.variables != 1, one_variable),
        "task_encoder.goal_coef": ((joint or continuous or mixture) and encoder.goal_coef, no_goals),
        "task_encoder.reward_coef": (mixture and encoder.reward_coef, by_itself),
    }
    levels = {"macro_vae": vae, "task_encoder": encoder, "ppo": ppo, "acting": acting}
    for key, (refused, why) in wrong.items():
        level, name = key.split(".")
        if refused:
            raise UserError(f"model.{key} is {getattr(levels[level], name)}, but {why}")


def check_frozen(frozen: Iterable[str], absent: Container[str]) -> None:
    """Refuse to freeze what there is not, or all there is."""
    for name in frozen:
        if name not in PARTS:
            raise UserError(f"model.frozen names {name!r}, but it must be some of {', '.join(PARTS)}")
        if name in absent:
            raise UserError(f"model.frozen names {name}, but model.{name} is null: leave it out there")
    if all(name in frozen or name in absent for name in PARTS):
        raise UserError(f"model.frozen is {list(frozen)}, so that nothing would learn: leave out a level")


def check_goals(used: bool, goal_dim: int, width: int) -> None:
    """Refuse to learn from goals of ``goal_dim`` numbers where they have ``width``, if they are ``used``."""
    if used and width != goal_dim:
        raise UserError(
            f"goal_dim is {goal_dim}, but goals have {width} numbers: pass goal_dim=data.goal_dim"
        )


def check_gaps(close_up: bool, gaps: Sequence[Sequence[float]], of_world: Sequence[Gap]) -> None:
    """Refuse a close-up of other gaps than the world's."""
    if close_up and (wanted := [list(gap) for gap in of_world]) != gaps:
        raise UserError(
            f"model.close_up is true, but gaps are {gaps} and those of this world {wanted}: pass "
            "gaps=data.gaps, or close_up=False"
        )


def check_goals_shown(initial: Mapping[str, Any] | None, goals_shown: bool | None) -> None:
    """Refuse to go on from an agent that was shown goals where they are hidden, and the other way round.

    Args:
        initial: what is known of the weights that training began from; None if it began from none.
        goals_shown: of the world of training; None if nobody knows.
    """
    before = (initial or {}).get("goals_shown")
    if initial and None not in (before, goals_shown) and before != goals_shown:
        raise UserError(
            f"init_from is {initial['path']}: its agent was trained with data.goals_shown {before}, and here "
            f"it is {goals_shown}: use the same"
        )


def check_rollout(
    ppo: PPOConfig,
    vae: MacroVAEConfig | None,
    gradients: Gradients,
    acting: Acting,
    decisions: int,
    episodes: int,
) -> None:
    """Refuse what may act, but not learn from a process's rollout of T ``decisions`` and B ``episodes``."""
    drawn = acting.task_belief, acting.macro_action
    if ppo.latents == "renewed" and drawn != ("probabilities", "mean"):
        raise UserError(
            f"model.acting draws y as {drawn[0]} and z as {drawn[1]}, but with model.ppo.latents renewed "
            "they are made anew when learning, without noise: use probabilities and mean, or set "
            "model.ppo.latents to acted"
        )
    joint = gradients == "joint"
    count, what = (episodes, "whole trials") if joint else (decisions * episodes, "decisions")
    if ppo.minibatches > count:
        raise UserError(
            f"model.ppo.minibatches is {ppo.minibatches}, but with model.gradients {gradients} they are of "
            f"{what}, of which the rollout of a process has only {count}: use at most that many"
        )
    if vae and vae.goal_state != "sub_task" and vae.n > decisions:
        raise UserError(
            f"model.macro_vae.n is {vae.n}, but an episode has only {decisions} decisions (data.horizon over "
            "model.decision_interval): use at most that many"
        )


# --- checkpoints ---------------------------------------------------------------------------------


def check_network(checkpoint: Mapping[str, Any], model: pl.LightningModule, *, training: bool) -> None:
    """Refuse a checkpoint of another network, naming each setting that differs, or else some of the tensors.

    Args:
        checkpoint: as it was loaded.
        model: the module that is to have it.
        training: whether training goes on, so that the families must be the same, too.
    """
    if training and "optimizer_states" not in checkpoint:
        raise UserError(
            "the checkpoint holds weights alone, without optimizers and replay, and cannot be trained on: "
            "use the .ckpt beside the .weights.ckpt"
        )
    check_settings(checkpoint["hyper_parameters"])
    check_deviations(checkpoint, (), training=training)
    there, here = (list(x.get("frozen", ())) for x in (checkpoint["hyper_parameters"], model.hparams))
    if training and there != here:
        raise UserError(
            f"model.frozen is {there} there and {here} here, but optimizers go on with the levels that they "
            "were made for: use the same, or begin another run from these weights with --init_from"
        )
    found = network_differences(checkpoint["hyper_parameters"], model.hparams)
    if not training:
        found.pop("model.families", None)
    if not found:
        a, b = ({k: v.shape for k, v in x.items()} for x in (checkpoint["state_dict"], model.state_dict()))
        odd = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
        found = {k: f"{k} has shape {a.get(k)} there and {b.get(k)} here" for k in odd[:3]}
    if found:
        raise UserError(
            f"the checkpoint is of another network: {'; '.join(found.values())}; "
            "use the settings it was trained with, or start afresh in another run_dir"
        )


def complete(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of a checkpoint, with what came after the version that wrote it."""
    return _LATER | dict(hparams)


def check_settings(hparams: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose settings are not those of this version: its agent could be another one."""
    here = {*_NETWORK[""], "gradients", *_LEVELS}
    there = here & complete(hparams).keys()
    for level, cls in _LEVELS.items():
        if saved := hparams.get(level):
            here |= {f"{level}.{field.name}" for field in fields(cls)}
            there |= {f"{level}.{name}" for name in saved}
    if odd := sorted(here ^ there):
        said = ", ".join(f"{'lacks' if name in here else 'has'} model.{name}" for name in odd)
        raise UserError(
            f"the checkpoint is of another version of hmrl, with other settings (it {said}): use the version "
            "that wrote it"
        )


def check_deviations(checkpoint: Mapping[str, Any], modes: Iterable[Acting], *, training: bool) -> None:
    """Refuse what another function of deviations would silently make another agent.

    In format 1, deviations that a network makes were clamped to their range; since then they are bounded
    smoothly. Means are the same function in both.

    Args:
        checkpoint: as it was loaded.
        modes: how the agent is to act.
        training: whether training goes on.
    """
    if checkpoint.get("format", 1) >= 2:
        return
    saved, modes = checkpoint["hyper_parameters"], list(modes)
    what = {
        "training goes on from it": training,
        "its belief is a mixture": (saved["task_encoder"] or {}).get("belief") == "mixture",
        "z is sampled": saved["macro_vae"] and any(mode.macro_action == "sample" for mode in modes),
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
    """Settings that make two networks different, by key, each in words; from the hyper-parameters of both."""
    found: dict[str, str] = {}
    for section, keys in _NETWORK.items():
        there, here = (x[section] if section else complete(x) for x in (saved, present))
        if there is None or here is None:
            if there is not here:
                where = "left out" if there is None else "present"
                found[f"model.{section}"] = f"model.{section} is {where} there and not here"
            continue
        a, b = there.get("goal_coef"), here.get("goal_coef")  # of the task encoder alone; its size may differ
        if bool(a) != bool(b):
            name = f"model.{section}.goal_coef"
            found[name] = f"{name} is {a} there and {b} here"
        for key in keys:
            name = ".".join(filter(None, ("model", section, key)))
            a, b = (list(x[key]) if isinstance(x[key], tuple | list) else x[key] for x in (there, here))
            if a != b:
                found[name] = f"{name} is {a!r} there and {b!r} here{_SET_BY.get(key, '')}"
    return found
