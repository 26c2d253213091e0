"""What is asked of the C library's allocator."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from hmrl.system.memory import keep_heaps_small
keep_heaps_small()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults(size, blocks):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [libc.malloc(ctypes.c_size_t(size)) for _ in range(blocks)]
    for block in held:
        libc.memset(block, 1, size)
    for block in reversed(held):
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for size in (1 << 20, 8 << 20):
    blocks = (100 << 20) // size
    faults(size, blocks)
    print(faults(size, blocks) * resource.getpagesize() / (size * blocks))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_memory_of_a_gradient_step_is_fetched_once() -> None:
    """A hundred mebibytes in blocks of one or of eight: freed, and not fetched again."""
    command = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(float(share) < 0.1 for share in said.split()), said
