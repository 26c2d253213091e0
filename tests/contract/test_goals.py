"""Goals are hidden, fresh or fixed as asked, disjoint, and a function of their seeds alone."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Literal

import metaworld
import numpy as np
import pytest

import hmrl.envs.envpool
from hmrl.envs import Backend, benchmark, make_envs
from hmrl.envs.benchmarks import GOAL_INDICES, OBSERVATION_DIM, Benchmark, Goals, all_families
from hmrl.envs.envpool import EnvPoolEnvs
from hmrl.envs.metaworld import MetaWorldEnvs
from hmrl.rollouts.collect import collect
from hmrl.system.errors import UserError
from hmrl.types import Acting, FloatArray, Split, TaskEnvs
from support.meta_world import RecordingAgent, official_tasks

pytestmark = pytest.mark.simulator

GOAL = list(GOAL_INDICES)
BACKENDS: tuple[Backend, Backend] = ("envpool", "metaworld")
SPLITS: tuple[Split, Split] = ("train", "test")
ML10 = benchmark("ML10")
REACH = benchmark("ML1", ["reach"])  # cheap, and its goal has three free dimensions

both_backends = pytest.mark.parametrize("backend", BACKENDS)


def play(envs: TaskEnvs, episode: int, steps: int, seed: int = 0) -> tuple[FloatArray, ...]:
    """Observations, rewards and successes under random actions."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, len(envs.families), 4)).astype(np.float32)
    first = envs.reset(episode)
    answers = [envs.step(action) for action in actions]
    rewards, successes = np.array([a.reward for a in answers]), np.array([a.success for a in answers])
    return np.array([first, *(a.observation for a in answers)]), rewards, successes


