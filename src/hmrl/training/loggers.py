"""Logs that go on where a run does: ``metrics.csv``, TensorBoard, and Weights & Biases if asked.

Training starts with ``resume(env_steps)`` of each logger: 0 begins another run than any before.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from hmrl.system.errors import UserError


class _ContinuedWriter(ExperimentWriter):
    """Lightning's writer, except that it appends to what is there and never leaves half a file."""

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the log of a run that is continued."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self.rewrite(lambda row: True)

    def rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Replace the file at once by the rows to keep."""
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        # A kill may have cut the last row.
        rows = [row for row in rows if None not in row and None not in row.values() and keep(row)]
        self.metrics_keys = sorted({*self.metrics_keys, *(key for row in rows for key in row)})
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger, except that a continued run continues ``metrics.csv``.

    Args:
        directory: folder of ``metrics.csv``.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None:
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return self._experiment

    def resume(self, env_steps: int) -> None:
        """Keep the rows up to so many environment steps: the continued run writes the later ones again."""
        if Path(self.experiment.metrics_file_path).is_file():
            self.experiment.rewrite(lambda row: 0 < float(row["step"]) <= env_steps)


class ContinuedTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, except that it shows nothing twice where a run goes on."""

    def resume(self, env_steps: int) -> None:
        """Hide what lies beyond so many environment steps: the continued run writes it again."""
        self.experiment.close()  # the next file begins with the mark
        self.experiment.purge_step = env_steps + 1


@dataclass
class WandbConfig:
    """Where a run appears on Weights & Biases.

    Args:
        project: there.
        name: of the run; None for that of the run directory.
        entity: user or team; None for the one that is logged in.
        offline: keep everything on this machine, for ``wandb sync``.
    """

    project: str = "hmrl"
    name: str | None = None
    entity: str | None = None
    offline: bool = False


class EnvStepsWandbLogger(WandbLogger):
    """Lightning's logger, except that the x-axis is environment steps and a resumed run goes on as the same.

    What a run logs again after resuming from an earlier iteration stays there twice, with equal values.

    Args:
        run_dir: of the run; its file ``wandb_id`` keeps the run's id.
        config: where it appears.
        settings: the run's whole configuration, as plain values.

    Raises:
        UserError: if the package is missing.
    """

    def __init__(self, run_dir: str, config: WandbConfig, settings: Mapping[str, Any]) -> None:
        self._id_file = Path(run_dir) / "wandb_id"
        try:
            super().__init__(
                name=config.name or Path(run_dir).resolve().name,
                save_dir=run_dir,
                project=config.project,
                entity=config.entity,
                config=dict(settings),
                allow_val_change=True,  # a budget may grow
                mode="offline" if config.offline else None,  # else the environment variable WANDB_MODE's
            )
        except ModuleNotFoundError as error:
            raise UserError(
                "logging to Weights & Biases needs the package wandb: pip install wandb, or set wandb to null"
            ) from error
        self._wandb_init.pop("anonymous")  # has no effect any more, and is warned about

    @property
    def experiment(self) -> Any:
        """The run, from :meth:`resume` on.

        Raises:
            AttributeError: before; Lightning, which asks sooner, then takes it for absent.
        """
        if self._experiment is None:
            raise AttributeError("a run begins on Weights & Biases when its training does")
        return self._experiment

    def resume(self, env_steps: int) -> None:
        """Continue the run, or begin another at 0 environment steps.

        Raises:
            UserError: if Weights & Biases refuses it.
        """
        self._wandb_init["id"] = None
        if env_steps and self._id_file.is_file():
            self._wandb_init["id"] = self._id_file.read_text().strip()
        self._begin()

    def _begin(self) -> Any:
        import wandb

        try:
            self._experiment = run = wandb.init(**self._wandb_init)
        except wandb.errors.Error as error:
            raise UserError(
                f"Weights & Biases does not take this run ({error}): log in with `wandb login`, set "
                "wandb.offline true, or set wandb to null"
            ) from error
        run.define_metric("env_steps")
        run.define_metric("*", step_metric="env_steps")
        self._wandb_init["id"] = run.id
        self._id_file.write_text(f"{run.id}\n")
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log at ``step`` environment steps, also of a test after training."""
        run = self._experiment or self._begin()
        run.log({**metrics, "env_steps": step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Say how the run ended; it can still go on."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status == "failed"))
            self._experiment = None


def loggers(
    run_dir: str, wandb: WandbConfig | None = None, settings: Mapping[str, Any] | None = None
) -> list[Logger]:
    """TensorBoard and ``metrics.csv`` in ``run_dir``, and Weights & Biases if ``wandb`` says where.

    Args:
        settings: of the run, to be told there.
    """
    local: list[Logger] = [
        ContinuedCSVLogger(run_dir),
        ContinuedTensorBoardLogger(run_dir, name="", version="", sub_dir="tensorboard"),
    ]
    return local + ([EnvStepsWandbLogger(run_dir, wandb, settings or {})] if wandb else [])
