"""One progress bar for the whole run, in environment steps."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm.auto import tqdm

from hmrl.training.callbacks.common import callbacks_of, log
from hmrl.training.callbacks.stopping import EnvStepBudget


class EnvStepsProgressBar(ProgressBar):
    """Environment steps of the budget, steps per second, success in training, and the time left.

    Also logs, of each iteration, ``time/env_steps_per_second``, learning and evaluation included, and
    ``time/learning_seconds``, of the updates alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = tqdm(disable=True)
        self._enabled = self.shown = True
        self._since = self._learning_since = 0.0
        self._steps = 0

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open the bar where the run stands."""
        self._since, self._steps = time.monotonic(), int(pl_module.env_steps)
        self._bar = tqdm(
            total=min((budget.env_steps for budget in callbacks_of(trainer, EnvStepBudget)), default=None),
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
        now, steps = time.monotonic(), int(pl_module.env_steps) - self._steps
        speed, learning = steps / (now - self._since), now - self._learning_since
        log(pl_module, {"time/env_steps_per_second": speed, "time/learning_seconds": learning})
        success = batch.rollout.ever_success.float().mean().item()
        self._bar.update(steps)
        self._bar.set_postfix(iteration=int(pl_module.iteration), success=f"{success:.2f}")
        self._since, self._steps = now, self._steps + steps

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the terminal clean for what is printed next."""
        self._bar.close()

    on_exception = on_train_end

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            tqdm.write(" ".join(map(str, args)))
