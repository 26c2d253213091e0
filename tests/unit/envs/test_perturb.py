"""Perturbed environments: each formula recomputed, and every draw a function of its key alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hmrl.envs.wrappers.perturb import Change, Missing, Perturbation, PerturbedEnvs, sensors_of
from hmrl.system.errors import UserError
from hmrl.types import EnvStep, FloatArray

FAMILIES = ("reach", "push")
S, A = 6, 2
SENSORS = (0, 1, 0, 1, 2, 3)  # two frames of two, then two of one
ABSENT = 5  # a number that is always exactly 0
KEY = (7, 0, 0)  # seed, stream, split


class World:
    """Known numbers, answered in the same two arrays every time; remembers the actions."""

    def __init__(self, families: Sequence[str] = FAMILIES, horizon: int = 50, apart: float = 10) -> None:
        self.families, self.horizon, self._apart = tuple(families), horizon, apart
        self.actions: list[FloatArray] = []
        self._observation = np.empty((len(families), S), dtype=np.float32)
        self._reward = np.empty(len(families), dtype=np.float32)

    def at(self, step: int) -> FloatArray:
        observation = np.arange(1, S + 1) + self._apart * np.arange(len(self.families))[:, None] + 0.01 * step
        observation[:, ABSENT] = 0
        return observation.astype(np.float32)

    def reset(self, episode: int) -> FloatArray:
        self.actions = []
        self._observation[:] = self.at(0)
        return self._observation

    def step(self, action: FloatArray) -> EnvStep:
        self.actions.append(action.copy())
        self._observation[:] = self.at(len(self.actions))
        self._reward[:] = len(self.actions)
        return EnvStep(self._observation, self._reward, np.arange(len(self.families)) == 0)

    def close(self) -> None:
        self.closed = True


def perturbed(
    world: World | None = None,
    *,
    key: tuple[int, ...] = KEY,
    first_slot: int = 0,
    stride: int = 1,
    age: int | None = None,
    **settings: Any,
) -> PerturbedEnvs:
    perturbation = Perturbation(**settings)
    perturbation.check("data.perturbation")
    return PerturbedEnvs(world or World(), perturbation, SENSORS, key, first_slot, stride, age)


def run(envs: PerturbedEnvs, episode: int = 0, action: float = 0.5) -> tuple[FloatArray, FloatArray]:
    """Observations ``[T+1, B, S]`` and rewards ``[T, B]`` of an episode."""
    observations, rewards = [envs.reset(episode).copy()], []
    for _ in range(envs.horizon):
        step = envs.step(np.full((len(envs.families), A), action, dtype=np.float32))
        observations.append(step.observation.copy())
        rewards.append(step.reward.copy())
    return np.stack(observations), np.stack(rewards)


def clean(world: World) -> FloatArray:
    return np.stack([world.at(t) for t in range(world.horizon + 1)])


EVERYTHING: dict[str, Any] = {
    "noise_std": 0.1,
    "missing": Missing(0.3, "sensor", "last", told=True),
    "action_gain": Change("jump", -0.4),
    "observation_bias": Change("random_walk", 0.2),
    "reward_scale": Change("linear", 0.5),
}


# --- noise ---------------------------------------------------------------------------------------


def test_noise_is_gaussian_of_the_given_deviation_everywhere_and_always() -> None:
    world = World(["reach"] * 10 + ["push"] * 10, horizon=400)
    noise = (run(perturbed(world, noise_std=0.3, stride=10))[0] - clean(world)).astype(float)
    assert (noise[..., ABSENT] == 0).all()
    drawn = np.delete(noise, ABSENT, axis=-1)
    assert drawn.shape == (401, 20, S - 1)
    assert stats.kstest(drawn.ravel(), stats.norm(0, 0.3).cdf).pvalue > 1e-3
    for one in (drawn[0], drawn[-1], drawn[:, 3], drawn[..., 2]):  # a step, an environment, a number
        assert stats.kstest(one.ravel(), stats.norm(0, 0.3).cdf).pvalue > 1e-3
    # Two numbers have nothing in common, of whatever environment, nor have two steps.
    flat = drawn.reshape(401, -1)
    correlation = np.corrcoef(flat, rowvar=False) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(401)
    assert abs(np.corrcoef(flat[1:].ravel(), flat[:-1].ravel())[0, 1]) < 5 / np.sqrt(flat.size)


def test_levels_of_noise_are_one_draw_at_several_scales() -> None:
    (low, _), (high, _), bare = run(perturbed(noise_std=0.1)), run(perturbed(noise_std=0.4)), clean(World())
    np.testing.assert_allclose(high - bare, 4 * (low - bare), atol=2e-5)


def test_one_perturbation_does_not_move_the_draws_of_another() -> None:
    """Each switched off alone, told to itself: what is left is as it was."""
    told = Missing(0.3, "sensor", "last", told=True)
    mask = run(perturbed(missing=told))[0][..., S:]
    everything, rewards = run(perturbed(**EVERYTHING))
    np.testing.assert_array_equal(everything[..., S:], mask)
    np.testing.assert_array_equal(rewards, run(perturbed(reward_scale=EVERYTHING["reward_scale"]))[1])
    both = run(perturbed(noise_std=0.1, observation_bias=Change("random_walk", 0.2)))[0]
    noise, bias = (
        run(perturbed(noise_std=0.1))[0],
        run(perturbed(observation_bias=Change("random_walk", 0.2)))[0],
    )
    np.testing.assert_allclose(both, noise + bias - clean(World()), atol=1e-5)


# --- missing observations --------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "width"), [("observation", 1), ("sensor", 4)])
def test_what_is_missing_is_zero_and_as_frequent_as_asked(part: Any, width: int) -> None:
    world = World(["reach"] * 10 + ["push"] * 10, horizon=400)
    shown, _ = run(perturbed(world, missing=Missing(0.2, part, told=True), stride=10))
    seen, mask = shown[..., :S], shown[..., S:]
    assert mask.shape == (401, 20, width)
    assert set(np.unique(mask)) == {0, 1}
    for one in (mask, mask[..., 0], mask[..., -1], mask[:, 7], mask[0]):
        assert stats.binomtest(int(one.sum()), one.size, 0.2).pvalue > 1e-3
    flat = mask.reshape(401, -1)
    assert np.abs(np.corrcoef(flat, rowvar=False) - np.eye(flat.shape[1])).max() < 6 / np.sqrt(401)
    lost = mask[..., SENSORS] if part == "sensor" else np.broadcast_to(mask, seen.shape)
    np.testing.assert_array_equal(seen, np.where(lost == 1, 0, clean(world)))


@pytest.mark.parametrize("part", ["observation", "sensor"])
def test_the_last_value_seen_stands_in(part: Any) -> None:
    world = World(horizon=200)
    envs = perturbed(world, missing=Missing(0.6, part, "last", told=True), noise_std=0.05)
    noisy = run(perturbed(World(horizon=200), noise_std=0.05))[0]
    for episode in (0, 0):  # nothing is left of the episode before
        shown, _ = run(envs, episode)
        lost = shown[..., S:][..., SENSORS] if part == "sensor" else np.repeat(shown[..., S:], S, axis=-1)
        assert lost[0].any()
        last = np.zeros((2, S), dtype=np.float32)
        for t in range(201):
            last = np.where(lost[t] == 1, last, noisy[t])
            np.testing.assert_array_equal(shown[t, :, :S], last)


def test_an_agent_that_is_not_told_sees_the_same() -> None:
    told, untold = (
        run(perturbed(missing=Missing(0.5, "sensor", "last", told=told)))[0] for told in (True, False)
    )
    assert untold.shape[-1] == S
    np.testing.assert_array_equal(told[..., :S], untold)


def test_probabilities_0_and_1() -> None:
    always = run(perturbed(missing=Missing(1.0, shown="last", told=True)))[0]
    assert (always[..., :S] == 0).all()
    assert (always[..., S:] == 1).all()
    never = run(perturbed(missing=Missing(0.0, told=True)))[0]
    np.testing.assert_array_equal(never[..., :S], clean(World()))
    assert (never[..., S:] == 0).all()


def test_the_mask_is_as_wide_as_there_are_sensors() -> None:
    meta_world, grid_world, unknown = (sensors_of(n) for n in (39, 10, 5))
    assert [len(s) for s in (meta_world, grid_world, unknown)] == [39, 10, 5]
    assert meta_world[:18] == meta_world[18:36] == tuple(range(18))  # now and one step ago
    assert meta_world[36:] == (18, 19, 20)
    assert grid_world == (0, 1, 0, 1, 2, 3, 4, 5, 6, 7)
    assert unknown == (0, 1, 2, 3, 4)
    for sensors, width in ((meta_world, 21), (grid_world, 8), (unknown, 5)):
        assert Missing(told=True, part="sensor").mask_width(sensors) == width
        assert Missing(told=True).mask_width(sensors) == 1
        assert Missing(0.5, "sensor").mask_width(sensors) == 0


# --- what changes within an episode ------------------------------------------------------------------


def test_a_gain_drifts_linearly_to_its_size() -> None:
    world = World(horizon=20)
    run(perturbed(world, action_gain=Change("linear", -0.5)), action=0.8)
    expected = [[[0.8 * (1 - 0.5 * t / 20)] * A] * 2 for t in range(20)]
    np.testing.assert_allclose(np.stack(world.actions), expected, rtol=1e-6)


def test_actions_stay_within_what_environments_are_promised() -> None:
    world = World(horizon=20)
    run(perturbed(world, action_gain=Change("linear", 2.0)), action=-0.8)
    expected = [max(-1.0, -0.8 * (1 + 2.0 * t / 20)) for t in range(20)]
    np.testing.assert_allclose(np.stack(world.actions)[:, 0, 0], expected, rtol=1e-6)
    assert np.stack(world.actions).dtype == np.float32


def test_rewards_are_scaled_and_success_is_not() -> None:
    envs = perturbed(World(horizon=20), reward_scale=Change("linear", 3.0))
    rewards = run(envs)[1]
    expected = [(t + 1) * (1 + 3.0 * t / 20) for t in range(20)]
    np.testing.assert_allclose(rewards, np.stack([expected, expected], axis=1), rtol=1e-6)
    envs.reset(0)
    assert envs.step(np.zeros((2, A), dtype=np.float32)).success.tolist() == [True, False]


def test_a_jump_is_at_a_moment_of_each_environment_and_episode_of_its_own() -> None:
    world = World(["reach"] * 200, horizon=10)
    envs = perturbed(world, reward_scale=Change("jump", -0.25), stride=200)
    factor = run(envs)[1] / np.arange(1, 11)[:, None]
    assert set(np.unique(factor.round(4))) == {0.75, 1}
    first = (factor < 0.9).argmax(0)
    assert (np.diff(factor, axis=0) <= 1e-6).all()  # once, and for the rest of the episode
    assert stats.chisquare(np.bincount(first, minlength=10)[1:]).pvalue > 1e-3  # any moment but the first
    assert first.min() == 1
    assert (first != ((run(envs, 1)[1] / np.arange(1, 11)[:, None]) < 0.9).argmax(0)).any()


def test_a_biased_sensor_is_biased_in_all_it_reports() -> None:
    world = World(["reach"] * 100, horizon=10)
    bias = (run(perturbed(world, observation_bias=Change("jump", 0.5), stride=100))[0] - clean(world)).round(
        3
    )
    assert (bias[0] == 0).all()
    assert (bias[..., ABSENT] == 0).all()
    np.testing.assert_array_equal(bias[..., :2], bias[..., 2:4])  # now and one step ago
    ended = bias[-1][:, [0, 1, 4]]
    assert set(np.unique(ended)) == {-0.5, 0.5}
    assert stats.binomtest(int((ended > 0).sum()), ended.size).pvalue > 1e-3
    assert np.abs(np.corrcoef(ended, rowvar=False) - np.eye(3)).max() < 0.4  # each sensor its own way
    moved = bias[..., [0, 1, 4]] != 0
    assert (moved.all(-1) == moved.any(-1)).all()  # all of an environment's at once


@pytest.mark.parametrize("width", [1, 3])
def test_a_random_walk_has_independent_steps_and_its_deviation_at_the_end(width: int) -> None:
    rngs = [np.random.default_rng(i) for i in range(400)]
    courses = np.stack([Change("random_walk", 2.0).course(50, width, rng) for rng in rngs])
    assert courses.shape == (400, 51, width)
    assert (courses[:, 0] == 0).all()
    steps = np.diff(courses, axis=1)
    assert stats.kstest(steps.ravel(), stats.norm(0, 2.0 / np.sqrt(50)).cdf).pvalue > 1e-3
    assert stats.kstest(courses[:, -1].ravel(), stats.norm(0, 2.0).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(steps[:, 1:].ravel(), steps[:, :-1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("kind", ["linear", "random_walk", "jump"])
def test_a_course_of_one_moment(kind: Any) -> None:
    course = Change(kind, 0.5).course(1, 1, np.random.default_rng(0))
    assert course.shape == (2, 1)
    assert course[0] == 0
    assert course[1] != 0


# --- what changes over training ------------------------------------------------------------------------


def scale_of(envs: PerturbedEnvs, episode: int) -> float:
    factor = run(envs, episode)[1] / np.arange(1, envs.horizon + 1)[:, None]
    assert np.ptp(factor) < 1e-5  # the same in all environments and moments
    return float(factor[0, 0])


def test_the_world_changes_over_training_and_evaluation_takes_it_as_it_is() -> None:
    settings = {"reward_scale": Change("linear", -0.5, over_episodes=4)}
    training = [scale_of(perturbed(**settings), episode) for episode in range(7)]
    np.testing.assert_allclose(training, [1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5], rtol=1e-6)
    evaluation = [scale_of(perturbed(**settings, key=(7, 3, 1), age=2), episode) for episode in range(3)]
    np.testing.assert_allclose(evaluation, 0.75, rtol=1e-6)


@pytest.mark.parametrize("kind", ["random_walk", "jump"])
def test_a_random_course_over_training_is_one_for_all_streams(kind: Any) -> None:
    settings = {"reward_scale": Change(kind, 0.5, over_episodes=30)}
    training = [scale_of(perturbed(**settings, first_slot=3, stride=9), episode) for episode in range(35)]
    # In whatever order, by whomever it is looked at.
    for episode in (34, 7, 20):
        other = perturbed(World(["sweep"]), **settings, key=(7, 2, 1), age=episode)
        assert scale_of(other, 0) == pytest.approx(training[episode], rel=1e-5)
    assert training[0] == 1
    assert len(set(training[30:])) == 1
    assert len(set(training)) == (2 if kind == "jump" else 31)
    another_seed = [scale_of(perturbed(**settings, key=(8, 0, 0)), episode) for episode in range(35)]
    assert another_seed != training


def test_changes_of_two_things_take_different_courses() -> None:
    change = Change("random_walk", 0.5, over_episodes=30)
    world = World(horizon=1)
    _, reward = run(perturbed(world, action_gain=change, reward_scale=change), 10, action=0.1)
    assert abs(world.actions[0][0, 0] / 0.1 - reward[0, 0]) > 1e-4


# --- what draws depend on --------------------------------------------------------------------------------


def test_an_episode_is_the_same_whatever_was_run_before() -> None:
    used, fresh = perturbed(**EVERYTHING), perturbed(**EVERYTHING)
    run(used, 3)
    first = run(used, 2)
    used.reset(2)  # broken off
    for again in (run(used, 2), run(fresh, 2)):
        for a, b in zip(again, first, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (run(used, 3)[0] != first[0]).any()


@pytest.mark.parametrize("processes", [2, 4])
def test_an_environment_does_not_notice_how_many_processes_there_are(processes: int) -> None:
    share = 4 // processes
    whole = run(perturbed(World(["reach"] * 4 + ["push"] * 4, apart=0), stride=4, **EVERYTHING), 2)
    for rank in range(processes):
        world = World(["reach"] * share + ["push"] * share, apart=0)
        part = run(perturbed(world, first_slot=rank * share, stride=4, **EVERYTHING), 2)
        members = [family * 4 + rank * share + i for family in range(2) for i in range(share)]
        np.testing.assert_array_equal(part[0], whole[0][:, members])
        np.testing.assert_array_equal(part[1], whole[1][:, members])


def test_episodes_of_a_family_are_numbered_over_its_environments() -> None:
    """So that an evaluation's n-th goal has the same noise, however many environments share the goals."""
    one = [run(perturbed(World(["reach"]), missing=Missing(0.5, told=True)), e)[0][:, 0, S] for e in range(4)]
    two = perturbed(World(["reach"] * 2), missing=Missing(0.5, told=True), stride=2)
    both = [run(two, e)[0][:, i, S] for e in range(2) for i in range(2)]
    np.testing.assert_array_equal(one, both)


