"""The configurations that the package brings along, in a checkout those of ``configs/``."""

from __future__ import annotations

import re
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"


def config_file(name: str) -> str:
    """``name`` where it is a file or no name, else the package's own file: ``ml10``, ``experiments/flat``.

    The names that the README gives, as ``configs/ml10.yaml``, do as well.
    """
    if not re.fullmatch(r"\w[\w/.-]*", name) or Path(name).is_file():
        return name
    own = CONFIGS / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return str(own) if own.is_file() else name
