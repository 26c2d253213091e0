"""Which code ran: what a number needs beside it."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "hmrl",
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "metaworld",
    "mujoco",
    "gymnasium",
    "envpool",
    "numpy",
)


def provenance() -> dict[str, Any]:
    """Which code ran: ``git``, ``packages``, ``python``, ``platform``."""
    return {
        "git": git_revision(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def git_revision() -> dict[str, Any] | None:
    """``revision`` of the checkout that this file belongs to, and whether source or configurations were
    ``modified``, when first asked for; None for an installed copy.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        options: dict[str, Any] = {"text": True, "check": True, "timeout": 10, "start_new_session": True}
        return str(subprocess.run(command, capture_output=True, **options).stdout)  # Ctrl-C is not for it

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {
            "revision": git("rev-parse", "HEAD").strip(),
            "modified": bool(git("status", "--porcelain", "--", ":/src", ":/configs")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
