"""Evaluation: scoring the rollouts that validation and test hand on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from hmrl.metrics import FamilyOutcomes, Score
from hmrl.types import Rollout

PRIMARY_MODE = "sampled"  # its metrics carry no suffix
Scores = dict[str, dict[str, dict[str, Score]]]  # split -> mode -> family -> score


_LOGGED = {"success": "success", "final_success": "final_success", "return": "episode_return"}


def _metric(name: str, mode: str, split: str, family: str) -> str:
    return f"{name}{'' if mode == PRIMARY_MODE else f'_{mode}'}/{split}/{family}"


class SuccessRate(pl.Callback):
    """Success per family and mean, on train and test families, for every way of acting.

    Logs ``success/<split>/<family>`` (any step), ``final_success/...`` (last step) and ``return/...``, where
    ``<family>`` is ``mean`` for the unweighted mean over families; other modes than sampled acting carry
    their name, as ``success_mean_action/test/mean``. Prints a table; ``hmrl test`` also writes
    ``test.json`` beside the logs.

    Args:
        results_dir: folder of ``test.json``; None writes nothing.
    """

    def __init__(self, results_dir: str | None = None) -> None:
        self.results_dir = results_dir
        self._metrics: dict[tuple[str, str], FamilyOutcomes] = {}
        self.scores: Scores = {}  # of the last evaluation

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the last evaluation."""
        self._metrics = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the last evaluation."""
        self._metrics = {}

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score one rollout."""
        self._score(outputs)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score one rollout."""
        self._score(outputs)

    def _score(self, rollout: Rollout) -> None:
        key = (rollout.split, rollout.mode)
        if key not in self._metrics:
            self._metrics[key] = FamilyOutcomes(rollout.families).to(rollout.family.device)
        self._metrics[key].update(rollout)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Log and print."""
        self._report(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Log, print and write the results file."""
        self._report(trainer, pl_module)
        if self.results_dir and trainer.is_global_zero:
            path = Path(self.results_dir) / "test.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._results(trainer, pl_module), indent=2) + "\n")
            self._print(trainer, f"results: {path}")

    def _report(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.scores = {}
        for (split, mode), metric in self._metrics.items():
            self.scores.setdefault(split, {})[mode] = metric.compute()
        values: dict[str, torch.Tensor] = {}
        for split, modes in self.scores.items():
            for mode, families in modes.items():
                for family, score in families.items():
                    for name, attribute in _LOGGED.items():
                        value = torch.tensor(getattr(score, attribute), dtype=torch.float64)
                        values[_metric(name, mode, split, family)] = value
        pl_module.log_dict({**values, "step": pl_module.env_steps.double()}, batch_size=1)
        if trainer.is_global_zero:
            self._print(trainer, success_table(self.scores, int(pl_module.env_steps)))

    @staticmethod
    def metric_names(benchmark: Any, modes: Iterable[str]) -> list[str]:
        """Everything that an evaluation logs, for a checkpoint to be chosen by.

        Args:
            benchmark: with ``families(split)``.
            modes: names of the ways of acting.
        """
        return [
            _metric(name, mode, split, family)
            for name in _LOGGED
            for mode in modes
            for split in ("train", "test")
            for family in (*benchmark.families(split), "mean")
        ]

    @staticmethod
    def _print(trainer: pl.Trainer, text: str) -> None:
        bar = trainer.progress_bar_callback
        if bar is not None:
            bar.print(text)
        else:
            print(text)

    def _results(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return {
            "env_steps": int(pl_module.env_steps),
            "checkpoint": str(trainer.ckpt_path),
            "protocol": "first_episode" if data.goals_per_family != 1 else "paper",
            "model": _plain(pl_module.hparams),
            "data": _plain(data.hparams),
            "scores": {
                split: {
                    mode: {family: score._asdict() for family, score in families.items()}
                    for mode, families in modes.items()
                }
                for split, modes in self.scores.items()
            },
        }


def _plain(hparams: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in hparams.items()}


def success_table(scores: Scores, env_steps: int) -> str:
    """A text table: one row a family, success at any step per mode, then last-step success and return."""
    modes = list(next(iter(scores.values())))
    table = Table(title=f"success after {env_steps:,} environment steps")
    table.add_column("family", no_wrap=True)
    for mode in modes:
        table.add_column(f"{mode}\n[95 %]", justify="right", no_wrap=True)
    table.add_column(f"last step\n({modes[0]})", justify="right")
    table.add_column(f"return\n({modes[0]})", justify="right")
    for split, by_mode in scores.items():
        families = list(by_mode[modes[0]])
        for family in families:
            cells = []
            for mode in modes:
                score = by_mode[mode][family]
                cells.append(f"{score.success:.2f} [{score.low:.2f}, {score.high:.2f}]".replace("[", r"\["))
            first = by_mode[modes[0]][family]
            style = "bold" if family == "mean" else None
            table.add_row(
                f"{split} {family}",
                *cells,
                f"{first.final_success:.2f}",
                f"{first.episode_return:.0f}",
                style=style,
                end_section=family == "mean",
            )
    console = Console(width=60 + 25 * len(modes), force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
