"""The command line: ``hmrl fit``, ``hmrl validate`` and ``hmrl test``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from math import ceil
from typing import Any

# Before torch is imported: OpenMP threads must soon leave the cores to the simulators, but not between two
# operations of an update: if they sleep at once (OMP_WAIT_POLICY=PASSIVE), learning on two cores takes 1.4
# times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytorch_lightning as pl
from jsonargparse import Namespace
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from hmrl.cli.messages import one_sentence
from hmrl.cli.parser import INVOCATION, Parser
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.system.terminal import hold_signals, is_first_process
from hmrl.training import checkpoint
from hmrl.training.callbacks import (
    EnvStepBudget,
    EnvStepsProgressBar,
    Forgetting,
    GracefulStop,
    LastCheckpoint,
    Latents,
    RunDirectory,
    SuccessRate,
    Video,
)
from hmrl.training.compatibility import check_deviations, check_network, check_rollout, check_settings
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.lightning_private import launches
from hmrl.training.loggers import WandbConfig, loggers
from hmrl.training.module import HierarchicalMetaRL
from hmrl.training.prechecks import (
    check_best,
    check_data,
    check_evaluation_is_whole,
    check_held,
    check_seed,
    check_trainer,
)
from hmrl.training.processes import accelerator_for, settle, strategy_for
from hmrl.training.run_directory import (
    checkpoint_dir,
    claim,
    find_checkpoint,
    may_begin,
    newest_checkpoint,
    was_requeued,
)
from hmrl.training.trainer import BEST_DEFAULTS, TRAINER_DEFAULTS, fixed_options, hide_bar

_FROM_DATA = ("families", "observation_dim", "action_dim", "ego_indices")
_PARTIAL = ("fast_dev_run", "limit_val_batches")


def configuration(config: Namespace) -> Namespace:
    """``config`` without what belongs to one invocation: another run may have all that is left."""
    config = config.clone()
    for key in (*INVOCATION, "evaluation.overwrite"):
        config.pop(key)
    return config


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration beside the logs, when training and not when testing."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, configuration(config), **kwargs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save on fit only: a test must not replace the configuration that trained."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class HmrlCLI(LightningCLI):
    """LightningCLI with this project's callbacks under keys of their own, so that overlays can set them."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks, run directory, one seed, and the dimensions that data decides."""
        parser.add_argument("--run_dir", type=str, default="runs/ml10", help="Logs, checkpoints and results.")
        parser.add_argument("--overwrite", type=bool, default=False, help="Write over what is in run_dir.")
        parser.add_argument("--wandb", type=WandbConfig | None, default=None, help="Log to Weights & Biases.")
        parser.add_lightning_class_args(EnvStepBudget, "budget")
        parser.add_lightning_class_args(SuccessRate, "evaluation")
        parser.add_lightning_class_args(Forgetting, "forgetting")
        parser.add_lightning_class_args(Latents, "latents")
        parser.add_lightning_class_args(Video, "video")
        parser.add_lightning_class_args(EnvStepsProgressBar, "progress")
        parser.add_lightning_class_args(ModelCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.set_defaults({f"best_checkpoint.{k}": v for k, v in BEST_DEFAULTS.items()})
        parser.link_arguments("run_dir", "evaluation.results_dir")
        parser.link_arguments("overwrite", "evaluation.overwrite")
        parser.link_arguments("run_dir", "forgetting.results_dir")
        parser.link_arguments("run_dir", "latents.dir")
        parser.link_arguments("run_dir", "video.results_dir")
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
        if path not in (None, "last", "best"):
            path = config["ckpt_path"] = str(local_path(path, "ckpt_path", folder=False))
        if self.config["subcommand"] == "fit":
            run_dir = config["run_dir"]
            requeued = SLURMEnvironment.detect() and was_requeued(run_dir)
            self._overwrite = config["overwrite"] or (path == "last" and may_begin(run_dir))
            if path == "last" or (path is None and requeued):
                newest = newest_checkpoint(run_dir)
                path = config["ckpt_path"] = str(newest) if newest else None
                if is_first_process():
                    nothing = f"no checkpoint in {checkpoint_dir(run_dir)}: starting afresh"
                    print(f"continuing from {path}" if path else nothing)
            elif path == "best":
                path = config["ckpt_path"] = str(find_checkpoint(run_dir, path))
            self._saved = checkpoint.load(path) if path else None
            return
        self._saved = None
        if path is None:
            what = "test" if self.config["subcommand"] == "test" else "validation"
            if config["data"][what]["agent"] != "policy":
                return  # it has nothing to load
            raise UserError(
                f"hmrl {self.config['subcommand']} needs --ckpt_path: a checkpoint or a weights-only export"
            )
        if path in ("last", "best"):
            path = config["ckpt_path"] = str(find_checkpoint(config["run_dir"], path))
        self._saved = checkpoint.load(path)
        hparams = self._saved["hyper_parameters"]
        check_settings(hparams)
        model = {k: v for k, v in hparams.items() if k not in (*_FROM_DATA, "seed")}
        self.config = self.parser.parse_object({self.config["subcommand"]: {"model": model}}, self.config)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> pl.Trainer:
        fitting = self.subcommand == "fit"
        # Of an evaluation, what is left out is refused with words of its own.
        check_trainer(config if fitting else {k: v for k, v in config.items() if k not in _PARTIAL})
        hide_bar(config, callbacks)
        wandb, run_dir = self._get(self.config_init, "wandb"), self._get(self.config, "run_dir")
        if config["logger"] is None:
            settings = configuration(self.config[self.subcommand]).as_dict()
            config["logger"] = loggers(run_dir, wandb, settings) if fitting else False
        elif wandb:
            raise UserError("wandb is set and trainer.logger, too: loggers of your own replace it, use one")
        config["accelerator"] = accelerator_for(config["accelerator"])
        config["strategy"] = strategy_for(
            config["strategy"], config["accelerator"], config["devices"], config["num_nodes"]
        )
        config["plugins"] = [*(config["plugins"] or []), *fixed_options()["plugins"]]
        if fitting:
            config["default_root_dir"] = run_dir
            callbacks = [RunDirectory(run_dir, self._overwrite), GracefulStop(), *callbacks]
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except (
            TypeError,
            ValueError,
            RuntimeError,
            ImportError,
        ) as error:  # Lightning's words about options of its own
            raise UserError(f"trainer: {error}") from error
        settle(trainer)
        return trainer

    def before_fit(self) -> None:
        """Refuse what does not fit together, before anything is written or any process launched."""
        data, model, world_size = self.datamodule, self.model, self.trainer.world_size
        data.check("fit", world_size)
        if data.schedule:
            data.schedule.check_budget(self._get(self.config, "budget")["env_steps"])
        if (interval := model.policy.decision_interval) > data.horizon:
            raise UserError(
                f"model.decision_interval is {interval}: use at most data.horizon, which is {data.horizon}"
            )
        decisions = ceil(data.horizon / interval)
        check_held(model.policy.macro_interval, decisions, data.episodes_per_trial)
        episodes = len(data.families) * data.envs_per_family // world_size
        check_rollout(model.ppo, model.vae_config, model.gradients, model.acting, decisions, episodes)
        if self._saved:
            check_network(self._saved, model, training=True)
            hparams = self._saved["hyper_parameters"]
            other_seed = check_seed(hparams["seed"], model.seed, data.goals_per_family is not None)
            if other_seed and is_first_process():
                print(other_seed)
            self._saved = None
        best = self._get(self.config, "best_checkpoint")
        check_best(best["save_top_k"])
        monitor, names = best["monitor"], SuccessRate.metric_names(data.benchmark, data.modes)
        if monitor not in names:
            raise UserError(
                f"best_checkpoint.monitor is {monitor!r}, which no evaluation logs: use one of "
                f"{', '.join(n for n in names if n.endswith('/mean'))}, or a family's"
            )
        if is_first_process():
            run_dir, path = (self._get(self.config, key) for key in ("run_dir", "ckpt_path"))
            claim(run_dir, path, overwrite=self._overwrite)
        if launches(self.trainer):
            hold_signals(True)  # the processes to be launched inherit this; GracefulStop lets go

    def before_validate(self) -> None:
        """Refuse what could not be built, before any process is launched."""
        data = self.datamodule
        data.check(self.subcommand, self.trainer.world_size)
        check_evaluation_is_whole(self.trainer, str(self.subcommand))
        config = data.test if self.subcommand == "test" else data.validation
        if self._saved:
            check_data(self._saved, data, config)
            check_deviations(self._saved, data.modes.values(), training=False)
            self._saved = None
        unloaded = self._get(self.config, "ckpt_path") is None
        if unloaded and config.perturbation_within(data.perturbation).over_training():
            raise UserError(
                f"data.perturbation changes over training, so to compare with agent {config.agent} hmrl "
                f"{self.subcommand} needs --ckpt_path, a checkpoint of the run whose world it is to act in"
            )

    before_test = before_validate

    def after_fit(self) -> None:
        """Say where everything is."""
        if self.trainer.is_global_zero:
            run_dir = self._get(self.config, "run_dir")
            print(f"logs: {run_dir} (metrics.csv, tensorboard/)   checkpoints: {checkpoint_dir(run_dir)}")


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``hmrl``; a user's mistake is one sentence and exit code 2."""
    # Said by Lightning about data loaders that have workers, and about batches of known size.
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    with one_sentence():
        HmrlCLI(
            HierarchicalMetaRL,
            MetaWorldDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False},  # a misspelt key is an error, not its longer sister
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=list(args) if args is not None else None,
        )
