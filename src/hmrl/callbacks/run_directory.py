"""One run, one directory."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from hmrl.csv_logger import ContinuedCSVLogger
from hmrl.distributed import together
from hmrl.run_dir import claim, clear


class RunDirectory(pl.Callback):
    """Claims the directory before training, and lets its log continue where training does.

    Args:
        run_dir: the directory.
        may_hold_run: whether there may be a run already, which is continued or written over.
        continues: whether it is continued.
    """

    def __init__(self, run_dir: str, may_hold_run: bool = False, continues: bool = False) -> None:
        self.run_dir, self.may_hold_run, self.continues = run_dir, may_hold_run, continues

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Collective. Claim the directory, which only the first rank writes to."""
        if stage != "fit":
            return
        with together():
            if trainer.is_global_zero:
                claim(self.run_dir, may_hold_run=self.may_hold_run)
                self.may_hold_run = True  # it is this process's own from now on

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drop what was logged beyond the checkpoint; of a run that is written over, everything."""
        if trainer.is_global_zero and not self.continues:
            clear(self.run_dir)
        for logger in trainer.loggers:
            if isinstance(logger, ContinuedCSVLogger) and trainer.is_global_zero:
                logger.resume(int(pl_module.env_steps) if self.continues else 0)
