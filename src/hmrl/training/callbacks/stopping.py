"""Stopping at a budget, or when asked to: the iteration ends, and the run can be continued."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from hmrl.system.errors import SharedError, UserError
from hmrl.system.terminal import INTERRUPTED, ended_by, hold_signals, is_first_process, stop_signals
from hmrl.training.callbacks.common import callbacks_of
from hmrl.training.callbacks.last_checkpoint import LastCheckpoint, between_epochs
from hmrl.training.lightning_private import cluster_environment, kill_launched, requeue_handler


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
        self.on_train_batch_end(trainer, pl_module)
        if int(pl_module.env_steps) >= self.env_steps and trainer.is_global_zero:
            print(
                f"the budget of {self.env_steps:,} environment steps is spent "
                f"({int(pl_module.env_steps):,} taken): raise budget.env_steps to train on"
            )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Environment steps are counted over all ranks, so that all stop together."""
        if int(pl_module.env_steps) >= self.env_steps:
            trainer.should_stop = True
            # Evaluate at the end of this epoch, whether or not its turn has come.
            trainer.check_val_every_n_epoch = 1


class GracefulStop(pl.Callback):
    """Ends training after the iteration in which any rank was sent SIGTERM, SIGHUP or Ctrl-C.

    The handler only sets a flag, and ranks agree on it between iterations. A second Ctrl-C aborts
    at once. SLURM's requeue signal is Lightning's to handle, but between two iterations, where a checkpoint
    is whole.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._requeue: Any = None  # Lightning's handler
        self._requeue_asked = self._stopped = False
        self._listening = ExitStack()  # closing it brings back the handlers that were there

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
        handlers: dict[int, Any] = dict.fromkeys(stop_signals(), self._handle)
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = requeue_handler(trainer)
            handlers[environment.requeue_signal or signal.SIGUSR1] = self._handle_requeue
        for signum, handler in handlers.items():
            self._listening.callback(signal.signal, signum, signal.signal(signum, handler))
        if trainer.world_size > 1:  # the second Ctrl-C, where this process waits for another
            say = INTERRUPTED if is_first_process() else ""
            self._listening.enter_context(ended_by((signal.SIGINT,), say, times=2, grace=5))

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """From here on, all ranks have started and a signal stops the run in order."""
        if stage == "fit":
            self._asked, self._requeue_asked, self._stopped = None, False, False
            if threading.current_thread() is threading.main_thread():
                self._listen(trainer)
            hold_signals(False)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Signals are the caller's again."""
        self._listening.close()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Ranks agree whether to stop after this iteration, its evaluation included."""
        if trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False):
            trainer.should_stop = self._stopped = True

    on_train_start = on_train_epoch_end  # whether to begin at all

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
        steps, where = int(pl_module.env_steps), "start it again with the same command"
        saved = [c.path for c in callbacks_of(trainer, LastCheckpoint) if c.path.is_file()]
        if steps and saved:
            where = f"{saved[0]} holds them: continue with --ckpt_path last"
        print(f"stopped as asked after {steps:,} environment steps; {where}")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """What stops the first rank alone must not leave the processes that it launched waiting for it."""
        hold_signals(False)
        if not isinstance(exception, SharedError):
            kill_launched(trainer)
        self.teardown()
