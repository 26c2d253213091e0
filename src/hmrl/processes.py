"""How many processes there are, and the strategy that holds them together."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from hmrl.distributed import is_first_process
from hmrl.types import UserError

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
_DDP = "ddp_find_unused_parameters_true"
_FIRST = "HMRL_FIRST_PROCESS"


def process_count(accelerator: Any, devices: Any) -> int:
    """Processes on one node: one per device.

    Raises:
        UserError: if there are no such devices.
    """
    if isinstance(accelerator, str) and accelerator not in _ACCELERATORS:
        raise UserError(f"trainer.accelerator is {accelerator!r}: use one of {', '.join(_ACCELERATORS)}")
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus:
        raise UserError(
            f"trainer.accelerator is {accelerator}, but PyTorch finds no GPU on this machine: use cpu, or "
            "install a build of PyTorch that fits the GPU"
        )
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if devices in ("auto", -1, "-1"):
        return max(gpus, 1) if on_gpus else 1
    try:
        if isinstance(devices, str) and "," in devices:
            devices = [int(d) for d in devices.split(",") if d.strip()]
        listed = isinstance(devices, list | tuple)
        count = (len(devices) if on_gpus else 0) if listed else int(devices)  # CPUs have no numbers
    except ValueError:
        count = 0
    if count < 1 or (on_gpus and count > gpus):
        available = f"1 to {gpus}, the GPUs of this machine" if on_gpus else "1 or more"
        raise UserError(f"trainer.devices is {devices}: use {available}")
    return count


def accelerator_for(accelerator: Any) -> Any:
    """What ``auto`` should mean: Apple's GPUs have no float64, in which the normaliser counts."""
    return "cpu" if accelerator == "auto" and not torch.cuda.device_count() else accelerator


def strategy_for(strategy: Any, accelerator: Any, devices: Any, num_nodes: int) -> Any:
    """The strategy that ``auto`` should mean: several processes step one level at a time.

    Raises:
        UserError: for devices or nodes that cannot be, and for another strategy. Plain ``ddp`` expects every
            loss to reach every parameter, which is silently wrong here.
    """
    if num_nodes < 1:
        raise UserError(f"trainer.num_nodes is {num_nodes}: use 1 or more")
    here = process_count(accelerator, devices)
    _check_launcher(here, num_nodes)
    right = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters") is True
    if strategy not in ("auto", _DDP) and not right:
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise UserError(
            f"trainer.strategy is {name}, under "
            f"which levels that are trained one at a time would drift apart: use auto or {_DDP}"
        )
    return _DDP if strategy == "auto" and here * num_nodes > 1 else strategy


def _check_launcher(devices: int, num_nodes: int) -> None:
    """Where torchrun or srun start the processes, Lightning must expect as many."""
    if TorchElasticEnvironment.detect():
        who, there = "torchrun", int(os.environ["WORLD_SIZE"])
    elif SLURMEnvironment.detect() and SLURMEnvironment.job_id() is not None:
        who, there = "srun", int(os.environ["SLURM_NTASKS"])
    else:
        return
    if devices * num_nodes != there:
        raise UserError(
            f"{who} started {there} process(es), but trainer.devices x trainer.num_nodes is {devices} x "
            f"{num_nodes}: set them to the processes a node and the number of nodes"
        )


def launches(trainer: pl.Trainer) -> bool:
    """Whether this process starts the others, which torchrun and srun do elsewhere."""
    launcher = trainer.strategy.launcher
    return (
        isinstance(launcher, _SubprocessScriptLauncher)
        and not launcher.cluster_environment.creates_processes_externally
    )


def end_with_the_first(trainer: pl.Trainer) -> None:
    """Call it once there is a trainer: a process that the first one launches ends when that one is gone.

    Otherwise it would wait for half an hour if the first one is killed before the two are connected.
    """
    if launches(trainer):
        os.environ[_FIRST] = str(os.getpid())  # inherited
    elif not is_first_process() and (first := os.environ.pop(_FIRST, "")):
        threading.Thread(target=_end_without, args=(int(first),), daemon=True).start()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
