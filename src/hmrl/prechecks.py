"""What a command refuses before anything is written or launched: settings that do not go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from hmrl.config import as_config
from hmrl.envs.benchmarks import same_goals, world_of
from hmrl.envs.perturb import Perturbation
from hmrl.types import UserError

# What Lightning lets one set, but must be left alone where a batch is an iteration and levels learn in turn.
_TRAINER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "check_val_every_n_epoch": (lambda x: x is None or x >= 1, "1 or more (iterations)"),
    "val_check_interval": (lambda x: x == 1, "1: set trainer.check_val_every_n_epoch instead"),
    "accumulate_grad_batches": (lambda x: x == 1, "1: set data.envs_per_family instead"),
    "gradient_clip_val": (lambda x: not x, "null: each level has a max_grad_norm"),
    "precision": (lambda x: x == "32-true", "32-true: agents act in it, and PPO's ratios compare with that"),
}


# Of the data module: what an agent's world is, and hence what its success means. Families may be others.
_WORLD = ("goals_per_family", "goals_shown", "families_shown", "horizon", "episodes_per_trial", "ego_state")


def check_trainer(trainer: Any) -> None:
    """Refuse options of Lightning's trainer that training here has no use for.

    Raises:
        UserError: naming the option.
    """
    for name, (good, right) in _TRAINER.items():
        if not good(value := getattr(trainer, name)):
            raise UserError(f"trainer.{name} is {value}, but it must be {right}")


def check_data(checkpoint: Mapping[str, Any], data: Any, evaluation: Any) -> None:
    """Refuse to evaluate an agent as if it had been trained in another world, or on other goals.

    Args:
        checkpoint: as it was loaded; what it does not say is not compared.
        data: the data module.
        evaluation: which of its evaluations.

    Raises:
        UserError: with every setting that differs.
    """
    there, here = checkpoint.get("datamodule_hyper_parameters") or {}, data.hparams
    pairs = {f"data.{key}": (there[key], here[key]) for key in _WORLD if key in there}
    if "benchmark" in there and world_of(there["benchmark"]) != data.benchmark.world:
        pairs["data.benchmark"] = (there["benchmark"], here["benchmark"])
    seeds = checkpoint["hyper_parameters"]["seed"], data.seed
    if evaluation.perturbation is None and data.perturbation.over_training():
        pairs["seed_everything"] = seeds  # it draws the course that the world takes
    if data.goals_per_family is not None:
        pairs["seed_everything"] = seeds
        if not same_goals(backend := there.get("backend", data.backend), data.backend):
            pairs["data.backend"] = (backend, data.backend)
    if evaluation.perturbation is None and "perturbation" in there:
        saved = asdict(as_config(Perturbation, there["perturbation"]))
        pairs["data.perturbation"] = (saved, asdict(data.perturbation))
    if data.families_shown:
        pairs["the order of families"] = (
            list(checkpoint["hyper_parameters"]["families"]),
            list(data.families),
        )
    found = [f"{key} is {a!r} there and {b!r} here" for key, (a, b) in pairs.items() if a != b]
    if found:
        raise UserError(
            f"the checkpoint was trained in another world: {'; '.join(found)}; give the overlays and the "
            "seed it was trained with (what is to differ in evaluation alone is set under data.test)"
        )


def check_evaluation_is_whole(trainer: Any, command: str) -> None:
    """Refuse to evaluate less than the protocol says.

    Args:
        command: "test" or "validate".

    Raises:
        UserError: naming the option.
    """
    name = "limit_test_batches" if command == "test" else "limit_val_batches"
    value = getattr(trainer, name)
    if value != 1 or isinstance(value, int):  # 1.0 is all of them, 1 a single one
        raise UserError(
            f"trainer.{name} is {value} (or trainer.fast_dev_run is set), but an evaluation must be "
            "whole, or its numbers are not what its protocol says: leave it out"
        )


def check_best(save_top_k: int) -> None:
    """Refuse to keep several best checkpoints under one name: it would hold the last of them.

    Raises:
        UserError: naming the option.
    """
    if save_top_k not in (0, 1):
        raise UserError(f"best_checkpoint.save_top_k is {save_top_k}: use 1, or 0 for none")


def check_held(macro_interval: int, decisions: int, episodes: int) -> None:
    """Refuse a macro-action that would be held from one episode of a trial into the next.

    Args:
        decisions: of an episode.
        episodes: of a trial.

    Raises:
        UserError: naming the setting.
    """
    if episodes > 1 and decisions % macro_interval:
        raise UserError(
            f"model.macro_interval is {macro_interval} and data.episodes_per_trial {episodes}, but an "
            f"episode has {decisions} decisions (data.horizon over model.decision_interval), so that a "
            "macro-action would be held over its end: use a macro_interval that divides them"
        )


def check_seed(saved: int, seed: int, fixed_goals: bool) -> str | None:
    """What to say where training goes on with another seed, which is allowed on fresh goals.

    Args:
        saved: of the checkpoint.
        fixed_goals: whether training has a fixed number of goals.

    Raises:
        UserError: if goals that are fixed would be others from now on.
    """
    if saved == seed:
        return None
    if fixed_goals:
        raise UserError(
            f"seed_everything is {seed}, but the checkpoint was trained with {saved}, whose fixed goals "
            f"(data.goals_per_family) are others: use --seed_everything {saved}"
        )
    return f"training goes on with seed {seed}; until here it had seed {saved}"
