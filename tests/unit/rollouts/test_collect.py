"""Random streams of their own, and the one loop that steps environments."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from hmrl.evaluation.baselines import RandomAgent
from hmrl.rollouts.collect import collect, few_threads, seeded, where_it_is_faster
from hmrl.system.errors import UserError
from hmrl.types import Acting, EnvStep, Rollout
from support.agents import FAMILIES, B, S, ToyEnvs, build_module, encoder_config, random_rollout, vae_config


def draw(*key: int) -> Tensor:
    with seeded(*key):
        return torch.randn(8)


def test_seeded_leaves_the_outer_stream_alone() -> None:
    torch.manual_seed(7)
    expected = torch.randn(6)
    torch.manual_seed(7)
    first = torch.randn(3)
    draw(1, 2)
    assert torch.equal(torch.cat([first, torch.randn(3)]), expected)


def test_seeded_restores_the_outer_stream_after_an_error() -> None:
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    with pytest.raises(ZeroDivisionError), seeded(1):
        torch.randn(5) / (1 // 0)
    assert torch.equal(torch.randn(3), expected)


def test_seeded_is_a_function_of_its_key() -> None:
    first = draw(3, 1, 0, 4)
    torch.manual_seed(99)
    torch.randn(11)
    assert torch.equal(draw(3, 1, 0, 4), first)


def test_seeded_streams_of_different_keys_differ() -> None:
    """Over seeds, streams, ranks and iterations, as learning, training and evaluation use them."""
    keys = [*itertools.product((1, 2), (0, 1), (0, 1), range(5))]
    keys += itertools.product((1, 2), (2, 3), (0, 1), (0, 1), range(5))  # type: ignore[arg-type]
    draws = {tuple(draw(*key).tolist()) for key in keys}
    assert len(draws) == len(keys)


def roll(envs: ToyEnvs, interval: int, **changes: object) -> Rollout:
    module = build_module(encoder_config(), vae_config(), decision_interval=interval)
    options = {"episode": 3, "acting": Acting(), "families": FAMILIES, "split": "test", "mode": "sampled"}
    with seeded(1):
        return collect(envs, module.policy, **options | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("horizon", "interval"), [(7, 1), (7, 2), (6, 3), (2, 5)])
def test_an_action_is_held_and_rewards_are_summed_over_the_interval(horizon: int, interval: int) -> None:
    envs = ToyEnvs(horizon=horizon)
    rollout = roll(envs, interval)
    decisions = -(-horizon // interval)
    assert len(envs.actions) == horizon
    assert rollout.env_steps == horizon * B
    assert rollout.observation.shape == (decisions + 1, B, S)
    for t in range(decisions):
        steps = slice(t * interval, min((t + 1) * interval, horizon))
        held = rollout.action[t].clamp(-1, 1).numpy()
        assert all((a == held).all() for a in envs.actions[steps])
        np.testing.assert_allclose(rollout.reward[t], sum(envs.rewards[steps]), rtol=1e-6)
        assert rollout.success[t].tolist() == (np.max(envs.rewards[steps], axis=0) > 0.5).tolist()
    assert rollout.final_success.tolist() == (envs.rewards[-1] > 0.5).tolist()
    np.testing.assert_allclose(rollout.observation[-1], envs.state, rtol=1e-6)
    np.testing.assert_allclose(rollout.observation[0], ToyEnvs(horizon=horizon).reset(3), rtol=1e-6)


class SolvedOnceEnvs(ToyEnvs):
    """Solved at the third simulator step, and at no other."""

    def step(self, action: np.ndarray) -> EnvStep:
        return super().step(action)._replace(success=np.full(B, len(self.actions) == 3))


def test_a_success_counts_at_whichever_step_of_its_interval_it_was() -> None:
    rollout = roll(SolvedOnceEnvs(horizon=6), 2)
    assert rollout.success.tolist() == [[False] * B, [True] * B, [False] * B]
    assert rollout.ever_success.all()
    assert not rollout.final_success.any()


def test_returns_are_summed_without_loss_of_digits() -> None:
    """So they are equal to the last digit however many environments a process has."""
    rollout = random_rollout()
    rollout.reward = 1000 * torch.rand(rollout.reward.shape)
    expected = [math.fsum(rewards) for rewards in rollout.reward.T.tolist()]
    assert rollout.episode_return.tolist() == pytest.approx(expected, rel=1e-12)


def test_families_are_indices_into_the_given_order() -> None:
    rollout = roll(ToyEnvs(), 1, families=("push", "none of these", "reach"))
    assert rollout.family.tolist() == [2, 0, 2, 0]
    assert (rollout.split, rollout.mode) == ("test", "sampled")


def test_memory_is_cleared_at_the_start() -> None:
    first, second = (roll(ToyEnvs(), 2) for _ in range(2))
    assert torch.equal(first.task_belief, second.task_belief)
    assert torch.equal(first.action, second.action)


def test_the_number_of_threads_is_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    roll(ToyEnvs(), 2)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


class ReusingEnvs(ToyEnvs):
    """Answers in the same float32 array every time, as a simulator may."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer: np.ndarray | None = None

    def _reused(self, observation: np.ndarray) -> np.ndarray:
        if self._buffer is None:
            self._buffer = np.empty_like(observation, dtype=np.float32)
        self._buffer[:] = observation
        return self._buffer

    def reset(self, episode: int) -> np.ndarray:
        return self._reused(super().reset(episode))

    def step(self, action: np.ndarray) -> EnvStep:
        step = super().step(action)
        return step._replace(observation=self._reused(step.observation))


