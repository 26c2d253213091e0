"""The search among beliefs, against the rule in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from hmrl.evaluation.belief_search import BeliefSearch, Candidates, check_beliefs
from hmrl.himeta.policy import HierarchicalPolicy, Imposed
from hmrl.rollouts.collect import seeded
from hmrl.system.errors import UserError
from hmrl.types import Acting, Carry
from support.agents import B, G, K, S, build_module, encoder_config, vae_config

C, N = 5, 6  # candidates and environments


def in_plain_python(errors: Sequence[Sequence[float]], returns: Sequence[Sequence[float]]) -> list[int]:
    """What one environment plays in each adaptation episode, and in the end.

    Args:
        errors: of each episode, what it adds to the error of each candidate but the first.
        returns: of each episode, what each candidate would earn in it.
    """
    episodes = len(returns)
    earned: dict[int, list[float]] = {}
    known = [0.0] * len(errors[0])
    played = []

    def best() -> int:
        return max(earned, key=lambda c: (sum(earned[c]) / len(earned[c]), -c))

    for i in range(episodes):
        untried = [c for c in range(1, 1 + len(known)) if c not in earned]
        if i == 0:
            choice = 0
        elif untried and i < episodes - episodes // 3:
            choice = min(untried, key=lambda c: (known[c - 1], c))
        else:
            choice = best()
        played.append(choice)
        earned.setdefault(choice, []).append(returns[i][choice])
        known = [a + b for a, b in zip(known, errors[i], strict=True)]
    return [*played, best()]


def played(errors: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """The same of the search, of every environment: ``[n + 1, N]``.

    Args:
        errors: ``[n, C - 1, N]``.
        returns: ``[n, C, N]``.
    """
    episodes, others, count = errors.shape
    search = BeliefSearch(others, count, episodes)
    every = np.ones(count, dtype=np.bool_)
    found = []
    for error, earned in zip(errors, returns, strict=True):
        found.append(search.chosen.copy())
        for half in (0.25, 0.75):  # error comes in parts
            search.explain(half * error, every)
        search.record(~every, np.full(count, 1e9))  # no episode ends: nothing
        search.record(every, earned[search.chosen, np.arange(count)])
    return np.stack([*found, search.chosen])


def table(episodes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Errors and returns of few values, so that some are equal."""
    rng = np.random.default_rng(seed)
    shape = (episodes, C, N)
    return rng.integers(0, 3, (episodes, C - 1, N)) / 4, rng.integers(-3, 3, shape).astype(float)


@pytest.mark.parametrize("episodes", [1, 2, 3, 4, 6, 7, 10, 30])
def test_the_search_follows_its_rule(episodes: int) -> None:
    for seed in range(5):
        errors, returns = table(episodes, seed)
        found = played(errors, returns)
        for b in range(N):
            expected = in_plain_python(errors[:, :, b].tolist(), returns[:, :, b].tolist())
            assert found[:, b].tolist() == expected


def test_what_happens_in_one_environment_is_nothing_to_the_others() -> None:
    errors, returns = table(10)
    found = played(errors, returns)
    errors[:, :, 1:], returns[:, :, 1:] = errors[:, ::-1, 1:].copy(), -returns[:, :, 1:]
    other = played(errors, returns)
    assert (other[:, 0] == found[:, 0]).all()
    assert (other[:, 1:] != found[:, 1:]).any(0).all()


def test_episodes_may_end_at_different_times() -> None:
    errors, returns = table(4)
    expected = played(errors, returns)
    search = BeliefSearch(C - 1, N, 4)
    even = np.arange(N) % 2 == 0
    for error, earned in zip(errors, returns, strict=True):
        for some in (even, ~even):
            search.explain(error, some)
            search.record(some, earned[search.chosen, np.arange(N)])
    assert (search.chosen == expected[-1]).all()


def test_the_best_belief_of_a_bandit_is_found() -> None:
    """Noise that makes one episode of a good belief worse than one of another: repeats tell them apart."""
    rng = np.random.default_rng(1)
    episodes, others, count = 30, 10, 200
    worth = rng.normal(size=(1 + others, count))
    returns = worth + rng.normal(size=(episodes, 1 + others, count)) * 0.3
    errors = np.ones((episodes, others, count))
    chosen = played(errors, returns)[-1]
    regret = worth.max(0) - worth[chosen, np.arange(count)]
    assert (regret == 0).mean() > 0.85
    assert regret.mean() < 0.05


def test_the_likeliest_belief_is_found_in_few_episodes() -> None:
    """Of 40 beliefs, in three episodes, the one that is best, because it also explains rewards."""
    others, count = 40, 7
    best = 1 + np.arange(count) * 5
    errors, returns = np.ones((3, others, count)), np.zeros((3, 1 + others, count))
    errors[:, best - 1, np.arange(count)] = 0.9
    returns[:, best, np.arange(count)] = 1
    assert (played(errors, returns)[[0, 1, 2, 3]] == np.stack([0 * best, best, best, best])).all()


# --- beliefs as a policy has them --------------------------------------------------------------------

T_ = 4  # decisions


def an_agent(**changes: object) -> HierarchicalPolicy:
    return build_module(encoder_config(reward_coef=1.0, **changes), vae_config()).policy


def averages(policy: HierarchicalPolicy, families: int = 3) -> torch.Tensor:
    assert policy.task_encoder
    shape = families, T_, policy.task_encoder.belief_dim
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).softmax(-1)


