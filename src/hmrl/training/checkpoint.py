"""Checkpoint files: written whole or not at all, each with a small weights-only twin."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.system.provenance import git_revision

# What weights mean: in 1 (or without it) deviations are clamped to their range, in 2 bounded smoothly.
FORMAT = 2
# What the twin keeps: networks, normaliser, average beliefs and configuration. No optimizers, no replay.
_EXPORTED = (
    *("state_dict", "hyper_parameters", "datamodule_hyper_parameters", "pytorch-lightning_version"),
    *("epoch", "global_step", "git", "format", "init_from", "average_beliefs"),
)


def weights_path(path: str | Path) -> Path:
    """``dir/best.ckpt`` -> ``dir/best.weights.ckpt``."""
    return Path(path).with_suffix(".weights.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file beside the target, syncs, and renames: the newest checkpoint always loads.

    Beside each checkpoint goes its weights-only export (see :func:`weights_path`), which both
    ``hmrl test --ckpt_path`` and ``HierarchicalMetaRL.load_from_checkpoint`` take.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` to ``path`` and its export beside it.

        Raises:
            UserError: if that cannot be done; the files that were there are as they were.
        """
        path, checkpoint = Path(path), {**checkpoint, "git": git_revision(), "format": FORMAT}
        export = {k: checkpoint[k] for k in _EXPORTED if k in checkpoint}
        # A kill between the two renames leaves the newer export: a continued run makes that one again.
        contents = {weights_path(path): export, path: checkpoint}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for target, content in contents.items():
                with _temporary(target).open("wb") as file:
                    torch.save(content, file)
                    file.flush()
                    os.fsync(file.fileno())
            for target in contents:  # both are whole: what remains is two renames
                _temporary(target).replace(target)
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            raise UserError(
                f"{path} could not be written ({error}): the checkpoint before it is intact; make room, then "
                "continue with --ckpt_path last"
            ) from error
        finally:
            for target in contents:
                with suppress(OSError):
                    _temporary(target).unlink()

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """:func:`load`: tensors and plain values, whatever ``weights_only`` says."""
        return load(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its export."""
        super().remove_checkpoint(path)
        super().remove_checkpoint(weights_path(path))


def _temporary(path: Path) -> Path:
    """On the same file system; always the same, so that a kill leaves at most one behind."""
    return path.with_name(f".{path.name}.tmp")


def load(path: str | Path, *, lazily: bool = False, key: str = "ckpt_path") -> dict[str, Any]:
    """A checkpoint or export on the CPU; tensors and plain values only, so loading runs no code.

    Args:
        path: the file.
        lazily: read tensors when they are used, while the file is as it is.
        key: the setting that names the file.

    Raises:
        UserError: if there is no such file, or it is no checkpoint of this package.
    """
    path = local_path(path, key, folder=False)
    if not path.is_file():
        names = ", last or best" if key == "ckpt_path" else ""
        raise UserError(f"there is no checkpoint at {path}: {key} must be a .ckpt file{names}")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than tensors and plain values, and reading it could run code; "
            "use a checkpoint that hmrl has written"
        ) from error
    except Exception as error:
        raise UserError(f"{path} is no readable checkpoint (truncated, or not written by hmrl)") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= set(content):
        raise UserError(f"{path} is no checkpoint of hmrl: it has no state_dict and hyper_parameters")
    return content


def env_steps_of(content: dict[str, Any] | None) -> int:
    """The environment steps that a loaded checkpoint was taken at; 0 for none."""
    return int(content["state_dict"]["env_steps"]) if content else 0


def env_steps_at(path: str | Path) -> int:
    """The same of a file, of which no more is read than that."""
    return env_steps_of(load(path, lazily=True))