def test_observations_survive_a_simulator_that_reuses_its_buffer() -> None:
    torch.testing.assert_close(roll(ReusingEnvs(), 1).observation, roll(ToyEnvs(), 1).observation)


class Extreme(ToyEnvs):
    """Of the environment of push says ``value`` at every step, as ``what``."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(batch=2, horizon=6)
        self._what, self._value = what, value

    def step(self, action: np.ndarray) -> EnvStep:
        step = super().step(action)
        getattr(step, self._what)[1] = self._value
        return step


@pytest.mark.parametrize(
    ("what", "value", "interval", "said"),
    [
        ("reward", 1e39, 1, "the reward of family push is beyond"),  # finite in float64 only
        ("reward", -1e300, 2, "the reward of family push is beyond"),
        ("observation", 1e39, 2, "the observation of family push is beyond"),
        ("reward", 3e38, 2, "the reward of family push is beyond"),  # kept by float32, but not its square
        ("reward", 1e19, 2, "the sum of rewards of family push is beyond"),
        ("reward", -4e18, 1, "the sum of rewards of family push is beyond 1.8e+19"),  # over the trial
    ],
)
def test_what_float32_cannot_learn_from_is_refused_where_it_is_said(
    what: str, value: float, interval: int, said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        roll(Extreme(what, value), interval)


def test_what_float32_can_learn_from_is_kept() -> None:
    assert roll(Extreme("reward", 1e18), 2).reward[:, 1].tolist() == pytest.approx([2e18] * 3)


@pytest.mark.parametrize("environments", [1, 10_000])
def test_what_is_on_the_cpu_acts_there_itself(environments: int) -> None:
    for agent in (build_module(encoder_config(), vae_config()).policy, RandomAgent(2)):
        assert where_it_is_faster(agent, environments) == (agent, torch.device("cpu"))


@pytest.mark.parametrize(
    ("there_are", "environments", "used"),
    [(1, 1000, 1), (2, 1000, 2), (16, 1, 2), (16, 149, 2), (16, 300, 6)],
)
def test_few_environments_are_acted_for_with_few_threads(
    there_are: int, environments: int, used: int
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(there_are)
        with few_threads(environments):
            assert torch.get_num_threads() == used
        assert torch.get_num_threads() == there_are
    finally:
        torch.set_num_threads(before)
