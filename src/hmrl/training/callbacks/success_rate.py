"""Evaluation: scoring the rollouts that validation and test hand on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table

from hmrl.envs import Benchmark
from hmrl.envs.benchmarks import same_goals
from hmrl.envs.wrappers.perturb import Perturbation
from hmrl.evaluation.metaworld_protocol import Trials
from hmrl.evaluation.metrics import FamilyOutcomes, Score
from hmrl.results.file import (
    PRIMARY_MODE,
    SCHEMA,
    check_replaceable,
    digest,
    episode_columns,
    protocol_label,
    results_path,
)
from hmrl.system.distributed import gather, together
from hmrl.system.paths import local_path
from hmrl.system.provenance import provenance
from hmrl.system.rules import as_config
from hmrl.training.callbacks.common import data_of, log, say
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Outcomes, Rollout

Scores = dict[str, dict[str, dict[str, Score]]]  # split -> mode -> family -> score
_LOGGED = {"success": "success", "final_success": "final_success", "return": "episode_return"}


def _metric(name: str, mode: str, split: str, family: str) -> str:
    return f"{name}{'' if mode == PRIMARY_MODE else f'_{mode}'}/{split}/{family}"


class SuccessRate(pl.Callback):
    """Success per family and mean, on training and held-out families, for every way of acting.

    Logs ``success/<split>/<family>`` (any step), ``final_success/...`` (last step) and ``return/...``, where
    ``<family>`` is ``mean`` for the unweighted mean over families; other modes than sampled acting carry
    their name, as ``success_mean_action/test/mean``. Prints a table; ``hmrl test`` also writes a results file
    (:mod:`hmrl.results.file`).

    Args:
        results_dir: its folder; None writes nothing.
        overwrite: whether the first test, or fit, may lose results of another checkpoint, or of another way
            to evaluate; a later one may not.
    """

    def __init__(self, results_dir: str | None = None, overwrite: bool = False) -> None:
        self.results_dir = None if results_dir is None else local_path(results_dir, "results_dir")
        self.overwrite = overwrite
        self._metrics: dict[tuple[str, str], FamilyOutcomes] = {}
        self._episodes: list[Outcomes] = []
        self._started = 0.0
        self.scores: Scores = {}  # of the last evaluation
        self.official: dict[str, dict[str, Any]] = {}  # split -> mode -> Meta-World's own numbers

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """What was asked to be written over has been."""
        self.overwrite = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the last evaluation."""
        self._metrics, self._episodes, self.official = {}, [], {}
        self._started = time.time()

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the last evaluation, and refuse, before a new one, to lose other results."""
        self.on_validation_epoch_start(trainer, pl_module)
        with together():
            if self.results_dir and not self.overwrite and trainer.is_global_zero:
                data = data_of(trainer)
                settings = {key: data.hparams[key] for key in ("modes", "horizon")}
                check_replaceable(self.results_dir, _described(data, pl_module), settings)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score one rollout."""
        evaluated: Rollout | Trials = outputs
        scored = evaluated.outcomes()
        key = (scored.split, scored.mode)
        if key not in self._metrics:
            metric = FamilyOutcomes(scored.families, scored.distinct)
            self._metrics[key] = metric.to(scored.family.device)
        self._metrics[key].update(scored)
        if isinstance(evaluated, Trials):
            self.official.setdefault(scored.split, {})[scored.mode] = evaluated.official
            scored = evaluated.recorded
        self._episodes.append(scored.to("cpu"))

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Log and print."""
        self.scores = {}
        for (split, mode), metric in self._metrics.items():
            self.scores.setdefault(split, {})[mode] = metric.compute()
        scores = _each(self.scores)
        log(
            pl_module,
            {_metric(n, m, s, f): getattr(x, a) for s, m, f, x in scores for n, a in _LOGGED.items()},
        )
        if trainer.is_global_zero:
            say(trainer, success_table(self.scores, int(pl_module.env_steps), _differs(trainer, pl_module)))
            if self.official:
                adaptation = data_of(trainer).meta_world.adaptation
                say(trainer, f"protocol meta_world with data.meta_world.adaptation {adaptation}")
            for split, modes in self.official.items():
                for mode, official in modes.items():
                    own = f"Meta-World's own evaluation, {split} families, {mode}: {official['success']:.2f}"
                    say(trainer, own)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Log, print and write the results file."""
        self.on_validation_epoch_end(trainer, pl_module)
        if not self.results_dir:
            return
        episodes = [part for parts in gather(self._episodes) for part in parts]
        if trainer.is_global_zero:
            results = self._results(trainer, pl_module, episodes)
            path = results_path(self.results_dir, protocol_label(results["protocol"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")  # whoever finds results finds them whole
            temporary.write_text(json.dumps(results) + "\n")
            temporary.replace(path)
            self.overwrite = False
            say(trainer, f"results: {path}")

    @staticmethod
    def metric_names(benchmark: Benchmark, modes: Iterable[str]) -> list[str]:
        """Everything that an evaluation logs in ``modes``, for a checkpoint to be chosen by."""
        return [
            _metric(name, mode, split, family)
            for name in _LOGGED
            for mode in modes
            for split, families in (("train", benchmark.train), ("test", benchmark.test))
            for family in (*families, "mean")
        ]

    def _results(
        self, trainer: pl.Trainer, module: HierarchicalMetaRL, episodes: list[Outcomes]
    ) -> dict[str, Any]:
        data = data_of(trainer)
        return {
            "schema": SCHEMA,
            **_described(data, module),
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "env_steps": int(module.env_steps),
            "seed": module.training_seed if module.training_seed is not None else module.seed,
            **provenance(),
            "training_git": module.training_git,
            "init_from": module.initial if data_of(trainer).test.agent == "policy" else None,
            "started": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "wall_time_s": round(time.time() - self._started, 1),
            "model": dict(module.hparams),
            "data": dict(data.hparams),
            "scores": {
                split: {m: {f: score._asdict() for f, score in of.items()} for m, of in modes.items()}
                for split, modes in self.scores.items()
            },
            "episodes": episode_columns(episodes),
            "official": self.official or None,
            "differs_from_training": _differs(trainer, module),
        }


def _described(data: MetaWorldDataModule, module: HierarchicalMetaRL) -> dict[str, Any]:
    return {
        "agent": data.test.agent,
        "protocol": describe_protocol(data, module.training_seed),
        "weights": digest(module.trained_state()) if data.test.agent == "policy" else None,
        "evaluation_seed": data.seed,
    }


def describe_protocol(data: MetaWorldDataModule, training_seed: int | None = None) -> dict[str, Any]:
    """The results file's entry ``protocol``.

    Args:
        data: whose test is described.
        training_seed: of the agent; None for the data module's.
    """
    config, own = data.test, data.meta_world
    described: dict[str, Any] = {"name": config.protocol, "backend": config.backend or data.backend}
    perturbation = config.perturbation_within(data.perturbation)
    if perturbation != Perturbation():
        described["perturbation"] = asdict(perturbation)
        if perturbation.over_training():
            described["age"] = int(data.module.iteration) * data.episodes_per_trial
    described |= {key: True for key in ("goals_shown", "families_shown") if getattr(data, key)}
    stream = 1  # of training
    goals = config.goals_of(
        "train", data.seed, data.backend, data.goals_per_family, training=stream, stream=0
    )
    # Meta-World has one set of goals for each seed, whatever they are for.
    same = goals.stream == stream or data.benchmark.fixed_goals(data.backend) is not None
    fixed = data.goals_per_family is not None and training_seed in (None, data.seed)
    if fixed and same and same_goals(described["backend"], data.backend):
        described["training_goals"] = True
    if config.protocol != "meta_world":
        episodes = config.goals_per_family
        return described | {"goals_per_family": goals.per_family, "episodes_per_family": episodes}
    for name in ("num_evals", "adaptation_episodes", "evaluation_episodes", "total_tasks_per_cls"):
        described[name] = getattr(own, name)
    if own.adaptation != "memory":
        described["adaptation"] = own.adaptation
    families = {"train": len(data.benchmark.train), "test": len(data.benchmark.test)}
    batches = {split: own.batch(count) for split, count in families.items()}
    met = {split: own.num_evals * batches[split] // count for split, count in families.items()}
    described["meta_batch_size"] = batches
    described["goals_per_family"] = {s: min(own.total_tasks_per_cls, count) for s, count in met.items()}
    return described


def _differs(trainer: pl.Trainer, module: HierarchicalMetaRL) -> dict[str, str]:
    """What an evaluated policy does or faces that it did not in training, each mode's in words."""
    data = data_of(trainer)
    if (data.test if trainer.state.fn == "test" else data.validation).agent != "policy":
        return {}
    trained, policy = module.training_hparams or module.hparams, module.policy
    before = asdict(as_config(Acting, trained["acting"]))
    unused = {"task_belief": not policy.categorical_entries, "macro_action": policy.macro_vae is None}
    found = {
        mode: ", ".join(
            f"{key.replace('_', ' ')} {value} (training: {before[key]})"
            for key, value in asdict(acting).items()
            if value != before[key] and not unused.get(key)
        )
        for mode, acting in data.modes.items()
    }
    now, earlier = trained["families"], _families_before(module.initial)

    def said(words: str, families: Iterable[str]) -> list[str]:
        return [f"{', '.join(listed)} {words}"] if (listed := list(families)) else []

    found["train families"] = "; ".join(
        [
            *said("not trained on", (f for f in data.families if f not in [*now, *earlier])),
            *said(_BEFORE + " alone", (f for f in data.families if f in earlier and f not in now)),
        ]
    )
    found["test families"] = "; ".join(
        [
            *said("trained on", (f for f in data.benchmark.test if f in now)),
            *said(_BEFORE, (f for f in data.benchmark.test if f in earlier and f not in now)),
        ]
    )
    return {what: words for what, words in found.items() if words}


_BEFORE = "trained on before fine-tuning"


def _families_before(initial: Mapping[str, Any] | None) -> list[str]:
    """What the weights that training began from were trained on."""
    return [*initial["families"], *_families_before(initial["init_from"])] if initial else []


def success_table(scores: Scores, env_steps: int, differs: Mapping[str, str]) -> str:
    """A text table: one row a family, success at any step per mode, then last-step success and return.

    Args:
        differs: from training, in words; written below.
    """
    first, *_ = modes = list(next(iter(scores.values())))
    table = Table(title=f"success after {env_steps:,} environment steps")
    table.add_column("family", no_wrap=True)
    for mode in modes:
        table.add_column(f"{mode}\n[95 %]", justify="right", no_wrap=True)
    for name in ("last step", "return"):
        table.add_column(f"{name}\n({first})", justify="right")
    for split, by_mode in scores.items():
        for family, score in by_mode[first].items():
            mean = family == "mean"
            table.add_row(
                f"{split} {family}",
                *(_cell(by_mode[mode][family]) for mode in modes),
                f"{score.final_success:.2f}",
                f"{score.episode_return:.0f}",
                style="bold" if mean else None,
                end_section=mean,
            )
    console = Console(width=60 + 25 * len(modes), force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    notes = [f"differs from training: {what}: {words}\n" for what, words in differs.items()]
    if any(score.low is None for *_, score in _each(scores)):
        notes.append("no interval: one goal a family and nothing drawn, so that its episodes are all equal\n")
    return capture.get() + "".join(notes)


def _cell(score: Score) -> str:
    interval = "" if score.low is None else rf" \[{score.low:.2f}, {score.high:.2f}]"
    return f"{score.success:.2f}{interval}"


def _each(scores: Scores) -> list[tuple[str, str, str, Score]]:
    """Split, mode, family and score."""
    modes = [(split, mode, families) for split, of in scores.items() for mode, families in of.items()]
    return [(split, mode, family, score) for split, mode, of in modes for family, score in of.items()]
