"""A run's directory: nothing in it is lost unasked, and nothing depends on where it lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hmrl.cli.main import main
from hmrl.cli.report import main as report
from hmrl.system.errors import UserError
from hmrl.training.callbacks import EnvStepBudget
from hmrl.training.checkpoint import load
from hmrl.training.trainer import make_trainer
from support.paths import TINY
from support.runs import Run, fit_iterations, read_rows
from support.toy import STEPS, ToyDataModule

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False}


def contents(folder: Path) -> dict[Path, bytes]:
    """Of the files that a run would miss; TensorBoard's are opened by whoever asks."""
    files = [path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {path: path.read_bytes() for path in files}


def fit(folder: Path | str, iterations: int, *options: str) -> None:
    run = ["--run_dir", str(folder), "--last_checkpoint.every_n_iterations", "1"]
    main(["fit", *TINY, *run, "--budget.env_steps", str(iterations * STEPS), *options])


def test(folder: Path | str, *options: str) -> None:
    main(["test", *TINY, "--run_dir", str(folder), "--ckpt_path", "last", *options])


test.__test__ = False  # type: ignore[attr-defined]


def refused(capsys: pytest.CaptureFixture[str], action: Any, *arguments: Any) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        action(*arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def steps(folder: Path) -> list[int]:
    return [int(row["step"]) for row in read_rows(folder) if "ppo/approx_kl" in row]


# --- nothing is lost unasked ---------------------------------------------------------------------


def fit_again(run: Run, iterations: int, **options: Any) -> None:
    (budget,) = [c for c in run.trainer.callbacks if isinstance(c, EnvStepBudget)]  # type: ignore[attr-defined]
    budget.env_steps = iterations * STEPS
    run.trainer.fit(run.module, datamodule=run.data, **options)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_fit_of_a_trainer_loses_nothing(overwrite: bool, tmp_path: Path) -> None:
    """What may be written over was there before the first one."""
    run = fit_iterations(tmp_path, 1, overwrite=overwrite)
    run.trainer.test(run.module, datamodule=run.data, verbose=False)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"already holds a run.*ckpt_path='.*last\.ckpt'.*overwrite=True"):
        fit_again(run, 2)
    assert contents(tmp_path) == before
    assert tmp_path / "test-first_episode.json" in before


@pytest.mark.parametrize("name", ["last.ckpt", "last"])
def test_a_second_fit_of_a_trainer_continues_the_first_if_it_is_given_its_checkpoint(
    name: str, tmp_path: Path
) -> None:
    run = fit_iterations(tmp_path, 1)
    run.trainer.test(run.module, datamodule=run.data, verbose=False)
    checkpoints = tmp_path / "checkpoints"
    os.utime(checkpoints / "last.weights.ckpt", (2e9, 2e9))  # as a copy may leave it
    fit_again(run, 2, ckpt_path=name if name == "last" else str(checkpoints / name))
    assert steps(tmp_path) == [STEPS, 2 * STEPS]
    assert (tmp_path / "test-first_episode.json").is_file()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("rollout/success/mean")] == [STEPS, 2 * STEPS]


def test_a_second_test_of_a_trainer_loses_no_results(tmp_path: Path) -> None:
    run = fit_iterations(tmp_path / "run", 1)
    trainer = make_trainer(str(tmp_path / "tests"), 1, overwrite=True, **CPU)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    trainer.test(run.module, datamodule=run.data, ckpt_path=str(last), verbose=False)
    before = contents(tmp_path / "tests")
    run.module.env_steps += 1
    with pytest.raises(UserError, match="holds other results"):
        trainer.test(run.module, datamodule=run.data, verbose=False)
    assert contents(tmp_path / "tests") == before


@pytest.mark.usefixtures("toy_world")
def test_a_run_is_not_set_back_to_an_earlier_checkpoint_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, first = tmp_path / "run", tmp_path / "run" / "checkpoints" / "first.ckpt"
    fit(run, 1)
    shutil.copy(run / "checkpoints" / "last.ckpt", first)
    fit(run, 3, "--ckpt_path", "last")
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "hpc_ckpt_1.ckpt")
    before = contents(run)
    said = refused(capsys, fit, run, 2, "--ckpt_path", str(first))
    assert f"of {STEPS} environment steps, but the run in {run} has gone on to {3 * STEPS}" in said
    assert contents(run) == before
    fit(run, 2, "--ckpt_path", str(first), "--overwrite", "true")
    assert steps(run) == [STEPS, 2 * STEPS]
    fit(run, 2, "--ckpt_path", "last")  # and nothing beyond is taken for its last checkpoint
    assert f"continuing from {run}/checkpoints/last.ckpt" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
def test_other_weights_under_the_same_name_have_other_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, 1)
    test(tmp_path)
    fit(tmp_path, 2, "--ckpt_path", "last")
    before = contents(tmp_path)
    assert "holds other results, which would be lost (its weights differs)" in refused(capsys, test, tmp_path)
    assert contents(tmp_path) == before


