"""Stopping when asked to: the iteration ends, a checkpoint is saved, and the run can be continued."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from hmrl.callbacks.last_checkpoint import LastCheckpoint, between_epochs
from hmrl.distributed import is_first_process
from hmrl.types import SharedError

_STOP = (signal.SIGTERM, signal.SIGINT)


def hold_signals(hold: bool) -> None:
    """Keep SIGTERM, Ctrl-C and SLURM's SIGUSR1 pending, for this process and those that it starts."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {*_STOP, signal.SIGUSR1})


class GracefulStop(pl.Callback):
    """Ends training after the iteration in which any rank was sent SIGTERM or Ctrl-C.

    Lightning's own SIGTERM handler talks to the other ranks from inside the handler, which can hang; this
    one only sets a flag, and ranks agree on it between iterations. A second Ctrl-C aborts at once. SLURM's
    requeue signal is Lightning's to handle, but between two iterations, where a checkpoint is whole.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._requeue_asked = False
        self._requeue: Any = None  # Lightning's handler
        self._stopped = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._asked is signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signal.Signals(signum)
        if is_first_process():
            again = "; again to abort at once" if signum == signal.SIGINT else ""
            # print() is not safe here: the signal may have come in the middle of one.
            os.write(2, f"\n{self._asked.name}: stopping after this iteration{again}\n".encode())

    def _handle_requeue(self, signum: int, frame: FrameType | None) -> None:
        self._requeue_asked = True

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in _STOP:
                signal.signal(signum, self._handle)

    # --- Lightning -------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """From here on, all ranks have started and a signal stops the run in order."""
        if stage == "fit":
            self._asked, self._requeue_asked, self._stopped = None, False, False
            self._listen()
            hold_signals(False)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lightning is about to register its handlers: what comes now waits until they are replaced."""
        hold_signals(True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Replace Lightning's handlers."""
        self._listen()
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            signum = environment.requeue_signal
            if signum is not None and callable(handler := signal.getsignal(signum)):
                self._requeue = handler
                signal.signal(signum, self._handle_requeue)
        hold_signals(False)
        self._agree(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collective. Ranks agree whether to stop after this iteration."""
        self._agree(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Between two iterations, let Lightning save and requeue the SLURM job."""
        if self._requeue and trainer.strategy.reduce_boolean_decision(self._requeue_asked, all=False):
            self._requeue_asked = False
            with between_epochs(trainer):
                self._requeue(signal.SIGUSR1, None)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say how to continue."""
        if not (self._stopped and trainer.is_global_zero):
            return
        steps, callbacks = int(pl_module.env_steps), trainer.callbacks  # type: ignore[attr-defined]
        saved = [c for c in callbacks if isinstance(c, LastCheckpoint)]
        if steps and saved:
            where = f"{saved[0].path} holds them: continue with --ckpt_path last"
        else:
            where = "start it again with the same command"
        print(f"stopped as asked after {steps:,} environment steps; {where}")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """What stops the first rank alone must not leave the processes that it launched waiting for it."""
        hold_signals(False)
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher) and not isinstance(exception, SharedError):
            launcher.kill(signal.SIGKILL)

    def _agree(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False):
            trainer.should_stop = self._stopped = True
