"""Lightning's internals, where there is no public way: a test fails when they change.

They are why ``pyproject.toml`` bounds its version from above.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.trainer.connectors.accelerator_connector import _AcceleratorConnector


def steps_one_level(strategy: Any) -> bool:
    """Whether it is DDP that expects no loss to reach every parameter, whose processes are new commands."""
    return (
        isinstance(strategy, DDPStrategy)
        and strategy._ddp_kwargs.get("find_unused_parameters") is True
        and strategy._start_method == "popen"
    )


def devices_of(accelerator: Any, devices: Any, num_nodes: int) -> int:
    """How many devices of a node a trainer would use; what is no accelerator or device raises."""
    connector = _AcceleratorConnector(
        devices, num_nodes, accelerator, SingleDeviceStrategy("cpu"), [LightningEnvironment()]
    )
    return len(connector._parallel_devices)


def cluster_environment(trainer: pl.Trainer) -> ClusterEnvironment:
    """What tells the processes of a run apart."""
    return trainer._accelerator_connector.cluster_environment


def launches(trainer: pl.Trainer) -> bool:
    """Whether this process starts the others, which torchrun and srun do elsewhere."""
    launcher = trainer.strategy.launcher
    return (
        isinstance(launcher, _SubprocessScriptLauncher)
        and not launcher.cluster_environment.creates_processes_externally
    )


def kill_launched(trainer: pl.Trainer) -> None:
    """End the processes that this one has started, without ending this one after them."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGKILL)
        launcher.procs.clear()  # Lightning watches them, and would kill this process after them


def set_rank(rank: int) -> None:
    """The rank of this process, whatever variables were inherited when Lightning was imported."""
    setattr(rank_zero_only, "rank", rank)  # noqa: B010


def handle_no_signals(trainer: Any) -> None:
    """Lightning's handler talks to the other ranks from inside, which can hang."""
    trainer._signal_connector.register_signal_handlers = lambda: None


def requeue_handler(trainer: Any) -> Callable[[int, Any], None]:
    """Lightning's handler of SLURM's signal, which saves a checkpoint and requeues the job."""
    return cast(Callable[[int, Any], None], trainer._signal_connector._slurm_sigusr_handler_fn)


def last_is(trainer: pl.Trainer, find: Callable[[], Path | None]) -> None:
    """What ``fit(ckpt_path="last")`` continues from; Lightning chooses by file times, and exports, too."""

    def last(trainer: pl.Trainer) -> set[str]:
        return {str(path)} if (path := find()) else set()

    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback._find_last_checkpoints = last  # type: ignore[method-assign]
