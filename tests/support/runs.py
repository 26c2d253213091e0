"""Short runs of the real trainer, and comparing what is left of them."""

from __future__ import annotations

import copy
import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from hmrl.training.module import HierarchicalMetaRL
from hmrl.training.trainer import make_trainer
from hmrl.types import Rollout
from support.paths import TINY
from support.toy import STEPS, tiny_module, toy_data


def checksum(module: nn.Module) -> str:
    """Of every parameter, bit by bit."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


class Recorder(pl.Callback):
    """Keeps the rollouts that training and evaluation saw, and what training left after each step."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []
        self.evaluated: list[Rollout] = []
        self.checksums: list[str] = []
        self.env_steps: list[int] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rollouts.append(batch.rollout)
        self.checksums.append(checksum(pl_module))
        self.env_steps.append(int(pl_module.env_steps))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.evaluated.append(batch)

    on_test_batch_end = on_validation_batch_end


@dataclass
class Run:
    trainer: pl.Trainer
    module: HierarchicalMetaRL
    data: Any
    recorder: Recorder
    folder: Path

    @property
    def last(self) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)
        return content

    @property
    def rows(self) -> list[dict[str, str]]:
        return read_rows(self.folder)


def fit(
    folder: Path,
    env_steps: int,
    *,
    data: Any = None,
    module: HierarchicalMetaRL | None = None,
    resume: bool = False,
    seed: int = 1,
    callbacks: Sequence[pl.Callback] = (),
    networks: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train up to ``env_steps``, evaluating every iteration, in objects of its own."""
    pl.seed_everything(seed, verbose=False)
    data = toy_data() if data is None else data
    module = tiny_module(data, **(networks or {})) if module is None else module
    ckpt_path = str(folder / "checkpoints" / "last.ckpt") if resume else None
    recorder = Recorder()
    trainer = make_trainer(
        str(folder),
        env_steps,
        [recorder, *callbacks],
        **{"accelerator": "cpu", "devices": 1, "check_val_every_n_epoch": 1, **options},
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return Run(trainer, module, data, recorder, folder)


def fit_iterations(folder: Path, iterations: int, **options: Any) -> Run:
    """:func:`fit` on the toy world's default data."""
    return fit(folder, iterations * STEPS, **options)


def read_rows(folder: Path) -> list[dict[str, str]]:
    """``metrics.csv`` without times, which no two runs share, and without what a row leaves empty."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v != "" and not k.startswith("time/")} for row in rows]


def learning_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What decides how training goes on, and the average beliefs beside it."""
    (replay,) = [v for k, v in checkpoint.items() if k.endswith("DataModule")]
    return {
        "weights and buffers": checkpoint["state_dict"],
        "optimizers": checkpoint["optimizer_states"],
        "data": replay,
        "average beliefs": checkpoint.get("average_beliefs"),
        "epoch": checkpoint["epoch"],
        "global_step": checkpoint["global_step"],
        "loops": checkpoint["loops"],
    }


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Bit-equal, tensors and all."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def snapshot(run_module: HierarchicalMetaRL, data: Any) -> dict[str, Any]:
    """A copy of all that evaluation must leave alone."""
    return copy.deepcopy({"module": dict(run_module.state_dict()), "data": data.state_dict()})


def command(folder: Path, *options: str, iterations: int = 4) -> list[str]:
    """Arguments of ``hmrl`` for a fit on the toy world that keeps a checkpoint of every iteration."""
    run = ["--run_dir", str(folder), "--last_checkpoint.every_n_iterations", "1"]
    return ["fit", *TINY, *run, "--budget.env_steps", str(iterations * STEPS), *options]
