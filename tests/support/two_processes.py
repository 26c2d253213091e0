"""Run by test_distributed.py in two processes: each writes what it has after training to a folder."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.training.callbacks import SuccessRate
from hmrl.types import Acting
from support.runs import Recorder, fit
from support.toy import STEPS, tiny_module, tiny_networks, toy_data


def noisy_networks() -> dict[str, Any]:
    """Every random draw there is, of which each process has its own."""
    networks = tiny_networks()
    return {
        "task_encoder": replace(networks["task_encoder"], cell="lstm", dropout=0.5),
        "macro_vae": replace(networks["macro_vae"], dropout=0.5, goal_state="sub_task"),
        "acting": Acting(task_belief="sample", macro_action="sample"),
        "ppo": replace(networks["ppo"], latents="acted"),
    }


def everything(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """A copy of all that decides how training goes on, in this process."""
    return copy.deepcopy(
        {
            "state": dict(pl_module.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "replay": trainer.datamodule.replay.state_dict(),
        }
    )


class States(pl.Callback):
    """What training began with, and what each iteration left."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}
        self.left: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.loaded = everything(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.left.append(everything(trainer, pl_module))


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


def train(folder: Path, iterations: int, data: Any, resume: bool = False, **options: Any) -> dict[str, Any]:
    scores, states, sampled = Scores(), States(), []

    def sample(count: int) -> Any:
        episodes = TrajectoryReplay.sample(data.replay, count)
        sampled.append(len(episodes.family))
        return episodes

    data.replay.sample = sample
    callbacks = [scores, states]
    run = fit(folder, iterations * STEPS, data=data, resume=resume, callbacks=callbacks, devices=2, **options)
    recorder: Recorder = run.recorder
    return {
        "strategy": (type(run.trainer.strategy).__name__, run.trainer.strategy._ddp_kwargs),
        "state": dict(run.module.state_dict()),
        "optimizers": [optimizer.state_dict() for optimizer in run.trainer.optimizers],
        "replay": run.data.replay.state_dict(),
        "loaded": states.loaded,
        "left": states.left,
        "sampled": sampled,
        "checksums": recorder.checksums,
        "env_steps": recorder.env_steps,
        "actions": [rollout.action for rollout in recorder.rollouts],
        "log_probs": [rollout.log_prob for rollout in recorder.rollouts],
        "moments": [(rollout.observation, rollout.reward) for rollout in recorder.rollouts],
        "goals": [(e.training, e.split, e.family, e.goal, any(e.successes)) for e in run.data.episodes],
        "scores": scores.scores,
    }


def fine_tuned(folder: Path, data: Any) -> dict[str, Any]:
    """Two iterations from the weights of one process, the upper levels frozen."""
    module = tiny_module(data, frozen=["task_encoder", "macro_vae"])
    module.init_from(folder / "one" / "checkpoints" / "last.weights.ckpt")
    return train(folder / "frozen", 2, data, module=module, limit_val_batches=0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)

    def data() -> Any:
        return toy_data(validation=EvaluationConfig(4, 2))

    train(folder / "resumed", 1, data())
    result = {
        "resumed": train(folder / "resumed", 2, data(), resume=True),
        "straight": train(folder / "straight", 2, data()),
        # Long enough for the replays to overflow.
        "noisy": train(folder / "noisy", 3, data(), networks=noisy_networks(), limit_val_batches=0),
        # Three iterations of one process come before.
        "from one": train(folder / "from one", 4, data(), resume=True, limit_val_batches=0),
        "frozen": fine_tuned(folder, data()),
    }
    torch.save(result, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
