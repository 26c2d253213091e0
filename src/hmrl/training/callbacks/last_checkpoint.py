"""The checkpoint that a run continues from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.training.module import HierarchicalMetaRL


@contextmanager
def between_epochs(trainer: pl.Trainer) -> Iterator[None]:
    """For saving as an epoch starts: what Lightning has counted of it would be lost from a resumed count."""
    progress: Any = trainer.fit_loop.epoch_progress
    begun: int = progress.current.ready - progress.current.started
    for count in (progress.total, progress.current):
        count.ready -= begun
    yield
    for count in (progress.total, progress.current):
        count.ready += begun


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` every so many iterations, and after the last one.

    Between two epochs: an iteration is in the logs before it is in the checkpoint, so that none is lost.
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
        self.path = local_path(dirpath, "dirpath") / "last.ckpt"
        self.every_n_iterations = every_n_iterations
        self._saved = 0  # the iteration that the file holds, or that training began with

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """What was just loaded need not be saved."""
        self._saved = int(pl_module.iteration)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective."""
        if int(pl_module.iteration) % self.every_n_iterations == 0:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective."""
        self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, module: HierarchicalMetaRL) -> None:
        if int(module.iteration) != self._saved:
            with between_epochs(trainer):
                trainer.save_checkpoint(self.path, weights_only=False)
            self._saved = int(module.iteration)
