"""Interruption at any moment: the run ends as it should, nothing is lost, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, SIGUSR1
from typing import Any

import pytest
import pytorch_lightning as pl

from hmrl.cli.main import HmrlCLI, main
from hmrl.training.callbacks import SuccessRate
from hmrl.training.checkpoint import load
from hmrl.training.module import HierarchicalMetaRL
from support.interrupted import (
    Patch,
    in_training,
    send,
    when_called,
    when_half_written,
    when_renamed_to,
)
from support.launch import Ended, run_together, still_running
from support.paths import TESTS
from support.runs import assert_same, command, fit_iterations, learning_state, read_rows
from support.toy import STEPS

pytestmark = pytest.mark.usefixtures("toy_world")
LAST = ("--ckpt_path", "last")
Interrupt = Callable[[Patch], None]
GoesOn = Callable[..., None]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """What befalls the next run in this process."""
    return lambda patch: monkeypatch.setattr(*patch)


def iteration(folder: Path) -> int:
    return int(load(folder / "checkpoints" / "last.ckpt")["state_dict"]["iteration"])


def rows_of(folder: Path) -> list[int]:
    """Each iteration has two rows, evaluation and training."""
    return [int(row["step"]) // STEPS for row in read_rows(folder)]


@pytest.fixture(scope="module")
def assert_goes_on(straight: Path) -> GoesOn:
    """The same command finishes the run, and gives what a straight one does."""
    expected = read_rows(straight), learning_state(load(straight / "checkpoints" / "last.ckpt"))

    def goes_on(folder: Path, *options: str) -> None:
        main(command(folder, *options))
        assert rows_of(folder) == [1, 1, 2, 2, 3, 3, 4, 4]
        assert read_rows(folder) == expected[0]
        assert_same(learning_state(load(folder / "checkpoints" / "last.ckpt")), expected[1])

    return goes_on


def aborted(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command exits with 130 and one sentence."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 130
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    assert output.err.count("hmrl: interrupted; the last checkpoint, if there was one, is intact") == 1
    assert "hmrl: error" not in output.err


# --- one process ---------------------------------------------------------------------------------


def test_sigterm_ends_the_process_in_order(assert_goes_on: GoesOn, tmp_path: Path) -> None:
    run = [sys.executable, str(TESTS / "support" / "interrupted.py"), *command(tmp_path / "run")]
    (ended,) = run_together([run], 120, EVENT="SIGTERM")
    assert ended.code == 0
    assert "Traceback" not in ended.out + ended.err
    assert "SIGTERM: stopping after this iteration" in ended.err
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert (
        f"stopped as asked after {2 * STEPS} environment steps; {last} holds them: continue with "
        "--ckpt_path last"
    ) in ended.out
    assert iteration(tmp_path / "run") == 2
    assert rows_of(tmp_path / "run") == [1, 1, 2, 2]
    assert_goes_on(tmp_path / "run", *LAST)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "signum"),
    [("collecting", SIGINT), ("learning", SIGTERM), ("evaluating", SIGTERM), ("saving", SIGINT)],
)
def test_the_iteration_ends_wherever_it_is(
    moment: str,
    signum: int,
    interrupt: Interrupt,
    assert_goes_on: GoesOn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And no other one begins, save where the signal comes between two."""
    act, batches = send(signum), 2 * (2 + 1)  # of an evaluation: modes, and goals over environments
    patches = {
        "collecting": in_training((2, act)),
        "learning": when_called(HierarchicalMetaRL, "_update_macro_vae", act, number=2),
        "evaluating": when_called(SuccessRate, "on_validation_batch_end", act, number=batches + 3),
        "saving": when_renamed_to("last.ckpt", 2, act),
    }
    interrupt(patches[moment])
    handlers = [signal.getsignal(s) for s in (SIGTERM, SIGINT)]
    main(command(tmp_path / "run"))
    assert [signal.getsignal(s) for s in (SIGTERM, SIGINT)] == handlers
    done = 3 if moment == "saving" else 2
    assert f"stopped as asked after {done * STEPS} environment steps" in capsys.readouterr().out
    assert iteration(tmp_path / "run") == done
    assert rows_of(tmp_path / "run") == [n for n in range(1, done + 1) for _ in range(2)]
    assert_goes_on(tmp_path / "run", *LAST)


