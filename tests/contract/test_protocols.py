"""Protocols on real simulators: experts solve them, random actions do not; a trial keeps its goal."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from hmrl.cli.main import main
from hmrl.envs import Backend, benchmark, make_envs
from hmrl.envs.benchmarks import Goals, metaworld_name
from hmrl.evaluation.baselines import AgentName
from hmrl.evaluation.metaworld_protocol import make_trial_envs
from hmrl.evaluation.protocols import MetaWorldConfig, Protocol
from hmrl.types import Split

pytestmark = pytest.mark.simulator

FAMILIES = ("door-close", "reach", "button-press-topdown")
CUSTOM = (
    *("--data.benchmark", "custom", "--data.train_families", "[reach, button-press-topdown]"),
    *("--data.test_families", "[door-close]", "--data.horizon", "200"),
)
TRIALS = "{num_evals: 2, adaptation_episodes: 2, meta_batch_size: 2}"


Scored = Callable[[Protocol, AgentName], dict[str, Any]]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The results file of an agent under a protocol, tested once."""

    @cache
    def results(protocol: Protocol, agent: AgentName) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(agent)
        backend = "envpool" if protocol == "paper" else "metaworld"
        two = "goals_per_family: 2, envs_per_family: 2"
        test = f"{{{two}, backend: {backend}, protocol: {protocol}, agent: {agent}}}"
        config = ("--config", "configs/ml10.yaml", "--run_dir", str(folder))
        main(["test", *config, *CUSTOM, "--data.test", test, "--data.meta_world", TRIALS])
        return json.loads((folder / f"test-{protocol}.json").read_text())

    return results


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["first_episode", "paper", "meta_world"])
def test_experts_are_the_ceiling_and_random_actions_the_floor(protocol: Protocol, scored: Scored) -> None:
    ceiling, floor = scored(protocol, "expert"), scored(protocol, "random")
    for results, low, high in ((ceiling, 0.9, 1.0), (floor, 0.0, 0.1)):
        assert results["protocol"]["name"] == protocol
        assert results["checkpoint"] is None
        for split in ("train", "test"):
            (mode,) = results["scores"][split]  # they have one way of acting
            assert low <= results["scores"][split][mode]["mean"]["success"] <= high, split
            if protocol == "meta_world":
                official = results["official"][split][mode]
                assert low <= official["success"] <= high
                assert set(official["families"]) == set(results["scores"][split][mode]) - {"mean"}
    assert (ceiling["agent"], floor["agent"]) == ("expert", "random")


@pytest.mark.slow
def test_the_file_holds_every_episode_of_a_trial(scored: Scored) -> None:
    results = scored("meta_world", "expert")
    assert results["protocol"]["meta_batch_size"] == {"train": 2, "test": 2}
    for split, envs in (("train", 1), ("test", 2)):
        for family, columns in results["episodes"][split]["sampled"].items():
            adapted = [i for i, phase in enumerate(columns["phase"]) if phase == "adaptation"]
            pairs = [(columns["goal"][i], columns["number"][i]) for i in adapted]
            assert pairs == [(goal, number) for goal in range(2 * envs) for number in range(2)], family
            assert {columns["length"][i] for i in adapted} == {200}  # success ends no adaptation episode
            evaluated = [i for i, phase in enumerate(columns["phase"]) if phase == "evaluation"]
            assert len(evaluated) >= 2 * 3
            assert all(columns["length"][i] < 200 for i in evaluated if columns["success"][i])
            score = results["scores"][split]["sampled"][family]
            assert score["episodes"] == 2 * envs
            last = [columns["success"][i] for i in adapted if columns["number"][i] == 1]
            assert score["success"] == pytest.approx(np.mean(last))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["envpool", "metaworld"])
@pytest.mark.parametrize("fixed", [None, 4])
def test_a_trial_keeps_its_goal(backend: Backend, fixed: int | None) -> None:
    """Every episode of it begins alike, the next trial otherwise; in whatever order they are asked for."""
    bench = benchmark("custom", FAMILIES[:2], FAMILIES[2:])
    visible = {"goal_visible": True, "horizon": 20}
    envs = make_envs(backend, bench, Goals("train", 1, fixed, 0, repeats=3), 2, **visible)
    first = [envs.reset(episode).copy() for episode in range(6)]
    for trial in (first[:3], first[3:]):
        for observation in trial[1:]:
            assert np.array_equal(observation, trial[0])
    for i in range(4):
        assert not np.array_equal(first[0][i, 36:], first[3][i, 36:])
    assert np.array_equal(envs.reset(1), first[0])
    envs.close()
    alone = make_envs(backend, bench, Goals("train", 1, fixed, 0), 2, **visible)
    if fixed or backend == "metaworld":  # the n-th goal is that of the n-th episode without trials
        assert np.array_equal(alone.reset(1), first[3])
    alone.close()


def test_trial_environments_are_metaworlds_with_rewards_in_sight() -> None:
    """Raw rewards in the observation, goals hidden unless they are to be shown, other goals in each trial."""
    bench = benchmark("ML1", ["reach"])
    trials = MetaWorldConfig(meta_batch_size=2)
    options: Any = {"seed": 1, "horizon": 10}
    hidden = make_trial_envs(bench, "test", trials, **options)
    shown = make_trial_envs(bench, "test", trials, **options, goal_visible=True)
    goals = []
    for envs in (hidden, shown):
        envs.call("toggle_sample_tasks_on_reset", False)
        envs.call("sample_tasks")
        observation, _ = envs.reset()
        assert observation.shape == (2, 39 + 4 + 2)
        action = np.full((2, 4), 0.1)
        after, reward, *_ = envs.step(action)
        assert np.allclose(after[:, 39:43], action)
        assert np.allclose(after[:, 43], reward)
        assert (reward > 0).all()
        goals.append([np.array(g) for g in envs.call("_get_pos_goal")])
        assert np.allclose(after[:, 36:39], goals[-1] if envs is shown else 0)
        envs.call("sample_tasks")
        assert not np.allclose(goals[-1], envs.call("_get_pos_goal"))
        envs.close()
    assert np.allclose(goals[0], goals[1])  # a function of the seed
    assert hidden.families == ("reach", "reach")


@pytest.mark.parametrize("split", ["train", "test"])
def test_trial_environments_are_in_the_order_of_families(split: Split) -> None:
    bench = benchmark("custom", FAMILIES[1:], FAMILIES[:1])
    envs = make_trial_envs(bench, split, MetaWorldConfig(meta_batch_size=4), seed=1, horizon=10)
    assert len(envs.families) == 4
    classes = [ALL_V3_ENVIRONMENTS[metaworld_name(family)].__name__ for family in envs.families]
    assert list(envs.get_attr("task_name")) == classes
    envs.close()


@pytest.mark.parametrize(("families", "batch"), [(10, 20), (5, 20), (45, 45), (1, 20), (25, 25)])
def test_the_usual_batch_is_metaworlds(families: int, batch: int) -> None:
    assert MetaWorldConfig().batch(families) == batch
