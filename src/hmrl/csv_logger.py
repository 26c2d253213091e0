"""A CSV log that survives a restart."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger, except that a continued run continues ``metrics.csv``.

    Lightning deletes the file when its directory is used again. Here, rows up to the resumed step are
    kept and later ones, which the continued run repeats, are dropped.

    Args:
        directory: folder of ``metrics.csv``.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory, name="", version="", flush_logs_every_n_steps=1)
        self.resumed_at = 0  # environment steps; a fresh run starts the file anew

    @property
    @rank_zero_experiment  # the other ranks would delete the file before this one has read it
    def experiment(self) -> Any:
        """Lightning's writer, primed with the rows to keep."""
        if self._experiment is None:
            path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            kept: list[dict[str, Any]] = []
            if path.is_file():
                with path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
                whole = [row for row in rows if None not in row.values()]  # a kill may cut the last one
                kept = [row for row in whole if float(row["step"]) <= self.resumed_at]
                path.unlink()
            with warnings.catch_warnings():  # Lightning says that it will delete what was just kept
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                writer: Any = super().experiment
            writer.metrics.extend({k: v for k, v in row.items() if v != ""} for row in kept)
            writer.save()  # at once: the run may be killed before it logs
            return writer
        return super().experiment
