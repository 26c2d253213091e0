"""Perturbed training and evaluation: resumable, apart from each other, and nothing at all when off."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robustness
from hmrl.envs import Backend, benchmark, make_envs
from hmrl.envs.benchmarks import Goals
from hmrl.envs.wrappers.perturb import Change, Missing, Perturbation, PerturbedEnvs, sensors_of
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.system.errors import UserError
from hmrl.training.trainer import make_trainer
from support.runs import Recorder, Run, assert_same, fit, fit_iterations, learning_state
from support.toy import STEPS, ToyDataModule, ToyEnvs, tiny_module, toy_data

EVERYTHING = Perturbation(
    0.02,
    Missing(0.2, "sensor", "last", told=True),
    Change("linear", -0.3),
    Change("jump", 0.05),
    Change("random_walk", 0.3, over_episodes=6),
)
EVERYTHING_UNTOLD = replace(EVERYTHING, missing=Missing(0.2, "sensor", "last"))
NOISE = Perturbation(0.1)


def test_a_resumed_run_is_the_straight_one(tmp_path: Path) -> None:
    def data() -> Any:
        return toy_data(perturbation=EVERYTHING, episodes_per_trial=2)

    steps = 2 * STEPS
    straight = fit(tmp_path / "straight", 4 * steps, data=data())
    fit(tmp_path / "resumed", 2 * steps, data=data())
    resumed = fit(tmp_path / "resumed", 4 * steps, data=data(), resume=True, seed=77)
    assert resumed.recorder.env_steps == [3 * steps, 4 * steps]
    assert_same(learning_state(resumed.last), learning_state(straight.last))
    assert resumed.rows == straight.rows
    assert straight.recorder.rollouts[0].observation.shape[-1] == 39 + 21


def test_off_means_the_bare_environments() -> None:
    data = toy_data()
    goals = Goals("train", 1, None, 0)
    assert type(data.seen_envs("envpool", goals, 2, data.perturbation, 0)) is ToyEnvs
    assert type(data.seen_envs("envpool", goals, 2, NOISE, 0)) is PerturbedEnvs
    assert data.observation_dim == 39


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return fit_iterations(tmp_path_factory.mktemp("trained"), 2)


def evaluated(run: Run, folder: Path, what: str = "test", **changes: Any) -> list[Any]:
    """The rollouts of an evaluation of one and the same agent."""
    recorder = Recorder()
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "overwrite": True}
    trainer = make_trainer(str(folder), 1, [recorder], **options)
    getattr(trainer, what)(run.module, datamodule=toy_data(**changes), verbose=False)
    return recorder.evaluated


def test_evaluation_has_a_perturbation_of_its_own(trained: Run, tmp_path: Path) -> None:
    test, none = EvaluationConfig(4, 2), Perturbation()
    clean = evaluated(trained, tmp_path)
    untouched = evaluated(trained, tmp_path, perturbation=NOISE, test=replace(test, perturbation=none))
    as_training = evaluated(trained, tmp_path, perturbation=NOISE)
    alone = evaluated(trained, tmp_path, test=replace(test, perturbation=NOISE))
    assert_same([asdict(r) for r in untouched], [asdict(r) for r in clean])
    assert_same([asdict(r) for r in as_training], [asdict(r) for r in alone])
    first = (as_training[0].observation - clean[0].observation)[0]
    assert first.std() > 0.05
    assert (first[:, [*range(8, 18), *range(26, 39)]] == 0).all()  # where there is nothing


def test_every_mode_meets_the_same_noise_and_every_goal_its_own(trained: Run, tmp_path: Path) -> None:
    noisy = evaluated(trained, tmp_path, perturbation=NOISE)
    clean = evaluated(trained, tmp_path)
    noise = [(a.observation - b.observation)[0] for a, b in zip(noisy, clean, strict=True)]
    rounds, modes = 2, 2
    for split in range(2):
        of_split = noise[split * rounds * modes :][: rounds * modes]
        for i in range(rounds):
            torch.testing.assert_close(of_split[i], of_split[rounds + i])
        assert (of_split[0] != of_split[1]).any()
    validation = evaluated(trained, tmp_path, "validate", perturbation=NOISE)[0].observation
    assert not torch.isclose(validation[0][:1, :4], noisy[0].observation[0][:1, :4]).any()


def test_training_does_not_notice_perturbed_evaluation(tmp_path: Path) -> None:
    perturbed = toy_data(validation=EvaluationConfig(2, 1, perturbation=EVERYTHING_UNTOLD))
    runs = [fit_iterations(tmp_path / str(i), 2, data=data) for i, data in enumerate((toy_data(), perturbed))]
    a, b = (learning_state(run.last) for run in runs)
    assert_same(a, b)
    seen = [run.recorder.evaluated[0].observation for run in runs]
    assert not torch.equal(*seen)


def test_evaluation_is_in_the_world_that_training_has_come_to(tmp_path: Path) -> None:
    """Rewards have lost 0.1 an iteration: the toy world's own record says what they were."""
    wear = Perturbation(reward_scale=Change("linear", -0.5, over_episodes=5))
    run = fit_iterations(tmp_path, 3, data=toy_data(perturbation=wear))

    def ratios(rollouts: Any, training: bool) -> list[float]:
        records = iter([e for e in run.data.episodes if e.training == training])
        found = []
        for rollout in rollouts:
            own = [next(records) for _ in rollout.family]
            found.append(float(rollout.reward.sum()) / sum(sum(e.rewards) for e in own))
        return found

    assert ratios(run.recorder.rollouts, True) == pytest.approx([1, 0.9, 0.8], rel=1e-5)
    each = len(run.recorder.evaluated) // 3
    expected = [factor for factor in (0.9, 0.8, 0.7) for _ in range(each)]
    assert ratios(run.recorder.evaluated, False) == pytest.approx(expected, rel=1e-5)


