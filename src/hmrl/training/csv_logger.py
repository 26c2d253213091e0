"""A CSV log that survives a restart, and a kill at any moment."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

Row = dict[str, Any]


class _ContinuedWriter(ExperimentWriter):
    """Lightning's writer, except that it appends to what is there and never leaves half a file."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the log of a run that is continued."""

    def save(self) -> None:
        """Append the rows that were logged; with new columns, write the file anew."""
        if not self.metrics:
            return
        if self._record_new_keys() or not self._path.is_file():
            self.rewrite(lambda row: True)
            return
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, fieldnames=self.metrics_keys).writerows(self.metrics)
        self.metrics = []

    def rewrite(self, keep: Callable[[Row], bool]) -> None:
        """Replace the file at once by the rows to keep and those not yet written."""
        rows: list[Row] = []
        if self._path.is_file():
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        # A kill may have cut the last row.
        rows = [row for row in rows if None not in row and None not in row.values() and keep(row)]
        self.metrics_keys = sorted({*self.metrics_keys, *(key for row in rows for key in row)})
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows([*rows, *self.metrics])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        self.metrics = []


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
