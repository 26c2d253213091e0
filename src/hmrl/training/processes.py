"""How many processes there are, and the strategy that holds them together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from hmrl.system.errors import UserError
from hmrl.system.terminal import INTERRUPTED, ended_by, is_first_process, stop_signals
from hmrl.training.lightning_private import (
    cluster_environment,
    devices_of,
    handle_no_signals,
    launches,
    set_rank,
    steps_one_level,
)

_DDP = "ddp_find_unused_parameters_true"
_FIRST = "HMRL_FIRST_PROCESS"


def launch_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """``accelerator`` and ``strategy``, as a trainer with these ``options`` needs them.

    Apple's GPUs, which Lightning would choose, have no float64, in which the normaliser counts. Plain ``ddp``
    expects every loss to reach every parameter; here several processes step one level at a time.

    Raises:
        UserError: for devices or nodes that there are not, and for other strategies.
    """
    given = {"accelerator": "auto", "devices": "auto", "num_nodes": 1, "strategy": "auto", **options}
    strategy, cuda = given["strategy"], torch.cuda.device_count() > 0
    usual = {"auto": "cuda" if cuda else "cpu", "gpu": "cuda"}
    accelerator = usual.get(given["accelerator"], given["accelerator"])
    if accelerator == "mps":
        raise UserError("trainer.accelerator is mps, which has no float64: use auto, cpu or gpu")
    try:
        processes = devices_of(accelerator, given["devices"], given["num_nodes"]) * given["num_nodes"]
    except Exception as error:  # Lightning's words, of several kinds of exceptions
        keys = ", ".join(f"trainer.{k} {given[k]}" for k in ("accelerator", "devices", "num_nodes"))
        raise UserError(f"{keys}: {error}") from error
    # In a shell of a SLURM job Lightning would wait for processes that nobody starts.
    tasks = os.environ.get("SLURM_NTASKS") if SLURMEnvironment.detect() else None
    by_srun = {"SLURM_STEP_ID", "SLURM_STEPID"} & os.environ.keys()
    if tasks and not by_srun and (tasks != "1" or processes > 1):
        raise UserError(
            f"SLURM_NTASKS is {tasks} in the environment, but srun has not started this process: start it "
            "with srun, or unset SLURM_NTASKS, and hmrl starts trainer.devices processes itself"
        )
    if strategy not in ("auto", _DDP) and not steps_one_level(strategy):
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise UserError(
            f"trainer.strategy is {name}, under which levels that are trained one at a time would drift "
            "apart, or which starts processes as copies of this one, but each must start as a command of its "
            f"own: use auto or {_DDP} (and from a notebook, one device)"
        )
    return {
        "accelerator": accelerator,
        "strategy": _DDP if strategy == "auto" and processes > 1 else strategy,
    }


def settle(trainer: pl.Trainer) -> None:
    """Call it once there is a trainer: it knows this process's rank, whatever variables were inherited.

    A process that the first one launches ends when that one is gone: otherwise it would wait for half an hour
    if the first one is killed before the two are connected. Signals end the waiting for others.

    Raises:
        UserError: if a launcher, or an inherited variable, says otherwise than the trainer.
    """
    launched = os.environ.get(_FIRST) == str(os.getppid()) and os.environ.get("LOCAL_RANK", "0") != "0"
    if not launched and os.environ.get(_FIRST) != str(os.getpid()):
        _check_launcher(trainer)
    set_rank(trainer.global_rank)
    handle_no_signals(trainer)
    if launches(trainer):
        os.environ[_FIRST] = str(os.getpid())  # inherited
    elif launched:
        threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
    if trainer.world_size > 1:
        strategy: Any = trainer.strategy
        strategy.setup_environment = partial(_connect, strategy.setup_environment)


def _check_launcher(trainer: pl.Trainer) -> None:
    """What tells processes apart must fit the trainer, or ranks would wait for ever, or train alone."""
    environment = cluster_environment(trainer)
    try:
        environment.validate_settings(trainer.num_devices, trainer.num_nodes)  # by torchrun or srun
    except ValueError as error:
        raise UserError(f"trainer.devices or trainer.num_nodes does not fit the launcher: {error}") from error
    if type(environment) is not LightningEnvironment:
        return
    fitting = {"RANK": trainer.global_rank, "WORLD_SIZE": trainer.world_size}
    fitting["LOCAL_RANK"] = 0 if trainer.world_size == 1 else -1  # by which Lightning would wait for others
    if trainer.num_nodes == 1:
        fitting |= {"NODE_RANK": 0, "GROUP_RANK": 0}
    for name, right in fitting.items():
        if (value := os.environ.get(name)) not in (None, str(right)):
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