def test_a_checkpoints_plain_values_build_the_same_data_module() -> None:
    data = toy_data(perturbation=EVERYTHING, test=EvaluationConfig(4, 2, perturbation=EVERYTHING))
    again = ToyDataModule(**json.loads(json.dumps(dict(data.hparams))))
    assert again.perturbation == again.test.perturbation == EVERYTHING
    assert again.validation.perturbation is None
    assert again.observation_dim == data.observation_dim == 60


def test_an_agent_that_was_told_nothing_is_not_loaded_where_it_is(trained: Run, tmp_path: Path) -> None:
    data = toy_data(perturbation=Perturbation(missing=Missing(0.1, told=True)))
    module = tiny_module(data)
    trainer = make_trainer(str(tmp_path), 1, accelerator="cpu", devices=1, logger=False)
    with pytest.raises(UserError, match="observation_dim is 39 there and 40 here"):
        trainer.test(module, datamodule=data, ckpt_path=str(trained.folder / "checkpoints" / "last.ckpt"))


@pytest.mark.parametrize("agent", ["expert", "random"])
def test_agents_that_were_not_trained_are_not_told(agent: Any, trained: Run, tmp_path: Path) -> None:
    """Scripted experts would refuse longer observations."""
    test = EvaluationConfig(2, 2, agent=agent)
    told = Perturbation(missing=Missing(0.5, shown="last", told=True))
    rollouts = evaluated(trained, tmp_path, perturbation=told, test=test)
    untold = evaluated(trained, tmp_path, perturbation=told.untold(), test=test)
    assert rollouts[0].observation.shape[-1] == 39
    assert_same([asdict(r) for r in rollouts], [asdict(r) for r in untold])


