"""What a process knows before PyTorch is imported: whether it is the first, and which signals wait."""

from __future__ import annotations

import signal

from lightning_utilities.core.rank_zero import (
    rank_zero_only,
)  # Lightning, where it is imported, sets its rank


def is_first_process() -> bool:
    """Whether this process speaks for all; known from the launcher, before ranks are connected."""
    return not getattr(rank_zero_only, "rank", 0)


def hold_signals(hold: bool) -> None:
    """Keep SIGTERM, Ctrl-C and SLURM's SIGUSR1 pending, for this process and those that it starts."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
