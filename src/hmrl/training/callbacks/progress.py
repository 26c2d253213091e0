"""One progress bar for the whole run, in environment steps."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm.auto import tqdm

from hmrl.training.callbacks.budget import EnvStepBudget


class EnvStepsProgressBar(ProgressBar):
    """Environment steps of the budget, steps per second, success in training, and the time left.

    Also logs, of each iteration, ``time/env_steps_per_second``, learning and evaluation included, and
    ``time/learning_seconds``, of the updates alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = self.shown = True
        self._since = self._learning_since = 0.0
        self._steps = 0

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open the bar where the run stands."""
        self._steps = int(pl_module.env_steps)
        self._since = time.monotonic()
        budgets = [c.env_steps for c in trainer.callbacks if isinstance(c, EnvStepBudget)]  # type: ignore[attr-defined]
        self._bar = tqdm(
            total=min(budgets, default=None),
            initial=self._steps,
            unit="step",
            unit_scale=True,
            desc="training",
            dynamic_ncols=True,
            disable=not (self._enabled and self.shown),
        )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The rollout is there; what follows is learning."""
        self._learning_since = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar by one iteration."""
        now, steps = time.monotonic(), int(pl_module.env_steps)
        pl_module.log_dict(
            {
                "time/env_steps_per_second": (steps - self._steps) / (now - self._since),
                "time/learning_seconds": now - self._learning_since,
                "step": pl_module.env_steps.double(),
            },
            on_step=False,
            on_epoch=True,
            batch_size=1,
        )
        self._bar.update(steps - self._steps)
        self._since, self._steps = now, steps
        shown = {"iteration": int(pl_module.iteration)}
        batch_success = batch.rollout.ever_success.float().mean().item()
        self._bar.set_postfix({**shown, "success": f"{batch_success:.2f}"})

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the terminal clean for the message."""
        if self._bar is not None:
            self._bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            tqdm.write(" ".join(map(str, args)))
