"""Lightning trainers as this project wants them; the command line and Python use the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.system.terminal import outlive_output
from hmrl.training.callbacks import (
    EnvStepBudget,
    EnvStepsProgressBar,
    GracefulStop,
    LastCheckpoint,
    RunDirectory,
    SuccessRate,
)
from hmrl.training.checkpoint import AtomicCheckpointIO
from hmrl.training.lightning_private import last_is
from hmrl.training.loggers import WandbConfig, loggers
from hmrl.training.processes import launch_options, settle
from hmrl.training.run_directory import checkpoint_dir, newest_checkpoint

# One epoch is one iteration and the budget ends the run; the sanity check would step environments.
TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": 10,
    "enable_model_summary": False,
}
# The best model is chosen by success on training families alone.
BEST_DEFAULTS: dict[str, Any] = {
    "monitor": "success/train/mean",
    "mode": "max",
    "filename": "best",
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
    "save_on_train_epoch_end": True,
}

_NOT_STOPPED = "neither the budget nor Ctrl-C would end training; set budget.env_steps instead"
_WHOLE = "an evaluation must be whole, or its numbers are not what its protocol says"
_NORMS = "each level has a max_grad_norm"
# What must be left alone where a batch is an iteration and levels learn in turn: values that may be, and why.
_RIGHT: dict[str, tuple[tuple[str, ...], str]] = {
    "max_epochs": (("-1",), "set budget.env_steps instead, which ends with an evaluation"),
    "max_steps": (("-1",), "it counts steps of optimizers; set budget.env_steps instead"),
    "min_epochs": (("None", "0"), _NOT_STOPPED),
    "min_steps": (("None", "0"), _NOT_STOPPED),
    "max_time": (
        ("None",),
        "it counts the run's whole life, so that a run that is continued would end at once; start hmrl with "
        "timeout -s TERM, or let SLURM send a signal (#SBATCH --signal)",
    ),
    "fast_dev_run": (("False", "0"), f"{_WHOLE}; try --config smoke instead"),
    "overfit_batches": (("0", "0.0"), "fix goals with data.goals_per_family instead"),
    "limit_train_batches": (("None", "1", "1.0"), "an iteration is a single batch"),
    "limit_val_batches": (("None", "1.0", "0", "0.0"), f"{_WHOLE}; set data.validation instead"),
    "limit_test_batches": (("None", "1.0"), f"{_WHOLE}; set data.test instead"),
    "num_sanity_val_steps": (("0",), "it would print a part of an evaluation as if it were one"),
    "val_check_interval": (("None", "1", "1.0"), "set trainer.check_val_every_n_epoch instead"),
    "accumulate_grad_batches": (("1",), "set data.envs_per_family instead"),
    "gradient_clip_val": (("None", "0", "0.0"), _NORMS),
    "gradient_clip_algorithm": (("None",), _NORMS),
    "precision": (("None", "32", "32-true"), "agents act in it, and PPO's ratios compare with that"),
    "default_root_dir": (("None",), "set run_dir instead, where runs are continued from"),
    "enable_checkpointing": (
        ("None", "True"),
        "a run is continued from its checkpoints; set best_checkpoint.save_top_k to 0, or "
        "last_checkpoint.every_n_iterations to many, to write fewer",
    ),
    "barebones": (("False",), "nothing would be logged or saved"),
    "model_registry": (("None",), "copy the files in run_dir/checkpoints instead"),
}


def complete_options(given: Mapping[str, Any], callbacks: Iterable[Callback]) -> dict[str, Any]:
    """Arguments of Lightning's trainer as they must be here.

    Args:
        given: the user's.
        callbacks: ours.

    Raises:
        UserError: naming the one that would break training or evaluation, and what to use instead.
    """
    for name, (right, why) in _RIGHT.items():
        if name in given and str(given[name]) not in right:
            words = " or ".join(right).replace("None", "null")
            raise UserError(f"trainer.{name} is {given[name]}, but it must be {words}: {why}")
    if (every := given.get("check_val_every_n_epoch")) is not None and every < 1:
        raise UserError(f"trainer.check_val_every_n_epoch is {every}, but it must be 1 or more (iterations)")
    plugins = given.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    if not all(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        raise UserError(
            f"trainer.plugins is {plugins}, but it must be null, or a ClusterEnvironment: precision and the "
            "writing of checkpoints are not to be changed"
        )
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False  # of ten bits: y in learning would not be y in acting
    options = {**given, **launch_options(given)}
    options["plugins"] = [*plugins, AtomicCheckpointIO()]
    if given.get("enable_progress_bar") is False:  # ours stays, and logs times; Lightning would refuse it
        options["enable_progress_bar"] = True
        for bar in (callback for callback in callbacks if isinstance(callback, EnvStepsProgressBar)):
            bar.shown = False
    return options


def make_trainer(
    run_dir: str,
    env_steps: int,
    callbacks: list[Callback] | None = None,
    *,
    overwrite: bool = False,
    wandb: WandbConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> pl.Trainer:
    """The trainer behind ``hmrl fit``, for use from Python.

    A fit whose ``ckpt_path`` is one of the run's checkpoints, or "last", continues it, logs included. Any
    other fit is refused where there is a run, or results, already.

    Args:
        run_dir: logs, checkpoints and results go there.
        env_steps: budget.
        callbacks: more of them.
        overwrite: whether the first fit or test may lose a run, or results, in ``run_dir``.
        wandb: log to Weights & Biases, too.
        settings: plain values that describe the run there, as ``dict(model.hparams)``.
        kwargs: of ``pytorch_lightning.Trainer``; ``check_val_every_n_epoch`` counts iterations.

    Raises:
        UserError: if ``run_dir`` can be no directory, and for arguments that cannot be.
    """
    outlive_output()
    run_dir = str(local_path(run_dir, "run_dir").absolute())  # wherever the process goes
    folder = checkpoint_dir(run_dir)
    ours: list[Callback] = [
        RunDirectory(run_dir, overwrite),
        GracefulStop(),
        EnvStepBudget(env_steps),
        SuccessRate(run_dir, overwrite),
        EnvStepsProgressBar(),
        ModelCheckpoint(folder, **BEST_DEFAULTS),
        LastCheckpoint(folder),
    ]
    options = complete_options(TRAINER_DEFAULTS | kwargs, ours) | {"default_root_dir": run_dir}
    if "logger" not in options:
        options["logger"] = loggers(run_dir, wandb, settings)
    trainer = pl.Trainer(callbacks=[*ours, *(callbacks or [])], **options)
    settle(trainer)
    last_is(trainer, partial(newest_checkpoint, run_dir))
    return trainer
