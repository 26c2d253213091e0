"""Configuration files: the ones that the package brings along (``configs/``), and how they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from hmrl.system.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


def config_file(name: str) -> str:
    """``name`` where it is a file or no name, else the package's own file: ``ml10``, ``baselines/flat``.

    The paths that they have in the repository, as ``configs/ml10.yaml``, do as well.
    """
    if not re.fullmatch(r"\w[\w/.-]*", name) or Path(name).is_file():
        return name
    own = CONFIGS / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return str(own) if own.is_file() else name


def _mapping(loader: Any, node: yaml.MappingNode) -> Any:
    """PyYAML keeps the last of two equal keys, and says nothing."""
    before: list[Any] = []
    for key, _ in node.value:
        if key.value in before:
            raise UserError(f"line {key.start_mark.line + 1} has the key {key.value} again: keep one")
        before.append(key.value)
    return loader.construct_yaml_map(node)


_Loader = get_yaml_default_loader()  # what jsonargparse reads everything with
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, read as configurations are.

    Raises:
        UserError: if it is none, or has a key twice.
    """
    try:
        return yaml.load(path.read_text(), Loader=_Loader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from error
