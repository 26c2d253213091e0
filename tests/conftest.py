"""What all tests share: one thread each, for as many run as there are cores, and the longest first."""

from __future__ import annotations

import os

# Before PyTorch is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Files that take a minute or more, then folders.
LONGEST_FIRST = (
    *("test_terminal.py", "test_backends_agree.py", "test_interruption.py", "test_gridworld.py"),
    *("test_experiments.py", "test_launchers.py", "test_trained_policy.py", "test_curriculum.py"),
    *("test_goals.py", "test_faults.py", "test_bad_input.py", "test_smoke.py"),
    *("end_to_end", "contract", "integration", "unit"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Started last, a long file would keep one worker busy when the others have ended."""
    items.sort(key=lambda item: [name in item.path.parts for name in LONGEST_FIRST], reverse=True)
