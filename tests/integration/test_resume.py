"""An interrupted run that is continued is the run that was never interrupted, bit by bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hmrl.cli.main import main
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.system.errors import UserError
from hmrl.training.callbacks import LastCheckpoint
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.loggers import ContinuedCSVLogger
from hmrl.types import Acting
from support.agents import PLAIN
from support.paths import TINY, environment
from support.runs import Run, assert_same, fit, fit_iterations, learning_state, read_rows
from support.toy import STEPS, tiny_module, tiny_networks, toy_data


def assert_same_run(resumed: Run, straight: Run) -> None:
    assert_same(learning_state(resumed.last), learning_state(straight.last))
    assert resumed.rows == straight.rows
    assert any("success/test/mean" in row for row in straight.rows)
    assert any("ppo/approx_kl" in row for row in straight.rows)


def steps(rows: list[dict[str, str]]) -> list[int]:
    return [int(float(row["step"])) for row in rows]


def two_and_two(folder: Path, data: Any, iteration_steps: int, **options: Any) -> tuple[Run, Run]:
    """Four iterations with a break after two, and four without. ``data()`` builds a data module."""
    straight = fit(folder / "straight", 4 * iteration_steps, data=data(), **options)
    fit(folder / "resumed", 2 * iteration_steps, data=data(), **options)
    resumed = fit(folder / "resumed", 4 * iteration_steps, data=data(), resume=True, **options | {"seed": 77})
    assert resumed.recorder.env_steps == [3 * iteration_steps, 4 * iteration_steps]
    return resumed, straight


NOISY = {
    "task_encoder": TaskEncoderConfig(
        categories=3,
        cell="lstm",
        hidden=8,
        embedding_hidden=(8, 4, 4),
        head_hidden=(8,),
        dropout=0.5,
        updates=2,
        trajectories=6,
    ),
    "macro_vae": MacroVAEConfig((8,), (8,), dropout=0.5, goal_state="sub_task", updates=2, trajectories=6),
    "acting": Acting(task_belief="sample", macro_action="sample"),
    "ppo": replace(tiny_networks()["ppo"], latents="acted"),
}


PLAIN_LOW_LEVEL = {
    "actor_critic": ActorCriticConfig((8,), (8,), **PLAIN),
    "ppo": replace(tiny_networks()["ppo"], advantage_pooling=0.0),
}


GOAL_ESTIMATE = {
    "task_encoder": replace(
        tiny_networks()["task_encoder"], context_reward="change", goal_coef=1.0, steps=5, target_kl=None
    )
}


@pytest.mark.parametrize(
    "networks",
    [{}, NOISY, {"task_encoder": None, "macro_vae": None}, PLAIN_LOW_LEVEL, GOAL_ESTIMATE],
    ids=["three-levels", "lstm-gumbel-dropout", "flat", "plain-low-level", "goal-estimate"],
)
def test_a_resumed_run_is_the_straight_one_in_the_toy_world(tmp_path: Path, networks: dict[str, Any]) -> None:
    def data() -> Any:
        return toy_data(replay_trajectories=30)  # it overflows before the break: its order counts

    resumed, straight = two_and_two(tmp_path, data, STEPS, networks=networks)
    assert_same_run(resumed, straight)
    replay = straight.data.replay
    assert replay.size == 20  # one of four rollouts


@pytest.mark.slow
@pytest.mark.simulator
def test_a_resumed_run_is_the_straight_one_in_envpool(tmp_path: Path) -> None:
    """ML10 in EnvPool, whose pools must catch up with the episodes drawn before the break."""

    def data() -> MetaWorldDataModule:
        evaluation = EvaluationConfig(1, 1)
        return toy_data(MetaWorldDataModule, envs_per_family=1, horizon=20, validation=evaluation)

    assert_same_run(*two_and_two(tmp_path, data, 10 * 20, check_val_every_n_epoch=2))


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.parametrize("goals", [None, 3])
def test_a_resumed_run_is_the_straight_one_in_metaworld(tmp_path: Path, goals: int | None) -> None:
    """That each family's episode does not depend on what came before it is tested in test_goals.py."""

    def data() -> MetaWorldDataModule:
        return toy_data(
            MetaWorldDataModule,
            benchmark="custom",
            train_families=("reach", "push", "peg-insert-side"),
            test_families=("lever-pull",),
            envs_per_family=2,
            horizon=20,
            backend="metaworld",
            goals_per_family=goals,
            validation=EvaluationConfig(1, 1),
        )

    assert_same_run(*two_and_two(tmp_path, data, 6 * 20, check_val_every_n_epoch=2))


