"""Lightning's internals are as they are used here, and are used in one file alone."""

from __future__ import annotations

import inspect
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from hmrl.training import lightning_private as private

SRC = Path(private.__file__).parents[1]


def trainer(**options: Any) -> pl.Trainer:
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **options}
    return pl.Trainer(enable_progress_bar=False, enable_model_summary=False, **options)


def test_unused_parameters_and_starting_methods_can_be_read() -> None:
    assert private.steps_one_level(DDPStrategy(find_unused_parameters=True))
    assert not private.steps_one_level(DDPStrategy())
    assert not private.steps_one_level(DDPStrategy(find_unused_parameters=True, start_method="spawn"))
    assert not private.steps_one_level("ddp")


def test_devices_are_counted_as_lightning_does() -> None:
    assert private.devices_of("cpu", "auto", 1) == 1
    assert private.devices_of("cpu", "3", 2) == 3
    with pytest.raises(Exception, match="devices"):
        private.devices_of("cpu", 0, 1)


def test_a_launcher_is_known_and_its_processes_can_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = trainer(devices=1), trainer(devices=2, strategy="ddp_find_unused_parameters_true")
    assert not private.launches(one)
    assert private.launches(two)
    assert private.steps_one_level(two.strategy)
    assert type(private.cluster_environment(two)) is LightningEnvironment
    private.kill_launched(one)
    launcher: Any = two.strategy.launcher
    killed: list[int] = []
    monkeypatch.setattr(launcher, "kill", killed.append)
    launcher.procs.append("a process")
    private.kill_launched(two)
    assert killed == [signal.SIGKILL]
    assert launcher.procs == []


def test_signals_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that is replaced is the one that Lightning calls when it runs."""
    assert callable(_SignalConnector.register_signal_handlers)
    assert "_signal_connector.register_signal_handlers()" in inspect.getsource(pl.Trainer._run)
    quiet: Any = trainer(devices=1)
    private.handle_no_signals(quiet)
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    quiet._signal_connector.register_signal_handlers()
    assert {signum: signal.getsignal(signum) for signum in before} == before


def test_the_requeue_handler_saves_and_requeues() -> None:
    handler = private.requeue_handler(trainer(devices=1))
    assert list(inspect.signature(handler).parameters) == ["signum", "_"]
    source = inspect.getsource(_SignalConnector._slurm_sigusr_handler_fn)
    assert "save_checkpoint(" in source
    assert "requeue" in source
    assert hasattr(SLURMEnvironment(auto_requeue=True), "requeue_signal")


def test_a_rank_is_what_rank_zero_only_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
    said: list[str] = []
    speak = rank_zero_only(said.append)
    private.set_rank(1)
    speak("one")
    private.set_rank(0)
    speak("zero")
    assert said == ["zero"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_prepare_subcommand_parser", ["self", "klass", "subcommand", "kwargs"]),
        ("_parse_ckpt_path", ["self"]),
        ("_instantiate_trainer", ["self", "config", "callbacks"]),
        ("_get", ["self", "config", "key", "default"]),
    ],
)
def test_the_command_line_has_the_methods_that_are_overridden(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(LightningCLI, name)).parameters) == parameters


def test_nothing_else_uses_them() -> None:
    names = r"_\w+_connector\b|_ddp_kwargs|\._start_method|_SubprocessScriptLauncher|_slurm_sigusr"
    found = [p.name for p in SRC.rglob("*.py") if re.search(names, p.read_text())]
    assert found == ["lightning_private.py"]
