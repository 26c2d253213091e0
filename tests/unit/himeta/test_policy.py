"""The agent as a whole: acting and learning must see the same, and nothing that came later."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from hmrl.himeta.config import ActorCriticConfig
from hmrl.himeta.losses import macro_vae_loss
from hmrl.himeta.policy import HierarchicalPolicy, _donors, build_policy
from hmrl.system.errors import UserError
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Rollout
from support.agents import (
    EGO,
    A,
    B,
    K,
    S,
    T,
    ToyEnvs,
    build_module,
    encoder_config,
    full_module,
    play,
    random_rollout,
    trajectories,
    vae_config,
)

LEVELS = {
    "all": (encoder_config(), vae_config()),
    "no VAE": (encoder_config(), None),
    "no encoder": (None, vae_config()),
    "flat": (None, None),
}


@pytest.fixture
def policy() -> HierarchicalPolicy:
    return full_module().policy


def roll(
    module: HierarchicalMetaRL, acting: Acting | None = None, batch: int = B, horizon: int = 7
) -> Rollout:
    return play(module, ToyEnvs(batch, horizon), key=[5], acting=acting or Acting())


def beliefs(policy: HierarchicalPolicy, rollout: Rollout) -> Tensor:
    return policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting()).belief


# --- what act takes ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.float32, np.float64, torch.float64], ids=str)
def test_acting_on_arrays_of_any_precision_is_acting_on_tensors(
    make: object, policy: HierarchicalPolicy
) -> None:
    """Gymnasium and MuJoCo give NumPy's, of double precision."""

    def given(x: Tensor) -> object:
        return x.to(make) if isinstance(make, torch.dtype) else x.numpy().astype(make)

    observation, reward = torch.randn(2, B, S), torch.randn(2, B)
    expected, taken = policy.initial_carry(B), policy.initial_carry(B)
    for t in range(2):
        torch.manual_seed(t)
        right, expected = policy.act(observation[t], reward[t], expected, Acting())
        torch.manual_seed(t)
        step, taken = policy.act(given(observation[t]), given(reward[t]), taken, Acting())
        for one, other in zip(step, right, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)
    assert torch.equal(taken.observation, expected.observation)


@pytest.mark.parametrize(
    ("observation", "reward", "parts"),
    [
        ((B, S + 1), (B,), (f"[{B}, {S + 1}]", f"[{B}, {S}]")),
        ((B + 1, S), (B + 1,), (f"[{B + 1}, {S}]", f"[{B}, {S}]")),
        ((S,), (B,), (f"[{S}]", f"[{B}, {S}]")),
        ((B, S), (B, 1), (f"[{B}, 1]", f"[{B}]")),
        ((B, S), (), ("[]", f"[{B}]")),
    ],
)
def test_a_wrong_shape_is_one_sentence(
    observation: tuple[int, ...], reward: tuple[int, ...], parts: tuple[str, ...], policy: HierarchicalPolicy
) -> None:
    with pytest.raises(UserError) as error:
        policy.act(np.zeros(observation), np.zeros(reward), policy.initial_carry(B), Acting())
    for part in parts:
        assert part in str(error.value)


# --- acting equals learning ----------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["gru", "lstm", "mingru"])
@pytest.mark.parametrize("interval", [1, 2, 3])
def test_beliefs_of_acting_and_learning_are_the_same(cell: str, interval: int) -> None:
    """Contexts too: the first step, clipped actions and the last belief at s_T, for the bootstrap."""
    module = build_module(encoder_config(cell=cell), vae_config(), decision_interval=interval)
    rollout = roll(module)
    assert rollout.action.abs().max() > 1  # or clipping is not put to the test
    learnt = beliefs(module.policy, rollout)
    assert learnt.shape == (len(rollout.action) + 1, B, K)
    torch.testing.assert_close(learnt, rollout.task_belief, atol=1e-5, rtol=0)
    assert learnt.std(0).max() > 1e-3  # or all beliefs are alike


