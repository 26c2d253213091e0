"""What a command refuses before anything is written or launched: settings that do not go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

from hmrl.envs.benchmarks import same_goals, world_of
from hmrl.envs.wrappers.perturb import Perturbation
from hmrl.himeta.config import as_config
from hmrl.system.errors import UserError

_BUDGET = "set budget.env_steps instead, which ends with an evaluation"
# What Lightning lets one set, but must be left alone where a batch is an iteration and levels learn in turn.
_TRAINER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_epochs": (lambda x: x == -1, f"-1: {_BUDGET}"),
    "min_epochs": (lambda x: not x, f"null: neither the budget nor Ctrl-C would end training; {_BUDGET}"),
    "max_steps": (lambda x: x == -1, f"-1: it counts steps of optimizers; {_BUDGET}"),
    "min_steps": (lambda x: not x, f"null: neither the budget nor Ctrl-C would end training; {_BUDGET}"),
    "max_time": (
        lambda x: x is None,
        "null: it counts the run's whole life, so that a run that is continued would end at once; start hmrl "
        "with timeout -s TERM, or let SLURM send a signal (#SBATCH --signal)",
    ),
    "fast_dev_run": (lambda x: not x, "false: try --config smoke instead"),
    "overfit_batches": (lambda x: not x, "0: fix goals with data.goals_per_family instead"),
    "limit_train_batches": (lambda x: x in (None, 1), "null: an iteration is a single batch"),
    "limit_val_batches": (
        lambda x: x in (None, 0) or (x == 1 and isinstance(x, float)),
        "null, or 0 for no evaluation: of a part of the goals, numbers are not what the protocol says; set "
        "data.validation.goals instead",
    ),
    "num_sanity_val_steps": (lambda x: x == 0, "0: it would print a part of an evaluation as if it were one"),
    "check_val_every_n_epoch": (lambda x: x is None or x >= 1, "1 or more (iterations)"),
    "val_check_interval": (lambda x: x in (None, 1), "1: set trainer.check_val_every_n_epoch instead"),
    "accumulate_grad_batches": (lambda x: x == 1, "1: set data.envs_per_family instead"),
    "gradient_clip_val": (lambda x: not x, "null: each level has a max_grad_norm"),
    "gradient_clip_algorithm": (lambda x: x is None, "null: each level has a max_grad_norm"),
    "precision": (
        lambda x: x in (None, 32, "32", "32-true"),
        "32-true: agents act in it, and PPO's ratios compare with that",
    ),
    "plugins": (
        lambda x: all(isinstance(p, ClusterEnvironment) for p in (x if isinstance(x, list) else [x]) if p),
        "null, or a ClusterEnvironment: precision and the writing of checkpoints are not to be changed",
    ),
    "default_root_dir": (lambda x: x is None, "null: set run_dir instead, where runs are continued from"),
    "enable_checkpointing": (
        lambda x: x is not False,
        "true: a run is continued from its checkpoints; set best_checkpoint.save_top_k to 0, or "
        "last_checkpoint.every_n_iterations to many, to write fewer",
    ),
    "barebones": (lambda x: not x, "false: nothing would be logged or saved"),
    "model_registry": (lambda x: x is None, "null: copy the files in run_dir/checkpoints instead"),
}


# Of the data module: what an agent's world is, and hence what its success means. Families may be others.
_WORLD = ("goals_per_family", "goals_shown", "families_shown", "horizon", "episodes_per_trial", "ego_state")


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse arguments of Lightning's trainer that would break training or evaluation here.

    Raises:
        UserError: naming the option and what to use instead.
    """
    for name, (good, right) in _TRAINER.items():
        if name in options and not good(value := options[name]):
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
