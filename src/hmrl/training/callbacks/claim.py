"""One run, one directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from hmrl.results.file import BEGINNING
from hmrl.system.distributed import together
from hmrl.training.callbacks.common import callbacks_of
from hmrl.training.run_directory import claim, clear, continues, rewind


class RunDirectory(pl.Callback):
    """Claims the directory before training, and lets its logs continue where training does.

    A fit continues the run there if it is given one of the run's checkpoints, wherever it was written.

    Args:
        run_dir: the directory.
        overwrite: whether the first fit may lose a run, or results, that are there; another one may not.
    """

    def __init__(self, run_dir: str, overwrite: bool = False) -> None:
        self.run_dir, self.overwrite = run_dir, overwrite

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The best score so far is the run's, whatever its directory was called; another run has its own."""
        states, continued = checkpoint["callbacks"], continues(self.run_dir, trainer.ckpt_path)
        for callback in callbacks_of(trainer, ModelCheckpoint):
            state = states.pop(callback.state_key, None)
            if state and continued:
                states[callback.state_key] = _moved(state, callback)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Claim the directory, which only the first rank writes to."""
        with together():
            if trainer.is_global_zero:
                claim(self.run_dir, trainer.ckpt_path, overwrite=self.overwrite)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drop what was logged beyond the checkpoint; of a run that is written over, everything.

        Beside the logs it leaves a note of where they begin.
        """
        if not trainer.is_global_zero:
            return
        continued, env_steps = continues(self.run_dir, trainer.ckpt_path), int(pl_module.env_steps)
        if self.overwrite and continued:
            rewind(self.run_dir, env_steps)
        elif self.overwrite:
            clear(self.run_dir)
        self.overwrite = False
        for logger in trainer.loggers:
            if hasattr(logger, "resume"):  # ours
                logger.resume(env_steps if continued else 0)
        if not continued:  # reports ask whether a run is fine-tuned, and its log whole
            beginning = {"env_steps": env_steps, "init_from": getattr(pl_module, "initial", None)}
            (Path(self.run_dir) / BEGINNING).write_text(json.dumps(beginning, indent=2))


def _moved(state: dict[str, Any], callback: ModelCheckpoint) -> dict[str, Any]:
    """What ``callback`` has saved, with its files where they are now."""

    folder = str(callback.dirpath)
    paths = {
        k: path and str(Path(folder, Path(path).name)) for k, path in state.items() if k.endswith("_path")
    }
    best = {str(Path(folder, Path(path).name)): score for path, score in state["best_k_models"].items()}
    return {**state, **paths, "best_k_models": best, "dirpath": folder}
