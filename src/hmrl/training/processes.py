"""How many processes there are, and the strategy that holds them together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from hmrl.system.errors import UserError
from hmrl.system.terminal import INTERRUPTED, ended_by, is_first_process, stop_signals
from hmrl.training.lightning_private import (
    cluster_environment,
    finds_unused_parameters,
    handle_no_signals,
    launches,
    set_rank,
    starts_commands,
)

_ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
_DDP = "ddp_find_unused_parameters_true"
_COPYING = [_DDP.replace("ddp", f"ddp_{how}") for how in ("spawn", "fork", "notebook")]
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
    right = finds_unused_parameters(strategy)
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name in _COPYING or (right and not starts_commands(strategy)):
        raise UserError(
            f"trainer.strategy is {name}, which starts processes as copies of this one, but each must start "
            f"as a command of its own (from a notebook, train with one device): use auto or {_DDP}"
        )
    if strategy not in ("auto", _DDP) and not right:
        raise UserError(
            f"trainer.strategy is {name}, under "
            f"which levels that are trained one at a time would drift apart: use auto or {_DDP}"
        )
    return _DDP if strategy == "auto" and here * num_nodes > 1 else strategy


def _check_launcher(devices: int, num_nodes: int) -> None:
    """Where torchrun or srun start the processes, Lightning must expect as many."""
    if TorchElasticEnvironment.detect():
        who, name = "torchrun", "WORLD_SIZE"
    elif SLURMEnvironment.detect() and SLURMEnvironment.job_id() is not None:
        who, name = "srun", "SLURM_NTASKS"
    else:
        return
    there = os.environ.get(name, "none")
    fits = there == str(devices * num_nodes)
    if who == "srun" and not {"SLURM_STEP_ID", "SLURM_STEPID"} & os.environ.keys():  # a shell of a SLURM job
        if there != "1" or not fits:
            raise UserError(
                f"SLURM_NTASKS is {there} in the environment, but srun has not started this process: start "
                "it with srun, or unset SLURM_NTASKS, and hmrl starts trainer.devices processes itself"
            )
    elif not fits:
        raise UserError(
            f"{who} started {there} process(es), but trainer.devices x trainer.num_nodes is {devices} x "
            f"{num_nodes}: set them to the processes a node and the number of nodes (where {who} did not "
            f"start this one, unset {name if who == 'srun' else 'TORCHELASTIC_RUN_ID'})"
        )


def settle(trainer: Any) -> None:
    """Call it once there is a trainer: it knows this process's rank, whatever variables were inherited.

    A process that the first one launches ends when that one is gone: otherwise it would wait for half an hour
    if the first one is killed before the two are connected. Signals end the waiting for others.

    Raises:
        UserError: for an inherited variable that says otherwise than the trainer.
    """
    if type(cluster_environment(trainer)) is LightningEnvironment:
        _check_inherited(trainer)
    set_rank(trainer.global_rank)
    handle_no_signals(trainer)
    if launches(trainer):
        os.environ[_FIRST] = str(os.getpid())  # inherited
    elif _launched():
        threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
    if trainer.world_size > 1:
        trainer.strategy.setup_environment = partial(_connect, trainer.strategy.setup_environment)


def _launched() -> bool:
    """Whether another process of hmrl has started this one as a rank."""
    return os.environ.get(_FIRST) == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0"


def _check_inherited(trainer: Any) -> None:
    """Variables by which launchers tell processes apart, where no launcher that is known has set them."""
    if _launched() or os.environ.get(_FIRST) == str(os.getpid()):
        return
    alone = trainer.world_size == 1
    fitting = {
        "LOCAL_RANK": {"0"} if alone else set(),  # Lightning takes it for the word of a launcher
        "RANK": {str(trainer.global_rank)},
        "WORLD_SIZE": {str(trainer.world_size)},
        "NODE_RANK": {str(node) for node in range(trainer.num_nodes)},
        "GROUP_RANK": {str(node) for node in range(trainer.num_nodes)},
    }
    for name, right in fitting.items():
        if (value := os.environ.get(name)) is not None and value not in right:
            raise UserError(
                f"{name} is {value} in the environment, as of one process among others, but neither torchrun "
                f"nor srun has started this run of {trainer.world_size} process(es): unset {name}, or start "
                "it with one of them"
            )


def _connect(connect: Callable[[], None]) -> None:
    with ended_by(stop_signals(), INTERRUPTED if is_first_process() else ""):
        connect()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
