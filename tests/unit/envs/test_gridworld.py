"""The grid world: one dynamics for one and for many, walls, ways, rewards, and who draws which goal."""

from __future__ import annotations

import heapq
import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch

from hmrl.envs import benchmark, make_envs
from hmrl.envs import gridworld as grid
from hmrl.envs.benchmarks import GRID_WORLD, Goals
from hmrl.envs.gridworld import GridWorldEnvs, Points
from hmrl.envs.layouts import CELLS, TEST_LAYOUTS, TRAIN_LAYOUTS, layout
from hmrl.evaluation.baselines import GridWorldExpert, RandomAgent, choose_agent
from hmrl.rollouts.collect import collect
from hmrl.types import Acting

LAYOUTS = (*TRAIN_LAYOUTS, *TEST_LAYOUTS)
HORIZON = GRID_WORLD.horizon
FRESH = Goals("train", 1, None, 0)


def make(families: tuple[str, ...] = LAYOUTS, goals: Goals = FRESH, **options: Any) -> GridWorldEnvs:
    """Three environments a family."""
    names = [family for family in families for _ in range(3)]
    return GridWorldEnvs(names, goals, list(range(3)) * len(families), 3, HORIZON, **options)


def actions(steps: int, batch: int, seed: int = 0) -> np.ndarray:
    """A random walk with some persistence, which gets far; beyond the bounds at times."""
    return 1.5 * np.sin(np.cumsum(np.random.default_rng(seed).normal(size=(steps, batch, 2)), axis=0))


def in_wall(family: str, position: np.ndarray, scale: int) -> bool:
    i, j = np.floor((position / scale + 1) / 2 * CELLS).astype(int)
    return not (0 <= i < CELLS and 0 <= j < CELLS) or bool(layout(family).wall[i + 1, j + 1])


@pytest.mark.parametrize("visible", [False, True])
@pytest.mark.parametrize("scale", [1, 4])
def test_one_environment_is_as_one_of_many(scale: int, visible: bool) -> None:
    many = make(goal_visible=visible, scale=scale)
    single = [
        GridWorldEnvs([f], FRESH, [i % 3], 3, HORIZON, visible, scale) for i, f in enumerate(many.families)
    ]
    first = np.concatenate([env.reset(4) for env in single])
    assert np.array_equal(first, many.reset(4))
    for action in actions(HORIZON, len(single)):
        step = many.step(action)
        for b, env in enumerate(single):
            observation, reward, success = env.step(action[b : b + 1])
            assert np.array_equal(observation[0], step.observation[b])
            assert (reward, success) == (step.reward[b], step.success[b])
            assert np.abs(observation).max() <= scale
            assert observation[:, 4:8].min() >= 0
            assert observation[:, 4:8].max() <= grid.TOUCH


# --- dynamics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 4])
def test_points_move_by_their_action_and_stop_at_walls(scale: int) -> None:
    envs = make(scale=scale)
    observation = envs.reset(0)
    stopped = 0
    for action in actions(4 * HORIZON, len(envs.families)):
        before = observation[:, :2].astype(float)
        observation = envs.step(action).observation
        assert np.allclose(observation[:, 2:4], before, atol=1e-6)  # one step ago
        for family, at, to, a in zip(envs.families, before, observation[:, :2], action, strict=True):
            wanted = at.copy()
            for axis in (0, 1):
                tried = wanted.copy()
                tried[axis] += grid.STEP * np.clip(a[axis], -1, 1)
                if in_wall(family, tried, scale):
                    stopped += 1
                else:
                    wanted = tried
            assert np.allclose(to, wanted, atol=1e-5)
            assert not in_wall(family, to, scale)
    assert stopped > 20


def test_no_wall_can_be_jumped() -> None:
    assert grid.STEP < 2 / CELLS


@pytest.mark.parametrize("scale", [1, 4])
def test_touch_is_the_free_way_along_each_axis(scale: int) -> None:
    envs = make(scale=scale)
    envs.reset(0)
    seen = set()
    for action in actions(HORIZON, len(envs.families), seed=1):
        observation = envs.step(action).observation
        for family, o in zip(envs.families, observation.astype(float), strict=True):
            for felt, way in zip(o[4:8], [(1, 0), (-1, 0), (0, 1), (0, -1)], strict=True):
                ray = np.linspace(0, grid.TOUCH, 61)
                hits = [r for r in ray if in_wall(family, o[:2] + r * np.array(way), scale)]
                assert felt == pytest.approx(min(hits, default=grid.TOUCH), abs=grid.TOUCH / 60 + 1e-5)
                seen.add(round(felt, 1))
    assert len(seen) > 2


