"""Checkpoint files: written whole or not at all, each with a small weights-only twin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from hmrl.types import UserError

# What the twin keeps: networks, normaliser and configuration. No optimizers, no replay.
_EXPORTED = (
    "state_dict",
    "hyper_parameters",
    "datamodule_hyper_parameters",
    "pytorch-lightning_version",
    "epoch",
    "global_step",
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
        """Write ``checkpoint`` to ``path`` and its export beside it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _write(checkpoint, Path(path))
        _write({k: checkpoint[k] for k in _EXPORTED if k in checkpoint}, weights_path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its export."""
        super().remove_checkpoint(path)
        super().remove_checkpoint(weights_path(path))


def _write(content: dict[str, Any], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> dict[str, Any]:
    """A checkpoint or export on the CPU; tensors and plain values only, so loading runs no code.

    Raises:
        UserError: if there is no such file, or it is no checkpoint of this package.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is no readable checkpoint (truncated, or not written by hmrl)") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= set(content):
        raise UserError(f"{path} is no checkpoint of hmrl: it has no state_dict and hyper_parameters")
    return content


def env_steps_at(path: str | Path | None) -> int:
    """The environment steps that a checkpoint was taken at; 0 for a run without one."""
    return int(load(path)["state_dict"]["env_steps"]) if path else 0