def test_nothing_depends_on_the_global_generators(tmp_path: Path) -> None:
    class Disturb(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            random.seed(5), np.random.seed(6), torch.manual_seed(7)  # noqa: NPY002

        on_train_start = on_validation_start = on_validation_end = on_train_batch_end  # type: ignore[assignment]

    straight = fit_iterations(tmp_path / "straight", 3)
    fit_iterations(tmp_path / "resumed", 1)
    resumed = fit_iterations(tmp_path / "resumed", 3, resume=True, callbacks=[Disturb()])
    assert_same_run(resumed, straight)


def test_a_finished_run_trains_no_further_and_a_larger_budget_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = fit_iterations(tmp_path, 2)
    before = finished.last
    again = fit_iterations(tmp_path, 2, resume=True)
    assert again.trainer.state.finished
    assert again.recorder.rollouts == []
    assert again.data.episodes == []
    assert_same(again.module.state_dict(), finished.module.state_dict())
    assert_same(learning_state(again.last), learning_state(before))
    assert again.rows == finished.rows
    assert "budget of 520 environment steps is spent" in capsys.readouterr().out
    longer = fit_iterations(tmp_path, 3, resume=True)
    assert longer.recorder.env_steps == [3 * STEPS]
    assert steps(longer.rows) == [n * STEPS for n in (1, 1, 2, 2, 3, 3)]  # evaluation and training


def test_rows_beyond_the_checkpoint_are_written_anew(tmp_path: Path) -> None:
    """The run dies in iteration 4, with iteration 3 logged but not in a checkpoint."""

    class DiesError(Exception):
        pass

    class Die(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if int(pl_module.iteration) == 3:
                raise DiesError

    folder = tmp_path / "resumed"
    every_two = LastCheckpoint(str(folder / "checkpoints"), every_n_iterations=2)
    with pytest.raises(DiesError):
        fit_iterations(folder, 5, callbacks=[every_two, Die()])
    assert read_rows(folder)[-1]["step"] == str(3 * STEPS)
    resumed = fit_iterations(folder, 5, resume=True)
    assert resumed.recorder.env_steps == [n * STEPS for n in (3, 4, 5)]
    assert_same_run(resumed, fit_iterations(tmp_path / "straight", 5))


KILLED = """
import os, sys
import hmrl.cli.main
from support.toy import ToyDataModule

def die_in_iteration_4(data):
    if data.trainer.lightning_module.iteration == 3:
        os._exit(9)

ToyDataModule.on_training_step = die_in_iteration_4
hmrl.cli.main.MetaWorldDataModule = ToyDataModule
hmrl.cli.main.main(sys.argv[1:])
"""


@pytest.mark.usefixtures("toy_world")
def test_a_killed_command_is_continued_by_the_same_command(tmp_path: Path) -> None:
    """Killed without warning in iteration 4, then started again as `make train` does."""

    def arguments(folder: str) -> list[str]:
        run = ["--run_dir", str(tmp_path / folder), "--ckpt_path", "last"]
        options = ["--last_checkpoint.every_n_iterations", "2", "--budget.env_steps", str(5 * STEPS)]
        return ["fit", *TINY, *run, *options]

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments("resumed")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == 9, killed.stderr
    assert "starting afresh" in killed.stdout
    assert steps(read_rows(tmp_path / "resumed")) == [n * STEPS for n in (1, 1, 2, 2, 3, 3)]
    main(arguments("resumed"))
    main(arguments("straight"))
    rows = read_rows(tmp_path / "resumed")
    assert steps(rows) == [n * STEPS for n in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5)]
    assert rows == read_rows(tmp_path / "straight")
    last = [
        torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in ("resumed", "straight")
    ]
    assert_same(*map(learning_state, last))


LOG = "a,epoch,step\n1.5,0,100.0\n,1,200.0\n2.5,2,300.0\n3.5,"  # cut by a kill


def test_a_log_is_continued_at_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(LOG)
    logger = ContinuedCSVLogger(str(tmp_path))
    _ = logger.experiment
    assert (tmp_path / "metrics.csv").read_text() == LOG  # only training may drop anything
    logger.resume(200)
    logger.log_metrics({"a": 4.5, "epoch": 2}, step=300)
    logger.save()
    kept = [{"a": "1.5", "epoch": "0", "step": "100.0"}, {"epoch": "1", "step": "200.0"}]
    assert read_rows(tmp_path) == [*kept, {"a": "4.5", "epoch": "2", "step": "300"}]
    logger.log_metrics({"b": 5.5, "epoch": 3}, step=400)  # a new column
    logger.save()
    assert read_rows(tmp_path)[-1] == {"b": "5.5", "epoch": "3", "step": "400"}
    assert read_rows(tmp_path)[:2] == kept


@pytest.mark.parametrize("moment", ["resume", "new column"])
def test_a_kill_while_the_log_is_rewritten_leaves_the_old_one(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.csv").write_text(LOG)
    logger = ContinuedCSVLogger(str(tmp_path))

    class KilledError(BaseException):
        pass

    def killed(*args: Any) -> None:
        raise KilledError

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KilledError):
        _ = logger.resume(200) if moment == "resume" else logger.log_metrics({"b": 1.0}, step=400)
    assert (tmp_path / "metrics.csv").read_text() == LOG


def test_a_resumed_run_learns_at_the_rate_it_is_given(tmp_path: Path) -> None:
    """Not at the checkpoint's, which Lightning restores with the optimizers; their moments stay."""
    first = fit_iterations(tmp_path, 1).last["optimizer_states"]
    rates = {"ppo": PPOConfig(epochs=2, minibatches=3, actor_lr=3e-5, critic_lr=4e-5, weight_decay=0.1)}
    resumed = fit_iterations(tmp_path, 2, resume=True, networks=rates)
    actor, critic, *upper = resumed.last["optimizer_states"]
    assert [o["param_groups"][0]["lr"] for o in (actor, critic)] == [3e-5, 4e-5]
    assert [o["param_groups"][0]["weight_decay"] for o in (actor, critic)] == [0.1, 0.1]
    assert [o["param_groups"][0]["lr"] for o in upper] == [2e-3, 1e-4]
    for before, after in zip(first, resumed.last["optimizer_states"], strict=True):
        assert float(after["state"][0]["step"]) == 2 * float(before["state"][0]["step"])


def test_a_run_that_is_written_over_starts_its_log_anew(tmp_path: Path) -> None:
    first = fit_iterations(tmp_path, 2).rows
    with pytest.raises(UserError, match="already holds a run, which would be lost"):
        fit_iterations(tmp_path, 2)
    assert read_rows(tmp_path) == first
    assert fit_iterations(tmp_path, 2, overwrite=True).rows == first


def test_environment_steps_are_exact_beyond_float32(tmp_path: Path) -> None:
    data = toy_data()
    module = tiny_module(data, **tiny_networks())
    module.env_steps.fill_(20_001_001 - STEPS)
    run = fit(tmp_path, 20_001_001, data=data, module=module)
    assert steps(run.rows) == [20_001_001] * 2
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for tag in ("success/train/mean", "ppo/approx_kl"):
        assert [event.step for event in events.Scalars(tag)] == [20_001_001]
    resumed = fit(tmp_path, 20_001_001 + STEPS, resume=True)
    assert steps(resumed.rows) == [20_001_001] * 2 + [20_001_001 + STEPS] * 2


def test_the_best_model_survives_a_break(tmp_path: Path) -> None:
    """The best score is the last one before the break: it must not be forgotten with it."""

    def best(folder: Path) -> int:
        content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
        return int(content["state_dict"]["iteration"])

    def scripted(train: list[int]) -> Any:
        data = toy_data()
        data.solved = {"train": train, "test": [1] * len(train)}
        return data

    fit_iterations(tmp_path, 2, data=scripted([2, 6]))
    assert best(tmp_path) == 2
    fit_iterations(tmp_path, 4, data=scripted([4, 5]), resume=True)
    assert best(tmp_path) == 2
