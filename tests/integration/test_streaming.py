"""Rollouts are collected with the weights of the moment, whole, and each of them anew."""

from __future__ import annotations

import csv
import itertools
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from hmrl.rollouts.stream import RolloutStream
from support.runs import Run, checksum, fit, fit_iterations
from support.toy import HORIZON, tiny_module, toy_data

ITERATIONS = 4


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str], str]:
    """A run, the weights at every simulator step of training, and the initial weights."""
    pl.seed_everything(1, verbose=False)
    data = toy_data()
    module = tiny_module(data)
    initial, seen = checksum(module), []
    data.on_training_step = lambda: seen.append(checksum(module))
    folder = tmp_path_factory.mktemp("streamed")
    run = fit(folder, ITERATIONS * 20 * HORIZON, data=data, module=module)
    return run, seen, initial


def test_a_rollout_is_collected_with_the_weights_of_the_update_before(
    streamed: tuple[Run, list[str], str],
) -> None:
    run, seen, initial = streamed
    assert len(seen) == ITERATIONS * HORIZON
    after = run.recorder.checksums
    assert len({initial, *after}) == ITERATIONS + 1  # every update changes something
    for n, weights in enumerate([initial, *after[:-1]]):
        assert set(seen[n * HORIZON : (n + 1) * HORIZON]) == {weights}, f"iteration {n}"


def test_rollouts_are_whole_episodes(streamed: tuple[Run, list[str], str]) -> None:
    run, _, _ = streamed
    record = [e for e in run.data.episodes if e.training]
    assert len(record) == ITERATIONS * 20
    for n, rollout in enumerate(run.recorder.rollouts):
        episodes = record[20 * n : 20 * (n + 1)]
        assert rollout.reward.shape == (7, 20)  # 13 simulator steps, two a decision
        assert rollout.observation.shape == (8, 20, 39)
        assert rollout.env_steps == 20 * HORIZON
        assert [rollout.families[i] for i in rollout.family] == [e.family for e in episodes]
        assert all(len(e.rewards) == HORIZON for e in episodes)
        earned = torch.tensor([sum(e.rewards) for e in episodes], dtype=torch.float64)
        torch.testing.assert_close(rollout.episode_return, earned, rtol=1e-5, atol=1e-5)
        assert rollout.ever_success.tolist() == [any(e.successes) for e in episodes]
        assert rollout.final_success.tolist() == [e.successes[-1] for e in episodes]


def test_every_iteration_starts_a_new_episode_with_new_goals(streamed: tuple[Run, list[str], str]) -> None:
    run, _, _ = streamed
    record = [e for e in run.data.episodes if e.training]
    numbers = [record[20 * n].number for n in range(ITERATIONS)]
    assert numbers == list(range(ITERATIONS))
    assert len({(e.family, e.goal) for e in record}) == len(record)


def test_every_iteration_acts_with_noise_of_its_own(streamed: tuple[Run, list[str], str]) -> None:
    """Actions of a policy that is hardly trained are mostly noise: the same one would show."""
    run, _, _ = streamed
    for before, after in itertools.combinations([r.action.flatten() for r in run.recorder.rollouts], 2):
        assert torch.corrcoef(torch.stack([before, after]))[0, 1].abs() < 0.3


def test_log_probabilities_are_the_acting_policys(streamed: tuple[Run, list[str], str]) -> None:
    """The normaliser, too, is the one that acted: the initial policy gives the first rollout's numbers."""
    run, _, _ = streamed
    pl.seed_everything(1, verbose=False)
    fresh = tiny_module(run.data)
    rollout = run.recorder.rollouts[0]
    state = fresh.policy.normalize(rollout.observation)[:-1]
    distribution = fresh.policy.actor(state, rollout.task_belief[:-1], rollout.macro_action)
    torch.testing.assert_close(distribution.log_prob(rollout.action).sum(-1), rollout.log_prob)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first, again = fit_iterations(tmp_path / "a", 2), fit_iterations(tmp_path / "b", 2)
    other = fit_iterations(tmp_path / "c", 2, data=toy_data(seed=2))
    assert first.recorder.checksums == again.recorder.checksums
    assert not set(first.recorder.checksums) & set(other.recorder.checksums)
    goals = [{e.goal for e in run.data.episodes} for run in (first, again, other)]
    assert goals[0] == goals[1]
    assert not goals[0] & goals[2]


def test_environments_of_an_evaluation_are_closed_after_it_and_those_of_training_at_the_end(
    streamed: tuple[Run, list[str], str],
) -> None:
    run, _, _ = streamed
    training = [envs for envs in run.data.made if envs.training]
    assert len(training) == 1
    assert len(run.data.made) == 1 + 2 * ITERATIONS  # two splits an evaluation
    assert all(envs.closed for envs in run.data.made)


def test_a_stream_has_a_length_and_draws_only_when_asked() -> None:
    """Without a length, Lightning would fetch one rollout ahead."""
    drawn: list[int] = []
    closed: list[bool] = []
    stream = RolloutStream(3, lambda i: drawn.append(i) or i, lambda: closed.append(True))
    assert len(stream) == 3
    iterator = iter(stream)
    assert drawn == []
    assert next(iterator) == 0
    assert drawn == [0]
    assert not closed
    assert list(iterator) == [1, 2]
    assert closed == [True]


def test_fixed_goals_come_round_in_turn(tmp_path: Path) -> None:
    run = fit_iterations(tmp_path, 3, data=toy_data(goals_per_family=4))
    record = [e for e in run.data.episodes if e.training and e.family == "reach"]
    goals = [record[0].goal, record[1].goal, record[2].goal, record[3].goal]
    assert len(set(goals)) == 4
    assert [e.goal for e in record] == [*goals, *goals[:2]]
    # Evaluation on training families then means the same goals.
    evaluated = {e.goal for e in run.data.episodes if not e.training and e.family == "reach"}
    assert evaluated == set(goals[:2])


def test_the_log_tells_learning_from_collecting(tmp_path: Path) -> None:
    data, spent, began = toy_data(), [], []
    module = tiny_module(data)
    data.on_training_step = lambda: time.sleep(0.01)
    step = module.training_step

    def timed(*arguments: object) -> None:
        began.append(time.monotonic())
        step(*arguments)
        spent.append(time.monotonic() - began[-1])

    module.training_step = timed
    run = fit(tmp_path, ITERATIONS * 20 * HORIZON, data=data, module=module)
    with (run.folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["time/learning_seconds"]]
    learning = [float(row["time/learning_seconds"]) for row in rows]
    speed = [float(row["time/env_steps_per_second"]) for row in rows]
    assert len(learning) == ITERATIONS
    for n in range(1, ITERATIONS):
        iteration = 20 * HORIZON / speed[n]  # seconds, from one update's end to the next one's
        assert spent[n] <= learning[n] <= iteration - 0.01 * HORIZON
