"""Weights & Biases: what is asked of its package, which these tests do without."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning_fabric.utilities.rank_zero import rank_zero_only

from hmrl.system.errors import UserError
from hmrl.training.loggers import (
    ContinuedCSVLogger,
    ContinuedTensorBoardLogger,
    EnvStepsWandbLogger,
    WandbConfig,
    loggers,
)
from support.runs import fit_iterations
from support.toy import STEPS


class WandbError(Exception):
    pass


@dataclass
class FakeRun:
    """Writes down what a run is told."""

    asked: dict[str, Any]
    own: str
    metrics: list[tuple[str, str | None]] = field(default_factory=list)
    logged: list[dict[str, Any]] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.asked["id"] or self.own

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        assert not self.finished
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """A package that has begun no run yet."""
    begun: list[FakeRun] = []

    def init(**asked: Any) -> FakeRun:
        assert Path(asked["dir"]).is_dir()  # else the package would choose another place
        begun.append(FakeRun(asked, own=f"run{len(begun)}"))
        return begun[-1]

    fake: Any = ModuleType("wandb")
    fake.init, fake.errors = init, SimpleNamespace(Error=WandbError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", True)
    return begun


def logger(run_dir: Path, *, resumed: bool = False, **changes: Any) -> EnvStepsWandbLogger:
    """As training starts."""
    made = EnvStepsWandbLogger(str(run_dir), WandbConfig(**changes), {"model": {"k": 2}})
    made.resume(1 if resumed else 0)
    return made


def test_a_missing_package_is_said_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(UserError, match=r"needs the package wandb: pip install wandb, or set wandb to null"):
        loggers(str(tmp_path / "run"), WandbConfig())
    assert not any(tmp_path.iterdir())


def test_it_logs_beside_the_other_two_and_only_if_asked(runs: list[FakeRun], tmp_path: Path) -> None:
    usual = [ContinuedCSVLogger, ContinuedTensorBoardLogger]
    assert [type(x) for x in loggers(str(tmp_path))] == usual
    assert [type(x) for x in loggers(str(tmp_path), WandbConfig(), {})] == [*usual, EnvStepsWandbLogger]
    assert runs == []
    assert not any(tmp_path.iterdir())


def test_what_a_run_is_begun_with(runs: list[FakeRun], tmp_path: Path) -> None:
    run_dir = tmp_path / "push-seed3"
    run_dir.mkdir()  # claimed before training
    made = logger(run_dir, project="robots", entity="lab", offline=True)
    assert made.experiment is made.experiment
    (run,) = runs
    assert run.asked == {
        "id": None,
        "name": "push-seed3",
        "project": "robots",
        "entity": "lab",
        "dir": str(run_dir),
        "resume": "allow",
        "mode": "offline",
        "config": {"model": {"k": 2}},
        "allow_val_change": True,
    }


def test_the_users_name_and_the_packages_own_mode(runs: list[FakeRun], tmp_path: Path) -> None:
    assert logger(tmp_path, name="mine").experiment
    asked = runs[0].asked
    assert (asked["name"], asked["project"], asked["entity"], asked["mode"]) == ("mine", "hmrl", None, None)


def test_the_x_axis_is_environment_steps(runs: list[FakeRun], tmp_path: Path) -> None:
    made = logger(tmp_path)
    made.log_metrics({"success/train/mean": 0.5}, 1000)
    made.log_metrics({"vae/loss": 2.0}, 2000)
    assert runs[0].metrics == [("env_steps", None), ("*", "env_steps")]
    assert runs[0].logged == [
        {"success/train/mean": 0.5, "env_steps": 1000},
        {"vae/loss": 2.0, "env_steps": 2000},
    ]


def test_a_resumed_run_is_the_same_one_and_a_new_one_is_not(runs: list[FakeRun], tmp_path: Path) -> None:
    for resumed in (False, True, False, True):
        logger(tmp_path, resumed=resumed).log_metrics({}, 1)
    first, continued, second, continued_second = (run.id for run in runs)
    assert first == continued
    assert second == continued_second
    assert first != second


def test_a_run_that_gets_it_when_it_is_resumed_begins_one(runs: list[FakeRun], tmp_path: Path) -> None:
    logger(tmp_path, resumed=True).log_metrics({}, 1)
    assert runs[0].id
    logger(tmp_path, resumed=True).log_metrics({}, 2)
    assert runs[1].id == runs[0].id


def test_a_run_that_does_not_train_begins_nothing(runs: list[FakeRun], tmp_path: Path) -> None:
    """Lightning asks for it before training may be refused."""
    made = EnvStepsWandbLogger(str(tmp_path), WandbConfig(), {})
    assert not hasattr(made, "experiment")
    made.finalize("failed")
    assert runs == []


def test_other_ranks_begin_and_write_nothing(
    runs: list[FakeRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    made = EnvStepsWandbLogger(str(tmp_path / "run"), WandbConfig(), {})
    made.log_metrics({"vae/loss": 1.0}, 1)
    made.finalize("success")
    assert runs == []
    assert not any(tmp_path.iterdir())


def test_a_refusal_by_the_service_is_one_sentence(
    runs: list[FakeRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(**asked: Any) -> None:
        raise WandbError("No API key configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match=r"\(No API key configured\): log in with `wandb login`.*offline"):
        logger(tmp_path)


@pytest.mark.parametrize(("status", "code"), [("success", 0), ("finished", 0), ("failed", 1)])
def test_how_a_run_ended_is_told_and_it_can_go_on(
    status: str, code: int, runs: list[FakeRun], tmp_path: Path
) -> None:
    made = logger(tmp_path)
    made.finalize(status)
    made.finalize(status)
    assert runs[0].finished == [code]
    made.log_metrics({}, 2)  # as a test after training does
    assert [run.id for run in runs] == [runs[0].id] * 2
    made.resume(0)  # and another training is another run
    assert runs[2].id != runs[0].id


def test_a_fit_and_its_continuation_log_what_the_csv_log_holds(runs: list[FakeRun], tmp_path: Path) -> None:
    options: dict[str, Any] = {"wandb": WandbConfig(), "settings": {"seed": 1}}
    fit_iterations(tmp_path, 1, **options)
    run = fit_iterations(tmp_path, 2, resume=True, **options)
    assert len(runs) == 2
    assert [r.finished for r in runs] == [[0], [0]]
    assert runs[0].id == runs[1].id
    assert runs[0].asked["config"] == {"seed": 1}
    for begun, steps in zip(runs, (STEPS, 2 * STEPS), strict=True):
        assert {values["env_steps"] for values in begun.logged} == {steps}
        told = {k: v for values in begun.logged for k, v in values.items() if not k.startswith("time/")}
        written = {k: float(v) for row in run.rows if float(row["step"]) == steps for k, v in row.items()}
        written["env_steps"] = written.pop("step")
        ours = {k: v for k, v in told.items() if k in written}
        assert ours == pytest.approx(written)
        assert told.keys() - written.keys() <= {"epoch"}
