"""What breaks while a run goes on: it stops with one sentence, and what was trained is safe."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hmrl.cli.main import main
from hmrl.envs import benchmark
from hmrl.envs.benchmarks import Goals
from hmrl.envs.envpool import EnvPoolEnvs
from hmrl.envs.metaworld import MetaWorldEnvs
from hmrl.system.errors import UserError
from hmrl.training.checkpoint import load, weights_path
from hmrl.types import EnvStep, FloatArray
from support.paths import TINY, environment
from support.runs import Run, assert_same, command, fit_iterations, read_rows
from support.toy import STEPS, ToyEnvs, tiny_module, toy_data


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence of a command that exits with code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    (sentence,) = [line for line in output.err.splitlines() if line.startswith("hmrl: error: ")]
    return sentence


# --- numbers that are none -----------------------------------------------------------------------


@pytest.fixture
def broken_world(monkeypatch: pytest.MonkeyPatch, toy_world: None) -> dict[str, Any]:
    """In iteration 3, at its fifth step, what ``broken`` names is not a number in family push."""
    broken: dict[str, Any] = {"what": None, "value": np.nan}
    step = ToyEnvs.step

    def faulty(self: ToyEnvs, action: FloatArray) -> EnvStep:
        answer = step(self, action)
        now = self._now[0]
        if broken["what"] and self.training and now.number == 2 and len(now.rewards) == 5:
            getattr(answer, broken["what"])[self.families.index("push")] = broken["value"]
        return answer

    monkeypatch.setattr(ToyEnvs, "step", faulty)
    return broken


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_what_the_simulator_says_must_be_finite(
    what: str,
    value: float,
    straight: Path,
    broken_world: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken_world.update(what=what, value=value)
    sentence = refused(capsys, *command(tmp_path / "run"))
    assert f"the {what} of family push is not finite at simulator step 5 of episode 2 (training" in sentence
    last = load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert int(last["state_dict"]["iteration"]) == 2
    assert [int(row["step"]) for row in read_rows(tmp_path / "run")] == [STEPS] * 2 + [2 * STEPS] * 2
    broken_world["what"] = None  # and the run goes on as if nothing had been
    main(command(tmp_path / "run", "--ckpt_path", "last"))
    folders = tmp_path / "run", straight
    states = [load(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in folders]
    assert_same(dict(states[0]), dict(states[1]))
    assert read_rows(tmp_path / "run") == read_rows(straight)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("task_encoder", "task encoder's belief"),
        ("macro_vae", "macro-action"),
        ("actor", "actor's action"),
    ],
)
def test_the_level_that_says_something_non_finite_is_named(part: str, named: str, tmp_path: Path) -> None:
    """The lowest level repeats what an upper one says: the one where it began is to blame."""
    data = toy_data()
    module = tiny_module(data)
    with torch.no_grad():
        for name, parameter in module.policy.get_submodule(part).named_parameters():
            if "log_std" not in name:
                parameter.fill_(float("nan"))
    with pytest.raises(
        UserError, match=rf"the {named} of family reach, push, .*is not finite at simulator step 0"
    ):
        fit_iterations(tmp_path, 1, data=data, module=module)


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_what_float32_cannot_hold_is_blamed_on_the_simulator(
    what: str, broken_world: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not on the level that would have learnt from it."""
    broken_world.update(what=what, value=1e39)
    sentence = refused(capsys, *command(tmp_path / "run"))
    assert f"the {what} of family push is beyond 1.8e+19, whose square float32 cannot hold" in sentence


def test_a_non_finite_reward_in_evaluation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_world: None, capsys: pytest.CaptureFixture[str]
) -> None:
    step = ToyEnvs.step

    def faulty(self: ToyEnvs, action: FloatArray) -> EnvStep:
        answer = step(self, action)
        if not self.training and self.goals.split == "test":
            answer.reward[-1] = np.nan
        return answer

    monkeypatch.setattr(ToyEnvs, "step", faulty)
    sentence = refused(capsys, *command(tmp_path))
    assert (
        "the reward of family lever-pull is not finite at simulator step 1 of episode 0 (sampled, test"
        in sentence
    )


