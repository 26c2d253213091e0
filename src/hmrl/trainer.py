"""Lightning trainers as this project wants them; the command line and Python use the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from hmrl.callbacks import EnvStepBudget, EnvStepsProgressBar, LastCheckpoint, SuccessRate
from hmrl.checkpoint import AtomicCheckpointIO, env_steps_at
from hmrl.csv_logger import ContinuedCSVLogger

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


def checkpoint_dir(run_dir: str | Path) -> str:
    """Where a run keeps its checkpoints."""
    return str(Path(run_dir) / "checkpoints")


def loggers(run_dir: str, resumed_at: int) -> list[Logger]:
    """TensorBoard and ``metrics.csv`` in ``run_dir``; what lies beyond ``resumed_at`` steps is dropped."""
    csv = ContinuedCSVLogger(run_dir)
    csv.resumed_at = resumed_at
    purge: Any = {"purge_step": resumed_at + 1} if resumed_at else {}
    return [csv, TensorBoardLogger(run_dir, name="", version="", sub_dir="tensorboard", **purge)]


def strategy_for(strategy: Any, accelerator: Any, devices: Any, num_nodes: int) -> Any:
    """The strategy that ``auto`` should mean: several processes step one level at a time.

    Plain ``ddp`` expects every loss to reach every parameter, which is silently wrong here.
    """
    if strategy != "auto":
        return strategy
    if isinstance(devices, list):
        count = len(devices)
    elif devices in ("auto", -1, "-1"):
        count = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 1
    else:
        count = int(devices)
    return "ddp_find_unused_parameters_true" if max(count, 1) * num_nodes > 1 else "auto"


def fixed_options() -> dict[str, Any]:
    """Trainer arguments that are not the user's to choose."""
    torch.set_flush_denormal(True)
    return {"plugins": [AtomicCheckpointIO()]}


def make_trainer(
    run_dir: str,
    env_steps: int,
    callbacks: list[Callback] | None = None,
    *,
    ckpt_path: str | None = None,
    **kwargs: Any,
) -> pl.Trainer:
    """The trainer behind ``hmrl fit``, for use from Python.

    Args:
        run_dir: logs, checkpoints and results go there.
        env_steps: budget.
        callbacks: more of them.
        ckpt_path: what ``fit`` is going to continue from, if anything: so are the logs.
        kwargs: of ``pytorch_lightning.Trainer``; ``check_val_every_n_epoch`` counts iterations.
    """
    folder = checkpoint_dir(run_dir)
    ours: list[Callback] = [
        EnvStepBudget(env_steps),
        SuccessRate(run_dir),
        EnvStepsProgressBar(),
        ModelCheckpoint(folder, **BEST_DEFAULTS),
        LastCheckpoint(folder),
    ]
    options = {**TRAINER_DEFAULTS, **fixed_options(), **kwargs}
    if "logger" not in options:
        options["logger"] = loggers(run_dir, env_steps_at(ckpt_path))
    options["strategy"] = strategy_for(
        options.get("strategy", "auto"),
        options.get("accelerator", "auto"),
        options.get("devices", "auto"),
        options.get("num_nodes", 1),
    )
    return pl.Trainer(callbacks=[*ours, *(callbacks or [])], **options)
