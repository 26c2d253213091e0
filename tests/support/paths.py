"""Where things lie, and the command line's smallest configuration."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
CONFIGS = ROOT / "configs"
TINY = ["--config", str(CONFIGS / "ml10.yaml"), "--config", str(TESTS / "support" / "tiny.yaml")]


def environment(**changes: str) -> dict[str, str]:
    """For a program that imports ``support``: this process's environment, one thread, and ``changes``."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **changes}
