"""What all tests share: one thread each, for as many run as there are cores, and the longest first."""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before PyTorch is imported; processes that tests start inherit it

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs take minutes: started last, they would keep one worker busy when the others have ended."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)
