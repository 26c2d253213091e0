"""What all tests share: one thread each, for as many run as there are cores, and the longest first."""

from __future__ import annotations

import os

# Before PyTorch is imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

LONGEST_FIRST = ("end_to_end", "contract", "integration", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs take minutes: started last, they would keep one worker busy when the others have ended."""
    items.sort(key=lambda item: [folder in item.path.parts for folder in LONGEST_FIRST], reverse=True)
