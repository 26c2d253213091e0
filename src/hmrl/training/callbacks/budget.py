"""Stopping at a number of environment steps."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from hmrl.system.errors import UserError
from hmrl.training.module import HierarchicalMetaRL


class EnvStepBudget(pl.Callback):
    """Ends training after the iteration that reaches the budget, with a last evaluation.

    Args:
        env_steps: simulator steps over all environments and ranks.
    """

    def __init__(self, env_steps: int = 2_000_000) -> None:
        if env_steps < 1:
            raise UserError(f"budget.env_steps is {env_steps}, but it must be at least 1")
        self.env_steps = env_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A resumed run that has spent its budget trains no more, and says so."""
        self._check(trainer, pl_module)
        if int(pl_module.env_steps) >= self.env_steps and trainer.is_global_zero:
            print(
                f"the budget of {self.env_steps:,} environment steps is spent "
                f"({int(pl_module.env_steps):,} taken): raise budget.env_steps to train on"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Environment steps are counted over all ranks, so that all stop together."""
        self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, module: HierarchicalMetaRL) -> None:
        if int(module.env_steps) >= self.env_steps:
            trainer.should_stop = True
            # Evaluate at the end of this epoch, whether or not its turn has come.
            trainer.check_val_every_n_epoch = 1
