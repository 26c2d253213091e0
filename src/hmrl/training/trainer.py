"""Lightning trainers as this project wants them; the command line and Python use the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

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
from hmrl.training.prechecks import check_trainer
from hmrl.training.processes import accelerator_for, settle, strategy_for
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


def fixed_options() -> dict[str, Any]:
    """Trainer arguments that are not the user's to choose."""
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False  # of ten bits: y in learning would not be y in acting
    return {"plugins": [AtomicCheckpointIO()]}


def hide_bar(options: dict[str, Any], callbacks: Iterable[Callback]) -> None:
    """Without a progress bar, ours stays, which also logs times; Lightning would refuse it."""
    if options.get("enable_progress_bar") is False:
        options["enable_progress_bar"] = True
        for bar in (callback for callback in callbacks if isinstance(callback, EnvStepsProgressBar)):
            bar.shown = False


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
    check_trainer(TRAINER_DEFAULTS | kwargs)
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
    options = {**TRAINER_DEFAULTS, "default_root_dir": run_dir, **kwargs}
    own = options.get("plugins") or []
    options["plugins"] = [*(own if isinstance(own, list) else [own]), *fixed_options()["plugins"]]
    hide_bar(options, ours)
    if "logger" not in options:
        options["logger"] = loggers(run_dir, wandb, settings)
    options["accelerator"] = accelerator_for(options.get("accelerator", "auto"))
    options["strategy"] = strategy_for(
        options.get("strategy", "auto"),
        options["accelerator"],
        options.get("devices", "auto"),
        options.get("num_nodes", 1),
    )
    trainer = pl.Trainer(callbacks=[*ours, *(callbacks or [])], **options)
    settle(trainer)
    last_is(trainer, partial(newest_checkpoint, run_dir))
    return trainer
