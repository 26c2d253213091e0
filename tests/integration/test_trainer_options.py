"""Arguments of Lightning's trainer that are left to the user: training is the same with them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from support.runs import Run, assert_same, fit_iterations, learning_state, read_rows

# What is refused or set otherwise has tests of its own.
ELSEWHERE = {
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "callbacks", "plugins"),
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "fast_dev_run", "overfit_batches"),
    *("limit_train_batches", "limit_val_batches", "num_sanity_val_steps", "val_check_interval"),
    *("check_val_every_n_epoch", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
    *("default_root_dir", "enable_checkpointing", "barebones", "model_registry", "enable_progress_bar"),
    *("limit_test_batches", "limit_predict_batches", "benchmark"),  # of evaluations, predictions, GPUs
}
FREE: dict[str, Any] = {
    "logger": False,
    "log_every_n_steps": 50,
    "enable_model_summary": True,
    "deterministic": True,
    "inference_mode": False,
    "use_distributed_sampler": False,
    "profiler": "simple",
    "detect_anomaly": True,
    "sync_batchnorm": True,
    "reload_dataloaders_every_n_epochs": 1,
    "enable_autolog_hparams": False,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_iterations(tmp_path_factory.mktemp("plain"), 2)


def test_every_argument_of_the_trainer_is_accounted_for() -> None:
    """One that a new version of Lightning brings must be thought about."""
    known = ELSEWHERE | FREE.keys()
    assert set(inspect.signature(pl.Trainer).parameters) <= known
    assert not ELSEWHERE & FREE.keys()


@pytest.mark.slow
@pytest.mark.parametrize("option", FREE)
def test_training_is_the_same(option: str, plain: Run, tmp_path: Path) -> None:
    run = fit_iterations(tmp_path, 2, **{option: FREE[option]})
    assert_same(learning_state(run.last), learning_state(plain.last))
    if option != "logger":
        assert read_rows(tmp_path) == read_rows(plain.folder)


def test_without_a_progress_bar_the_rest_is_there(
    plain: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = fit_iterations(tmp_path, 2, enable_progress_bar=False)
    said = capfd.readouterr()
    assert "it/s" not in said.out + said.err
    assert "step/s" not in said.err
    assert said.out.count("success after") == 2
    assert_same(learning_state(run.last), learning_state(plain.last))
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert "time/env_steps_per_second" in header
