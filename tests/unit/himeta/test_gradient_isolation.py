"""Each loss reaches its own level's parameters and no others: the paper's independent training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hmrl.himeta.losses import actor_loss, critic_loss, macro_vae_loss, ppo_samples, task_encoder_loss
from hmrl.system.errors import UserError
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting
from support.agents import (
    A,
    B,
    K,
    S,
    T,
    build_module,
    encoder_config,
    fit,
    inside_fit,
    iteration_batch,
    random_rollout,
    trajectories,
    vae_config,
)

NullaryLoss = Callable[[], tuple[Tensor, dict[str, Tensor]]]
SAMPLED = Acting(task_belief="sample", macro_action="sample")


def agent(levels: str, **changes: Any) -> HierarchicalMetaRL:
    """With the ``levels`` named; no weight decay, which would move weights without a gradient."""
    encoder = encoder_config(**changes.pop("encoder", {})) if "encoder" in levels else None
    module = build_module(encoder, vae_config() if "vae" in levels else None, **changes)
    module._settings = {k: v._replace(weight_decay=0.0) for k, v in module._settings.items()}
    return module


def rollout_for(module: HierarchicalMetaRL) -> Any:
    """Random data as wide as this agent's levels."""
    k, a = K if module.encoder_config else 0, A if module.vae_config else 0
    return random_rollout(
        task_belief=torch.randn(T + 1, B, k).softmax(-1) if k else torch.zeros(T + 1, B, 0),
        macro_action=torch.randn(T, B, a).tanh(),
    )


def loss_of(module: HierarchicalMetaRL, level: str) -> NullaryLoss:
    """The loss that trains ``level``, on random data."""
    torch.manual_seed(1)
    rollout = rollout_for(module)
    episodes, policy = trajectories(rollout), module.policy
    batch = {
        "state": torch.randn(9, S),
        "task_belief": rollout.task_belief.flatten(0, 1)[:9],
        "task": torch.zeros(9, 0),
        "macro_action": rollout.macro_action.flatten(0, 1)[:9],
        "action": torch.randn(9, A),
        "log_prob": -2 + 0.1 * torch.randn(9),
        "advantage": torch.randn(9),
        "return": torch.randn(9),
    }
    return {
        "task_encoder": partial(
            task_encoder_loss, policy, episodes, rollout.reward, module.encoder_config, module.ppo, SAMPLED
        ),
        "macro_vae": partial(macro_vae_loss, policy, episodes, module.vae_config, SAMPLED),
        "actor": partial(actor_loss, policy, batch, module.ppo),
        "critic": partial(critic_loss, policy, batch),
    }[level]  # type: ignore[return-value]


def descend(module: HierarchicalMetaRL, level: str, loss: NullaryLoss) -> dict[str, Tensor]:
    with module._learning(level):
        return module._descend(loss()[0], level)


def changes(module: HierarchicalMetaRL, action: Callable[[], object]) -> set[str]:
    """Names of parameters and buffers that ``action``, run inside a real fit, leaves different."""
    before = {k: v.clone() for k, v in [*module.named_parameters(), *module.named_buffers()]}
    inside_fit(module, action)
    after = dict([*module.named_parameters(), *module.named_buffers()])
    assert set(after) == set(before)
    return {k for k, v in after.items() if not torch.equal(v, before[k])}


def parameters_of(module: HierarchicalMetaRL, *levels: str) -> set[str]:
    return {n for n, _ in module.named_parameters() if n.split(".")[1] in levels}


ALL = "encoder vae"


VALUE_ALONE = {"value_coef": 1.0, "categorical_coef": 0.0, "occupancy_coef": 0.0, "reward_coef": 0.0}
CASES = [
    ("task_encoder", ALL),
    ("task_encoder", "encoder"),
    ("macro_vae", ALL),
    ("macro_vae", "vae"),
    *((level, levels) for level in ("actor", "critic") for levels in (ALL, "encoder", "vae", "flat")),
]


@pytest.mark.parametrize(("level", "levels"), CASES)
def test_a_step_changes_every_parameter_of_its_level_and_nothing_else(level: str, levels: str) -> None:
    module = agent(levels)
    loss = loss_of(module, level)
    gradient: dict[str, bool] = {}
    module.train()

    def step() -> None:
        metrics = descend(module, level, loss)
        assert metrics[f"grad_norm/{level}"] > 0
        gradient.update({n: p.grad is not None for n, p in module.named_parameters()})
        assert all(p.requires_grad for p in module.parameters())  # the others' are given back

    own = parameters_of(module, level)
    assert own
    assert changes(module, step) == own
    assert {n for n, has in gradient.items() if has} == own


@pytest.mark.parametrize(
    ("level", "reached"),
    [
        ("task_encoder", {"task_encoder", "critic"}),  # through the critic, which must not step
        ("macro_vae", {"macro_vae"}),
        ("actor", {"actor"}),
        ("critic", {"critic"}),
    ],
)
def test_what_a_loss_differentiates_when_nothing_protects_the_others(level: str, reached: set[str]) -> None:
    """Without ``_learning``: what is detached inside the losses."""
    module = agent(ALL)
    loss, _ = loss_of(module, level)()
    loss.backward()
    with_gradient = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == parameters_of(module, *reached)


@pytest.mark.parametrize("form", ["value", "categorical", "occupancy"])
def test_the_encoder_learns_from_each_of_its_terms(form: str) -> None:
    weights = {f"{f}_coef": float(f == form) for f in ("value", "categorical", "occupancy")}
    module = agent(ALL, encoder=weights)
    changed = changes(module, lambda: descend(module, "task_encoder", loss_of(module, "task_encoder")))
    assert changed == parameters_of(module, "task_encoder")