# --- simulators that raise -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["envpool", "metaworld"])
@pytest.mark.parametrize("moment", ["reset", "step"])
def test_a_simulator_that_raises_is_named(backend: str, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    goals = Goals("train", 1, None, 0)
    families, slots = ["reach", "push"], [0, 0]
    envs: Any

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the solver gave up")

    if backend == "envpool":
        envs = EnvPoolEnvs(families, goals, slots, 1, 10)
        envs.reset(0)
        pool = envs._pools[1]
        monkeypatch.setattr(pool, "async_reset" if moment == "reset" else "recv", broken)
    else:
        envs = MetaWorldEnvs(families, goals, slots, 1, 10, bench=benchmark("ML10"))
        envs.reset(0)
        monkeypatch.setattr(envs._envs.envs[1].unwrapped.simulator, moment, broken)
    says = r"the simulator of family 'push' failed \(RuntimeError: the solver gave up\)"
    with pytest.raises(UserError, match=says):
        _ = envs.reset(1) if moment == "reset" else envs.step(np.zeros((2, 4), dtype=np.float32))
    envs.close()


# --- disks ---------------------------------------------------------------------------------------


def run_with_limit(arguments: list[str], iteration: int, size: int) -> subprocess.CompletedProcess[str]:
    """From ``iteration`` on, no file can grow beyond ``size`` bytes: what a full disk looks like."""
    script = f"""
import resource, sys
import hmrl.cli.main
from support.toy import ToyDataModule

def limit(data):
    if data.trainer.training and int(data.trainer.lightning_module.iteration) >= {iteration}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))

original = ToyDataModule.make_envs

def make_envs(self, *args, **options):
    envs = original(self, *args, **options)
    step = envs.step
    def limited(action):
        limit(self)
        return step(action)
    envs.step = limited
    return envs

ToyDataModule.make_envs = make_envs
hmrl.cli.main.MetaWorldDataModule = ToyDataModule
hmrl.cli.main.main(sys.argv[1:])
"""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_full_disk_ends_the_run_with_the_checkpoint_before_it_intact(tmp_path: Path) -> None:
    full = run_with_limit(command(tmp_path / "run"), iteration=2, size=80_000)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    (sentence,) = [line for line in full.stderr.splitlines() if line.startswith("hmrl: error: ")]
    folder = tmp_path / "run" / "checkpoints"
    assert f"{folder / 'last.ckpt'} could not be written" in sentence or "best.ckpt could not" in sentence
    assert "--ckpt_path last" in sentence
    assert int(load(folder / "last.ckpt")["state_dict"]["iteration"]) == 2
    assert int(load(weights_path(folder / "last.ckpt"))["state_dict"]["iteration"]) == 2
    assert not list(folder.glob(".*"))


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    full = run_with_limit(command(tmp_path / "run"), iteration=0, size=500)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    (sentence,) = [line for line in full.stderr.splitlines() if line.startswith("hmrl: error: ")]
    assert "cannot write: [Errno 27] File too large" in sentence


@pytest.mark.parametrize("where", ["run", "run/checkpoints"])
def test_a_directory_that_cannot_be_one(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_world: None
) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file")
    sentence = refused(capsys, *command(tmp_path / "run"))
    assert str(tmp_path / "run") in sentence
    assert path.read_text() == "a file"


# --- checkpoints ---------------------------------------------------------------------------------


class Exploit:
    """What a pickle may do to its reader."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.marker}",))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_iterations(tmp_path_factory.mktemp("trained"), 1)


@pytest.mark.parametrize("what", ["fit", "validate", "test"])
@pytest.mark.parametrize("kind", ["truncated", "unsafe", "unsafe pickle", "weights of something else"])
def test_a_bad_checkpoint_is_refused_and_runs_no_code(
    kind: str, what: str, trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_world: None
) -> None:
    path, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    good = trained.folder / "checkpoints" / "last.ckpt"
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-1000])
        says = "no readable checkpoint (truncated"
    elif kind == "unsafe":
        torch.save({**torch.load(good, weights_only=True), "extra": Exploit(marker)}, path)
        says = "is refused: it holds more than tensors and plain values"
    elif kind == "unsafe pickle":
        path.write_bytes(pickle.dumps(Exploit(marker)))
        says = "is refused: it holds more than tensors and plain values"
    else:
        torch.save({"state_dict": {"weight": torch.ones(2)}}, path)
        says = "is no checkpoint of hmrl"
    run_dir = tmp_path / "run"
    sentence = refused(capsys, what, *TINY, "--run_dir", str(run_dir), "--ckpt_path", str(path))
    assert str(path) in sentence
    assert says in sentence
    assert not marker.exists()
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--model.task_encoder.hidden 9", "model.task_encoder.hidden is 8 there and 9 here"),
        ("--model.task_encoder.categories 4", "model.task_encoder.categories is 3 there and 4 here"),
        ("--model.task_encoder.cell lstm", "model.task_encoder.cell is 'mingru' there and 'lstm' here"),
        ("--model.macro_vae null", "model.macro_vae is present there and not here"),
        (
            "--model.actor_critic.actor_hidden [7]",
            "model.actor_critic.actor_hidden is [8] there and [7] here",
        ),
        ("--model.decision_interval 3", "model.decision_interval is 2 there and 3 here"),
        ("--data.benchmark ML45 --data.replay_trajectories 90", "model.families is ['reach', "),
    ],
)
def test_a_changed_network_is_named_before_anything_is_written(
    options: str,
    says: str,
    trained: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    toy_world: None,
) -> None:
    last = trained.folder / "checkpoints" / "last.ckpt"
    sentence = refused(capsys, *command(tmp_path / "run", "--ckpt_path", str(last), *options.split()))
    assert "the checkpoint is of another network: " in sentence
    assert says in sentence
    assert not (tmp_path / "run").exists()


def test_an_export_cannot_be_trained_on(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_world: None
) -> None:
    export = weights_path(trained.folder / "checkpoints" / "last.ckpt")
    sentence = refused(capsys, *command(tmp_path / "run", "--ckpt_path", str(export)))
    assert "the checkpoint holds weights alone" in sentence
    assert not (tmp_path / "run").exists()


def test_fixed_goals_are_kept_when_training_goes_on(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_world: None
) -> None:
    last = str(trained.folder / "checkpoints" / "last.ckpt")
    other = command(tmp_path / "run", "--ckpt_path", last, "--seed_everything", "7")
    sentence = refused(capsys, *other, "--data.goals_per_family", "4")
    assert "whose fixed goals (data.goals_per_family) are others: use --seed_everything 1" in sentence
    assert not (tmp_path / "run").exists()
    main(other)
    assert "training goes on with seed 7; until here it had seed 1" in capsys.readouterr().out


def test_another_horizon_does_not_fit_the_replay(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_world: None
) -> None:
    last = trained.folder / "checkpoints" / "last.ckpt"
    options = ("--ckpt_path", str(last), "--data.horizon", "20", "--budget.env_steps", "2000")
    sentence = refused(capsys, *command(tmp_path / "run", *options))
    assert "data.episodes_per_trial and model.decision_interval must stay" in sentence


# --- two runs in one directory -------------------------------------------------------------------

HOLD = """
import sys, time
from hmrl.training.run_directory import claim
claim(sys.argv[1])
print("held", flush=True)
time.sleep(100)
"""


def test_a_directory_belongs_to_one_run_until_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_world: None
) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for options in ((), ("--ckpt_path", "last"), ("--overwrite", "true")):
            sentence = refused(capsys, *command(run, *options))
            assert f"another run is writing to {run}" in sentence
        assert sorted(p.name for p in run.rglob("*")) == [".lock", "checkpoints"]
        other.kill()  # without a chance to tidy up
    main(command(run, iterations=1))
    assert len(read_rows(run)) == 2


def test_a_run_is_not_written_over_by_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_world: None
) -> None:
    run = tmp_path / "run"
    main(command(run, iterations=1))
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    elsewhere = tmp_path / "elsewhere"
    main(command(elsewhere, iterations=1))
    other = str(elsewhere / "checkpoints" / "last.ckpt")
    for options in ((), ("--ckpt_path", other)):
        sentence = refused(capsys, *command(run, *options))
        assert f"{run} already holds a run, which would be lost" in sentence
        assert "--ckpt_path last" in sentence
        assert "--overwrite true" in sentence
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files
    old = [run / name for name in ("test-paper.json", "latents/probe.png", "checkpoints/hpc.ckpt")]
    for path in old:  # what would pass for results of the new run
        path.parent.mkdir(exist_ok=True)
        path.touch()
    main(command(run, "--ckpt_path", "last", iterations=1))  # continued: everything stays
    assert all(path.exists() for path in old)
    main(command(run, "--overwrite", "true", iterations=2))
    assert not any(path.exists() for path in old)
    assert [int(row["step"]) for row in read_rows(run)] == [STEPS] * 2 + [2 * STEPS] * 2


def test_a_run_that_is_written_over_leaves_nothing_where_another_one_goes_on(
    tmp_path: Path, toy_world: None
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    main(command(run, iterations=3))
    results = run / "test-paper.json"
    results.touch()
    main(command(elsewhere, iterations=2))
    other = str(elsewhere / "checkpoints" / "last.ckpt")
    main(command(run, "--ckpt_path", other, "--overwrite", "true", iterations=4))
    assert not results.exists()
    assert {int(row["step"]) for row in read_rows(run)} == {3 * STEPS, 4 * STEPS}
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("rollout/success/mean")] == [3 * STEPS, 4 * STEPS]
