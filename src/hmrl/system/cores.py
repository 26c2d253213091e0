"""Which of the machine's cores a process may use."""

from __future__ import annotations

import os


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on; where the system does not say, of all of them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def share_of_cores(job: int, jobs: int) -> list[int]:
    """The cores of one of ``jobs`` processes side by side: its own, as long as there are enough."""
    cores = usable_cores()
    return cores[job % len(cores) :: jobs]


def keep_to(cores: list[int]) -> None:
    """Bind the calling thread, and every process that it starts, to ``cores``; nothing where it cannot be."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
