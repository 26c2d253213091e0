"""The command ``hmrl`` on the toy world, run as a script, and what befalls it at a known moment.

The environment variable ``EVENT`` chooses one of :data:`EVENTS`; without it, nothing happens.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from typing import Any

if __name__ == "__main__":
    signal.signal(SIGINT, signal.SIG_DFL)  # as the command does before it imports anything

import torch
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

import hmrl.cli.main
import hmrl.training.callbacks.latent_analysis
from hmrl.__main__ import command
from hmrl.system.terminal import is_first_process
from support.toy import ToyDataModule

Act = Callable[[], None]
Patch = tuple[Any, str, Any]  # owner, attribute, and its new value


def send(signum: int, to: str = "first") -> Act:
    """A signal to the ``first`` process, its ``child``, or the ``group`` of both."""

    def act() -> None:
        if is_first_process() == (to != "child"):
            os.kill(0 if to == "group" else os.getpid(), signum)

    return act


def in_training(*steps: tuple[int, Act]) -> Patch:
    """In each of these iterations, counted from 1: an act after a simulator step of its own."""
    left = list(steps)

    def on_training_step(data: Any) -> None:
        if left and int(data.trainer.lightning_module.iteration) == left[0][0] - 1:
            left.pop(0)[1]()

    return ToyDataModule, "on_training_step", on_training_step


def when_called(owner: Any, name: str, act: Act, *, number: int = 1, before: bool = True) -> Patch:
    """Before or after ``owner.name`` is called for the n-th time."""
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def call(*args: Any, **kwargs: Any) -> Any:
        now = next(calls) == number
        if now and before:
            act()
        result = original(*args, **kwargs)
        if now and not before:
            act()
        return result

    return owner, name, call


def when_renamed_to(name: str, number: int, act: Act) -> Patch:
    """Just before a file is renamed to ``name`` for the n-th time."""
    original, calls = Path.replace, iter(range(1, 10**6))

    def replace(self: Path, target: Path) -> Path:
        if target.name == name and next(calls) == number:
            act()
        return original(self, target)

    return Path, "replace", replace


def when_half_written(name: str, number: int, act: Act) -> Patch:
    """When half of what goes to the file ``name`` is on the disk, for the n-th time."""
    original, calls = torch.save, iter(range(1, 10**6))

    def save(content: Any, file: Any) -> None:
        if Path(file.name).name == name and next(calls) == number:
            whole = io.BytesIO()
            original(content, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            act()
        original(content, file)

    return torch, "save", save


LAUNCH = (_SubprocessScriptLauncher, "_call_children_scripts")
EVENTS: dict[str, Callable[[], Patch]] = {
    "SIGTERM": lambda: in_training((2, send(SIGTERM))),
    "SIGHUP": lambda: in_training((2, send(SIGHUP, "group"))),
    "Ctrl-C": lambda: in_training((2, send(SIGINT, "group"))),
    "Ctrl-C twice": lambda: in_training((2, send(SIGINT, "group")), (2, send(SIGINT, "group"))),
    "child killed": lambda: in_training((2, send(SIGKILL, "child"))),
    "SIGTERM after launching": lambda: when_called(*LAUNCH, send(SIGTERM, "group"), before=False),
    "first killed after launching": lambda: when_called(*LAUNCH, send(SIGKILL), before=False),
}


if __name__ == "__main__":
    hmrl.cli.main.MetaWorldDataModule = ToyDataModule
    hmrl.training.callbacks.latent_analysis.draw = lambda findings: {}  # figures take most of `hmrl test`
    if "EVENT" in os.environ:
        setattr(*EVENTS[os.environ["EVENT"]]())
    command()