def test_no_two_streams_environments_or_episodes_share_a_draw() -> None:
    """Seeds, streams, splits, families, slots, episodes, and what is drawn for."""
    drawn = []
    for key in ((7, 0, 0), (8, 0, 0), (7, 2, 0), (7, 2, 1), (7, 3, 0), (7, 3, 1)):
        envs = perturbed(
            World(["reach"] * 2 + ["push"] * 2), key=key, stride=2, missing=Missing(0.5, told=True)
        )
        for episode in range(2):
            drawn += [tuple(row) for row in run(envs, episode)[0][..., S].T]
    assert len(set(drawn)) == len(drawn) == 6 * 2 * 4


# --- manners ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_written_into_the_simulators_arrays(dtype: Any) -> None:
    world = World()
    world._observation, world._reward = world._observation.astype(dtype), world._reward.astype(dtype)
    envs = perturbed(world, **EVERYTHING)
    seen = envs.reset(0)
    np.testing.assert_array_equal(world._observation, world.at(0))
    action = np.full((2, A), 0.5, dtype=np.float32)
    step = envs.step(action)
    np.testing.assert_array_equal(world._observation, world.at(1))
    assert (world._reward == 1).all()
    assert (action == 0.5).all()
    assert seen.dtype == step.observation.dtype == step.reward.dtype == dtype
    kept = seen.copy()
    envs.step(action)
    np.testing.assert_array_equal(seen, kept)  # what the agent was given stays what it was
    envs.close()
    assert world.closed


