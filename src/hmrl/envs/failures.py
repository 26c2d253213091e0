"""Saying whose simulator it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hmrl.system.errors import UserError


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
