"""The command ``hmrl sweep``: a list of overlays over seeds, each trained and tested, then reported."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from hmrl.cli.report import main as report
from hmrl.cli.shipped import config_file, read_yaml
from hmrl.system.cores import keep_to, share_of_cores
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.training.run_directory import checkpoint_dir, newest_checkpoint

_ASKED = "sweep.json"  # in a run directory: what the sweep file had when the run began
_KINDS = {"base": list, "seeds": list, "runs": dict, "fit": dict, "test": dict}


@dataclass(frozen=True)
class Run:
    """One training run and its test.

    Args:
        fit: arguments of ``hmrl fit``.
        test: arguments of ``hmrl test``.
        folder: run directory, ``METHOD-seedN``.
        config: its configuration files, as the sweep file names them.
        settings: of the training, by dotted name, as the sweep file has them.
    """

    fit: list[str]
    test: list[str]
    folder: Path
    config: Sequence[str]
    settings: Mapping[str, str]

    def finished(self) -> bool:
        """Whether its results are there."""
        return any(self.folder.glob("test-*.json"))

    def trained(self) -> bool:
        """Whether its budget is used up; training that is asked to stop ends well before that, too."""
        # PyTorch, which --help does without
        from hmrl.training.checkpoint import env_steps_of, load, weights_path

        weights = weights_path(Path(checkpoint_dir(self.folder)) / "last.ckpt")
        if not weights.is_file():
            return False
        budget: int = read_yaml(self.folder / "config.yaml")["budget"]["env_steps"]
        return env_steps_of(load(weights)) >= budget

    def check(self, out: Path) -> None:
        """Refuse what would fail after hours, or pass off older results as those of the sweep file.

        Args:
            out: folder of the sweep, whose runs may begin from one another.

        Raises:
            UserError: if the run began with other settings, or begins from what is not there.
        """
        origin = self.settings.get("init_from", "null")
        if not self.finished() and origin != "null":
            path = local_path(origin, "init_from", folder=False)
            if not path.is_file() and out.resolve() not in path.resolve().parents:
                raise UserError(f"{self.folder.name} begins from {path}, and there is no such checkpoint")
        if not (self._began() and (file := self.folder / _ASKED).is_file()):
            return
        asked, now = read_yaml(file), self._asked()
        if not isinstance(asked, dict) or asked.keys() != now.keys():
            raise UserError(
                f"{file} is not what hmrl sweep has left there: delete it, or choose another --out"
            )
        for what in now:
            for name in dict.fromkeys([*asked[what], *now[what]]):
                there, here = (
                    json.dumps(of[what].get(name), default=str, sort_keys=True) for of in (asked, now)
                )
                if there != here:
                    said = "another content" if what == "contents" else f"{there}, and now it has {here}"
                    raise UserError(
                        f"{self.folder} began when the sweep had for {name} {said}: choose another --out, or "
                        "move that run away"
                    )

    def _began(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    def _asked(self) -> dict[str, dict[str, Any]]:
        """The settings that make the run, its configuration files in their order, and what these hold."""
        contents = {name: read_yaml(Path(config_file(name))) for name in self.config}
        files = {"its configuration files": list(self.config)}
        return {"settings": dict(self.settings), "files": files, "contents": contents}

    def note(self) -> None:
        """Leave in the directory what the run was asked for, unless it has begun."""
        if not self._began():
            (self.folder / _ASKED).write_text(json.dumps(self._asked(), indent=2, default=str))


def read(path: Path, out: Path, only: Sequence[str] = ()) -> list[Run]:
    """Every run of a sweep file, seed by seed: a sweep that is stopped early has a little of every method.

    The file has ``base`` (configuration files under every run), ``seeds`` (one run each) and ``runs`` (by
    method its overlays, or a mapping with ``config``, overlays, and ``set``, settings by dotted name, in
    which ``{seed}`` is the run's). It may have ``fit`` and ``test`` (settings by dotted name, for every run's
    training and test).

    Args:
        path: the file.
        out: folder of the run directories.
        only: these methods; all if empty.

    Raises:
        UserError: if it is none, or lacks a method.
    """
    if not path.is_file():
        raise UserError(f"there is no sweep file at {path}")
    content = read_yaml(path)
    keys = content.keys() if isinstance(content, dict) else set()
    if keys - _KINDS.keys() or not keys >= {"base", "seeds", "runs"}:
        raise UserError(
            f"{path} must have the keys base, seeds and runs, may have fit and test, and no other"
        )
    for key, value in content.items():
        if not isinstance(value, _KINDS[key]):
            kind = "a list" if _KINDS[key] is list else "a mapping"
            raise UserError(f"{path} has {key} {value!r}, but it must be {kind}")
    seeds, runs = content["seeds"], content["runs"]
    if not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{path} has seeds {seeds}: use integers from 0 on")
    if not seeds or not runs or len(set(seeds)) < len(seeds):
        raise UserError(f"{path} must name one or more runs, and one or more different seeds")
    if unknown := set(only) - runs.keys():
        raise UserError(f"--only names {', '.join(sorted(unknown))}, but the sweep has {', '.join(runs)}")
    return [_run(content, name, seed, out) for seed in seeds for name in runs if not only or name in only]


def _run(sweep: Mapping[str, Any], name: str, seed: int, out: Path) -> Run:
    value = sweep["runs"][name]
    own: dict[str, Any] = {"config": [], "set": {}} | (
        value if isinstance(value, dict) else {"config": value or []}
    )
    if odd := own.keys() - {"config", "set"}:
        raise UserError(f"runs.{name} has the key {sorted(odd)[0]!r}: use config and set")
    if not isinstance(own["config"], list) or not isinstance(own["set"], dict):
        raise UserError(
            f"runs.{name} is {value!r}, but it must be a list of overlays, or a mapping with the list "
            "config and the mapping set"
        )
    folder = out / f"{name}-seed{seed}"
    common = []
    for file in [*sweep["base"], *own["config"]]:
        if not isinstance(file, str) or not Path(config_file(file)).is_file():
            raise UserError(f"runs.{name} names {file}, which is no file here")
        common += ["--config", config_file(file)]
    common += ["--run_dir", str(folder), "--seed_everything", str(seed)]
    # What a test needs of a run's own settings; the model's are in the checkpoint.
    of_data = {key: value for key, value in own["set"].items() if key.startswith("data.")}
    weights = str(Path(checkpoint_dir(folder)) / "last.weights.ckpt")
    shared = {name: value for name, value in sweep.get("fit", {}).items() if name not in own["set"]}
    settings = _words(shared, seed) | _words(own["set"], seed)
    fit = [*common, *_arguments(settings), "--ckpt_path", "last"]
    tested = _words(sweep.get("test", {}), seed) | _words(of_data, seed)
    test = [*common, *_arguments(tested), "--ckpt_path", weights]
    return Run(["fit", *fit], ["test", *test], folder, [*sweep["base"], *own["config"]], settings)


def _words(settings: Mapping[str, Any], seed: int) -> dict[str, str]:
    """``{"a.b": ["{seed}"]}`` -> ``{"a.b": '["3"]'}``; JSON is YAML."""
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return {key: word.replace("{seed}", str(seed)) for key, word in words.items()}


def _arguments(words: Mapping[str, str]) -> list[str]:
    return [part for key, word in words.items() for part in (f"--{key}", word)]


class Runner:
    """Runs what is unfinished, several at a time, each a process that can be stopped and continued.

    Runs side by side have cores of their own: simulators' threads wait actively, and two runs on the same
    cores would hold each other up. One run at a time has all cores.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, keep: bool) -> None:
        self._runs, self._jobs, self._keep = runs, jobs, keep
        self._stop = threading.Event()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self.failed: list[str] = []

    def __call__(self) -> None:
        """Run; on Ctrl-C or SIGTERM the processes are told to save and end, and no more are started."""
        started = time.monotonic()
        todo = [run for run in self._runs if not run.finished()]
        print(f"{len(self._runs)} runs, {len(self._runs) - len(todo)} finished before", flush=True)
        shares: SimpleQueue[list[int]] = SimpleQueue()
        for job in range(self._jobs):
            shares.put(share_of_cores(job, self._jobs))
        with ThreadPoolExecutor(self._jobs, initializer=lambda: keep_to(shares.get())) as pool:
            results = pool.map(self._one, todo)
            try:
                for done, (run, good) in enumerate(zip(todo, results, strict=True), 1):
                    left = (time.monotonic() - started) / done * (len(todo) - done) / 60
                    state = "finished" if good else "FAILED: see log.txt there"
                    print(f"[{done}/{len(todo)}] {run.folder} {state}; about {left:.0f} min left", flush=True)
                    if not good:
                        self.failed.append(run.folder.name)
            except KeyboardInterrupt:
                self._stop.set()
                for process in tuple(self._processes):
                    process.terminate()
                print("stopping when running iterations have ended; the same command continues", flush=True)
                raise

    def _one(self, run: Run) -> bool:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.note()
        with (run.folder / "log.txt").open("a") as log:
            # Of a run that is trained, weights may be all there is: it is not trained again for its results.
            only_weights = run.trained() and newest_checkpoint(run.folder) is None
            todo = [run.test] if only_weights else [run.fit, run.test]
            for arguments in todo:
                if self._stop.is_set() or (arguments is run.test and not run.trained()):
                    return False
                command = [sys.executable, "-m", "hmrl", *arguments]
                print(shlex.join(command), file=log, flush=True)
                if self._run(command, log):
                    return False
        if not self._keep:  # weights and results stay
            for path in Path(checkpoint_dir(run.folder)).glob("*.ckpt"):
                if not path.name.endswith(".weights.ckpt"):
                    path.unlink()
        return True

    def _run(self, command: Sequence[str], log: IO[str]) -> int:
        """The exit code of ``command``, which is told to end if the sweep is."""
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
            self._processes.add(process)
            if self._stop.is_set():  # between the question whether to start and now
                process.terminate()
            code = process.wait()
        self._processes.discard(process)
        return code


