"""What a terminal or a scheduler does to a process: it sends signals, and no longer takes output."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only  # its rank is set by Lightning, where it runs

INTERRUPTED = "hmrl: interrupted; the last checkpoint, if there was one, is intact\n"


def is_first_process() -> bool:
    """Whether this process speaks for all; known from the launcher, before ranks are connected."""
    return not getattr(rank_zero_only, "rank", 0)


# --- output --------------------------------------------------------------------------------------


def outlive_output() -> None:
    """From now on, output that nobody takes is lost without an error: what is printed is decoration.

    For as long as the process lives, its last flush included, and for whoever holds the streams already.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # closed: the next file that is opened would get the number, and what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if not hasattr(stream, "outlived"):
            with suppress(AttributeError):  # an object of the caller's that is what it is
                for name in ("write", "flush"):
                    setattr(stream, name, partial(_quietly, getattr(stream, name), stream))
                setattr(stream, "outlived", True)  # noqa: B010


def _quietly(call: Callable[..., Any], stream: Any, *args: Any) -> Any:
    try:
        return call(*args)
    except (OSError, ValueError) as error:  # ValueError: closed, or letters that the terminal does not have
        if getattr(error, "errno", None) in (errno.EIO, errno.EPIPE):  # gone for good, for children, too
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return len(args[0]) if args else None


# --- signals -------------------------------------------------------------------------------------


def stop_signals() -> tuple[signal.Signals, ...]:
    """What asks to stop: SIGTERM, Ctrl-C, and SIGHUP where it is not ignored (as under ``nohup``)."""
    always = (signal.SIGTERM, signal.SIGINT)
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return always
    return (*always, signal.SIGHUP)


def hold_signals(hold: bool) -> None:
    """Keep what asks to stop, and SLURM's SIGUSR1, pending for this process and those that it starts."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {*stop_signals(), signal.SIGUSR1})


@contextmanager
def out_of_reach() -> Iterator[None]:
    """Processes that are started inside never hear of signals to the whole group, as Ctrl-C is."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if hasattr(signal, "pthread_sigmask") else ()
    hold_signals(True)
    try:
        yield
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def ended_by(
    signals: tuple[signal.Signals, ...], say: str, times: int = 1, grace: float = 0
) -> Iterator[None]:
    """End the process, with exit code 130, where a library waits and Python's own handlers cannot run.

    Args:
        signals: that a handler in Python listens to.
        say: last words.
        times: how many of them it takes.
        grace: seconds from the last one on, in which the block may end by itself.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    left = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader, signals, say, times, grace, left), daemon=True)
    watch.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        watch.join()
        os.close(reader)


def _watch(
    reader: int,
    signals: tuple[signal.Signals, ...],
    say: str,
    times: int,
    grace: float,
    left: threading.Event,
) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)  # the main thread may hold them
    while heard := os.read(reader, 1):
        times -= heard[0] in signals
        if times <= 0 and not left.wait(grace):
            with suppress(OSError):
                os.write(2, say.encode())
            os._exit(130)
