"""The lowest versions that pyproject.toml allows, for pip; torch as constraints.txt pins it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name, lowest = re.match(r"([\w-]+).*?>=([\w.]+)", requirement).groups()
        if name != "torch":  # a looser range brings gigabytes of another build
            print(f"{name}=={lowest}")
    print(*re.findall(r"^torch==.*", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


if __name__ == "__main__":
    main()
