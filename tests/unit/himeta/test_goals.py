"""The encoder may be asked for hidden goals in training; nothing that acts is ever told one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hmrl.himeta.formulas import gae
from hmrl.himeta.losses import goal_loss, task_encoder_loss
from hmrl.himeta.networks import TaskEncoder
from hmrl.himeta.normalizer import GoalScaler
from hmrl.system.errors import UserError
from hmrl.training.compatibility import network_differences
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting
from support.agents import (
    B,
    G,
    K,
    T,
    build_module,
    encoder_config,
    play,
    random_rollout,
    trajectories,
    vae_config,
)


def asked(**changes: float) -> HierarchicalMetaRL:
    config = encoder_config(goal_coef=2.0, **changes)
    module = build_module(config, vae_config(), goal_dim=G)
    assert module.uses_goals
    return module


def test_goals_are_standardised_within_each_family_and_fixed_ones_are_zero() -> None:
    scaler = GoalScaler(3, 2)
    family = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    goal = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    goal[family == 1, 2] = 0.7  # a family that holds one coordinate
    scaler.observe(goal[:5], family[:5])
    scaler.observe(goal[5:], family[5:])
    found = scaler(goal, family).numpy()
    for k in (0, 1):
        own = goal[family == k].double().numpy()
        expected = (own - own.mean(0)) / np.maximum(own.std(0), 0.01)
        np.testing.assert_allclose(found[family == k], expected, atol=1e-5)
    assert np.abs(found[3:, 2]).max() < 1e-5
    assert GoalScaler(0, 2)(goal, family).shape == (7, 0)


def test_the_loss_is_the_squared_error_of_what_the_belief_ends_with() -> None:
    policy = asked().policy
    rollout = random_rollout()
    sequence = policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting())
    assert sequence.belief.shape[-1] == K + G
    torch.testing.assert_close(sequence.belief[..., :K], sequence.probabilities.squeeze(-2))
    goal, estimate = torch.randn(B, G), sequence.belief[..., K:].detach().double().numpy()
    errors = [((estimate[t, n] - goal[n].numpy()) ** 2).sum() for t in range(T + 1) for n in range(B)]
    assert float(goal_loss(sequence, goal)) == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_encoder_learns_from_goals_by_their_weight() -> None:
    module, rollout = asked(), random_rollout()
    goal, losses = torch.randn(B, G), []
    assert module.encoder_config
    for coefficient in (0.0, 2.0):
        config = replace(module.encoder_config, goal_coef=coefficient)
        loss, metrics = task_encoder_loss(
            module.policy, trajectories(rollout), rollout.reward, config, module.ppo, Acting(), goal
        )
        losses.append(float(loss))
    assert losses[1] - losses[0] == pytest.approx(2 * float(metrics["encoder/goal_error"]), rel=1e-4)


def test_an_estimate_is_not_bounded_and_the_same_when_acting_and_when_learning() -> None:
    module = asked()
    with torch.no_grad():
        assert module.policy.task_encoder
        module.policy.task_encoder.head[-1].bias[-G:] = 3.0
    rollout = play(module, key=[3])
    learnt = module.policy.renewed_belief(rollout.observation, rollout.action, rollout.reward)
    torch.testing.assert_close(learnt, rollout.task_belief, atol=1e-5, rtol=0)
    assert float(learnt[..., -G:].mean()) > 2
    sampled = replace(module.acting, task_belief="sample")
    drawn = play(module, key=[3], acting=sampled).task_belief
    torch.testing.assert_close(drawn[0, :, -G:], rollout.task_belief[0, :, -G:])
    assert not torch.allclose(drawn[0, :, :K], rollout.task_belief[0, :, :K])


@pytest.mark.parametrize(("belief", "gradients"), [("continuous", "isolated"), ("categorical", "joint")])
def test_goals_are_asked_of_a_categorical_belief_alone(belief: str, gradients: str) -> None:
    config = encoder_config(goal_coef=1.0, belief=belief, categorical_coef=0.0)
    with pytest.raises(UserError, match=r"goal_coef is 1\.0, but only a categorical belief"):
        build_module(config, vae_config(), gradients=gradients, goal_dim=G)


@pytest.mark.parametrize("count", [2, 5, 64, 1000, None])
def test_a_part_of_a_trial_learns_and_its_returns_are_those_of_all_of_it(count: int | None) -> None:
    module = build_module(encoder_config(categorical_coef=0.0, steps=count), vae_config())
    rollout = random_rollout(steps=100)
    policy, ppo = module.policy, module.ppo
    assert module.encoder_config
    torch.manual_seed(5)
    loss, _ = task_encoder_loss(
        policy, trajectories(rollout), rollout.reward, module.encoder_config, ppo, Acting()
    )
    torch.manual_seed(5)
    chosen = torch.randperm(101)[:count]
    belief = policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting()).belief
    value = policy.value(policy.normalize(rollout.observation), belief, policy.task(rollout))
    _, target = gae(rollout.reward, value, ppo.gamma, ppo.gae_lambda)
    error = (value[:-1] - target.detach())[chosen[chosen < 100]].square().mean()
    torch.testing.assert_close(loss, error)
    weight = policy.task_encoder.head[0].weight  # type: ignore[union-attr]
    torch.testing.assert_close(*(torch.autograd.grad(x, weight)[0] for x in (loss, error)))


def test_goals_teach_the_encoder_alone() -> None:
    module, rollout = asked(), random_rollout()
    assert module.encoder_config
    loss, _ = task_encoder_loss(
        module.policy,
        trajectories(rollout),
        rollout.reward,
        replace(module.encoder_config, value_coef=0.0, categorical_coef=0.0, occupancy_coef=0.0),
        module.ppo,
        Acting(),
        torch.randn(B, G),
    )
    loss.backward()
    taught = {name for name, p in module.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.partition(".")[0] for name in taught} == {"task_encoder"}
    last = module.policy.task_encoder.head[-1]  # type: ignore[union-attr]
    assert last.weight.grad[:K].eq(0).all()
    assert last.weight.grad[K:].any(1).all()


def test_an_agent_that_estimates_goals_and_one_that_does_not_are_told_apart() -> None:
    other = build_module(encoder_config(), vae_config(), goal_dim=G)
    found = network_differences(asked().hparams, other.hparams)
    assert found == {"model.task_encoder.goal_coef": "model.task_encoder.goal_coef is 2.0 there and 0.0 here"}


def test_memory_that_is_another_is_another_in_acting_and_in_learning() -> None:
    """Both go through ``remember`` and ``head``, which is what others may override."""

    class Forgetful(TaskEncoder):
        def remember(self, *given: Any) -> Any:
            memory, hidden = super().remember(*given)
            return 0.1 * memory.tanh(), hidden

    module = asked()
    before = play(module, key=[3]).task_belief
    assert module.policy.task_encoder
    module.policy.task_encoder.__class__ = Forgetful
    rollout = play(module, key=[3])
    assert not torch.allclose(rollout.task_belief, before)
    learnt = module.policy.renewed_belief(rollout.observation, rollout.action, rollout.reward)
    torch.testing.assert_close(learnt, rollout.task_belief, atol=1e-5, rtol=0)
