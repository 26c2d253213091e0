"""A belief of several categorical variables: each is one of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hmrl.himeta.diagnostics import beliefs_of, rollout_metrics
from hmrl.himeta.formulas import categorical_regulariser, entropy, goal_steps, mutual_information
from hmrl.himeta.losses import task_encoder_loss
from hmrl.system.errors import UserError
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting
from support.agents import B, K, build_module, encoder_config, play, trajectories, vae_config

G = 4


def several(**changes: Any) -> HierarchicalMetaRL:
    return build_module(encoder_config(variables=G, **changes), vae_config(goal_state="sub_task"))


def random_beliefs(*shape: int) -> Tensor:
    return (3 * torch.randn(*shape, G, K)).softmax(-1)


def test_each_variable_is_a_softmax_of_its_own_logits() -> None:
    policy = several().policy
    assert policy.task_encoder
    assert policy.task_encoder.belief_dim == policy.categorical_entries == G * K
    logits = torch.randn(5, G * K)
    expected = torch.cat([logits[:, g * K : (g + 1) * K].softmax(-1) for g in range(G)], dim=-1)
    torch.testing.assert_close(policy.belief(logits, Acting()), expected)
    torch.testing.assert_close(
        policy.by_variable(expected), torch.stack(expected.chunk(G, dim=-1), dim=-2), rtol=0, atol=0
    )


def test_each_variable_is_sampled_for_itself() -> None:
    """Frequencies of each are its probabilities, and knowing one says nothing about another."""
    policy = several().policy
    logits = torch.randn(1, G * K).expand(40_000, -1)
    torch.manual_seed(0)
    drawn = policy.by_variable(policy.belief(logits, Acting(task_belief="sample"))).argmax(-1)
    q = policy.by_variable(logits[0]).softmax(-1)
    for g in range(G):
        frequency = torch.bincount(drawn[:, g], minlength=K) / len(drawn)
        torch.testing.assert_close(frequency, q[g], atol=0.015, rtol=0)
    both = torch.bincount(K * drawn[:, 0] + drawn[:, 1], minlength=K * K).view(K, K) / len(drawn)
    torch.testing.assert_close(both, q[0].unsqueeze(1) * q[1], atol=0.015, rtol=0)


@pytest.mark.parametrize("form", ["conditional", "marginal", "information"])
def test_the_regulariser_is_the_mean_over_variables(form: Any) -> None:
    q = random_beliefs(6, B)
    each = [categorical_regulariser(q[:, :, g], form) for g in range(G)]
    torch.testing.assert_close(categorical_regulariser(q, form), torch.stack(each).mean())


def test_information_is_that_of_the_variable_that_says_most() -> None:
    group = torch.arange(60) % 3
    q = random_beliefs(60)
    each = [float(mutual_information(q[:, g], group, 3)) for g in range(G)]
    assert float(mutual_information(q, group, 3)) == pytest.approx(max(each))
    q[:, 2] = torch.eye(3)[group]
    assert float(mutual_information(q, group, 3)) == pytest.approx(math.log(3))


def test_a_sub_task_ends_where_any_variable_changes() -> None:
    q = random_beliefs(8, B)
    ends = [goal_steps("sub_task", q[:, :, g], 1, 5) for g in range(G)]
    assert torch.equal(goal_steps("sub_task", q, 1, 5), torch.stack(ends).amin(0))


def test_what_is_logged_adds_entropies_up() -> None:
    module = several()
    rollout = play(module, key=[1])
    q = beliefs_of(module.policy, rollout, Acting())
    assert q.shape == (*rollout.task_belief.shape[:2], G, K)
    metrics = rollout_metrics(rollout, q)
    total = sum(entropy(rollout.task_belief[..., g * K : (g + 1) * K]).mean() for g in range(G))
    marginal = sum(entropy(rollout.task_belief[..., g * K : (g + 1) * K].mean((0, 1))) for g in range(G))
    torch.testing.assert_close(metrics["encoder/entropy"], total)
    torch.testing.assert_close(metrics["encoder/marginal_entropy"], marginal)


@pytest.mark.parametrize(("value_coef", "reward_coef"), [(1.0, 0.0), (0.0, 1.0)])
def test_value_and_rewards_each_move_every_variable(value_coef: float, reward_coef: float) -> None:
    coefficients = {"value_coef": value_coef, "reward_coef": reward_coef}
    module = several(**coefficients, categorical_coef=0.0, occupancy_coef=0.0)
    rollout, encoder = play(module, key=[1]), module.policy.task_encoder
    assert encoder
    assert module.encoder_config
    episodes = trajectories(rollout)
    config = module.encoder_config
    loss, _ = task_encoder_loss(module.policy, episodes, rollout.reward, config, module.ppo, module.acting)
    loss.backward()
    moved = encoder.head[-1].bias.grad
    assert moved is not None
    assert (moved.unflatten(0, (G, K)).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("belief", ["continuous", "mixture"])
def test_only_a_categorical_belief_has_several(belief: str) -> None:
    with pytest.raises(UserError, match=rf"variables is {G}, but only a categorical .* has several"):
        build_module(encoder_config(variables=G, belief=belief, categorical_coef=0.0))
