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
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from hmrl.cli.messages import one_sentence
from hmrl.cli.parser import INVOCATION, Parser
from hmrl.evaluation.belief_search import check_beliefs
from hmrl.results.file import digest
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.system.terminal import hold_signals, is_first_process
from hmrl.training import checkpoint, run_directory
from hmrl.training.callbacks import (
    EnvStepBudget,
    EnvStepsProgressBar,
    Forgetting,
    GracefulStop,
    LastCheckpoint,
    LatentAnalysis,
    RunDirectory,
    SuccessRate,
    Video,
)
from hmrl.training.compatibility import (
    check_deviations,
    check_goals_shown,
    check_network,
    check_rollout,
    check_settings,
    complete,
)
from hmrl.training.datamodule import OF_WORLD, MetaWorldDataModule
from hmrl.training.lightning_private import launches
from hmrl.training.loggers import WandbConfig, loggers
from hmrl.training.module import HierarchicalMetaRL
from hmrl.training.processes import settle
from hmrl.training.trainer import BEST_DEFAULTS, TRAINER_DEFAULTS, complete_options


def configuration(config: Namespace) -> Namespace:
    """``config`` without what belongs to one invocation: another run may have all that is left."""
    config = config.clone()
    for key in (*INVOCATION, "evaluation.overwrite"):
        config.pop(key)
    return config


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration beside the logs."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, configuration(config), **kwargs)


