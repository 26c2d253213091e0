"""What a terminal or a scheduler does to a process: no output is taken, signals go to the group."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM

import pytest

from hmrl.training.checkpoint import load
from support.launch import free_port
from support.paths import CONFIGS, TESTS, TINY, environment
from support.runs import fit_iterations
from support.toy import STEPS

pytestmark = pytest.mark.slow

TOY = [sys.executable, str(TESTS / "support" / "interrupted.py")]
HMRL = [sys.executable, "-m", "hmrl"]
TWO = ["--trainer.devices", "2", "--data.validation.envs_per_family", "2"]
LIMIT = 240  # seconds, of a machine that has much else to do


def fit(folder: Path, *options: str, iterations: int = 4) -> list[str]:
    run = ["--run_dir", str(folder), "--last_checkpoint.every_n_iterations", "1"]
    return ["fit", *TINY, *options, *run, "--budget.env_steps", str(iterations * STEPS)]


def iteration(folder: Path) -> int:
    return int(load(folder / "checkpoints" / "last.ckpt")["state_dict"]["iteration"])


@contextmanager
def started(
    command: Sequence[str], *, ignored: Sequence[int] = (), close: Sequence[int] = (), **options: object
) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, of which nothing is left afterwards.

    Args:
        ignored, close: signals and file descriptors, as a shell hands them on; other signals are heard.
        options: of Popen.
    """

    def prepare() -> None:
        for signum in (SIGHUP, SIGINT, SIGTERM):
            signal.signal(signum, signal.SIG_IGN if signum in ignored else signal.SIG_DFL)
        for fd in close:
            os.close(fd)

    given = options.pop("environment", {})
    process = subprocess.Popen(
        list(command),
        env=environment(**given),
        text=True,
        preexec_fn=prepare,
        start_new_session=True,
        **options,
    )  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, SIGKILL)
        process.communicate()


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.2)


# --- output --------------------------------------------------------------------------------------


def code_without_output(command: Sequence[str], how: str, **options: object) -> int:
    """Exit code of a command whose output nobody takes from the start."""
    if how == "closed":
        with started(command, close=(1, 2), **options) as process:
            return process.wait(LIMIT)
    reader, writer = pty.openpty() if how == "terminal" else os.pipe()
    with started(command, stdin=writer, stdout=writer, stderr=writer, ignored=[SIGHUP], **options) as process:
        os.close(writer)
        os.close(reader)
        return process.wait(LIMIT)


@pytest.mark.parametrize(("how", "options"), [("terminal", ()), ("pipe", TWO), ("closed", ())])
def test_training_goes_on_without_anybody_to_read_what_it_prints(
    how: str, options: Sequence[str], tmp_path: Path
) -> None:
    """The terminal is gone, the pipe is closed, or there never was one."""
    assert code_without_output([*TOY, *fit(tmp_path / "run", *options)], how) == 0
    assert iteration(tmp_path / "run") == 4


def test_other_commands_do_not_need_readers_either(tmp_path: Path) -> None:
    """Their results are files; and what is still to be printed at the end does not change the exit code."""
    run = tmp_path / "run"
    fit_iterations(run, 1)
    test = ["test", *TINY, "--run_dir", str(run), "--ckpt_path", "last"]
    assert code_without_output([*TOY, *test], "terminal") == 0
    assert list(run.glob("test-*.json"))
    report = ["report", str(run), "--out", str(tmp_path / "report"), "--formats", "png"]
    assert code_without_output([*HMRL, *report], "pipe") == 0
    assert (tmp_path / "report" / "report.md").is_file()
    assert code_without_output([*HMRL, "report", "--help"], "pipe") == 0


PYTHON = f"""
import sys
from pathlib import Path
from support.runs import fit
fit(Path(sys.argv[1]), {2 * STEPS})
"""


def test_training_from_python_does_not_need_readers_either(tmp_path: Path) -> None:
    assert code_without_output([sys.executable, "-c", PYTHON, str(tmp_path)], "pipe") == 0
    assert iteration(tmp_path) == 2


