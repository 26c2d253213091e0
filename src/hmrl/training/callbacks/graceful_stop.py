"""Stopping when asked to: the iteration ends, a checkpoint is saved, and the run can be continued."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from hmrl.system.errors import SharedError
from hmrl.system.terminal import INTERRUPTED, ended_by, hold_signals, is_first_process, stop_signals
from hmrl.training.callbacks.last_checkpoint import LastCheckpoint, between_epochs
from hmrl.training.lightning_private import cluster_environment, kill_launched, requeue_handler


class GracefulStop(pl.Callback):
    """Ends training after the iteration in which any rank was sent SIGTERM, SIGHUP or Ctrl-C.

    The handler only sets a flag, and ranks agree on it between iterations. A second Ctrl-C aborts
    at once. SLURM's requeue signal is Lightning's to handle, but between two iterations, where a checkpoint
    is whole.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._requeue_asked = False
        self._requeue: Any = None  # Lightning's handler
        self._stopped = False
        self._before: dict[int, Any] = {}  # the handlers that were there
        self._waiting = ExitStack()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._asked is signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signal.Signals(signum)
        if is_first_process():
            again = "; again to abort at once" if signum == signal.SIGINT else ""
            # print() is not safe here: the signal may have come in the middle of one.
            with suppress(OSError):  # nobody may be listening any more
                os.write(2, f"\n{self._asked.name}: stopping after this iteration{again}\n".encode())

    def _handle_requeue(self, signum: int, frame: FrameType | None) -> None:
        self._requeue_asked = True

    def _listen(self, trainer: pl.Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handlers: dict[int, Any] = dict.fromkeys(stop_signals(), self._handle)
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = requeue_handler(trainer)
            handlers[environment.requeue_signal or signal.SIGUSR1] = self._handle_requeue
        self._before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        if trainer.world_size > 1:  # the second Ctrl-C, where this process waits for another
            say = INTERRUPTED if is_first_process() else ""
            self._waiting.enter_context(ended_by((signal.SIGINT,), say, times=2, grace=5))

    def _hear_no_more(self) -> None:
        self._waiting.close()
        while self._before:
            signal.signal(*self._before.popitem())

    # --- Lightning -------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """From here on, all ranks have started and a signal stops the run in order."""
        if stage == "fit":
            self._asked, self._requeue_asked, self._stopped = None, False, False
            self._listen(trainer)
            hold_signals(False)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Signals are the caller's again."""
        self._hear_no_more()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Ranks agree whether to begin at all."""
        self._agree(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Ranks agree whether to stop after this iteration, its evaluation included."""
        self._agree(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Between two iterations, let Lightning save and requeue the SLURM job."""
        if self._requeue and trainer.strategy.reduce_boolean_decision(self._requeue_asked, all=False):
            self._requeue_asked = False
            with between_epochs(trainer):
                self._requeue(signal.SIGUSR1, None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Both may have come in one iteration."""
        if self._stopped:
            self.on_train_epoch_start(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say how to continue."""
        if not (self._stopped and trainer.is_global_zero):
            return
        steps, callbacks = int(pl_module.env_steps), trainer.callbacks  # type: ignore[attr-defined]
        saved = [c.path for c in callbacks if isinstance(c, LastCheckpoint) and c.path.is_file()]
        if steps and saved:
            where = f"{saved[0]} holds them: continue with --ckpt_path last"
        else:
            where = "start it again with the same command"
        print(f"stopped as asked after {steps:,} environment steps; {where}")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """What stops the first rank alone must not leave the processes that it launched waiting for it."""
        hold_signals(False)
        if not isinstance(exception, SharedError):
            kill_launched(trainer)
        self._hear_no_more()

    def _agree(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False):
            trainer.should_stop = self._stopped = True
