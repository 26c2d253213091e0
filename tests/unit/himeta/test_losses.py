"""The value of each loss, from the networks' raw outputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from hmrl.himeta.diagnostics import average
from hmrl.himeta.losses import actor_loss, at, critic_loss, macro_vae_loss, task_encoder_loss
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting
from support.agents import (
    EGO,
    FAMILIES,
    A,
    B,
    K,
    S,
    T,
    build_module,
    encoder_config,
    full_module,
    random_rollout,
    trajectories,
    vae_config,
)


@pytest.fixture
def module() -> HierarchicalMetaRL:
    return full_module(networks={"state_dependent_std": True}).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("goal", ["constant_discretisation", "constant_margin"])
def test_macro_vae_loss(module: HierarchicalMetaRL, goal: str) -> None:
    config = vae_config(goal_state=goal, n=4, decoder_std=0.3)
    rollout, policy, vae = random_rollout(), module.policy, module.policy.macro_vae
    assert vae
    torch.manual_seed(3)
    loss, metrics = macro_vae_loss(policy, trajectories(rollout), config, Acting())

    moments = policy.observation_moments
    state = ((rollout.observation - moments.mean) / moments.var.sqrt()).clamp(-5, 5).float()
    belief = policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting()).belief
    mean, log_std = vae.encoder(torch.cat([state, belief], -1)[:-1]).split(A, -1)
    # 0.6 of the way from the middle to the end at 0, with slope 1: tan(asin(0.6)) = 0.75, 0.8^3 = 0.512.
    q = Normal(mean.tanh(), (-0.75 + 1.25 * (0.75 + log_std / (1.25 * 0.512)).atan().sin()).exp())
    torch.manual_seed(3)
    z = q.rsample()
    total, kls = 0.0, []
    errors = np.zeros((3, len(FAMILIES)))  # given z, given its average, predicting no motion; by family
    for t in range(T):
        goal_step = min(T, t + 4 if goal == "constant_margin" else 4 * (t // 4 + 1))
        ego, target = state[t][:, list(EGO)], (state[goal_step] - state[t])[:, list(EGO)]
        prediction = vae.decoder(torch.cat([ego, z[t]], -1))
        log_likelihood = MultivariateNormal(prediction, 0.09 * torch.eye(len(EGO))).log_prob(target)
        kl = kl_divergence(Normal(q.loc[t], q.scale[t]), policy.actor(state[t], belief[t], z[t])).sum(-1)
        kls.append(kl)
        total += float((-log_likelihood + kl).sum())
        average = q.loc.mean((0, 1)).expand_as(q.loc[t])
        predicted = [vae.decoder(torch.cat([ego, given], -1)) for given in (q.loc[t], average)]
        for b, family in enumerate(rollout.family.tolist()):
            for i, wrong in enumerate((*(p - target for p in predicted), target)):
                errors[i, family] += float(wrong[b].square().sum())
    assert loss.item() == pytest.approx(total / (T * B), rel=1e-4)
    assert metrics["vae/kl"].item() == pytest.approx(torch.stack(kls).mean().item(), rel=1e-4)
    error, average_error = (errors[:2] / errors[2]).mean(1)
    assert metrics["vae/decoder_error"].item() == pytest.approx(error, rel=1e-4)
    assert metrics["vae/decoder_error_without_z"].item() == pytest.approx(average_error, rel=1e-4)
    spread = [q.loc[:, rollout.family == f].reshape(-1, A).std(0, correction=0).mean().item() for f in (0, 1)]
    assert metrics["vae/z_spread"].item() == pytest.approx(np.mean(spread), rel=1e-4)


@pytest.mark.parametrize("form", ["conditional", "marginal", "information"])
def test_regularisers_of_the_task_encoder_loss(form: str) -> None:
    config = encoder_config(
        value_coef=0.0,
        reward_coef=0.0,
        categorical=form,
        categorical_coef=2.0,
        occupancy_coef=3.0,
    )
    module, rollout = build_module(config), random_rollout()
    loss, metrics = task_encoder_loss(
        module.policy, trajectories(rollout), rollout.reward, config, module.ppo, Acting()
    )
    q = module.policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting()).belief

    def h(p: Tensor) -> Tensor:
        return -(p * p.log()).sum(-1)

    conditional, marginal = h(q).mean(), h(q.mean((0, 1)))
    entropies = {"conditional": conditional, "marginal": marginal, "information": marginal - conditional}
    occupancy = (q * math.log(K) * (torch.arange(1, K + 1) - K).exp()).sum(-1).mean()
    torch.testing.assert_close(loss, 2 * (math.log(K) - entropies[form]) + 3 * occupancy)
    torch.testing.assert_close(metrics["encoder/occupancy"], occupancy.detach())


def batch_for(count: int = 50) -> dict[str, Tensor]:
    return {
        "state": torch.randn(count, S),
        "task_belief": torch.randn(count, K).softmax(-1),
        "task": torch.zeros(count, 0),
        "macro_action": torch.randn(count, A).tanh(),
        "action": torch.randn(count, A),
        "log_prob": -2.5 + 0.3 * torch.randn(count),
        "advantage": torch.randn(count),
        "return": torch.randn(count),
    }


def test_actor_loss_with_entropy_bonus(module: HierarchicalMetaRL) -> None:
    module.ppo.entropy_coef = 0.5
    batch, clip = batch_for(), module.ppo.clip
    loss, metrics = actor_loss(module.policy, batch, module.ppo)
    d = module.policy.actor(batch["state"], batch["task_belief"], batch["macro_action"])
    full = MultivariateNormal(d.mean, torch.diag_embed(d.variance))
    ratio = (full.log_prob(batch["action"]) - batch["log_prob"]).exp()
    gains = torch.stack([r * batch["advantage"] for r in (ratio, ratio.clip(1 - clip, 1 + clip))])
    torch.testing.assert_close(loss, -gains.amin(0).mean() - 0.5 * full.entropy().mean())
    torch.testing.assert_close(metrics["ppo/entropy"], full.entropy().mean().detach())


def test_critic_loss(module: HierarchicalMetaRL) -> None:
    batch = batch_for()
    loss, _ = critic_loss(module.policy, batch)
    value = module.policy.critic.net(torch.cat([batch["state"], batch["task_belief"]], -1))[:, 0]
    torch.testing.assert_close(loss, (value - batch["return"]).pow(2).sum() / 50)


def test_average_is_by_key() -> None:
    each = [
        {"a": torch.tensor(1.0), "b": torch.tensor(5.0)},
        {"a": torch.tensor(3.0), "b": torch.tensor(6.0)},
    ]
    assert average(each) == {"a": torch.tensor(2.0), "b": torch.tensor(5.5)}
    assert average([]) == {}


def test_what_is_asked_of_beliefs_has_the_same_gradient_each_time() -> None:
    """As an index has in exact arithmetic; but an index of so many numbers adds them up in any order."""
    torch.manual_seed(0)
    values = torch.randn(251, 30, 8, 8, requires_grad=True)
    t = torch.randint(251, (50, 30))
    rows = t * 30 + torch.arange(30)
    assert torch.equal(at(values, rows), values[t, torch.arange(30)].flatten(2))
    weight = torch.randn(50, 30, 64)

    def gradient() -> torch.Tensor:
        (found,) = torch.autograd.grad((at(values, rows) * weight).sum(), values)
        return found

    first = gradient()
    (exact,) = torch.autograd.grad(
        (values.double()[t, torch.arange(30)].flatten(2) * weight.double()).sum(), values
    )
    torch.testing.assert_close(first, exact)
    assert all(torch.equal(gradient(), first) for _ in range(20))