# --- one path, one reading -----------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``~``; the process is in another directory, which is empty."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.usefixtures("toy_world")
def test_a_run_in_the_home_directory_is_there_as_a_whole(home: Path) -> None:
    fit("~/run", 1)
    test("~/run", "--ckpt_path", "~/run/checkpoints/last.ckpt")
    assert not any(Path().iterdir())
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", ".lock", "tensorboard"):
        assert (home / "run" / name).exists(), name
    report(["run=~/run", "--out", "~/report", "--formats", "png"])
    assert (home / "report" / "report.md").is_file()
    assert not any(Path().iterdir())


def test_a_trainers_directory_stays_the_same_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit_iterations(Path("~/run"), 1)
    fit_again(run, 2, ckpt_path="~/run/checkpoints/last.ckpt")
    assert steps(home / "run") == [STEPS, 2 * STEPS]
    assert not any(Path().iterdir())
    trainer = make_trainer("relative", 3 * STEPS, **CPU)
    folder = trainer.checkpoint_callback.dirpath  # type: ignore[union-attr]
    monkeypatch.chdir(home)
    trainer.fit(run.module, datamodule=run.data)
    assert [path.name for path in home.iterdir()] == ["run"]
    assert (Path(str(folder)) / "last.ckpt").is_file()


@pytest.mark.parametrize("run_dir", ["s3://bucket/run", "file:///tmp/run", "", "file", "file/below"])
def test_what_can_be_no_directory_is_refused(run_dir: str, home: Path) -> None:
    Path("file").touch()
    with pytest.raises(UserError, match=r"^run_dir is "):
        make_trainer(run_dir, 1, **CPU)
    assert [path.name for path in Path().iterdir()] == ["file"]


# --- moved and copied ----------------------------------------------------------------------------


def move(before: Path, after: Path) -> None:
    """As to another disk: to new files."""
    shutil.copytree(before, after)
    shutil.rmtree(before)


@pytest.mark.usefixtures("toy_world")
def test_a_moved_run_keeps_its_best_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyDataModule, "solved", {"train": [10], "test": [5]})
    fit(tmp_path / "before", 1)
    move(tmp_path / "before", tmp_path / "after")
    monkeypatch.setattr(ToyDataModule, "solved", {"train": [1], "test": [5]})
    fit(tmp_path / "after", 2, "--ckpt_path", "last")
    best = load(tmp_path / "after" / "checkpoints" / "best.ckpt")
    assert int(best["state_dict"]["env_steps"]) == STEPS
    assert not (tmp_path / "before").exists()
    shutil.move(tmp_path / "after", tmp_path / "again")  # within the process that has claimed it
    fit(tmp_path / "again", 2, "--ckpt_path", "last")


@pytest.mark.usefixtures("toy_world")
def test_a_run_that_begins_with_anothers_weights_has_a_best_checkpoint_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even in the directory where the other one was."""
    monkeypatch.setattr(ToyDataModule, "solved", {"train": [10], "test": [5]})
    fit(tmp_path / "before", 1)
    move(tmp_path / "before", tmp_path / "after")
    monkeypatch.setattr(ToyDataModule, "solved", {"train": [1], "test": [5]})
    fit(tmp_path / "before", 2, "--ckpt_path", str(tmp_path / "after" / "checkpoints" / "last.ckpt"))
    best = load(tmp_path / "before" / "checkpoints" / "best.ckpt")
    assert int(best["state_dict"]["env_steps"]) == 2 * STEPS


@pytest.mark.usefixtures("toy_world")
def test_the_last_checkpoint_is_the_one_of_most_steps_whatever_the_file_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, 1)
    shutil.copy(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "hpc_ckpt_1.ckpt")
    fit(tmp_path, 2, "--ckpt_path", str(tmp_path / "checkpoints" / "last.ckpt"))
    os.utime(tmp_path / "checkpoints" / "last.ckpt", (1, 1))
    capsys.readouterr()
    fit(tmp_path, 2, "--ckpt_path", "last")
    assert f"continuing from {tmp_path}/checkpoints/last.ckpt" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
def test_a_moved_runs_results_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "before", 1)
    test(tmp_path / "before")
    shutil.move(tmp_path / "before", tmp_path / "after")
    test(tmp_path / "after")
    monkeypatch.chdir(tmp_path)
    test("after", "--ckpt_path", "after/checkpoints/last.weights.ckpt")


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.usefixtures("toy_world")
def test_the_configuration_of_a_continued_run_begins_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def no_loggers(*arguments: Any) -> list[Any]:
        told.append(arguments[-1])
        return []

    fit(tmp_path / "run", 1)
    with monkeypatch.context() as patch:
        patch.setattr("hmrl.cli.main.loggers", no_loggers)
        fit(tmp_path / "run", 2, "--ckpt_path", "last", "--overwrite", "true")
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for configuration in (saved, *told):
        assert configuration["budget"] == {"env_steps": 2 * STEPS}
        assert not {"ckpt_path", "overwrite"} & configuration.keys()
        assert "overwrite" not in configuration.get("evaluation", {})
    other = ["--config", str(tmp_path / "run" / "config.yaml"), "--run_dir", str(tmp_path / "other")]
    main(["fit", *other, "--seed_everything", "7"])
    assert steps(tmp_path / "other") == [STEPS, 2 * STEPS]
