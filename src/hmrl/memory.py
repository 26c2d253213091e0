"""Memory that is free should be the machine's."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Return to the operating system what updates and closed simulators have freed.

    glibc keeps it in the arenas of their threads, scattered: a run grew by a fifth within 80 iterations.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
