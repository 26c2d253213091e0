"""Lightning trainers as this project wants them; the command line and Python use the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from hmrl.callbacks import (
    EnvStepBudget,
    EnvStepsProgressBar,
    GracefulStop,
    LastCheckpoint,
    RunDirectory,
    SuccessRate,
)
from hmrl.checkpoint import AtomicCheckpointIO, env_steps_of, load
from hmrl.csv_logger import ContinuedCSVLogger
from hmrl.processes import accelerator_for, end_with_the_first, strategy_for
from hmrl.run_dir import checkpoint_dir, continues
from hmrl.wandb_logger import EnvStepsWandbLogger, WandbConfig

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


def loggers(
    run_dir: str,
    resumed_at: int,
    wandb: WandbConfig | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Logger]:
    """TensorBoard and ``metrics.csv`` in ``run_dir``; what lies beyond ``resumed_at`` steps is dropped.

    Args:
        resumed_at: environment steps that the run in ``run_dir`` continues from; 0 for a new one.
        wandb: log to Weights & Biases, too, with the run's ``settings``.
    """
    local: list[Logger] = [
        ContinuedCSVLogger(run_dir),
        TensorBoardLogger(run_dir, name="", version="", sub_dir="tensorboard", purge_step=resumed_at + 1),
    ]
    return local + ([EnvStepsWandbLogger(run_dir, wandb, resumed_at > 0, settings or {})] if wandb else [])


def fixed_options() -> dict[str, Any]:
    """Trainer arguments that are not the user's to choose."""
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False  # of ten bits: y in learning would not be y in acting
    return {"plugins": [AtomicCheckpointIO()]}


def make_trainer(
    run_dir: str,
    env_steps: int,
    callbacks: list[Callback] | None = None,
    *,
    ckpt_path: str | None = None,
    overwrite: bool = False,
    wandb: WandbConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> pl.Trainer:
    """The trainer behind ``hmrl fit``, for use from Python.

    Args:
        run_dir: logs, checkpoints and results go there.
        env_steps: budget.
        callbacks: more of them.
        ckpt_path: what ``fit`` is going to continue from, if anything: so are the logs.
        overwrite: whether a run, or results, in ``run_dir`` may be lost.
        wandb: log to Weights & Biases, too.
        settings: plain values that describe the run there, as ``dict(model.hparams)``.
        kwargs: of ``pytorch_lightning.Trainer``; ``check_val_every_n_epoch`` counts iterations.
    """
    folder, continued = checkpoint_dir(run_dir), continues(run_dir, ckpt_path)
    ours: list[Callback] = [
        RunDirectory(run_dir, overwrite or continued, continued),
        GracefulStop(),
        EnvStepBudget(env_steps),
        SuccessRate(run_dir, overwrite),
        EnvStepsProgressBar(),
        ModelCheckpoint(folder, **BEST_DEFAULTS),
        LastCheckpoint(folder),
    ]
    options = {**TRAINER_DEFAULTS, "default_root_dir": run_dir, **fixed_options(), **kwargs}
    if "logger" not in options:
        resumed_at = env_steps_of(load(ckpt_path) if ckpt_path and continued else None)
        options["logger"] = loggers(run_dir, resumed_at, wandb, settings)
    options["accelerator"] = accelerator_for(options.get("accelerator", "auto"))
    options["strategy"] = strategy_for(
        options.get("strategy", "auto"),
        options["accelerator"],
        options.get("devices", "auto"),
        options.get("num_nodes", 1),
    )
    trainer = pl.Trainer(callbacks=[*ours, *(callbacks or [])], **options)
    end_with_the_first(trainer)
    return trainer