def dijkstra(wall: np.ndarray, start: tuple[int, int]) -> dict[tuple[int, int], float]:
    """Over eight neighbours, in cells, never around the corner of a wall."""
    done: dict[tuple[int, int], float] = {}
    queue = [(0.0, start)]
    while queue:
        length, (i, j) = heapq.heappop(queue)
        if (i, j) in done:
            continue
        done[i, j] = length
        for di, dj in itertools.product((-1, 0, 1), repeat=2):
            if (di or dj) and not (wall[i + di, j] or wall[i, j + dj] or wall[i + di, j + dj]):
                heapq.heappush(queue, (length + float(np.hypot(di, dj)), (i + di, j + dj)))
    return done


@pytest.mark.parametrize("family", LAYOUTS)
def test_distances_are_shortest_ways(family: str) -> None:
    known = layout(family)
    free = [tuple(cell) for cell in np.argwhere(~known.wall)]
    for goal in known.goals:
        lengths = dijkstra(known.wall, tuple(goal))
        assert set(lengths) == set(free)  # every goal can be reached from everywhere
        there = goal[0] * (CELLS + 2) + goal[1]
        for (i, j), length in lengths.items():
            here = i * (CELLS + 2) + j
            assert known.distance[there, here] == pytest.approx(length)
            if (i, j) != tuple(goal):
                step = divmod(int(known.towards[there, here]), CELLS + 2)
                assert max(abs(step[0] - i), abs(step[1] - j)) == 1
                assert lengths[step] + np.hypot(step[0] - i, step[1] - j) == pytest.approx(length)


def test_layouts_read_as_drawn() -> None:
    """The drawing's last line is at the bottom; two goals, and walls all around."""
    elbow = layout("elbow")
    assert elbow.goals.tolist() == [[4, 9], [9, 4]]
    assert elbow.wall[6, 9]
    assert not elbow.wall[6, 4]
    for family in LAYOUTS:
        wall, goals = layout(family).wall, layout(family).goals
        assert wall.shape == (CELLS + 2, CELLS + 2)
        assert wall[[0, -1]].all()
        assert wall[:, [0, -1]].all()
        assert len(goals) == 2
        assert not wall[*goals.T].any()
    assert not set(TRAIN_LAYOUTS) & set(TEST_LAYOUTS)


@pytest.mark.parametrize("scale", [1, 4])
def test_rewards_say_how_long_the_way_is(scale: int) -> None:
    """2 in the goal's very middle, and e^(-NEARNESS) times less for each half of the square's width."""
    points, cell = Points(["hall"] * 3, scale), 2 * scale / CELLS
    points.goal = np.tile([0.9 * scale, 0.0], (3, 1))
    for share, bonus in ((0.0, 1), (0.5, 0), (1.0, 0)):
        points.position = points.goal - share * scale * np.array([1.0, 0.0])
        reward, solved = points.move(np.zeros((3, 2)))
        assert solved.tolist() == [bool(bonus)] * 3
        way = points.way(points.position, points.goal)[1]
        assert np.allclose(way, share * scale, atol=cell)  # it leads through the middles of cells
        assert np.allclose(reward, np.exp(-grid.NEARNESS * way / scale) + bonus)
    for cells, reached in ((0.99, True), (1.01, False)):
        points.position = points.goal - cells * grid.REACHED * cell * np.array([0.0, 1.0])
        assert points.move(np.zeros((3, 2)))[1].tolist() == [reached] * 3


# --- goals ---------------------------------------------------------------------------------------


def hidden(envs: GridWorldEnvs, episode: int) -> list[tuple[float, ...]]:
    return [tuple(o) for o in envs.reset(episode)]