@pytest.mark.parametrize("context_reward", ["plain", "log", "change"])
def test_contexts_end_at_the_present_state(context_reward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """c_t = (s_{t-1}, a_{t-1}, r_{t-1}, s_t), with zeros before the first step; and r_{t-2}."""
    policy = build_module(encoder_config(context_reward=context_reward), vae_config()).policy
    rollout = random_rollout()
    rollout.reward[1] *= -1
    seen: list[Tensor] = []
    assert policy.task_encoder
    context = policy.task_encoder.context

    def spy(*given: Tensor) -> Tensor:
        seen.extend(given)
        return context(*given)

    monkeypatch.setattr(policy.task_encoder, "context", spy)
    beliefs(policy, rollout)
    learnt = list(seen)
    carry, reward, acted = policy.initial_carry(B), torch.zeros(B), []
    for t in range(T + 1):
        seen.clear()
        _, carry = policy.act(rollout.observation[t], reward, carry, Acting())
        acted.append(list(seen))
        if t < T:
            carry = replace(carry, action=rollout.action[t])
            reward = rollout.reward[t]
    state = policy.normalize(rollout.observation)
    zeros = [torch.zeros(1, B, S), torch.zeros(1, B, A), torch.zeros(1, B)]
    raw_rewards = torch.cat([zeros[2], zeros[2], rollout.reward])
    if context_reward != "plain":
        raw_rewards = raw_rewards.sign() * (1 + (math.exp(3) - 1) / 3 * raw_rewards.abs()).log()
    moments = policy.reward_moments
    rewards = ((raw_rewards - moments.mean[0]) / moments.var[0].sqrt()).clamp(-5, 5).float()
    expected = [torch.cat([zeros[0], state]), torch.cat([zeros[1], rollout.action]), rewards]
    for i, name in enumerate(("state", "previous action", "previous reward")):
        torch.testing.assert_close(learnt[i], expected[i], msg=f"learning sees another {name}")
        pairs = len(acted[0][i]) == 2  # of this step and the one before
        steps = torch.stack([c[i][-1] for c in acted])
        torch.testing.assert_close(steps, expected[i][int(pairs) :], msg=f"acting: {name}")
        if pairs:
            before = torch.stack([c[i][0] for c in acted])
            torch.testing.assert_close(before, expected[i][:-1], msg=f"acting: {name} before")


@pytest.mark.parametrize("t", [0, 2, T])
def test_a_belief_depends_on_nothing_after_its_state(policy: HierarchicalPolicy, t: int) -> None:
    rollout = random_rollout()
    before = beliefs(policy, rollout)
    rollout.observation[t + 1 :] += 1
    rollout.action[t:] *= -1
    rollout.reward[t:] += 3
    after = beliefs(policy, rollout)
    torch.testing.assert_close(after[: t + 1], before[: t + 1], atol=1e-6, rtol=0)
    assert t == T or not torch.allclose(after[t + 1 :], before[t + 1 :], atol=1e-3)


@pytest.mark.parametrize("what", ["action", "reward"])
def test_action_and_reward_reach_the_next_belief(policy: HierarchicalPolicy, what: str) -> None:
    rollout, t = random_rollout(), 3
    before = beliefs(policy, rollout)
    values = getattr(rollout, what)
    values[t] = torch.where(values[t] > 0.2, values[t] - 1, values[t] + 1)
    change = (beliefs(policy, rollout) - before).abs().amax((1, 2))
    assert change[: t + 1].max() < 1e-6
    assert change[t + 1] > 1e-4


def test_other_environments_do_not_matter(policy: HierarchicalPolicy) -> None:
    rollout = random_rollout()
    before = beliefs(policy, rollout)
    rollout.observation[:, 1:] += 1
    after = beliefs(policy, rollout)
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, 1:], before[:, 1:], atol=1e-3)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_ratio_is_one_on_the_stored_belief_and_macro_action(levels: tuple) -> None:  # type: ignore[type-arg]
    """Recomputed as the PPO update does, with sampled y and z and dropout configured."""
    encoder, vae = levels
    module = build_module(
        encoder and encoder_config(dropout=0.5), vae and vae_config(dropout=0.5), decision_interval=2
    )
    rollout = roll(module, Acting(task_belief="sample", macro_action="sample"))
    policy = module.policy
    state = policy.normalize(rollout.observation)[:-1]
    d = policy.actor(state, rollout.task_belief[:-1], rollout.macro_action)
    log_prob = Normal(d.mean, d.stddev).log_prob(rollout.action).sum(-1)
    torch.testing.assert_close(
        (log_prob - rollout.log_prob).exp(), torch.ones_like(log_prob), atol=1e-5, rtol=0
    )


