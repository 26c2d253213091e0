"""What several callbacks do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch

from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.module import HierarchicalMetaRL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def data_of(trainer: Any) -> MetaWorldDataModule:
    """The data module of a trainer, which hides it from the type checker."""
    return cast(MetaWorldDataModule, trainer.datamodule)


def log(module: HierarchicalMetaRL, values: Mapping[str, float]) -> None:
    """Log by environment steps, in float64."""
    exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    module.log_dict({**exact, "step": module.env_steps.double()}, batch_size=1)


def say(trainer: pl.Trainer, text: str) -> None:
    """Print above the progress bar, where there is one."""
    bar = trainer.progress_bar_callback
    (bar.print if bar is not None else print)(text)


def save(figure: Figure, path: Path) -> None:
    """As PNG and as PDF.

    Args:
        path: with any suffix.
    """
    for kind in ("png", "pdf"):
        figure.savefig(path.with_suffix(f".{kind}"))
