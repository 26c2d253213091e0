"""What several callbacks do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch

from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.module import HierarchicalMetaRL

C = TypeVar("C", bound=pl.Callback)


def data_of(trainer: Any) -> MetaWorldDataModule:
    """The data module of a trainer, which hides it from the type checker."""
    return cast(MetaWorldDataModule, trainer.datamodule)


def callbacks_of(trainer: Any, kind: type[C]) -> list[C]:
    """The trainer's callbacks of one kind, in order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]


def log(module: HierarchicalMetaRL, values: Mapping[str, float]) -> None:
    """Log by environment steps, in float64."""
    exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    module.log_dict({**exact, "step": module.env_steps.double()}, on_step=False, on_epoch=True, batch_size=1)


def say(trainer: pl.Trainer, text: str) -> None:
    """Print above the progress bar, where there is one."""
    bar = trainer.progress_bar_callback
    (bar.print if bar is not None else print)(text)
