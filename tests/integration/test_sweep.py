"""``hmrl sweep``: everything runs once, what was stopped is continued, what is finished stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import hmrl.cli.sweep
import hmrl.training.checkpoint
from hmrl.cli.sweep import main, read
from hmrl.system.cores import share_of_cores, usable_cores
from hmrl.system.errors import UserError

BUDGET = 100


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    overlay = tmp_path / "flat.yaml"
    overlay.write_text("model: {macro_vae: null}\n")
    content = {
        "base": ["configs/ml10.yaml"],
        "seeds": [1, 2],
        "fit": {"budget.env_steps": BUDGET},
        "test": {"data.test": "{goals_per_family: 2}"},
        "runs": {
            "full": [],
            "flat": [str(overlay)],
            "n3": {"set": {"model.macro_vae.n": 3, "data.horizon": 50, "data.train_families": ["reach"]}},
        },
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


class Commands:
    """In the place of ``hmrl fit`` and ``hmrl test``: leaves behind what they leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        self.reported: list[list[str]] = []
        self.steps: dict[str, int] = {}  # that training gets to, by run
        self.fails: set[str] = set()
        self.cores: set[tuple[int, ...]] = set()  # that commands were bound to
        monkeypatch.setattr(hmrl.cli.sweep.Runner, "_run", lambda runner, command, log: self.run(command))
        monkeypatch.setattr(hmrl.cli.sweep, "report", self.reported.append)
        monkeypatch.setattr(hmrl.training.checkpoint, "load", lambda path: json.loads(Path(path).read_text()))
        monkeypatch.setattr(hmrl.training.checkpoint, "env_steps_of", lambda content: content["env_steps"])

    def run(self, command: list[str]) -> int:
        arguments = command[3:]
        self.cores.add(tuple(usable_cores()))
        self.asked.append(arguments)
        folder = Path(arguments[arguments.index("--run_dir") + 1])
        checkpoints = folder / "checkpoints"
        if arguments[0] == "fit":
            checkpoints.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(f"budget: {{env_steps: {BUDGET}}}\n")
            steps = self.steps.get(folder.name, BUDGET)
            for name in ("last.ckpt", "last.weights.ckpt"):
                (checkpoints / name).write_text(json.dumps({"env_steps": steps}))
        else:
            assert (checkpoints / "last.weights.ckpt").is_file()
            (folder / "test-first_episode.json").write_text("{}")
        return int(folder.name in self.fails)

    def names(self) -> list[str]:
        return [f"{a[0]} {Path(a[a.index('--run_dir') + 1]).name}" for a in self.asked]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(monkeypatch)


ALL = [f"{name}-seed{seed}" for seed in (1, 2) for name in ("full", "flat", "n3")]


