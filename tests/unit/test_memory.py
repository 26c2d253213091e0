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
def faults(size, times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        block = libc.malloc(ctypes.c_size_t(size))
        libc.memset(block, 1, size)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for size in (1 << 20, 16 << 20):
    faults(size, 2)
    print(faults(size, 20) * resource.getpagesize() / size)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_memory_of_a_gradient_step_is_fetched_once() -> None:
    """As tensors of a mebibyte and of sixteen, twenty times: not a page is fetched again."""
    command = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(float(times) < 0.5 for times in said.split()), said