def test_the_value_loss_reaches_the_encoder_only_through_the_critic() -> None:
    """A critic that does not look at the belief leaves the encoder without a gradient."""
    module = agent(ALL, encoder=VALUE_ALONE)
    with torch.no_grad():
        module.policy.critic.net[0].weight[:, S:] = 0
    loss = loss_of(module, "task_encoder")
    assert changes(module, lambda: descend(module, "task_encoder", loss)) == set()


def test_the_encoders_gradient_is_that_of_a_semi_gradient_value_loss() -> None:
    """d/d theta of mean (V(s_t, y_t) - G_t)^2 with the lambda-return G_t held constant, by hand."""
    module = agent(ALL, encoder=VALUE_ALONE | {"value_coef": 2.0})
    rollout, policy, config = rollout_for(module), module.policy, module.encoder_config
    assert config
    assert policy.task_encoder
    loss, _ = task_encoder_loss(policy, trajectories(rollout), rollout.reward, config, module.ppo, Acting())
    parameters = list(policy.task_encoder.parameters())
    got = torch.autograd.grad(loss, parameters)

    belief = policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting()).belief
    value = policy.value(policy.normalize(rollout.observation), belief, rollout.hidden_goal[:, :0])
    gamma, lam, v = module.ppo.gamma, module.ppo.gae_lambda, value.detach()
    total: Tensor = torch.zeros(())
    for t in range(T):
        g = v[T]  # G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1}), from the end
        for u in reversed(range(t, T)):
            g = rollout.reward[u] + gamma * ((1 - lam) * v[u + 1] + lam * g)
        total = total + (value[t] - g).square().sum()
    expected = torch.autograd.grad(2.0 * total / (T * B), parameters)
    torch.testing.assert_close(loss.item(), (2.0 * total / (T * B)).item(), rtol=1e-5, atol=0)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("update", "level"), [("_update_task_encoder", "task_encoder"), ("_update_macro_vae", "macro_vae")]
)
def test_whole_updates_keep_to_their_level(update: str, level: str) -> None:
    module = agent(ALL)
    rollout = rollout_for(module)
    replay = iteration_batch(rollout).replay
    assert changes(module, lambda: getattr(module, update)(replay, rollout)) == parameters_of(module, level)


def test_the_ppo_epochs_keep_to_actor_and_critic() -> None:
    module = agent(ALL)
    rollout = rollout_for(module)
    changed = changes(module, lambda: module._update_actor_critic(rollout))
    assert changed == parameters_of(module, "actor", "critic")


def test_gradients_are_clipped_to_the_levels_norm() -> None:
    module = agent(ALL)
    module._settings["critic"] = module._settings["critic"]._replace(max_grad_norm=1e-3)
    before, after = [], []

    def step() -> None:
        loss = loss_of(module, "critic")
        before.append(descend(module, "critic", loss)["grad_norm/critic"])
        after.append(torch.stack([p.grad.norm() for p in module.policy.critic.parameters()]).norm())  # type: ignore[union-attr]

    inside_fit(module, step)
    assert before[0] > 1e-2
    assert after[0].item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("broken", ["advantage", "state"])
def test_a_non_finite_low_level_loss_names_its_level_and_changes_nothing(broken: str) -> None:
    module = agent(ALL)
    targets, _ = ppo_samples(module.policy, rollout := rollout_for(module), rollout.reward, module.ppo)
    samples = {k: v.flatten(0, 1) for k, v in targets.items()}
    samples[broken][samples["family"] == 1] = float("nan")

    def step() -> None:
        with pytest.raises(UserError, match=r"level actor is not finite in iteration 0.*loss nan, gradient"):
            descend(module, "actor", lambda: actor_loss(module.policy, samples, module.ppo))

    assert changes(module, step) == set()


@pytest.mark.parametrize("level", ["task_encoder", "macro_vae"])
def test_a_non_finite_loss_of_an_upper_level_names_it_and_changes_nothing(level: str) -> None:
    module = agent(ALL)
    rollout = rollout_for(module)
    broken = replace(rollout, observation=rollout.observation.clone())
    broken.observation[3, rollout.family == 0] = float("nan")
    replay = iteration_batch(broken).replay

    def step() -> None:
        with pytest.raises(UserError, match=rf"level {level} is not finite in iteration 0"):
            getattr(module, f"_update_{level}")(replay, rollout)

    assert changes(module, step) == set()


def test_a_gradient_that_is_not_finite_where_the_loss_is_stops_too() -> None:
    """The square root has an infinite slope at 0."""
    module = agent(ALL)
    targets, _ = ppo_samples(module.policy, rollout := rollout_for(module), rollout.reward, module.ppo)
    samples = {k: v.flatten(0, 1) for k, v in targets.items()}

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = critic_loss(module.policy, samples)
        return value + (value * 0).sqrt(), metrics

    def step() -> None:
        with pytest.raises(UserError, match=r"level critic is not finite.*gradient norm nan"):
            descend(module, "critic", loss)

    assert changes(module, step) == set()


@pytest.mark.parametrize("levels", [ALL, "encoder", "vae", "flat"])
def test_one_iteration_trains_every_level_that_is_present(levels: str) -> None:
    module = agent(levels)
    before = {k: v.clone() for k, v in module.named_parameters()}
    fit(module, [iteration_batch(rollout_for(module))])
    assert all(not torch.equal(v, before[k]) for k, v in module.named_parameters())
    present = {n.split(".")[1] for n in before}
    assert present == {"actor", "critic"} | {
        {"encoder": "task_encoder", "vae": "macro_vae"}[x] for x in levels.split() if x != "flat"
    }