def test_fresh_goals_are_a_function_of_slot_and_episode() -> None:
    envs = make(goal_visible=True)
    drawn = [hidden(envs, episode) for episode in range(4)]
    assert len({goal for episode in drawn for goal in episode}) == 4 * len(envs.families)
    assert hidden(envs, 2) == drawn[2]
    for changed in (Goals("test", 1, None, 0), Goals("train", 2, None, 0), Goals("train", 1, None, 2)):
        assert not set(hidden(make(goals=changed, goal_visible=True), 0)) & set(drawn[0])


def test_fixed_goals_come_round() -> None:
    envs = make(("hall",), Goals("train", 1, 4, 0), goal_visible=True)
    drawn = [goal for episode in range(4) for goal in hidden(envs, episode)]  # 3 slots, 4 goals
    assert len(set(drawn)) == 4
    assert drawn[:4] == drawn[4:8] == drawn[8:]


@pytest.mark.parametrize("per_family", [None, 4])
def test_the_episodes_of_a_trial_share_a_goal(per_family: int | None) -> None:
    envs = make(goals=Goals("train", 1, per_family, 0, repeats=3), goal_visible=True)
    drawn = [hidden(envs, episode) for episode in range(6)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[3] == drawn[4] == drawn[5]
    assert not any(a == b for a, b in zip(drawn[0], drawn[3], strict=True))


def test_goals_and_starts_are_where_they_may_be() -> None:
    envs = make(goal_visible=True)
    seen: dict[str, set[tuple[int, ...]]] = {family: set() for family in LAYOUTS}
    for episode in range(40):
        observation = envs.reset(episode)
        for family, o in zip(envs.families, observation.astype(float), strict=True):
            seen[family].add(tuple(np.floor((o[8:] + 1) / 2 * CELLS).astype(int) + 1))
            assert not in_wall(family, o[:2], 1)
            assert np.array_equal(o[:2], o[2:4])
    for family, cells in seen.items():
        assert cells == {tuple(cell) for cell in layout(family).goals}


def test_only_experts_are_shown_the_goal() -> None:
    blind, shown = make().reset(0), make(goal_visible=True).reset(0)
    assert np.array_equal(blind[:, :8], shown[:, :8])
    assert not blind[:, 8:].any()
    assert shown[:, 8:].all()


def test_the_number_of_processes_makes_no_difference() -> None:
    bench = benchmark("GridWorld")
    for per_family in (None, 5):
        goals = Goals("test", 1, per_family, 0)
        whole = make_envs("gridworld", bench, goals, 4, goal_visible=True, horizon=3)
        parts = [
            make_envs("gridworld", bench, goals, 4, goal_visible=True, horizon=3, rank=r, world_size=2)
            for r in (0, 1)
        ]
        for episode in range(3):
            together = whole.reset(episode).reshape(3, 2, 2, -1)
            for rank, part in enumerate(parts):
                assert np.array_equal(part.reset(episode).reshape(3, 2, -1), together[:, rank])


# --- agents, speed -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "horizon"), [("GridWorld", HORIZON), ("GridWorldLarge", 4 * HORIZON)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_expert_solves_every_goal_and_random_actions_do_not(name: Any, horizon: int, split: Any) -> None:
    bench = benchmark(name)
    assert bench.world.horizon == horizon
    envs = make_envs("gridworld", bench, Goals(split, 1, None, 3), 20, goal_visible=True, horizon=horizon)
    success = {}
    for agent_name in ("expert", "random"):
        agent = choose_agent(agent_name, RandomAgent(2, 2), envs.families, bench.world)  # type: ignore[arg-type]
        assert isinstance(agent, GridWorldExpert) == (agent_name == "expert")
        torch.manual_seed(0)
        families = bench.families(split)
        rollout = collect(envs, agent, episode=0, acting=Acting(), families=families, split=split, mode="m")
        success[agent_name] = rollout.ever_success.float().mean().item()
    assert success["expert"] == 1
    assert success["random"] < 0.5


def test_more_than_50_000_steps_a_second() -> None:
    envs = GridWorldEnvs(TRAIN_LAYOUTS * 20, FRESH, list(range(100)), 20, HORIZON)
    action = np.random.default_rng(0).uniform(-1, 1, (100, 2))
    envs.reset(0)
    started = time.process_time()  # of this process: others do not count
    for episode in range(5):
        envs.reset(episode)
        for _ in range(HORIZON):
            envs.step(action)
    assert 5 * HORIZON * 100 / (time.process_time() - started) > 50_000
