"""How many processes there are, and the strategy that holds them together."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from hmrl.types import UserError

_DDP = "ddp_find_unused_parameters_true"


def process_count(accelerator: Any, devices: Any) -> int:
    """Processes on one node: one per device.

    Raises:
        UserError: if there are no such devices.
    """
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus:
        raise UserError(
            f"trainer.accelerator is {accelerator}, but PyTorch finds no GPU on this machine: use cpu, or "
            "install a build of PyTorch that fits the GPU"
        )
    on_gpus = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if isinstance(devices, str) and "," in devices:
        devices = [int(d) for d in devices.split(",") if d.strip()]
    if isinstance(devices, list | tuple):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return max(gpus, 1) if on_gpus else 1
    count = int(devices)
    if count < 1 or (on_gpus and count > gpus):
        available = f"1 to {gpus}, the GPUs of this machine" if on_gpus else "1 or more"
        raise UserError(f"trainer.devices is {devices}: use {available}")
    return count


def strategy_for(strategy: Any, accelerator: Any, devices: Any, num_nodes: int) -> Any:
    """The strategy that ``auto`` should mean: several processes step one level at a time.

    Raises:
        UserError: for another strategy. Plain ``ddp`` expects every loss to reach every parameter, which is
            silently wrong here.
    """
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