# --- signals to the group ------------------------------------------------------------------------


def test_a_terminal_that_hangs_up_asks_to_stop(tmp_path: Path) -> None:
    """Of two processes each hears it, as Ctrl-C in test_interruption.py."""
    command = [*TOY, *fit(tmp_path / "run")]
    with started(command, environment={"EVENT": "SIGHUP"}, stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 0
    assert said.count("SIGHUP: stopping after this iteration") == 1
    assert iteration(tmp_path / "run") == 2


def test_under_nohup_training_goes_on(tmp_path: Path) -> None:
    command = [*TOY, *fit(tmp_path / "run")]
    with started(command, environment={"EVENT": "SIGHUP"}, ignored=[SIGHUP]) as process:
        assert process.wait(LIMIT) == 0
    assert iteration(tmp_path / "run") == 4


ONE_FAMILY = ["--data.benchmark", "ML1", "--data.train_families", "[reach]", "--data.horizon", "13"]
WORLDS = {
    "envpool": [*ONE_FAMILY, "--data.backend", "envpool"],
    "metaworld": [*ONE_FAMILY, "--data.backend", "metaworld"],
    "metaworld_async": [*ONE_FAMILY, "--data.backend", "metaworld_async"],
    "gridworld": ["--config", str(CONFIGS / "worlds/gridworld.yaml"), "--config", TINY[-1]],
}
UNEVALUATED = ["--trainer.limit_val_batches", "0"]  # starts half of the simulators


@pytest.mark.parametrize(
    ("world", "signum", "options"),
    [
        ("envpool", SIGHUP, []),
        ("metaworld", SIGTERM, []),
        ("metaworld_async", SIGTERM, []),
        ("metaworld_async", SIGINT, [*TWO, *UNEVALUATED]),
        ("gridworld", SIGINT, []),
    ],
)
def test_a_signal_to_all_processes_ends_the_iteration_and_saves_it(
    world: str, signum: int, options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*HMRL, *fit(run, *WORLDS[world], *options, iterations=10**6)]
    with started(command, stderr=subprocess.PIPE) as process:
        wait_until((run / "checkpoints" / "last.ckpt").is_file, process)
        before = iteration(run)
        os.killpg(process.pid, signum)
        said = process.communicate(timeout=LIMIT)[1]
        assert process.returncode == 0, said[-4000:]
        assert "Traceback" not in said
        assert iteration(run) >= before
        wait_until(lambda: not members(process.pid))


def members(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of, *_ = file.read_text().rpartition(")")[2].split()
            if int(of) == group and state != "Z":
                found.append(int(file.parent.name))
    return found


def test_simulators_end_when_training_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*HMRL, *fit(run, *WORLDS["metaworld_async"], *UNEVALUATED, iterations=10**6)]
    with started(command, stderr=subprocess.DEVNULL) as process:
        wait_until((run / "checkpoints" / "last.ckpt").is_file, process)
        assert len(members(process.pid)) > 2
        process.kill()
        process.wait()
        wait_until(lambda: not members(process.pid))


# Without ``if __name__ == "__main__"``, as scripts and notebooks' exports are.
SCRIPT = """
import os
from signal import SIGINT, SIGTERM, SIG_IGN, signal

import numpy as np

from hmrl.envs.benchmarks import Goals, benchmark
from hmrl.envs.metaworld import MetaWorldEnvs
from hmrl.evaluation.metaworld_protocol import make_trial_envs
from hmrl.evaluation.protocols import MetaWorldConfig

print("once")
ml1 = benchmark("ML1", ["reach"], [])
goals = Goals("train", 1, None, 0)
envs = MetaWorldEnvs(("reach", "reach"), goals, [0, 1], 2, 5, bench=ml1, asynchronous=True)
config = MetaWorldConfig(meta_batch_size=2)
trials = make_trial_envs(ml1, "train", config, seed=1, horizon=5, asynchronous=True)
for signum in (SIGINT, SIGTERM):
    signal(signum, SIG_IGN)
    os.killpg(0, signum)
envs.reset(0)
assert envs.step(np.zeros((2, 4), dtype=np.float32)).observation.shape == (2, 39)
trials.call("sample_tasks")
trials.reset()
assert trials.step(np.zeros((2, 4), dtype=np.float32))[0].shape == (2, 45)
trials.env.step_async(np.zeros((2, 4), dtype=np.float32))  # and nothing is closed
"""


def test_simulators_need_no_main_guard_and_hear_no_signals(tmp_path: Path) -> None:
    """And they end with the script, whatever state they are in."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with started([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said, complaints = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, complaints[-4000:]
        assert said == "once\n"
        wait_until(lambda: not members(process.pid))


# --- waiting for others --------------------------------------------------------------------------


def node(folder: Path, port: str, *options: str) -> tuple[list[str], dict[str, str]]:
    """The first of two nodes, and its environment."""
    two = ["--trainer.num_nodes", "2", "--trainer.devices", "1", *TWO[2:], *options]
    return [*TOY, *fit(folder, *two)], {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def listens(port: str) -> bool:
    tables = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    return any(
        line.split()[1].endswith(f":{int(port):04X}") and line.split()[3] == "0A"
        for line in tables.splitlines()
    )


@pytest.mark.parametrize("signum", [SIGINT, SIGTERM])
def test_waiting_for_a_process_that_does_not_come_can_be_interrupted(signum: int, tmp_path: Path) -> None:
    port = free_port()
    command, environment = node(tmp_path / "run", port)
    with started(command, environment=environment, stderr=subprocess.PIPE) as process:
        wait_until(lambda: listens(port), process)
        process.send_signal(signum)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.count("hmrl: interrupted") == 1
    assert "Traceback" not in said


def test_waiting_ends_by_itself_and_says_why(tmp_path: Path) -> None:
    strategy = (
        '{"class_path": "pytorch_lightning.strategies.DDPStrategy", "init_args": {"timeout": "0:00:01"}, '
        '"dict_kwargs": {"find_unused_parameters": true}}'
    )
    command, environment = node(tmp_path / "run", free_port(), "--trainer.strategy", strategy)
    with started(command, environment=environment, stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 2
    assert (
        "the connection to the other processes failed (Timed out after 2 seconds waiting for clients" in said
    )
    assert "Traceback" not in said


def test_an_unknown_network_interface_is_named(tmp_path: Path) -> None:
    environment = {"GLOO_SOCKET_IFNAME": "nosuch"}
    command = [*TOY, *fit(tmp_path / "run", *TWO)]
    with started(command, environment=environment, stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode in (2, -SIGKILL)
    assert "Unable to find address for: nosuch" in said
    assert "see to MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME" in said
    assert "Traceback" not in said


SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("environment", "options", "named"),
    [
        ({"LOCAL_RANK": "0"}, TWO, "LOCAL_RANK is 0 in the environment"),
        ({"RANK": "1"}, [], "RANK is 1 in the environment"),
        ({**SLURM, "SLURM_NTASKS": "2"}, TWO, "SLURM_NTASKS is 2 in the environment, but srun has not"),
    ],
    ids=lambda x: "-".join(x)[:40] if isinstance(x, dict) else None,
)
def test_inherited_variables_of_a_launcher_that_is_not_there_are_named(
    environment: dict[str, str], options: list[str], named: str, tmp_path: Path
) -> None:
    """Other variables: test_processes.py."""
    command = [*TOY, *fit(tmp_path / "run", *options)]
    with started(command, environment=environment, stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=LIMIT / 2)[1]
    assert process.returncode == 2, said[-4000:]
    (sentence,) = [line for line in said.splitlines() if line.startswith("hmrl: error: ")]
    assert named in sentence
    assert f"unset {named.split()[0]}" in sentence
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
