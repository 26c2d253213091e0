"""Run by test_distributed.py in two processes: each writes what it has after training to a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from hmrl.callbacks import SuccessRate
from hmrl.datamodule import EvaluationConfig
from integration.runs import Recorder, fit
from integration.toy import STEPS, toy_data


class Scores(pl.Callback):
    """The scores of the last evaluation."""

    def __init__(self) -> None:
        self.scores: dict[str, Any] = {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        (rate,) = (c for c in trainer.callbacks if isinstance(c, SuccessRate))
        self.scores = {
            split: {mode: {f: dict(s._asdict()) for f, s in scores.items()} for mode, scores in modes.items()}
            for split, modes in rate.scores.items()
        }


def train(folder: Path, iterations: int, data: Any, resume: bool = False) -> dict[str, Any]:
    callback = Scores()
    run = fit(folder, iterations * STEPS, data=data, resume=resume, callbacks=[callback], devices=2)
    recorder: Recorder = run.recorder
    return {
        "strategy": (type(run.trainer.strategy).__name__, run.trainer.strategy._ddp_kwargs),
        "state": dict(run.module.state_dict()),
        "optimizers": [optimizer.state_dict() for optimizer in run.trainer.optimizers],
        "replay": run.data.replay.state_dict(),
        "checksums": recorder.checksums,
        "env_steps": recorder.env_steps,
        "actions": [rollout.action for rollout in recorder.rollouts],
        "log_probs": [rollout.log_prob for rollout in recorder.rollouts],
        "moments": [(rollout.observation, rollout.reward) for rollout in recorder.rollouts],
        "goals": [(e.training, e.split, e.family, e.goal, any(e.successes)) for e in run.data.episodes],
        "scores": callback.scores,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)

    def data() -> Any:
        return toy_data(validation=EvaluationConfig(4, 2))

    train(folder / "resumed", 1, data())
    result = {
        "resumed": train(folder / "resumed", 2, data(), resume=True),
        "straight": train(folder / "straight", 2, data()),
    }
    torch.save(result, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