def remembering(policy: HierarchicalPolicy) -> tuple[Carry, torch.Tensor, torch.Tensor]:
    """A memory after two decisions, and what to decide upon now."""
    with seeded(2):
        carry = policy.initial_carry(B)
        for _ in range(2):
            _, carry = policy.act(torch.randn(B, S), torch.randn(B), carry, Acting())
        return carry, torch.randn(B, S), torch.randn(B)


def test_an_imposed_belief_is_acted_on_and_memory_runs_on() -> None:
    policy = an_agent()
    carry, observation, reward = remembering(policy)
    imposed = Imposed(torch.tensor([True, False, True, False]), torch.full((B, K), torch.nan))
    imposed.belief[imposed.where] = torch.tensor([0.1, 0.2, 0.7])
    acting = Acting(action="mean")
    own, after_own = policy.act(observation, reward, carry, acting)
    step, after = policy.act(observation, reward, carry, acting, imposed)
    for name in ("task_belief", "macro_action", "action"):
        left, right = getattr(step, name), getattr(own, name)
        assert torch.equal(left[~imposed.where], right[~imposed.where])
        assert (left[imposed.where] != right[imposed.where]).any(-1).all()
    assert torch.equal(step.task_belief[imposed.where], imposed.belief[imposed.where])
    state = policy.normalize(observation)
    assert torch.equal(step.macro_action, policy.macro_action(state, step.task_belief, acting))
    assert torch.equal(step.action, policy.actor(state, step.task_belief, step.macro_action).mean)
    assert torch.equal(after.hidden[0], after_own.hidden[0])


def test_an_estimate_of_the_goal_stays_the_policys_own() -> None:
    policy = build_module(encoder_config(reward_coef=1.0, goal_coef=1.0), vae_config(), goal_dim=G).policy
    carry, observation, reward = remembering(policy)
    acting, decision = Acting(action="mean"), np.full(B, 2)
    known = averages(policy)
    imposed = Candidates(policy, known).imposed(np.array([0, 1, 2, 3]), decision)
    own, _ = policy.act(observation, reward, carry, acting)
    step, _ = policy.act(observation, reward, carry, acting, imposed)
    assert torch.equal(step.task_belief[:, K:], own.task_belief[:, K:])
    assert torch.equal(step.task_belief[0], own.task_belief[0])
    assert torch.equal(step.task_belief[1:, :K], known[:, 2, :K])


def test_candidates_are_acted_on_by_the_decision_of_the_episode() -> None:
    policy = an_agent()
    known = averages(policy)
    candidates = Candidates(policy, known)
    assert candidates.others == 3
    chosen, decision = np.array([0, 1, 3, 3]), np.array([2, 0, 1, 3])
    imposed = candidates.imposed(chosen, decision)
    assert imposed.where.tolist() == [False, True, True, True]
    for b in (1, 2, 3):
        assert torch.equal(imposed.belief[b], known[chosen[b] - 1, decision[b]])


@pytest.mark.parametrize(
    "belief",
    [
        {},
        {"goal_coef": 1.0},
        {"belief": "continuous", "categorical_coef": 0.0},
        {"belief": "mixture", "reward_coef": 0.0, "latent_dim": 2},
    ],
    ids=["categorical", "with an estimate of the goal", "continuous", "mixture"],
)
def test_errors_are_those_of_predicted_rewards(belief: dict[str, object]) -> None:
    config = encoder_config(**{"reward_coef": 1.0} | belief)
    policy = build_module(config, vae_config(), goal_dim=G).policy
    encoder = policy.task_encoder
    assert encoder is not None
    assert encoder.reward_decoder is not None
    known = averages(policy)
    before, observation, reward = remembering(policy)
    before = replace(before, action=2 * before.action)  # some beyond what was executed
    _, after = policy.act(observation, reward, before, Acting())
    decision, acted = np.array([0, 1, 2, 3]), torch.randn(B, encoder.belief_dim)
    found = Candidates(policy, known).errors(acted, before, after, reward, decision)
    assert found.shape == (3, B)
    own = encoder.belief_dim - encoder.goal_dim
    for c in range(3):
        for b in range(B):
            y = torch.cat([known[c, decision[b]][:own], acted[b, own:]])
            if belief.get("belief") == "mixture":
                y = y[K:]
            seen = [y, before.observation[b], before.action[b].clip(-1, 1), policy.normalize(observation)[b]]
            with torch.no_grad():
                predicted = encoder.reward_decoder(torch.cat(seen))
            right = policy.normalize_reward(reward)[b]
            assert found[c, b] == pytest.approx(float((predicted - right) ** 2), rel=1e-4)


@pytest.mark.parametrize(
    ("encoder", "known", "said"),
    [
        (None, 3, "this agent has none (model.task_encoder is null): use memory"),
        (encoder_config(reward_coef=0.0), 3, "predicts no rewards"),
        (encoder_config(reward_coef=1.0), 0, "scripts/average_beliefs.py"),
    ],
)
def test_agents_that_cannot_search_are_refused(encoder: object, known: int, said: str) -> None:
    policy = build_module(encoder, vae_config()).policy  # type: ignore[arg-type]
    with pytest.raises(UserError) as refused:
        check_beliefs(policy, torch.zeros(known, T_, K), T_)
    assert said in str(refused.value)


def test_episodes_of_another_length_are_refused() -> None:
    policy = an_agent()
    check_beliefs(policy, averages(policy), T_)
    check_beliefs(policy, None, T_ + 1)  # they are yet to be learnt
    with pytest.raises(UserError, match=r"episodes of 4 decisions, and here there are 5 \(data.horizon"):
        check_beliefs(policy, averages(policy), T_ + 1)


def test_beliefs_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match=f"have 1 entries, and those of this agent {K}"):
        check_beliefs(an_agent(), torch.zeros(3, T_, 1), T_)
