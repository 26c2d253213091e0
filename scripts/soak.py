"""Interrupts a run at random moments, kills it at random moments, and compares it with a run in peace.

    python scripts/soak.py --world grid --count 20 --processes both

The same command is started again and again; each time it is sent SIGTERM or Ctrl-C (``--count`` times), then
``kill -9`` (as often). In the end the run is finished, and must equal a straight one bit by bit.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any, NamedTuple

from compare import LEARNT, differences
from hmrl.training.checkpoint import load
from hmrl.training.run_directory import newest_checkpoint

PATIENCE = 120  # seconds until a process that should have ended counts as hanging
UNREACHED = 10**12  # a budget
# Each world's command, and how long after the beginning of training it may be left alone.
COMMAND = ["-m", "hmrl", "fit", "--config", "ml10", "--config"]
# Quick iterations, each with an evaluation, and a large checkpoint.
SMALL = [
    "--data.envs_per_family=4",
    "--data.replay_trajectories=1000",
    "--latent_analysis.every_n_evaluations=1000",
]
GRID = [*COMMAND, "worlds/gridworld", *SMALL, "--trainer.check_val_every_n_epoch", "1"]
WORLDS = {"grid": (GRID, 4.0), "ml10": ([*COMMAND, "smoke"], 40.0)}


def rows(directory: Path) -> list[dict[str, str]]:
    """``metrics.csv`` without times, which no two runs share, and without what a row leaves empty."""
    with (directory / "metrics.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v != "" and not k.startswith("time/")} for row in read]


def learning_state(directory: Path) -> dict[str, Any]:
    """What decides how training goes on."""
    last = load(directory / "checkpoints" / "last.ckpt")
    return {key: last[key] for key in (*LEARNT, "epoch", "global_step", "loops")}


class Left(NamedTuple):
    """What is in a run's directory: its newest checkpoint's counts, and iterations in the log."""

    iteration: int
    env_steps: int
    logged: int


class Run:
    """One run, and the command that starts or continues it."""

    def __init__(self, folder: Path, world: str, processes: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.directory = folder, folder / "run"
        command, self.seconds = WORLDS[world]
        self.command = [sys.executable, *command, "--run_dir", str(self.directory), "--ckpt_path", "last"]
        self.command += ["--trainer.accelerator", "cpu", "--trainer.devices", str(processes)]
        self.command += ["--last_checkpoint.every_n_iterations", "1"]
        self.command += ["--data.validation", "{goals_per_family: 2, envs_per_family: 2}"]
        self.startup = 8.0  # seconds until training begins, as it was the last time

    def start(self, budget: int) -> subprocess.Popen[bytes]:
        """Start or continue, in a process group of its own."""
        with (self.folder / "output.txt").open("wb") as output:
            return subprocess.Popen(
                [*self.command, "--budget.env_steps", str(budget)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """Of the last start."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def trains(self) -> bool:
        """Whether the last start came as far as the progress bar."""
        return "training:" in self.output()

    def left(self) -> Left:
        """Raises UserError if the newest checkpoint does not load."""
        found = newest_checkpoint(self.directory)
        state = load(found)["state_dict"] if found else {"iteration": 0, "env_steps": 0}
        log = self.directory / "metrics.csv"
        logged = rows(self.directory) if log.is_file() else []
        return Left(int(state["iteration"]), int(state["env_steps"]), sum("ppo/epochs" in r for r in logged))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], pause: float = 0.02) -> None:
    """Until ``condition`` holds, the process has ended, or patience has."""
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(pause)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def is_newer(path: Path, since: float) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime > since
    return False


