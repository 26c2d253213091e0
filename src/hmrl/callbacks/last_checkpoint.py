"""The checkpoint that a run continues from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from hmrl.types import UserError


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` every so many iterations, and after the last one.

    Place it after ``ModelCheckpoint``, whose best score so far belongs into the file.

    Args:
        dirpath: folder of the checkpoint.
        every_n_iterations: between two of them.
    """

    def __init__(self, dirpath: str, every_n_iterations: int = 5) -> None:
        if every_n_iterations < 1:
            raise UserError(
                f"last_checkpoint.every_n_iterations is {every_n_iterations}, but it must be at least 1"
            )
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_iterations = every_n_iterations

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective."""
        if int(pl_module.iteration) % self.every_n_iterations == 0 or trainer.should_stop:
            trainer.save_checkpoint(self.path, weights_only=False)