def same(a: Sequence[FloatArray], b: Sequence[FloatArray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def goals_of(envs: TaskEnvs, episode: int) -> list[tuple[float, ...]]:
    """What identifies each environment's goal: where things start and, shown, where they must go."""
    return [tuple(row) for row in envs.reset(episode).astype(np.float32).round(6).tolist()]


def shown(backend: Backend, bench: Benchmark, goals: Goals, envs: int, **kwargs: Any) -> TaskEnvs:
    return make_envs(backend, bench, goals, envs, goal_visible=True, **kwargs)


# --- hidden ----------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("per_family", [None, 1])
def test_the_agent_gets_no_goal_and_no_name(backend: Backend, split: Split, per_family: int | None) -> None:
    agent = RecordingAgent(decision_interval=5)
    envs = make_envs(backend, ML10, Goals(split, 1, per_family, 0), 1, horizon=20)
    rollout = collect(
        envs,
        agent,
        episode=1,
        acting=Acting(),
        families=ML10.families(split),
        split=split,
        mode="sampled",
    )
    assert envs.families == ML10.families(split)
    assert len(agent.given) == 5  # four decisions and the bootstrap
    for observation, reward in agent.given:
        assert observation.shape == (len(envs.families), OBSERVATION_DIM)
        assert reward.shape == (len(envs.families),)
        assert not observation[:, GOAL].any()
    assert not rollout.observation[..., GOAL].any()
    envs.close()


@both_backends
@pytest.mark.parametrize("split", SPLITS)
def test_goals_can_be_shown_to_experts(backend: Backend, split: Split) -> None:
    """At a reset and at every step, also where one reset follows another without a step between."""
    for per_family in (None, 2):
        envs = shown(backend, ML10, Goals(split, 1, per_family, 0), 1)
        envs.reset(0)
        observation, _, _ = play(envs, 1, 3)
        assert (np.abs(observation[..., GOAL]).max(-1) > 0.1).all()
        assert np.array_equal(observation[1:, :, GOAL], observation[:-1, :, GOAL])
        envs.close()


# --- fresh and fixed -------------------------------------------------------------------------------


@both_backends
def test_fresh_goals_never_come_twice(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hmrl.envs.envpool, "_EPISODES_PER_POOL", 2)
    envs = shown(backend, REACH, Goals("train", 1, None, 0), 4)
    drawn = [goal for episode in range(5) for goal in goals_of(envs, episode)]
    assert len(set(drawn)) == 20
    envs.close()


@both_backends
@pytest.mark.parametrize("split", SPLITS)
def test_fresh_goals_change_in_every_family(backend: Backend, split: Split) -> None:
    envs = shown(backend, ML10, Goals(split, 1, None, 0), 1)
    drawn = [goals_of(envs, episode) for episode in range(4)]
    for i, family in enumerate(envs.families):
        assert len({goals[i] for goals in drawn}) == 4, family
    envs.close()


@both_backends
def test_one_fixed_goal_stays(backend: Backend) -> None:
    envs = shown(backend, REACH, Goals("train", 1, 1, 0), 2)
    assert len({goal for episode in range(4) for goal in goals_of(envs, episode)}) == 1
    envs.close()


@both_backends
def test_three_fixed_goals_are_cycled_through(backend: Backend) -> None:
    envs = shown(backend, REACH, Goals("train", 1, 3, 0), 2)
    drawn = [goal for episode in range(6) for goal in goals_of(envs, episode)]
    assert len(set(drawn)) == 3
    assert [drawn.index(goal) for goal in drawn] == [0, 1, 2] * 4
    envs.close()


@both_backends
@pytest.mark.parametrize("per_family", [None, 3])
def test_ranks_share_the_environments_out(backend: Backend, per_family: int | None) -> None:
    goals = Goals("train", 1, per_family, 0)
    whole = shown(backend, REACH, goals, 4)
    parts = [shown(backend, REACH, goals, 4, rank=rank, world_size=2) for rank in range(2)]
    for episode in (0, 2):
        assert goals_of(whole, episode) == [goal for part in parts for goal in goals_of(part, episode)]
    for envs in (whole, *parts):
        envs.close()


@pytest.mark.parametrize(("backend", "per_family"), [("envpool", None), ("envpool", 4), ("metaworld", None)])
def test_splits_streams_and_seeds_share_no_goal(backend: Backend, per_family: int | None) -> None:
    """Training, validation and test streams, train and test split, and two seeds, on one family."""
    drawn: list[tuple[float, ...]] = []
    for goals in (
        Goals("train", 1, per_family, 0),
        Goals("test", 1, per_family, 0),
        Goals("train", 1, per_family, 2),
        Goals("train", 1, per_family, 3),
        Goals("test", 1, per_family, 3),
        Goals("train", 7, per_family, 0),
    ):
        envs = shown(backend, REACH, goals, 4)
        drawn += goals_of(envs, 0)
        envs.close()
    assert len(set(drawn)) == 24


def test_no_two_uses_of_a_goal_share_a_seed() -> None:
    seeds = [
        Goals(split, seed, None, stream).seed_for(family, *index)
        for split in SPLITS
        for seed in (1, 2)
        for stream in (0, 2, 3)
        for family in ("reach", "push", "push-back")
        for index in ((0,), (1,), (1, 0), (1, 1), (0, 2))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


# --- Meta-World's own goals ------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("bench", [ML10, REACH], ids=lambda bench: bench.name)
def test_fixed_goals_of_the_reference_are_the_benchmarks_own(bench: Benchmark, split: Split) -> None:
    """All 50 of each family, in order, and in effect in the simulator."""
    ml1 = metaworld.ML1("reach-v3", seed=1)
    tasks = ml1.train_tasks if split == "train" else ml1.test_tasks
    if bench == ML10:
        tasks = official_tasks(split)
    vectors: dict[str, list[FloatArray]] = {family: [] for family in bench.families(split)}
    for task in tasks:
        vectors[task.env_name.removesuffix("-v3")].append(pickle.loads(task.data)["rand_vec"])
    envs = make_envs("metaworld", bench, Goals(split, 1, 50, 0), 2)
    assert isinstance(envs, MetaWorldEnvs)
    for episode in (0, 1, 24, 25):  # two slots an episode, so 25 is 0 again
        envs.reset(episode)
        for i, (family, env) in enumerate(zip(envs.families, envs._envs.envs, strict=True)):  # type: ignore[union-attr]
            slot = (i % 2 + 2 * episode) % 50
            assert np.array_equal(env.simulator._last_rand_vec, vectors[family][slot]), (family, episode)
            assert len(env._tasks) == len(vectors[family]) == 50
            assert [pickle.loads(t.data)["rand_vec"].tolist() for t in env._tasks] == [
                v.tolist() for v in vectors[family]
            ]
    envs.close()


def test_ml1_has_other_goals_in_its_test_split() -> None:
    drawn = []
    for split in SPLITS:
        envs = shown("metaworld", REACH, Goals(split, 1, 50, 0), 1)
        drawn += [goal for episode in range(50) for goal in goals_of(envs, episode)]
        envs.close()
    assert len(set(drawn)) == 100


def test_more_fixed_goals_than_the_benchmark_has_are_refused() -> None:
    with pytest.raises(UserError, match="51"):
        make_envs("metaworld", REACH, Goals("train", 1, 51, 0), 1)
    envs = shown("envpool", REACH, Goals("train", 1, 60, 0), 60)
    assert len(set(goals_of(envs, 0))) == 60
    envs.close()


def test_goals_of_a_warm_pool_stay_in_place() -> None:
    """EnvPool 1.2.5 by itself moves the goals of hammer and shelf-place away by 0.8 m at each reset."""
    families = all_families()
    envs = EnvPoolEnvs(families, Goals("train", 1, None, 0), [0] * 50, 1, 500, goal_visible=True)
    first = envs.reset(0)[:, GOAL]
    for episode in (1, 3):
        moved = np.abs(envs.reset(episode)[:, GOAL] - first).max(1)
        assert not {f: m for f, m in zip(families, moved, strict=True) if m > 0.4}
    envs.close()


# --- a function of the arguments and the episode ---------------------------------------------------


@both_backends
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("per_family", [None, 3])
def test_an_episode_does_not_depend_on_what_was_run_before(
    backend: Backend, split: Split, per_family: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all fifteen families: bit-equal after other episodes, other actions and a step back."""
    monkeypatch.setattr(hmrl.envs.envpool, "_EPISODES_PER_POOL", 2)
    goals = Goals(split, 1, per_family, 0)
    used, fresh = (make_envs(backend, ML10, goals, 1) for _ in range(2))
    play(used, 0, 60, seed=1)
    play(used, 1, 5, seed=2)  # abandoned midway
    expected = {episode: play(fresh, episode, 30) for episode in (1, 3)}  # 3 is in the next generation
    assert not same(expected[1], expected[3])
    for episode in (1, 3, 1):  # forwards over the generation boundary, and back
        for got, want in zip(play(used, episode, 30), expected[episode], strict=True):
            for i, family in enumerate(used.families):
                assert np.array_equal(got[:, i], want[:, i]), (family, episode)
    used.close()
    fresh.close()


@pytest.mark.parametrize("episode", [63, 64])
def test_catching_up_takes_no_longer_way_than_a_generation(episode: int) -> None:
    """Episode 64 is the first one of the second generation, by the real length of one."""
    goals = Goals("train", 1, None, 0)
    straight, all_along = (shown("envpool", REACH, goals, 1) for _ in range(2))
    for earlier in range(episode):
        all_along.reset(earlier)
    assert same(play(straight, episode, 5), play(all_along, episode, 5))
    straight.close()
    all_along.close()


def test_closed_environments_start_again() -> None:
    envs = shown("envpool", REACH, Goals("train", 1, None, 0), 2)
    before = play(envs, 1, 5)
    envs.close()
    assert same(play(envs, 1, 5), before)
    envs.close()


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_the_families_they_are_labelled_with(split: Split) -> None:
    """Environments in a batch equal each family simulated alone, environment by environment."""
    goals = Goals(split, 1, None, 0)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 3, 4)).astype(np.float32)
    batch = make_envs("envpool", ML10, goals, 3)
    families = ML10.families(split)
    assert batch.families == tuple(f for f in families for _ in range(3))
    together = [batch.reset(0)] + [batch.step(np.tile(a, (len(families), 1))).observation for a in actions]
    batch.close()
    for row, family in enumerate(batch.families):
        slot = row % 3
        alone = EnvPoolEnvs([family], goals, [slot], 3, 500)
        steps = [alone.reset(0)] + [alone.step(a[[slot]]).observation for a in actions]
        assert np.array_equal(np.array(together)[:, row], np.array(steps)[:, 0]), (family, slot)
        alone.close()


def test_processes_simulate_what_one_process_does() -> None:
    goals = Goals("train", 1, None, 0)
    backends: tuple[Literal["metaworld"], Literal["metaworld_async"]] = ("metaworld", "metaworld_async")
    here, elsewhere = (make_envs(backend, REACH, goals, 2) for backend in backends)
    assert same(play(here, 1, 10), play(elsewhere, 1, 10))
    here.close()
    elsewhere.close()