@pytest.mark.slow
def test_everything_is_trained_tested_and_reported(
    sweep_file: Path, commands: Commands, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    main([str(sweep_file), "--out", str(out)])
    assert commands.names() == [f"{what} {name}" for name in ALL for what in ("fit", "test")]
    fit, test = commands.asked[4:6]
    common = ["--config", "configs/ml10.yaml", "--run_dir", str(out / "n3-seed1"), "--seed_everything", "1"]
    own = ["--model.macro_vae.n", "3", "--data.horizon", "50", "--data.train_families", '["reach"]']
    assert fit == ["fit", *common, "--budget.env_steps", "100", *own, "--ckpt_path", "last"]
    weights = str(out / "n3-seed1" / "checkpoints" / "last.weights.ckpt")
    assert test == ["test", *common, "--data.test", "{goals_per_family: 2}", *own[2:], "--ckpt_path", weights]
    assert commands.reported == [[*(str(out / name) for name in ALL), "--out", str(out / "report")]]
    kept = sorted(p.name for p in (out / "full-seed1" / "checkpoints").iterdir())
    assert kept == ["last.weights.ckpt"]
    log = (out / "flat-seed2" / "log.txt").read_text()
    assert log.count("-m hmrl") == 2


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(sweep_file: Path, commands: Commands, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main([str(sweep_file), "--out", str(out), "--only", "flat", "--keep_checkpoints"])
    assert (out / "flat-seed1" / "checkpoints" / "last.ckpt").is_file()
    commands.asked.clear()
    main([str(sweep_file), "--out", str(out), "--jobs", "3"])
    rest = [name for name in ALL if "flat" not in name]
    assert sorted(commands.names()) == sorted(f"{what} {name}" for name in rest for what in ("fit", "test"))


@pytest.mark.slow
def test_a_trained_run_is_not_trained_again_for_its_results(
    sweep_file: Path, commands: Commands, tmp_path: Path
) -> None:
    """Its weights are all that is left of it."""
    out = tmp_path / "out"
    main([str(sweep_file), "--out", str(out), "--only", "flat"])
    (out / "flat-seed2" / "test-first_episode.json").unlink()
    commands.asked.clear()
    main([str(sweep_file), "--out", str(out), "--only", "flat"])
    assert commands.names() == ["test flat-seed2"]


@pytest.mark.slow
def test_runs_side_by_side_have_cores_of_their_own(
    sweep_file: Path, commands: Commands, tmp_path: Path
) -> None:
    before = usable_cores()
    main([str(sweep_file), "--out", str(tmp_path / "two"), "--jobs", "2"])
    assert commands.cores <= {tuple(share_of_cores(job, 2)) for job in (0, 1)}
    commands.cores.clear()
    main([str(sweep_file), "--out", str(tmp_path / "one")])
    assert commands.cores == {tuple(before)}
    assert usable_cores() == before


@pytest.mark.parametrize(("cores", "jobs"), [(1, 1), (2, 2), (7, 3), (2, 5)])
def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, cores: int, jobs: int) -> None:
    monkeypatch.setattr("hmrl.system.cores.usable_cores", lambda: list(range(10, 10 + cores)))
    shares = [share_of_cores(job, jobs) for job in range(jobs)]
    assert all(shares)
    assert {core for share in shares for core in share} == set(range(10, 10 + cores))
    if cores >= jobs:
        assert sum(map(len, shares)) == cores


@pytest.mark.slow
def test_a_run_that_was_stopped_is_not_tested_but_continued(
    sweep_file: Path, commands: Commands, tmp_path: Path
) -> None:
    """Training that is asked to stop ends with exit code 0, before its budget."""
    out = tmp_path / "out"
    commands.steps["flat-seed2"] = BUDGET - 1
    with pytest.raises(UserError, match=r"1 run\(s\) failed: flat-seed2"):
        main([str(sweep_file), "--out", str(out)])
    assert "test flat-seed2" not in commands.names()
    assert str(out / "flat-seed2") not in commands.reported[0]
    commands.steps.clear()
    commands.asked.clear()
    main([str(sweep_file), "--out", str(out)])
    assert commands.names() == ["fit flat-seed2", "test flat-seed2"]


# In the place of Python: a training that takes for ever, and saves when it is asked to stop.
_TRAINING = """#!/bin/sh
trap "touch {folder}/saved.$$; exit 0" TERM
touch {folder}/started.$$
while :; do sleep 0.05; done
"""
_SWEEP = """
import sys
from hmrl.cli.messages import one_sentence
from hmrl.cli.sweep import main
sys.executable = sys.argv.pop(1)
with one_sentence():
    main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_told_to_stop_tells_its_runs(
    signum: signal.Signals, sweep_file: Path, tmp_path: Path
) -> None:
    """Though they do not get the signal themselves, as under a scheduler or ``kill``."""
    training = tmp_path / "training"
    training.write_text(_TRAINING.format(folder=tmp_path))
    training.chmod(0o755)
    arguments = [str(training), str(sweep_file), "--out", str(tmp_path / "out"), "--jobs", "2"]
    command = [sys.executable, "-c", _SWEEP, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweep:
        while len(list(tmp_path.glob("started.*"))) < 2:
            assert sweep.poll() is None, sweep.communicate()
            time.sleep(0.05)
        sweep.send_signal(signum)
        said, error = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, error
    assert "the same command continues" in said
    assert len(list(tmp_path.glob("started.*"))) == len(list(tmp_path.glob("saved.*"))) == 2


@pytest.mark.slow
def test_a_failure_does_not_stop_the_others(sweep_file: Path, commands: Commands, tmp_path: Path) -> None:
    commands.fails.add("full-seed1")
    with pytest.raises(UserError, match="failed: full-seed1"):
        main([str(sweep_file), "--out", str(tmp_path / "out")])
    assert commands.names() == ["fit full-seed1", *(f"{w} {n}" for n in ALL[1:] for w in ("fit", "test"))]


def test_a_report_that_is_refused_does_not_hide_a_failure(
    sweep_file: Path,
    commands: Commands,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_: Any) -> None:
        raise UserError("families differ")

    monkeypatch.setattr(hmrl.cli.sweep, "report", refuse)
    commands.fails.add("full-seed1")
    with pytest.raises(UserError, match="failed: full-seed1"):
        main([str(sweep_file), "--out", str(tmp_path / "out")])
    assert "no report: families differ" in capsys.readouterr().err
    commands.fails.clear()
    with pytest.raises(UserError, match="families differ"):
        main([str(sweep_file), "--out", str(tmp_path / "out")])


def test_a_report_is_on_all_that_is_finished(sweep_file: Path, commands: Commands, tmp_path: Path) -> None:
    """Whatever ran now: it takes the place of the last one."""
    for only in ("full", "flat"):
        main([str(sweep_file), "--out", str(tmp_path / "out"), "--only", only])
    names = [name for name in ALL if "n3" not in name]
    folders = [str(tmp_path / "out" / name) for name in names]
    assert commands.reported[-1][:4] == folders


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fit": {"budget.env_steps": 90}}, 'for budget.env_steps "100", and now it has "90"'),
        ({"fit": {}}, 'for budget.env_steps "100", and now it has null'),
        (
            {"runs": {"n3": {"set": {"model.macro_vae.n": 3, "data.horizon": 60}}}},
            'for data.horizon "50", and now it has "60"',
        ),
        ({"runs": {"n3": []}}, r'for model.macro_vae.n "3", and now it has null'),
        (
            {"base": ["configs/ml10.yaml", "configs/smoke.yaml"]},
            "for its configuration files .*, and now it has .*smoke",
        ),
    ],
)
@pytest.mark.parametrize("state", ["tested", "trained", "stopped"])
def test_runs_of_another_sweep_are_no_results_of_this_one(
    change: dict[str, Any], said: str, state: str, sweep_file: Path, commands: Commands, tmp_path: Path
) -> None:
    arguments = [str(sweep_file), "--out", str(tmp_path / "out"), "--only", "n3"]
    if state == "stopped":
        commands.steps["n3-seed1"] = BUDGET - 1
        with pytest.raises(UserError, match="failed"):
            main(arguments)
    else:
        main(arguments)
    run = tmp_path / "out" / "n3-seed1"
    if state == "trained":
        (run / "test-first_episode.json").unlink()
    commands.asked.clear()
    main([*arguments, "--dry_run"])  # the same sweep
    content = yaml.safe_load(sweep_file.read_text())
    for key, value in change.items():
        content[key] = content[key] | value if key == "runs" else value
    sweep_file.write_text(yaml.safe_dump(content, sort_keys=False))
    for only in ("n3", *(["flat"] if state == "tested" else [])):  # what is not run is reported
        with pytest.raises(UserError, match=f"{run} began when the sweep had {said}.*: choose another --out"):
            main([*arguments[:-1], only])
    assert not commands.asked


def test_an_overlay_that_has_changed_is_noticed(sweep_file: Path, commands: Commands, tmp_path: Path) -> None:
    arguments = [str(sweep_file), "--out", str(tmp_path / "out"), "--only", "flat"]
    main(arguments)
    (tmp_path / "flat.yaml").write_text("model: {macro_vae: null, decision_interval: 5}\n")
    with pytest.raises(UserError, match=r"flat-seed1 began when .* for .*flat\.yaml another content"):
        main(arguments)


def test_the_order_of_overlays_counts(sweep_file: Path, commands: Commands, tmp_path: Path) -> None:
    """A later one changes an earlier one."""
    content = yaml.safe_load(sweep_file.read_text()) | {"runs": {"both": []}}
    for name, n in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"model: {{macro_vae: {{n: {n}}}}}\n")
    arguments = [str(sweep_file), "--out", str(tmp_path / "out")]
    for names, refused in ((("one", "two"), False), (("one", "two"), False), (("two", "one"), True)):
        content["runs"]["both"] = [str(tmp_path / f"{name}.yaml") for name in names]
        sweep_file.write_text(yaml.safe_dump(content, sort_keys=False))
        if refused:
            with pytest.raises(UserError, match="both-seed1 began when the sweep had for its configuration"):
                main(arguments)
        else:
            main(arguments)
    (tmp_path / "out" / "both-seed1" / "sweep.json").write_text("")
    with pytest.raises(UserError, match=r"sweep\.json is not what hmrl sweep has left there"):
        main(arguments)


def test_what_was_refused_before_it_began_may_be_mended(
    sweep_file: Path, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(sweep_file), "--out", str(tmp_path / "out"), "--only", "n3"]
    run = commands.run
    with monkeypatch.context() as patched:
        patched.setattr(commands, "run", lambda command: 2)  # as of a setting that is refused
        with pytest.raises(UserError, match="failed"):
            main(arguments)
    assert commands.run == run
    content = yaml.safe_load(sweep_file.read_text())
    content["runs"]["n3"]["set"]["data.horizon"] = 60
    sweep_file.write_text(yaml.safe_dump(content, sort_keys=False))
    main(arguments)
    assert [name for name in commands.names() if name.startswith("fit")] == ["fit n3-seed1", "fit n3-seed2"]


def test_a_checkpoint_that_is_not_there_is_said_before_anything_runs(
    sweep_file: Path, commands: Commands, tmp_path: Path
) -> None:
    content = yaml.safe_load(sweep_file.read_text())
    out = tmp_path / "out"
    for origin, refused in (("gone-{seed}.ckpt", True), (f"{out}/full-seed1/last.ckpt", False)):
        content["runs"]["tuned"] = {"set": {"init_from": origin}}
        sweep_file.write_text(yaml.safe_dump(content, sort_keys=False))
        if refused:
            with pytest.raises(UserError, match=r"tuned-seed1 begins from gone-1\.ckpt, and there is"):
                main([str(sweep_file), "--out", str(out)])
            assert not commands.asked
        else:  # of a run before it in the sweep
            main([str(sweep_file), "--out", str(out), "--dry_run"])


def test_a_dry_run_runs_nothing(
    sweep_file: Path, commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(sweep_file), "--out", str(tmp_path / "out"), "--dry_run"])
    assert not commands.asked
    assert capsys.readouterr().out.count("to do hmrl fit") == len(ALL)


def test_a_dry_run_may_be_read_in_part(sweep_file: Path, tmp_path: Path) -> None:
    """As by ``head``, which closes its end of the pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "hmrl", "sweep", str(sweep_file), "--out", str(tmp_path), "--dry_run"]
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": [1]}, "must have the keys base, seeds and runs"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"seeds": []}, "one or more"),
        ({"seeds": 1}, "has seeds 1, but it must be a list"),
        ({"seeds": ["one"]}, "use integers from 0 on"),
        ({"base": "configs/ml10.yaml"}, "has base 'configs/ml10.yaml', but it must be a list"),
        ({"runs": ["full"]}, "has runs .'full'., but it must be a mapping"),
        ({"runs": {"full": ["configs/none.yaml"]}}, "runs.full names configs/none.yaml, which is no file"),
        ({"runs": {"full": {"sets": {}}}}, "runs.full has the key 'sets': use config and set"),
        ({"runs": {"full": {"set": None}}}, "runs.full is {'set': None}, but it must be a list of overlays"),
        ({"runs": {"full": {"config": None}}}, "runs.full is {'config': None}, but it must be a list"),
        ({"runs": {"full": "configs/ml10.yaml"}}, "runs.full is 'configs/ml10.yaml', but it must be a list"),
        ({"base": [{"a": 1}]}, "names {'a': 1}, which is no file here"),
        ({"seeds": [True]}, "use integers from 0 on"),
    ],
)
def test_mistakes_are_one_sentence(
    sweep_file: Path, commands: Commands, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    sweep_file.write_text(yaml.safe_dump(yaml.safe_load(sweep_file.read_text()) | change, sort_keys=False))
    with pytest.raises(UserError, match=said):
        main([str(sweep_file), "--out", str(tmp_path / "out")])
    assert not commands.asked
    assert not (tmp_path / "out").exists()


def test_a_setting_may_name_the_seed(sweep_file: Path, tmp_path: Path) -> None:
    """As where each run begins from the agent of its own seed; a test needs no such setting."""
    settings = {"init_from": "runs/a-seed{seed}/last.weights.ckpt", "data.horizon": 50}
    content = yaml.safe_load(sweep_file.read_text()) | {"runs": {"tuned": {"set": settings}}}
    content["fit"]["wandb"] = {"name": "seed {seed}"}
    sweep_file.write_text(yaml.safe_dump(content))
    for seed, run in zip((1, 2), read(sweep_file, tmp_path), strict=True):
        assert run.fit[run.fit.index("--init_from") + 1] == f"runs/a-seed{seed}/last.weights.ckpt"
        assert run.fit[run.fit.index("--wandb") + 1] == f'{{"name": "seed {seed}"}}'
        assert "--init_from" not in run.test
        assert run.test[run.test.index("--data.horizon") + 1] == "50"


def test_wrong_arguments_are_refused(sweep_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sweep file at"):
        main([str(tmp_path / "none.yaml"), "--out", str(tmp_path)])
    with pytest.raises(UserError, match="--only names many, but the sweep has full, flat, n3"):
        main([str(sweep_file), "--out", str(tmp_path), "--only", "many"])
    with pytest.raises(UserError, match="--jobs is 0"):
        main([str(sweep_file), "--out", str(tmp_path), "--jobs", "0"])


def test_a_method_that_is_there_twice_is_refused(sweep_file: Path, tmp_path: Path) -> None:
    """The first would not be run, and nobody would know."""
    sweep_file.write_text("base: []\nseeds: [1]\nruns:\n  full: []\n  flat: []\n  full: []\n")
    with pytest.raises(UserError, match=rf"{sweep_file}: line 6 has the key full again: keep one"):
        main([str(sweep_file), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("out", ["s3://bucket/out", "sweep.yaml"])
def test_what_can_be_no_directory_is_refused(out: str, sweep_file: Path, commands: Commands) -> None:
    out = out if "://" in out else str(sweep_file)
    with pytest.raises(UserError, match=f"^--out is {out}"):
        main([str(sweep_file), "--out", out])
    assert not commands.asked


@pytest.mark.parametrize("path", sorted(Path("configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_sweeps_that_come_along_can_be_read(path: Path, tmp_path: Path) -> None:
    runs = read(path, tmp_path)
    assert len({run.folder for run in runs}) == len(runs) > 1