@pytest.mark.slow
def test_a_second_ctrl_c_aborts_at_once(
    interrupt: Interrupt, assert_goes_on: GoesOn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(in_training((2, send(SIGINT)), (2, send(SIGINT))))
    aborted(command(tmp_path / "run"), capsys)
    assert iteration(tmp_path / "run") == 1
    assert rows_of(tmp_path / "run") == [1, 1]
    assert_goes_on(tmp_path / "run", *LAST)


def test_signals_are_the_callers_again_after_training(interrupt: Interrupt, tmp_path: Path) -> None:
    """Of Python code that uses the trainer."""
    handlers = [signal.getsignal(s) for s in (SIGTERM, SIGINT)]
    fit_iterations(tmp_path / "run", 1)
    assert [signal.getsignal(s) for s in (SIGTERM, SIGINT)] == handlers

    class Fails(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit_iterations(tmp_path / "fails", 1, callbacks=[Fails()])
    assert [signal.getsignal(s) for s in (SIGTERM, SIGINT)] == handlers


# --- before training -----------------------------------------------------------------------------

IMPORTING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["hmrl", "fit"]
from hmrl.__main__ import command
command()
"""


@pytest.mark.slow
def test_ctrl_c_while_importing_has_no_traceback() -> None:
    ended = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-SIGINT, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [SIGTERM, SIGINT])
def test_before_a_trainer_runs_the_command_just_ends(
    signum: int, interrupt: Interrupt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(when_called(HmrlCLI, "before_fit", send(signum)))
    aborted(command(tmp_path / "run"), capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("continued", "signum"), [(False, SIGINT), (True, SIGTERM)])
def test_a_run_that_has_not_begun_can_be_begun_by_the_same_command(
    continued: bool,
    signum: int,
    interrupt: Interrupt,
    assert_goes_on: GoesOn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if continued:
        main(command(tmp_path / "run", iterations=2))
    # Called while Lightning sets everything up, after its callbacks.
    interrupt(when_called(HierarchicalMetaRL, "configure_optimizers", send(signum)))
    same = LAST if continued else ()
    main(command(tmp_path / "run", *same))
    said = capsys.readouterr().out
    if continued:
        assert f"stopped as asked after {2 * STEPS} environment steps; {tmp_path}" in said
        assert iteration(tmp_path / "run") == 2
    else:
        assert "stopped as asked after 0 environment steps; start it again with the same command" in said
        assert "budget" not in said
        assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert_goes_on(tmp_path / "run", *same)


# --- killed --------------------------------------------------------------------------------------


def exit_code(arguments: list[str], patch: Patch) -> int:
    """Of the command in a process that is forked from this one; negative for a signal."""
    if not (pid := os.fork()):
        signal.alarm(60)
        code = 1
        try:
            setattr(*patch)
            main(arguments)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


KILLED = {
    "half of the checkpoint written": when_half_written(".last.ckpt.tmp", 3, send(SIGKILL)),
    "half of the export written": when_half_written(".last.weights.ckpt.tmp", 3, send(SIGKILL)),
    "before both renames": when_renamed_to("last.weights.ckpt", 3, send(SIGKILL)),
    "between the two renames": when_renamed_to("last.ckpt", 3, send(SIGKILL)),
}


@pytest.mark.parametrize("moment", KILLED)
def test_killed_while_saving(moment: str, assert_goes_on: GoesOn, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert exit_code(command(run, *LAST), KILLED[moment]) == -SIGKILL
    assert iteration(run) == 2
    assert rows_of(run)[-1] == 3  # logged, and about to be in the checkpoint
    assert load(run / "checkpoints" / "last.weights.ckpt")
    assert list((run / "checkpoints").glob(".*.tmp"))
    assert_goes_on(run, *LAST)
    full, export = (load(run / "checkpoints" / f"last.{kind}") for kind in ("ckpt", "weights.ckpt"))
    assert_same(dict(full["state_dict"]), dict(export["state_dict"]))
    assert not list((run / "checkpoints").glob(".*.tmp"))


def test_killed_when_there_is_nothing_but_a_log(assert_goes_on: GoesOn, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert exit_code(command(run, *LAST), when_half_written(".best.ckpt.tmp", 1, send(SIGKILL))) == -SIGKILL
    assert rows_of(run) == [1]
    assert_goes_on(run, *LAST)


def test_killed_while_the_log_is_written_anew(assert_goes_on: GoesOn, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(command(run, iterations=2))
    assert exit_code(command(run, *LAST), when_renamed_to("metrics.csv", 1, send(SIGKILL))) == -SIGKILL
    assert rows_of(run) == [1, 1, 2, 2]
    assert_goes_on(run, *LAST)


# --- two processes -------------------------------------------------------------------------------


def two_processes(event: str, folder: Path) -> Ended:
    """All of them are gone when this returns: none holds the pipes any longer."""
    script = str(TESTS / "support" / "interrupted.py")
    options = ["--trainer.devices", "2", "--data.validation.envs_per_family", "2"]
    (ended,) = run_together([[sys.executable, script, *command(folder, *options)]], 120, EVENT=event)
    assert not still_running(folder)
    assert "Traceback" not in ended.out + ended.err
    return ended


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("event", ["Ctrl-C", "SIGTERM"])
def test_two_processes_end_together(event: str, tmp_path: Path) -> None:
    """Ctrl-C goes to both of them, SIGTERM to the first alone."""
    ended = two_processes(event, tmp_path / "run")
    assert ended.code == 0
    assert f"stopped as asked after {2 * STEPS} environment steps" in ended.out
    assert ended.err.count("stopping after this iteration") == 1
    last = load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert int(last["state_dict"]["iteration"]) == 2
    assert len(last["ToyDataModule"]["replays"]) == 2
    assert rows_of(tmp_path / "run") == [1, 1, 2, 2]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_second_ctrl_c_aborts_two_processes_at_once(tmp_path: Path) -> None:
    ended = two_processes("Ctrl-C twice", tmp_path / "run")
    assert ended.code == 130
    assert ended.err.count("hmrl: interrupted") == 1
    assert iteration(tmp_path / "run") == 1


@pytest.mark.slow
@pytest.mark.distributed
def test_sigterm_while_the_second_process_starts(tmp_path: Path) -> None:
    ended = two_processes("SIGTERM after launching", tmp_path / "run")
    assert ended.code in (0, 130)  # a thread of a library's may hear what this process holds back
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_process_does_not_wait_for_one_that_was_killed(tmp_path: Path) -> None:
    ended = two_processes("child killed", tmp_path / "child")
    assert ended.code in (2, -SIGKILL)
    assert iteration(tmp_path / "child") == 1
    ended = two_processes("first killed after launching", tmp_path / "first")
    assert ended.code == -SIGKILL


# --- SLURM ---------------------------------------------------------------------------------------


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM job; the file holds what ``scontrol`` was called with."""
    scontrol, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    calls.touch()
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    job = {"JOB_ID": 4242, "JOB_NAME": "train", "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1}
    for name, value in (job | {"PROCID": 0, "LOCALID": 0, "NODEID": 0}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "when", "same"),
    [(SIGTERM, 3, ()), (SIGTERM, 3, LAST), (SIGTERM, 2, ()), (SIGKILL, 3, ()), (SIGKILL, 3, LAST)],
)
def test_slurm_requeues_between_two_iterations(
    signum: int,
    when: int,
    same: tuple[str, ...],
    requeued: Path,
    assert_goes_on: GoesOn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Then the job goes on until it is ended; started again, it continues from the newest checkpoint."""
    run, killed = tmp_path / "run", signum == SIGKILL
    rarely = ("--last_checkpoint.every_n_iterations", "10") if killed else ()
    patch = in_training((2, send(SIGUSR1)), (when, send(signum)))
    assert exit_code(command(run, *rarely), patch) == (-SIGKILL if killed else 0)
    assert requeued.read_text() == "requeue 4242\n"
    newest = run / "hpc_ckpt_1.ckpt"
    assert int(load(newest)["state_dict"]["iteration"]) == 2
    if not killed:
        newest = run / "checkpoints" / "last.ckpt"
        assert iteration(run) == when
    assert rows_of(run)[-1] == (2 if killed else when)
    assert_goes_on(run, *same)
    assert f"continuing from {newest}" in capsys.readouterr().out
