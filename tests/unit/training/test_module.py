"""The schedule of one iteration, run by a real trainer on rollouts of a toy world."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import hmrl.training.module
from hmrl.himeta.formulas import log_reward
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Rollout
from support.agents import (
    B,
    T,
    build_module,
    encoder_config,
    fit,
    inside_fit,
    iteration_batch,
    play,
    random_rollout,
    vae_config,
)

ONE_STEP = {"epochs": 1, "minibatches": 1}


def toy_rollout(module: HierarchicalMetaRL) -> Rollout:
    return play(module, key=[5])


def iterate(module: HierarchicalMetaRL, rollout: Rollout | None = None) -> dict[str, float]:
    """One iteration on ``rollout`` (the agent's own by default); what it logs."""
    trainer = fit(module, [iteration_batch(rollout or toy_rollout(module))])
    return {k: float(v) for k, v in trainer.callback_metrics.items()}


def spied_batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What the actor's loss is given, batch by batch."""
    batches: list[dict[str, Tensor]] = []
    loss = hmrl.training.module.actor_loss

    def spy(policy: Any, batch: dict[str, Tensor], ppo: Any) -> Any:
        batches.append(batch)
        return loss(policy, batch, ppo)

    monkeypatch.setattr(hmrl.training.module, "actor_loss", spy)
    return batches


def by_log_prob(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    order = batch["log_prob"].argsort()
    return {k: v[order] for k, v in batch.items()}


# --- order ---------------------------------------------------------------------------------------


def test_the_order_of_an_iteration() -> None:
    module = build_module(encoder_config(), vae_config())
    calls: list[str] = []

    def watch(owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def spy(*args: Any) -> Any:
            calls.append(name if owner is module else f"{type(owner).__name__}.{name}")
            return method(*args)

        setattr(owner, name, spy)

    for name in ("_update_task_encoder", "_update_macro_vae", "_update_actor_critic"):
        watch(module, name)
    watch(module.reward_scaler, "observe")
    watch(module.policy, "observe")
    iterate(module)
    assert calls == [
        "RewardScaler.observe",
        "_update_task_encoder",
        "_update_macro_vae",
        "_update_actor_critic",
        "HierarchicalPolicy.observe",
    ]


def test_ppo_normalises_with_the_moments_that_acted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build_module(encoder_config(), vae_config(), ppo=ONE_STEP)
    rollout = toy_rollout(module)
    state = module.policy.normalize(rollout.observation)
    (batches, count) = (spied_batches(monkeypatch), module.policy.observation_moments.count.clone())
    iterate(module, rollout)
    expected = by_log_prob({"log_prob": rollout.log_prob.flatten(), "state": state[:-1].flatten(0, 1)})
    assert torch.equal(by_log_prob(batches[0])["state"], expected["state"])
    moments = module.policy.observation_moments
    assert moments.count - count == (len(rollout.action) + 1) * B
    assert not torch.allclose(module.policy.normalize(rollout.observation), state)


def test_the_ratio_is_one_before_the_first_step() -> None:
    """After HL and IL updates, with y and z sampled and dropout configured: the stored y, z are used."""
    acting = Acting(task_belief="sample", macro_action="sample")
    levels = encoder_config(updates=5, dropout=0.5), vae_config(updates=5, dropout=0.5)
    metrics = iterate(build_module(*levels, ppo=ONE_STEP | {"latents": "acted"}, acting=acting))
    assert metrics["encoder/policy_kl"] > 1e-5  # they did move the policy
    assert abs(metrics["ppo/approx_kl"]) < 1e-7  # E[(r - 1) - log r] is about (r - 1)^2 / 2
    assert metrics["ppo/clip_fraction"] == 0


@pytest.mark.parametrize("macro_interval", [1, 3])
def test_renewed_ratios_are_those_of_the_whole_policy(
    macro_interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """y, z and the ratio, against acting along the rollout with the levels as they have become."""
    levels = encoder_config(updates=5, lr=1e-2), vae_config(updates=5, lr=1e-2)
    module = build_module(*levels, ppo=ONE_STEP | {"actor_lr": 1e-30}, macro_interval=macro_interval)
    before, rollout = copy.deepcopy(module.policy), toy_rollout(module)
    batches = spied_batches(monkeypatch)
    metrics = iterate(module, rollout)
    now = copy.deepcopy(module.policy)
    now.observation_moments, now.reward_moments = before.observation_moments, before.reward_moments
    log_ratio = (noise_free(now, rollout).log_prob(rollout.action) - rollout.log_prob).double()
    assert log_ratio.abs().max() > 0.01
    expected = (log_ratio.exp() - 1 - log_ratio).mean().item()
    assert metrics["ppo/approx_kl"] == pytest.approx(expected, rel=1e-2)
    order = rollout.log_prob.flatten().argsort()
    belief, z = now.renewed(rollout.observation, rollout.action, rollout.reward)
    got = by_log_prob(batches[0])
    torch.testing.assert_close(got["task_belief"], belief[:-1].flatten(0, 1)[order])
    torch.testing.assert_close(got["macro_action"], z.flatten(0, 1)[order])
    assert not torch.allclose(belief, rollout.task_belief, atol=1e-3)


def test_renewed_is_what_acted_where_no_level_has_learnt() -> None:
    levels = encoder_config(updates=0), vae_config(updates=0)
    first, second = (
        iterate(build_module(*levels, ppo=ONE_STEP | {"latents": latents}))
        for latents in ("acted", "renewed")
    )
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value, abs=1e-5), key


def test_counters_and_all_metrics_are_finite() -> None:
    module = build_module(encoder_config(), vae_config(), decision_interval=2)
    metrics = iterate(module)
    assert all(np.isfinite(v) for v in metrics.values())
    assert int(module.env_steps) == metrics["step"] == 7 * B
    assert int(module.iteration) == 1
    for key in ("rollout/success/mean", "encoder/value_loss", "vae/kl", "ppo/value_loss", "grad_norm/critic"):
        assert key in metrics


def test_learning_is_a_function_of_seed_and_iteration() -> None:
    def weights(seed: int, outer: int, iteration: int = 0) -> Tensor:
        module = build_module(encoder_config(), vae_config(), seed=seed)
        rollout = toy_rollout(module)
        module.iteration += iteration
        torch.manual_seed(outer)
        iterate(module, rollout)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(weights(1, outer=0), weights(1, outer=5))
    assert not torch.equal(weights(1, outer=0), weights(2, outer=0))
    assert not torch.equal(weights(1, outer=0), weights(1, outer=0, iteration=1))


# --- the KL that HL and IL updates cause ---------------------------------------------------------


def noise_free(policy: HierarchicalPolicy, rollout: Rollout) -> MultivariateNormal:
    """The policy along the rollout with y and z remade, one step at a time by ``act``'s own parts."""
    carry, reward, means, stds = policy.initial_carry(B), torch.zeros(B), [], []
    for t in range(len(rollout.action)):
        with torch.random.fork_rng():
            step, carry = policy.act(rollout.observation[t], reward, carry, Acting())
        d = policy.actor(policy.normalize(rollout.observation[t]), step.task_belief, step.macro_action)
        means.append(d.mean)
        stds.append(d.stddev)
        carry.action, reward = rollout.action[t], rollout.reward[t]
    return MultivariateNormal(torch.stack(means), torch.diag_embed(torch.stack(stds) ** 2))


@pytest.mark.parametrize(("level", "key"), [("task_encoder", "encoder"), ("macro_vae", "vae")])
def test_policy_kl_is_that_of_replacing_one_level(level: str, key: str) -> None:
    updates = {"task_encoder": 0, "macro_vae": 0} | {level: 3}
    module = build_module(
        encoder_config(updates=updates["task_encoder"]),
        vae_config(updates=updates["macro_vae"]),
        networks={"state_dependent_std": True},  # or the KL would be symmetric
    )
    before, rollout = copy.deepcopy(module.policy), toy_rollout(module)
    metrics = iterate(module, rollout)
    mixed = copy.deepcopy(before)
    setattr(mixed, level, getattr(module.policy, level))
    expected = kl_divergence(noise_free(before, rollout), noise_free(mixed, rollout)).mean().item()
    assert expected > 1e-4
    assert metrics[f"{key}/policy_kl"] == pytest.approx(expected, rel=1e-3)
    other = {"encoder": "vae", "vae": "encoder"}[key]
    assert metrics[f"{other}/policy_kl"] == 0


def test_the_movement_of_the_second_level_is_counted_from_where_the_first_left_the_policy() -> None:
    module = build_module(encoder_config(updates=3, lr=1e-2), vae_config(updates=3))
    before, rollout = copy.deepcopy(module.policy), toy_rollout(module)
    metrics = iterate(module, rollout)
    between, after = copy.deepcopy(before), copy.deepcopy(before)
    between.task_encoder = after.task_encoder = module.policy.task_encoder
    after.macro_vae = module.policy.macro_vae
    policies = [noise_free(policy, rollout) for policy in (before, between, after)]
    for key, pair in {"encoder": policies[:2], "vae": policies[1:]}.items():
        expected = kl_divergence(*pair).mean().item()
        assert expected > 1e-5
        assert metrics[f"{key}/policy_kl"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("level", "key"), [("task_encoder", "encoder"), ("macro_vae", "vae")])
@pytest.mark.parametrize(("target_kl", "updates"), [(None, 4), (1e-12, 2), (1e9, 4)])
def test_the_kl_target_ends_the_updates_of_its_level(
    level: str, key: str, target_kl: float | None, updates: int
) -> None:
    changes: dict[str, Any] = {name: {"updates": 4, "lr": 1e-2} for name in ("task_encoder", "macro_vae")}
    changes[level]["target_kl"] = target_kl
    module = build_module(encoder_config(**changes["task_encoder"]), vae_config(**changes["macro_vae"]))
    metrics = iterate(module)
    other = {"task_encoder": "macro_vae", "macro_vae": "task_encoder"}[level]
    assert (metrics[f"updates/{level}"], metrics[f"updates/{other}"]) == (updates, 4)
    assert metrics[f"{key}/policy_kl"] > 1e-12


def test_the_kl_target_is_held_against_the_movement_since_the_iterations_beginning() -> None:
    """It is asked after every other update, and ends them the first time the policy has moved that far."""
    moved = []
    for updates in (2, 3, 4, 6):
        module = build_module(encoder_config(updates=updates, lr=1e-2), None)
        moved.append(float(iterate(module)["encoder/policy_kl"]))
    assert moved == sorted(moved)
    target = (moved[0] + moved[1]) / 2  # passed by the third update
    module = build_module(encoder_config(updates=6, lr=1e-2, target_kl=target), None)
    metrics = iterate(module)
    assert metrics["updates/task_encoder"] == 4
    assert metrics["encoder/policy_kl"] == pytest.approx(moved[2])


def test_policy_kl_is_zero_without_updates_and_not_logged_without_the_level() -> None:
    metrics = iterate(build_module(encoder_config(updates=0), vae_config(updates=0)))
    assert metrics["encoder/policy_kl"] == metrics["vae/policy_kl"] == 0
    assert not [key for key in iterate(build_module(None, None)) if key.endswith("policy_kl")]
    assert "vae/policy_kl" not in iterate(build_module(encoder_config(), None))


# --- what each level is given --------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["family", "batch", "none"])
@pytest.mark.parametrize("bonus", [0.0, 0.7])
def test_advantages_and_returns_handed_to_ppo(
    advantage: str, bonus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "advantage": advantage,
        "agreement_bonus": bonus,
        "reward_scale": "log",
        "gae_lambda": 0.8,
        "latents": "acted",
    }
    module = build_module(encoder_config(), vae_config(), ppo=ONE_STEP | options)
    rollout = random_rollout()
    with torch.no_grad():
        value = module.policy.value(
            module.policy.normalize(rollout.observation), rollout.task_belief, rollout.hidden_goal[:, :0]
        )
    batches = spied_batches(monkeypatch)
    iterate(module, rollout)

    same_way = np.sign(rollout.action.numpy()) == np.sign(rollout.macro_action.numpy())
    reward = log_reward(rollout.reward).numpy() + bonus * same_way.mean(-1)
    v, gamma = value.numpy(), module.ppo.gamma
    expected = np.zeros((T, B))
    for t in range(T):
        for u in range(t, T):
            expected[t] += (gamma * 0.8) ** (u - t) * (reward[u] + gamma * v[u + 1] - v[u])
    returns = expected + v[:-1]
    groups = {"family": rollout.family.numpy(), "batch": np.zeros(B), "none": None}[advantage]
    if groups is not None:
        for g in set(groups):
            part = expected[:, groups == g]
            expected[:, groups == g] = (part - part.mean()) / part.std()
    order = rollout.log_prob.flatten().argsort().numpy()
    got = by_log_prob(batches[0])
    np.testing.assert_allclose(got["advantage"], expected.flatten()[order], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got["return"], returns.flatten()[order], rtol=1e-4, atol=1e-5)


def test_an_epoch_is_a_partition_of_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = spied_batches(monkeypatch)
    rollout = random_rollout()
    iterate(build_module(encoder_config(), vae_config(), ppo={"epochs": 2, "minibatches": 5}), rollout)
    assert len(batches) == 10
    for epoch in (batches[:5], batches[5:]):
        seen = torch.cat([b["log_prob"] for b in epoch]).sort().values
        assert torch.equal(seen, rollout.log_prob.flatten().sort().values)


@pytest.mark.parametrize(("target_kl", "epochs"), [(None, 4), (1e-12, 1), (1e9, 4)])
def test_the_kl_target_ends_the_epochs(target_kl: float | None, epochs: int) -> None:
    ppo = {"epochs": 4, "minibatches": 2, "target_kl": target_kl, "actor_lr": 1e-2}
    assert iterate(build_module(ppo=ppo))["ppo/epochs"] == epochs


def test_the_vae_learns_from_the_beliefs_that_act(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder's dropout is for the encoder's own training."""
    module = build_module(encoder_config(dropout=0.9), vae_config())
    batch = iteration_batch(random_rollout())
    seen = []
    encode = module.policy.encode_episodes

    def spy(*args: Any) -> Any:
        seen.append((args, encode(*args)))
        return seen[-1][1]

    monkeypatch.setattr(module.policy, "encode_episodes", spy)
    still = SimpleNamespace(kl=torch.zeros(()), measure=lambda: None)
    monkeypatch.setattr(hmrl.training.module, "Movement", lambda *_, **__: still)
    inside_fit(module, lambda: module._update_macro_vae(batch.replay, batch.rollout))
    ((args, sequence),) = seen
    module.eval()
    torch.testing.assert_close(sequence.probabilities, encode(*args).probabilities)


@pytest.mark.parametrize("level", ["task_encoder", "macro_vae"])
def test_dropout_is_active_only_in_the_level_that_learns(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build_module(encoder_config(), vae_config())
    loss, modes = getattr(hmrl.training.module, f"{level}_loss"), []

    def spy(*args: Any) -> Any:
        modes.append([name for name, part in module.policy.named_children() if part.training])
        return loss(*args)

    monkeypatch.setattr(hmrl.training.module, f"{level}_loss", spy)
    iterate(module)
    assert modes == [[level]]


def test_checkpoints_hold_plain_hyperparameters() -> None:
    """``load_from_checkpoint`` rebuilds the agent from them, nested configurations included."""
    module = build_module(
        encoder_config(cell="lstm"), None, ppo={"latents": "acted"}, acting=Acting(task_belief="sample")
    )
    again = HierarchicalMetaRL(**module.hparams)
    assert again.encoder_config == module.encoder_config
    assert again.vae_config is None
    assert (again.ppo, again.acting) == (module.ppo, module.acting)
    again.load_state_dict(module.state_dict())

    def plain(x: Any) -> bool:
        if isinstance(x, dict):
            return all(map(plain, x.values()))
        if isinstance(x, list | tuple):
            return all(map(plain, x))
        return x is None or type(x) in (int, float, str, bool)

    assert plain(dict(module.hparams))


def test_a_deviation_beyond_its_range_comes_back() -> None:
    """Where the clamp cuts its gradient off, nothing else would bring the parameter back."""
    module = build_module(networks={"log_std_range": (-1.0, 0.5)})
    with torch.no_grad():
        module.policy.actor.log_std.fill_(0.6)
    rollout = toy_rollout(module)
    iterate(module, rollout)
    log_std = module.policy.actor.log_std
    assert (log_std <= 0.5).all()
    iterate(module, rollout)
    assert (log_std < 0.5).any()