# --- real worlds -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.parametrize("backend", ["envpool", "metaworld"])
def test_every_backend_can_be_perturbed(backend: Backend) -> None:
    """Nothing: bit-identical. Noise: what is not exactly 0, in both frames of an observation."""
    bench, goals = benchmark("ML1", ["push"]), Goals("train", 1, None, 0)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, 4)).astype(np.float32)

    def seen(perturbation: Perturbation | None) -> list[Any]:
        with closing(make_envs(backend, bench, goals, 2, horizon=5)) as envs:
            if perturbation is not None:
                envs = PerturbedEnvs(envs, perturbation, sensors_of(39), (1, 0, 0), 0, 2)
            return [envs.reset(1).copy(), *(x.copy() for a in actions for x in envs.step(a))]

    bare, off, noisy = seen(None), seen(Perturbation()), seen(NOISE)
    for a, b in zip(bare, off, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for a, b in zip(bare, noisy, strict=True):
        assert a.dtype == b.dtype
        if a.ndim == 2:
            np.testing.assert_array_equal(b[a == 0], 0)
            assert 0.05 < (b - a)[a != 0].std() < 0.2
        else:
            np.testing.assert_array_equal(a, b)


# --- the figure ----------------------------------------------------------------------------------------


def test_success_against_noise_is_drawn_from_the_results_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        folder = Path(command[command.index("--run_dir") + 1])
        folder.mkdir(parents=True)
        score = {"success": 0.5 - float(command[-1]), "low": 0.3, "high": 0.6, "episodes": 10, "other": 1}
        scores = {split: {"sampled": {"reach": score, "mean": score}} for split in ("train", "test")}
        checkpoint = command[command.index("--ckpt_path") + 1]
        (folder / "test-first_episode.json").write_text(
            json.dumps({"scores": scores, "checkpoint": checkpoint})
        )
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(robustness.subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / name).touch()
    arguments = ["a=a.ckpt", "b=b.ckpt", "--out", str(tmp_path), "--levels", "0.1", "0"]
    monkeypatch.setattr(sys, "argv", ["robustness.py", *arguments, "--", "--data.horizon", "3"])
    robustness.main()
    assert len(commands) == 4
    assert commands[1][3:] == [
        *("test", "--config", "configs/ml10.yaml", "--data.horizon", "3", "--ckpt_path", "a.ckpt"),
        *(
            "--run_dir",
            str(tmp_path / "a" / "noise_std" / "0.1"),
            "--data.test.perturbation.noise_std",
            "0.1",
        ),
    ]
    assert "b, noise_std 0.1, test: 0.40 [0.30, 0.60]" in capsys.readouterr().out
    lines = (tmp_path / "robustness.csv").read_text().splitlines()
    assert lines[0] == "agent,level,split,mode,family,success,low,high,episodes"
    assert lines[1] == "a,0.0,train,sampled,reach,0.5,0.3,0.6,10"
    assert len(lines) == 1 + 2 * 2 * 2 * 2
    assert len(json.loads((tmp_path / "robustness.json").read_text())) == 16

    robustness.main()  # nothing is run again
    assert len(commands) == 4
    again = ["a=a.ckpt", "--out", str(tmp_path), "--levels", "0.1", "--setting", "missing.probability"]
    monkeypatch.setattr(sys, "argv", ["robustness.py", *again])
    robustness.main()  # another setting has files of its own
    assert len(commands) == 5
    monkeypatch.setattr(sys, "argv", ["robustness.py", "a=b.ckpt", "--out", str(tmp_path), "--levels", "0.1"])
    with pytest.raises(UserError, match="is of another checkpoint"):
        robustness.main()
    monkeypatch.setattr(sys, "argv", ["robustness.py", "a=none.ckpt", "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"a=none\.ckpt names no checkpoint"):
        robustness.main()
    assert {p.name for p in tmp_path.glob("robustness.p*")} == {"robustness.png", "robustness.pdf"}


@pytest.mark.parametrize(
    ("code", "said"), [(2, "hmrl test of a.ckpt failed"), (0, "hmrl test did not write")]
)
def test_a_test_that_leaves_no_results_is_refused(
    code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.CompletedProcess[bytes]([], code)
    monkeypatch.setattr(robustness.subprocess, "run", lambda *_, **__: ended)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").touch()
    monkeypatch.setattr(sys, "argv", ["robustness.py", "a=a.ckpt", "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=said):
        robustness.main()
