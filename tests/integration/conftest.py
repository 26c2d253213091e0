"""Integration tests run the real trainer in this process, on one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hmrl.cli.main
import hmrl.training.callbacks.latent_analysis
from hmrl.cli.main import main
from support.runs import command
from support.toy import ToyDataModule


@pytest.fixture(autouse=True)
def _quiet_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread; and nothing of a run's environment variables is left for the next test."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    monkeypatch.setattr("sys.argv", ["hmrl"])
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name in set(os.environ) - set(environment):
        del os.environ[name]


@pytest.fixture
def toy_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line on the toy world instead of Meta-World.

    ``hmrl test`` draws no figures: they would take most of its time, and test_latent_analysis.py draws them.
    """
    monkeypatch.setattr(hmrl.cli.main, "MetaWorldDataModule", ToyDataModule)
    monkeypatch.setattr(hmrl.training.callbacks.latent_analysis, "draw", lambda findings: {})


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of :func:`support.runs.command` where nothing goes wrong."""
    folder = tmp_path_factory.mktemp("straight")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(hmrl.cli.main, "MetaWorldDataModule", ToyDataModule)
        main(command(folder))
    return folder
