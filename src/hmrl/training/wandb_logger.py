"""Weights & Biases beside the other logs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import WandbLogger

from hmrl.system.errors import UserError

_X_AXIS = "env_steps"


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

    def __post_init__(self) -> None:
        if not self.project:
            raise UserError("wandb.project is '', but it must be the name of a project")


def wandb_id_file(run_dir: str) -> Path:
    """Where a run keeps its id on Weights & Biases, so that a resumed one is the same run there, too."""
    return Path(run_dir) / "wandb_id"


class EnvStepsWandbLogger(WandbLogger):
    """Lightning's logger, except that the x-axis is environment steps and a resumed run goes on as the same.

    What a run logs again after resuming from an earlier iteration stays there twice, with equal values.

    Args:
        run_dir: of the run.
        config: where it appears.
        settings: the run's whole configuration, as plain values.

    Raises:
        UserError: if the package is missing.
    """

    def __init__(self, run_dir: str, config: WandbConfig, settings: Mapping[str, Any]) -> None:
        self._id_file, self._is_kept, self._begun = wandb_id_file(run_dir), False, False
        try:
            super().__init__(
                name=config.name or Path(run_dir).resolve().name,
                save_dir=run_dir,
                version=secrets.token_hex(4),
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
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun or continued at first use.

        Raises:
            AttributeError: before training starts; Lightning, which asks sooner, then takes it for absent.
            UserError: if Weights & Biases refuses it.
        """
        if not self._begun:
            raise AttributeError("a run begins on Weights & Biases when its training does")
        if self._experiment is None:
            import wandb

            Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)
            try:
                run = wandb.init(**self._wandb_init)
            except wandb.errors.Error as error:
                raise UserError(
                    f"Weights & Biases does not take this run ({error}): log in with `wandb login`, set "
                    "wandb.offline true, or set wandb to null"
                ) from error
            run.define_metric(_X_AXIS)
            run.define_metric("*", step_metric=_X_AXIS)
            self._experiment = run
        return self._experiment

    def resume(self, env_steps: int) -> None:
        """Training starts, at so many environment steps; from 0 on as another run than any before."""
        self._begun = True
        if env_steps and self._id_file.is_file():
            self._id = self._wandb_init["id"] = self._id_file.read_text().strip()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log at ``step`` environment steps."""
        if not self._is_kept:  # no sooner, since the run may yet be refused where another one is
            self._id_file.write_text(f"{self.version}\n")
            self._is_kept = True
        self.experiment.log({**metrics, _X_AXIS: step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Say how the run ended; it can still go on."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status == "failed"))
            self._experiment = None