def has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def strike(run: Run, signum: int, target: str, phase: str, dice: random.Random) -> bool:
    """Start the run, interrupt it once, and print what came of it; whether all was well."""
    before, started, clock = run.left(), time.monotonic(), time.time()
    process = run.start(UNREACHED)
    if target == "child":
        wait_for(lambda: bool(children(process)), process)
    if phase == "start":  # not before Python itself has started
        time.sleep(0.5 + dice.random() * run.startup)
    else:
        wait_for(run.trains, process)
        run.startup = time.monotonic() - started
        time.sleep(dice.random() * run.seconds)
    half_written = run.directory / "checkpoints" / ".last.ckpt.tmp"
    if phase == "saving":
        wait_for(lambda: is_newer(half_written, clock), process, pause=0.0002)
        time.sleep(dice.random() * 0.03)
    early, sent = process.poll() is not None, time.monotonic()
    with suppress(ProcessLookupError, IndexError):
        if target == "group":
            os.killpg(process.pid, signum)
        else:
            os.kill(process.pid if target == "first" else children(process)[0], signum)
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    took, code = time.monotonic() - sent, process.poll()
    while has_members(process.pid) and time.monotonic() < sent + took + 15:
        time.sleep(0.05)
    orphans = has_members(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
    process.wait()

    killed, trained, after = signum == SIGKILL, run.trains(), run.left()
    lost = after.logged - after.iteration if trained else 0
    codes = {0} if trained else {0, 130, 143, -signum}
    if killed:
        codes = {-SIGKILL, 2} if target == "child" else {-SIGKILL}
    wrong = {
        "ended before it was interrupted": early,
        "hangs": code is None,
        "wrong exit code": code not in codes,
        "a process is left": orphans,
        "Traceback": "Traceback" in run.output(),
        "went back": after.iteration < before.iteration,
        "lost too much": not 0 <= lost <= killed,
        "does not say how to go on": code == 0 and f"after {after.env_steps:,} environ" not in run.output(),
    }
    said = [what for what, is_so in wrong.items() if is_so]
    print(
        f"{Signals(signum).name:7} to {target:5} {sent - started:6.2f} s after the start ({phase:8})  "
        f"exit {code!s:>4} in {took:5.2f} s  "
        f"iteration {before.iteration:4} -> {after.iteration:4}, lost {lost}  "
        f"{'half a checkpoint  ' * is_newer(half_written, clock)}{', '.join(said) or 'ok'}",
        flush=True,
    )
    if said:
        shutil.copy(run.folder / "output.txt", run.folder / f"failed-{time.time():.0f}.txt")
    return not said


def soak(folder: Path, world: str, processes: int, count: int, seed: int) -> dict[str, bool]:
    """Interrupt and kill one run; returns the lines of the summary, and whether each is good."""
    dice, run, summary = random.Random(seed), Run(folder / "interrupted", world, processes), {}
    for kind, signals in (("stopped", (SIGTERM, SIGINT)), ("killed", (SIGKILL,))):
        killed = kind == "killed"
        phases = ["start", "training", "training"] + ["saving", "saving"] * killed
        targets = ["first", "group"] + ["child"] * (killed and processes > 1)
        well = 0
        for i in range(count):
            print(f"{processes} process(es), {i + 1:2} of {count}: ", end="")
            target = targets[i // len(signals) % len(targets)]
            phase = dice.choice(phases) if i else "training"  # the first start is timed
            well += strike(run, signals[i % len(signals)], target, phase, dice)
        summary[f"{processes} process(es): {kind} {count} times, {count - well} failed"] = well == count
    straight, end = Run(folder / "straight", world, processes), run.left()
    budget = end.env_steps + 3 * (end.env_steps // max(end.iteration, 1)) or 1
    codes = [r.start(budget).wait() for r in (run, straight)]
    found = [] if codes == [0, 0] else [f"its exit codes: {codes}"]
    found += differences(*(learning_state(r.directory) for r in (run, straight)))
    found += [] if rows(run.directory) == rows(straight.directory) else ["the rows of metrics.csv"]
    verdict = (
        f"differs from the straight run in {found[:5]}" if found else "equals the straight run bit by bit"
    )
    iterations = run.left().iteration
    summary[f"{processes} process(es): after {iterations} iterations, it {verdict} straight run"] = not found
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20, help="interruptions of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", choices=["1", "2", "both"], default="both")
    parser.add_argument("--world", choices=WORLDS, default="grid")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="is written over")
    arguments = parser.parse_args()
    summary: dict[str, bool] = {}
    for processes in (1, 2) if arguments.processes == "both" else (int(arguments.processes),):
        folder = arguments.folder.resolve() / f"{arguments.world}-{processes}"
        summary |= soak(folder, arguments.world, processes, arguments.count, arguments.seed)
    print("", *(f"{'ok    ' if good else 'FAILED'}  {line}" for line, good in summary.items()), sep="\n")
    return int(not all(summary.values()))


if __name__ == "__main__":
    sys.exit(main())
