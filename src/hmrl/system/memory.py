"""Keeping a long run's memory flat, with what glibc offers; on other C libraries nothing is done."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_LARGE = 12 << 20  # bytes; a simulator's model and data are larger, tensors of a gradient step smaller
_KEPT = 128 << 20  # bytes at the top of a heap, about what a gradient step allocates and frees


def keep_heaps_small() -> None:
    """Two heaps for all threads, and large blocks outside them. Call it before simulators are made.

    Simulators and their threads come and go with evaluations. A heap of its own for each thread stays
    behind partly filled; and once a large block has been freed, glibc would take the next ones from a
    heap, where they leave holes. Together, that made a run of the smoke configuration grow by a fifth.

    The heaps keep what a gradient step frees. To give it back and fetch it again in the next step, page by
    page, took a fifth of the time of learning; :func:`give_back_memory` does it once an iteration.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back_memory() -> None:
    """Return to the operating system what updates and closed simulators have freed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