# --- how y, z and the action are drawn -----------------------------------------------------------


def decide(policy: HierarchicalPolicy, acting: Acting, seed: int = 0, batch: int = B) -> tuple[Tensor, ...]:
    torch.manual_seed(9)
    observation = torch.randn(batch, S)
    torch.manual_seed(seed)
    step, _ = policy.act(observation, torch.zeros(batch), policy.initial_carry(batch), acting)
    return tuple(step)


def test_deterministic_acting_repeats_itself(policy: HierarchicalPolicy) -> None:
    first, second = (decide(policy, Acting(action="mean"), seed) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_each_level_is_drawn_as_asked(policy: HierarchicalPolicy) -> None:
    action, log_prob, belief, macro = decide(policy, Acting(action="mean"))
    torch.manual_seed(9)
    state = policy.normalize(torch.randn(B, S))
    assert policy.macro_vae
    posterior = policy.macro_vae.encode(state, belief)
    distribution = policy.actor(state, belief, macro)
    torch.testing.assert_close(belief.sum(-1), torch.ones(B))
    assert torch.equal(macro, posterior.mean)
    assert torch.equal(action, distribution.mean)
    torch.testing.assert_close(log_prob, distribution.log_prob(action).sum(-1))
    sampled_action = decide(policy, Acting())[0]
    assert not torch.equal(sampled_action, action)
    for seed in (0, 1):
        sampled = decide(policy, Acting(macro_action="sample", action="mean"), seed)[3]
        assert (sampled - posterior.mean).abs().min() > 0


def test_sampled_beliefs_are_gumbel_softmax(policy: HierarchicalPolicy) -> None:
    """The argmax of a Gumbel-softmax sample is distributed as the probabilities."""
    assert policy.temperature == 1
    logits = torch.tensor([1.0, 0.0, -1.0]).expand(40_000, 3)
    torch.manual_seed(0)
    sample = policy.belief(logits, Acting(task_belief="sample"))
    torch.testing.assert_close(sample.sum(-1), torch.ones(40_000))
    assert sample.max() < 1  # soft, not one-hot
    frequency = torch.bincount(sample.argmax(-1), minlength=3) / 40_000
    torch.testing.assert_close(frequency, logits[0].softmax(-1), atol=0.01, rtol=0)
    assert torch.equal(policy.belief(logits, Acting()), logits.softmax(-1))


def test_temperature_reaches_the_sample() -> None:
    hot, cold = (
        build_module(encoder_config(temperature=t)).policy.belief(
            torch.zeros(500, K), Acting(task_belief="sample")
        )
        for t in (100.0, 0.01)
    )
    assert hot.amax(-1).mean() < 0.4
    assert cold.amax(-1).mean() > 0.95


@pytest.mark.parametrize(("level", "index"), [("task_belief", 2), ("macro_action", 3)])
def test_permute_gives_other_environments_variables(
    policy: HierarchicalPolicy, level: str, index: int
) -> None:
    plain = decide(policy, Acting(action="mean"), batch=50)
    permuted = decide(policy, Acting(action="mean", permute=level), batch=50)  # type: ignore[arg-type]
    assert not torch.equal(permuted[index], plain[index])
    as_set = [sorted(map(tuple, x.tolist())) for x in (permuted[index], plain[index])]
    torch.testing.assert_close(torch.tensor(as_set[0]), torch.tensor(as_set[1]))
    torch.manual_seed(9)
    state = policy.normalize(torch.randn(50, S))
    expected = policy.actor(state, permuted[2], permuted[3]).mean  # the others are consistent with it
    torch.testing.assert_close(permuted[0], expected)
    if level == "macro_action":
        assert torch.equal(permuted[2], plain[2])


def test_a_single_environment_has_no_other_ones_variables(policy: HierarchicalPolicy) -> None:
    with pytest.raises(UserError, match="permute is task_belief, but a single environment has no other"):
        decide(policy, Acting(permute="task_belief"), batch=1)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_absent_levels_have_width_zero(levels: tuple) -> None:  # type: ignore[type-arg]
    encoder, vae = levels
    module = build_module(encoder, vae)
    rollout = roll(module, horizon=4)
    assert rollout.task_belief.shape[-1] == (K if encoder else 0)
    assert rollout.macro_action.shape[-1] == (A if vae else 0)
    assert beliefs(module.policy, rollout).shape == rollout.task_belief.shape
    assert len(module.policy.initial_carry(3).hidden) == (1 if encoder else 0)
    assert (module.policy.task_encoder is not None, module.policy.macro_vae is not None) == (
        encoder is not None,
        vae is not None,
    )


# --- what acting must not do ---------------------------------------------------------------------


def test_dropout_never_acts() -> None:
    module = build_module(encoder_config(dropout=0.9), vae_config(dropout=0.9))
    module.train()
    first, second = (decide(module.policy, Acting(action="mean"), seed) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_acting_changes_no_weight_and_no_normaliser() -> None:
    module = full_module()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    rollout = roll(module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not rollout.action.requires_grad
    assert not rollout.macro_action.requires_grad


def test_the_decoder_sees_the_ego_state_and_z_alone(policy: HierarchicalPolicy) -> None:
    """Through the loss: others' dimensions of the goal and of the state leave prediction and target alone."""
    vae = policy.macro_vae
    assert vae
    seen: list[tuple[Tensor, Tensor]] = []
    decode = vae.decode

    def spy(ego_state: Tensor, z: Tensor) -> Tensor:
        seen.append((ego_state, decode(ego_state, torch.zeros_like(z))))
        return decode(ego_state, z)

    vae.decode = spy  # type: ignore[method-assign]
    others = [i for i in range(S) if i not in EGO]
    rollout = random_rollout()
    macro_vae_loss(policy, trajectories(rollout), vae_config(), Acting())
    rollout.observation[..., others] += 1
    macro_vae_loss(policy, trajectories(rollout), vae_config(), Acting())
    (ego, prediction), (ego_again, prediction_again) = seen[0], seen[len(seen) // 2]
    assert torch.equal(ego, policy.normalize(rollout.observation)[:-1, :, list(EGO)])
    assert torch.equal(ego, ego_again)
    assert torch.equal(prediction, prediction_again)


# --- building ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decision_interval": 0}, "model.decision_interval is 0"),
        ({"ego_indices": (0, S)}, f"ego_indices is \\[0, {S}\\]"),
        ({"ego_indices": ()}, "ego_indices is \\[\\]"),
        ({"ego_indices": (-1,)}, "ego_indices is \\[-1\\]"),
    ],
)
def test_wrong_dimensions_are_named(changes: dict, message: str) -> None:  # type: ignore[type-arg]
    right = {"observation_dim": S, "action_dim": A, "ego_indices": EGO, "decision_interval": 1}
    with pytest.raises(UserError, match=message):
        build_policy(None, None, ActorCriticConfig(), **right | changes)


@pytest.mark.parametrize("batch", [2, 7, 100])
def test_every_episode_is_given_another_one_and_the_same_all_along(batch: int) -> None:
    donors = _donors(batch)
    assert sorted(donors.tolist()) == list(range(batch))
    assert (donors != torch.arange(batch)).all()
    torch.randn(3)
    assert torch.equal(_donors(batch), donors)


@pytest.mark.parametrize(
    ("acting", "with_levels", "flat"),
    [
        (Acting(action="mean"), False, False),
        (Acting(action="sample"), True, True),
        (Acting("sample", "mean", "mean"), True, False),
        (Acting("probabilities", "sample", "mean"), True, False),
        (Acting(action="mean", permute="macro_action"), True, True),
    ],
)
def test_whether_acting_draws_anything(acting: Acting, with_levels: bool, flat: bool) -> None:
    assert full_module().policy.is_random(acting) == with_levels
    assert build_module().policy.is_random(acting) == flat