def test_a_perturbation_of_nothing_changes_nothing() -> None:
    world = World()
    observations, rewards = run(perturbed(world), action=0.3)
    assert observations.dtype == rewards.dtype == np.float32
    np.testing.assert_array_equal(observations, clean(world))
    np.testing.assert_array_equal(rewards, np.repeat(np.arange(1, 51)[:, None], 2, axis=1))
    assert all((a == np.float32(0.3)).all() for a in world.actions)


def test_a_number_that_is_none_is_not_hidden() -> None:
    world = World()
    world.at = lambda step: np.full((2, S), np.nan, dtype=np.float32)  # type: ignore[method-assign]
    assert np.isnan(perturbed(world, noise_std=0.1).reset(0)).all()


# --- settings --------------------------------------------------------------------------------------------


def test_plain_mappings_do() -> None:
    plain: Any = {
        "noise_std": 0.1,
        "missing": {"probability": 0.3, "told": True},
        "action_gain": {"kind": "jump", "size": 1.0},
        "reward_scale": {"kind": "linear", "size": 1.0, "over_episodes": 3},
    }
    built = Perturbation(0.1, Missing(0.3, told=True), Change("jump", 1.0), None, Change("linear", 1.0, 3))
    assert Perturbation(**plain) == built


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"noise_std": -0.1}, r"data.p.noise_std is -0.1, but it must be 0 or more and finite"),
        ({"noise_std": np.nan}, r"data.p.noise_std is nan"),
        ({"noise_std": np.inf}, r"data.p.noise_std is inf"),
        ({"missing": Missing(1.5)}, r"data.p.missing.probability is 1.5, but it must be in \[0, 1\]"),
        ({"missing": Missing(-0.5)}, r"data.p.missing.probability is -0.5"),
        (
            {"missing": Missing(part="all")},
            r"data.p.missing.part is 'all', .* one of observation, sensor",
        ),  # type: ignore[arg-type]
        ({"missing": Missing(shown="x")}, r"data.p.missing.shown is 'x', but it must be one of zeros, last"),  # type: ignore[arg-type]
        ({"action_gain": Change()}, r"data.p.action_gain.size is 0.0, but it must be finite and not 0"),
        ({"reward_scale": Change(size=np.nan)}, r"data.p.reward_scale.size is nan"),
        (
            {"reward_scale": Change("step", 1.0)},
            r"data.p.reward_scale.kind is 'step', .* one of lin",
        ),  # type: ignore[arg-type]
        (
            {"observation_bias": Change("jump", 1.0, 0)},
            r"data.p.observation_bias.over_episodes is 0, but it must be 1 or more .*, or null",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Perturbation(**settings).check("data.p")


TOLD = Perturbation(missing=Missing(0.1, told=True))


@pytest.mark.parametrize(
    ("training", "own", "protocol", "sentence"),
    [
        (TOLD, Perturbation(), "first_episode", r"data.test.perturbation.missing.told is false, .* use true"),
        (Perturbation(), TOLD, "first_episode", r"data.test.perturbation.missing.told is true, .* use false"),
        (
            TOLD,
            Perturbation(missing=Missing(part="sensor", told=True)),
            "paper",
            r"data.test.perturbation.missing.part is sensor, but in training it is observation.* use obs",
        ),
        (
            Perturbation(0.1),
            None,
            "meta_world",
            r"data.test.protocol is meta_world.*use data.test.perturbation .. for none",
        ),
        (Perturbation(), Perturbation(0.1), "meta_world", r"data.test.protocol is meta_world"),
        (Perturbation(), Perturbation(-1.0), "first_episode", r"data.test.perturbation.noise_std is -1.0"),
    ],
)
def test_an_evaluation_that_does_not_fit_training_is_refused(
    training: Perturbation, own: Perturbation | None, protocol: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        training.check_evaluation("data.test", own, protocol)


@pytest.mark.parametrize(
    ("training", "own", "protocol"),
    [
        (Perturbation(0.1), Perturbation(), "meta_world"),
        (Perturbation(0.1), None, "first_episode"),
        (TOLD, None, "first_episode"),
        (TOLD, Perturbation(missing=Missing(0, shown="last", told=True)), "paper"),
        (Perturbation(), Perturbation(0.1, Missing(0.5, "sensor")), "first_episode"),
    ],
)
def test_an_evaluation_that_fits_is_not(
    training: Perturbation, own: Perturbation | None, protocol: str
) -> None:
    training.check_evaluation("data.test", own, protocol)


@pytest.mark.parametrize(
    ("perturbation", "random"),
    [
        (Perturbation(), False),
        (Perturbation(noise_std=0.1), True),
        (Perturbation(missing=Missing(0.5)), True),
        (Perturbation(action_gain=Change("linear", 0.3)), False),
        (Perturbation(action_gain=Change("jump", 0.3)), True),
        (Perturbation(observation_bias=Change("linear", 0.3)), True),
        (Perturbation(observation_bias=Change("jump", 0.3, over_episodes=9)), False),
    ],
)
def test_whether_episodes_on_one_goal_differ(perturbation: Perturbation, random: bool) -> None:
    assert perturbation.is_random() == random