class HmrlCLI(LightningCLI):
    """LightningCLI with this project's callbacks under keys of their own, so that overlays can set them."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks, run directory, one seed, and the dimensions that data decides."""
        parser.add_argument("--run_dir", type=str, default="runs/ml10", help="Logs, checkpoints and results.")
        parser.add_argument("--overwrite", type=bool, default=False, help="Write over what is in run_dir.")
        help_ = "Begin a new run from the networks and normaliser of this checkpoint (fine-tuning)."
        parser.add_argument("--init_from", type=str | None, default=None, help=help_)
        parser.add_argument("--wandb", type=WandbConfig | None, default=None, help="Log to Weights & Biases.")
        parser.add_lightning_class_args(EnvStepBudget, "budget")
        parser.add_lightning_class_args(SuccessRate, "evaluation")
        parser.add_lightning_class_args(Forgetting, "forgetting")
        parser.add_lightning_class_args(LatentAnalysis, "latent_analysis")
        parser.add_lightning_class_args(Video, "video")
        parser.add_lightning_class_args(EnvStepsProgressBar, "progress")
        parser.add_lightning_class_args(ModelCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.set_defaults({f"best_checkpoint.{k}": v for k, v in BEST_DEFAULTS.items()})
        parser.link_arguments("overwrite", "evaluation.overwrite")
        for name in ("evaluation", "forgetting", "video"):
            parser.link_arguments("run_dir", f"{name}.results_dir")
        parser.link_arguments("run_dir", "latent_analysis.dir")
        for key in ("last_checkpoint", "best_checkpoint"):
            parser.link_arguments("run_dir", f"{key}.dirpath", compute_fn=run_directory.checkpoint_dir)
        for section in ("model", "data"):
            parser.link_arguments("seed_everything", f"{section}.seed")
        for name in OF_WORLD:
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
        command = self.config["subcommand"]
        config = self.config[command]
        run_dir = config["run_dir"] = str(local_path(config["run_dir"], "run_dir"))
        path, evaluation = config["ckpt_path"], "test" if command == "test" else "validation"
        if path not in (None, "last", "best"):
            path = str(local_path(path, "ckpt_path", folder=False))
        if command == "fit":
            self._overwrite = config["overwrite"] or (path == "last" and run_directory.may_begin(run_dir))
            requeued = SLURMEnvironment.detect() and run_directory.was_requeued(run_dir)
            if path == "last" or (path is None and requeued):
                path = run_directory.newest_checkpoint(run_dir)
                if is_first_process():
                    nothing = f"no checkpoint in {run_directory.checkpoint_dir(run_dir)}: starting afresh"
                    print(f"continuing from {path}" if path else nothing)
        elif path is None and config["data"][evaluation]["agent"] == "policy":
            raise UserError(f"hmrl {command} needs --ckpt_path: a checkpoint or a weights-only export")
        if path in ("last", "best"):
            path = run_directory.find_checkpoint(run_dir, path)
        config["ckpt_path"] = str(path) if path else None
        self._saved = checkpoint.load(path) if path else None
        if command == "fit":
            config["init_from"] = self._origin(config["init_from"], run_dir)
        if self._saved and command != "fit":
            hparams = complete(self._saved["hyper_parameters"])
            check_settings(hparams)
            model = {k: v for k, v in hparams.items() if k not in (*OF_WORLD, "seed")}
            self.config = self.parser.parse_object({command: {"model": model}}, self.config)

    def _origin(self, given: str | None, run_dir: str) -> str | None:
        """The checkpoint that a run begins from; one that goes on keeps its own."""
        path = None if given is None else local_path(given, "init_from", folder=False)
        if not self._saved:
            if run_directory.continues(run_dir, path):
                raise UserError(
                    f"init_from is {path}, which the run in {run_dir} has written: continue it with "
                    "--ckpt_path last, or choose another --run_dir"
                )
            return str(path) if path else None
        initial = self._saved.get("init_from") or {}
        began: str | None = initial.get("path")
        if path and str(path) != began:
            # The same weights may lie elsewhere.
            weights = digest(checkpoint.load(path)["state_dict"]) if path.is_file() else None
            if not began or weights != initial["weights"]:
                from_ = f"from {began}" if began else "from no other run's weights"
                raise UserError(
                    f"init_from is {path}, but the run that goes on began {from_}: leave init_from out, or "
                    "choose another --run_dir"
                )
        return began

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> pl.Trainer:
        fitting, run_dir = self.subcommand == "fit", self._get(self.config, "run_dir")
        config, wandb = complete_options(config, callbacks), self._get(self.config_init, "wandb")
        if config["logger"] is None:
            settings = configuration(self.config[self.subcommand]).as_dict()
            config["logger"] = loggers(run_dir, wandb, settings) if fitting else False
        elif wandb:
            raise UserError("wandb is set and trainer.logger, too: loggers of your own replace it, use one")
        if fitting:
            config["default_root_dir"] = run_dir
            callbacks = [RunDirectory(run_dir, self._overwrite), GracefulStop(), *callbacks]
        else:  # a test must not replace the configuration that trained
            self.save_config_callback = None
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
            raise UserError(f"trainer: {error}") from error  # Lightning's words about options of its own
        settle(trainer)
        return trainer

    def before_fit(self) -> None:
        """Refuse what does not fit together, before anything is written or any process launched."""
        data, model, world_size = self.datamodule, self.model, self.trainer.world_size
        run_dir, path, best = (self._get(self.config, k) for k in ("run_dir", "ckpt_path", "best_checkpoint"))
        data.check("fit", world_size)
        if data.schedule:
            data.schedule.check_budget(self._get(self.config, "budget")["env_steps"])
        if (interval := model.policy.decision_interval) > data.horizon:
            raise UserError(
                f"model.decision_interval is {interval}: use at most data.horizon, which is {data.horizon}"
            )
        decisions = ceil(data.horizon / interval)
        if data.episodes_per_trial > 1 and decisions % model.policy.macro_interval:
            raise UserError(
                f"model.macro_interval is {model.policy.macro_interval} and data.episodes_per_trial "
                f"{data.episodes_per_trial}, but an episode has {decisions} decisions (data.horizon over "
                "model.decision_interval), so that a macro-action would be held over its end: use a "
                "macro_interval that divides them"
            )
        episodes = len(data.families) * data.envs_per_family // world_size
        check_rollout(model.ppo, model.vae_config, model.gradients, model.acting, decisions, episodes)
        if data.validation.protocol == "meta_world" and data.meta_world.adaptation == "beliefs":
            check_beliefs(model.policy, None, decisions)
        if self._saved:
            check_network(self._saved, model, training=True)
            saved, seed, self._saved = self._saved["hyper_parameters"]["seed"], model.seed, None
            if saved != seed and data.goals_per_family is not None:
                raise UserError(
                    f"seed_everything is {seed}, but the checkpoint was trained with {saved}, whose fixed "
                    f"goals (data.goals_per_family) are others: use --seed_everything {saved}"
                )
            if saved != seed and is_first_process():
                print(f"training goes on with seed {seed}; until here it had seed {saved}")
        else:
            if origin := self._get(self.config, "init_from"):
                model.init_from(origin)
                check_goals_shown(model.initial, data.goals_shown)
            model.check_frozen_have_learnt()
        if best["save_top_k"] not in (0, 1):  # several under one name: it would hold the last of them
            raise UserError(f"best_checkpoint.save_top_k is {best['save_top_k']}: use 1, or 0 for none")
        names = SuccessRate.metric_names(data.benchmark, data.modes)
        if best["monitor"] not in names:
            raise UserError(
                f"best_checkpoint.monitor is {best['monitor']!r}, which no evaluation logs: use one of "
                f"{', '.join(n for n in names if n.endswith('/mean'))}, or a family's"
            )
        if is_first_process():
            run_directory.claim(run_dir, path, overwrite=self._overwrite)
        if launches(self.trainer):
            hold_signals(True)  # the processes to be launched inherit this; GracefulStop lets go

    def before_validate(self) -> None:
        """Refuse what could not be built, before any process is launched."""
        data = self.datamodule
        if self.subcommand == "validate" and self.trainer.limit_val_batches != 1.0:
            raise UserError(
                f"trainer.limit_val_batches is {self.trainer.limit_val_batches}, but an evaluation must be "
                "whole: set data.validation instead"
            )
        data.check(self.subcommand, self.trainer.world_size)
        config = data.test if self.subcommand == "test" else data.validation
        if self._saved:
            data.check_world(self._saved, config)
            check_deviations(self._saved, data.modes.values(), training=False)
        elif config.perturbation_within(data.perturbation).over_training():
            raise UserError(
                f"data.perturbation changes over training, so to compare with agent {config.agent} hmrl "
                f"{self.subcommand} needs --ckpt_path, a checkpoint of the run whose world it is to act in"
            )
        self._saved = None

    before_test = before_validate

    def after_fit(self) -> None:
        """Say where everything is."""
        if self.trainer.is_global_zero:
            run_dir = self._get(self.config, "run_dir")
            print(f"logs: {run_dir} (metrics.csv, tensorboard/)   checkpoints: {run_dir}/checkpoints")


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
