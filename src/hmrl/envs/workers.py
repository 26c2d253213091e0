"""Simulators: whose fault an error was, where their processes start, and that these end."""

from __future__ import annotations

import atexit
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import ModuleType
from weakref import WeakSet

from hmrl.system.errors import UserError
from hmrl.system.terminal import out_of_reach

_started: WeakSet[BaseProcess] = WeakSet()


@contextmanager
def simulator_of(family: str) -> Iterator[None]:
    """Name the family of a simulator that raises inside the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the simulator of family {family!r} failed ({type(error).__name__}: {error}); what was trained "
            "up to the last checkpoint is safe: continue from it"
        ) from error


@contextmanager
def process_of_a_simulator() -> Iterator[None]:
    """Say so where a process that simulates has ended by itself."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise UserError(
            f"a simulator's process has ended ({type(error).__name__}): it was killed, maybe for want of "
            "memory; what was trained up to the last checkpoint is safe: continue from it, with fewer "
            "environments if it happens again"
        ) from error


@contextmanager
def workers() -> Iterator[None]:
    """Simulators' processes are to be started inside: this one alone tells them when to end.

    They do not hear signals to the whole group, or Ctrl-C would leave nothing to finish the iteration with.
    They are spawned, for the threads of PyTorch and of EnvPool do not survive a fork. They do not import the
    caller's script, which they have no use for: so it needs no ``if __name__ == "__main__"``.
    """
    with out_of_reach():
        resource_tracker.ensure_running()  # it lets signals through where it is first started
    before, main = multiprocessing.get_start_method(allow_none=True), sys.modules["__main__"]
    there = set(multiprocessing.active_children())
    try:
        multiprocessing.set_start_method("spawn", force=True)
        sys.modules["__main__"] = ModuleType("__main__")
        with out_of_reach():
            yield
    finally:
        sys.modules["__main__"] = main
        multiprocessing.set_start_method(before, force=True)
        _started.update(set(multiprocessing.active_children()) - there)


@atexit.register
def _end() -> None:
    """Before multiprocessing waits for processes that do not hear its SIGTERM."""
    for process in _started:
        if process.is_alive():
            process.kill()
