"""The command line: ``hmrl fit``, ``hmrl validate`` and ``hmrl test``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before torch is imported: idle OpenMP threads must not spin on the simulators' cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from hmrl import checkpoint
from hmrl.callbacks import EnvStepBudget, EnvStepsProgressBar, LastCheckpoint, SuccessRate
from hmrl.datamodule import MetaWorldDataModule
from hmrl.module import HierarchicalMetaRL
from hmrl.trainer import BEST_DEFAULTS, TRAINER_DEFAULTS, checkpoint_dir, fixed_options, loggers, strategy_for
from hmrl.types import UserError

_FROM_DATA = ("families", "observation_dim", "action_dim", "ego_indices")


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration beside the logs, when training and not when testing."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save on fit only: a test must not replace the configuration that trained."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class HmrlCLI(LightningCLI):
    """LightningCLI with this project's callbacks under keys of their own, so that overlays can set them."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks, run directory, one seed, and the dimensions that data decides."""
        parser.add_argument("--run_dir", type=str, default="runs/ml10", help="Logs, checkpoints and results.")
        parser.add_lightning_class_args(EnvStepBudget, "budget")
        parser.add_lightning_class_args(SuccessRate, "evaluation")
        parser.add_lightning_class_args(EnvStepsProgressBar, "progress")
        parser.add_lightning_class_args(ModelCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.set_defaults({f"best_checkpoint.{k}": v for k, v in BEST_DEFAULTS.items()})
        parser.link_arguments("run_dir", "evaluation.results_dir")
        parser.link_arguments("run_dir", "last_checkpoint.dirpath", compute_fn=checkpoint_dir)
        parser.link_arguments("run_dir", "best_checkpoint.dirpath", compute_fn=checkpoint_dir)
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        for name in _FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Without ``predict``: there is nothing to predict here."""
        return {k: v for k, v in LightningCLI.subcommands().items() if k != "predict"}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults(verbose=False)  # SuccessRate prints a table that can be read
        return parser

    def _parse_ckpt_path(self) -> None:
        """For fit, the command line's model counts (and ``last`` means this run's); else the checkpoint's."""
        config = self.config[self.config["subcommand"]]
        path = config.get("ckpt_path")
        if self.config["subcommand"] == "fit":
            if path == "last":
                last = Path(checkpoint_dir(config["run_dir"])) / "last.ckpt"
                path = str(last) if last.is_file() else None
                config["ckpt_path"] = path
                print(
                    f"continuing from {path}" if path else f"no checkpoint in {last.parent}: starting afresh"
                )
            self._resumed_at = checkpoint.env_steps_at(path)
            return
        if path is None:
            raise UserError(
                f"hmrl {self.config['subcommand']} needs --ckpt_path: a checkpoint or a weights-only export"
            )
        hparams = checkpoint.load(path)["hyper_parameters"]
        model = {k: v for k, v in hparams.items() if k not in (*_FROM_DATA, "seed")}
        self.config = self.parser.parse_object({self.config["subcommand"]: {"model": model}}, self.config)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> pl.Trainer:
        fitting = self.subcommand == "fit"
        if config["logger"] is None:
            run_dir = self._get(self.config, "run_dir")
            config["logger"] = loggers(run_dir, self._resumed_at) if fitting else False
        config["strategy"] = strategy_for(
            config["strategy"], config["accelerator"], config["devices"], config["num_nodes"]
        )
        config["plugins"] = [*(config["plugins"] or []), *fixed_options()["plugins"]]
        return super()._instantiate_trainer(config, callbacks)

    def after_fit(self) -> None:
        """Say where everything is."""
        if self.trainer.is_global_zero:
            run_dir = self._get(self.config, "run_dir")
            print(f"logs: {run_dir} (metrics.csv, tensorboard/)   checkpoints: {checkpoint_dir(run_dir)}")


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``hmrl``; a user's mistake is one sentence and exit code 2."""
    # Said by Lightning about data loaders that have workers, and about batches of known size.
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    try:
        HmrlCLI(
            HierarchicalMetaRL,
            MetaWorldDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_kwargs={"allow_abbrev": False},  # a misspelt key is an error, not its longer sister
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=list(args) if args is not None else None,
        )
    except Exception as error:
        mistake: BaseException | None = error  # jsonargparse wraps what a configuration class raises
        while mistake is not None and not isinstance(mistake, UserError):
            mistake = mistake.__cause__
        if mistake is None:
            raise
        print(f"hmrl: error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None
