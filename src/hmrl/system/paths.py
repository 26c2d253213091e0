"""Paths that come in from the user."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hmrl.system.errors import UserError


def local_path(given: Any, name: str, *, folder: bool = True) -> Path:
    """``given`` with ``~`` expanded: where a path comes in, so that all who use it read it alike.

    Args:
        given: what the user gave.
        name: of what it was given as.
        folder: whether it is to be a directory, there already or not.

    Raises:
        UserError: if it can be none.
    """
    text = str(given)
    if not isinstance(given, str | Path) or not text or "\0" in text:
        raise UserError(f"{name} is {given!r}, but it must be a path")
    if re.match(r"[\w+.:-]{2,}:/", text):
        raise UserError(f"{name} is {text}, but it must be a path on this machine")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name} is {text}, but there is no such home directory") from error
    there = next(part for part in (path, *path.parents) if os.path.lexists(part) or part == part.parent)
    if folder and not os.path.isdir(there):
        raise UserError(f"{name} is {text}: {there} is a file, but it must be a folder")
    return path


def file_to_write(given: Any) -> Path:
    """``given`` as ``--out`` of a program that writes one file, checked before its work is done.

    Raises:
        UserError: if it is a folder, or cannot be in one.
    """
    path = local_path(given, "--out", folder=False)
    if path.is_dir():
        raise UserError(f"--out is {path}, which is a folder: name a file")
    local_path(path.parent, "--out")
    return path