def main(args: Sequence[str]) -> None:
    """Run a sweep, or what is left of it, and report.

    Args:
        args: of the command line, without the command's name.

    Raises:
        UserError: for a sweep file that cannot be run, and if runs failed.
    """
    parser = argparse.ArgumentParser(prog="hmrl sweep", description=__doc__, allow_abbrev=False)
    path = partial(local_path, name="FILE", folder=False)
    parser.add_argument("file", type=path, help="such as sweeps/ablations")
    folder = partial(local_path, name="--out")
    parser.add_argument("--out", type=folder, required=True, help="folder for METHOD-seedN and report/")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--only", nargs="+", default=(), metavar="METHOD", help="only these (default: all)")
    parser.add_argument(
        "--keep_checkpoints", action="store_true", help="keep more than weights of finished runs"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(args)
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}: use 1 or more")
    file = Path(config_file(str(options.file)))
    every, runs = read(file, options.out), read(file, options.out, options.only)
    for run in every:
        if run in runs or run.finished():  # it is run, or reported
            run.check(options.out)
    if options.dry_run:
        lines = (" ".join(["finished" if run.finished() else "to do", "hmrl", *run.fit]) for run in runs)
        print(*lines, sep="\n")
        return
    runner = Runner(runs, options.jobs, options.keep_checkpoints)
    runner()
    # With --only, too, of all: a report takes the place of the last one.
    if finished := [str(run.folder) for run in every if run.finished()]:
        try:
            report([*finished, "--out", str(options.out / "report")])
        except UserError as refusal:
            if not runner.failed:
                raise
            print(f"no report: {refusal}", file=sys.stderr)
    if runner.failed:
        raise UserError(
            f"{len(runner.failed)} run(s) failed: {', '.join(runner.failed)}; their log.txt says why, and "
            "the same command runs them again"
        )
