"""Other beliefs: a Gaussian mixture trained by reconstruction; macro-actions that are held; a plain VAE."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import hmrl.himeta.losses
from hmrl.himeta.diagnostics import beliefs_of, rollout_metrics
from hmrl.himeta.losses import belief_loss, imputation_loss, mixture_loss
from hmrl.himeta.networks import MixtureEncoder
from hmrl.rollouts.collect import seeded
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Rollout
from support.agents import (
    A,
    B,
    K,
    S,
    T,
    ToyEnvs,
    build_module,
    encoder_config,
    fit,
    iteration_batch,
    play,
    random_rollout,
    trajectories,
    vae_config,
)

L = 2
MIXTURE: dict[str, Any] = {
    "belief": "mixture",
    "latent_dim": L,
    "decoder_hidden": (8,),
    "categorical_coef": 0.0,
    "value_coef": 0.0,
}


def mixture() -> HierarchicalMetaRL:
    return build_module(encoder_config(**MIXTURE), vae_config())


def played(module: HierarchicalMetaRL, horizon: int = 7) -> Rollout:
    return play(module, ToyEnvs(horizon=horizon), key=[1, 2])


def test_a_mixtures_belief_is_its_categories_and_its_mean() -> None:
    module = mixture()
    encoder = module.policy.task_encoder
    assert isinstance(encoder, MixtureEncoder)
    assert (encoder.categories, encoder.belief_dim) == (K, K + L)
    out = torch.randn(3, B, K * (1 + 2 * L))
    belief = module.policy.belief(out, Acting())
    q = out[..., :K].softmax(-1)
    for i in range(3):
        for b in range(B):
            expected = torch.zeros(L)
            for k in range(K):
                start = K + k * 2 * L
                expected += q[i, b, k] * out[i, b, start : start + L]
            assert torch.allclose(belief[i, b, K:], expected, atol=1e-6)
    assert torch.allclose(belief[..., :K], q)
    rollout = played(module)
    assert rollout.task_belief.shape[-1] == K + L
    metrics = rollout_metrics(rollout, beliefs_of(module.policy, rollout, Acting()))
    expected = Categorical(probs=rollout.task_belief[..., :K]).entropy().mean()
    assert float(metrics["encoder/entropy"]) == pytest.approx(float(expected), rel=1e-4)


def test_what_is_logged_of_a_belief_is_its_distribution_not_a_sample() -> None:
    module = mixture()
    module.acting = Acting(task_belief="sample")
    rollout = played(module)
    sampled = rollout.task_belief[..., :K]
    q = module.policy.encode_episodes(
        rollout.observation, rollout.action, rollout.reward, Acting()
    ).probabilities
    found = beliefs_of(module.policy, rollout, module.acting)
    torch.testing.assert_close(found, q)
    assert not torch.allclose(found.squeeze(-2), sampled, atol=0.01)
    assert torch.equal(beliefs_of(module.policy, rollout, Acting()).squeeze(-2), sampled)


def test_the_mixtures_loss_against_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of steps and every category by itself."""
    module = mixture()
    policy = module.policy
    encoder = policy.task_encoder
    assert isinstance(encoder, MixtureEncoder)
    episodes = trajectories(random_rollout())
    sequence = policy.encode_episodes(episodes.observation, episodes.action, episodes.reward, Acting())
    monkeypatch.setattr(Normal, "rsample", lambda self, *_: self.loc + 0.5 * self.scale)
    drawn = randints(monkeypatch)
    loss, metrics = mixture_loss(policy, encoder, episodes, sequence)
    at, steps = drawn
    assert at.shape == steps.shape == (7, B)
    assert int(at.max()) == T  # the belief at the end, too
    state = policy.normalize(episodes.observation)
    reward = policy.normalize_reward(episodes.reward)
    total = torch.zeros(4)
    for n in range(7):
        for b in range(B):
            out = sequence.out[at[n, b], b]
            t = int(steps[n, b])
            q = out[:K].softmax(-1)
            total[3] += math.log(K) - Categorical(probs=q).entropy()
            for k in range(K):
                mean, log_std = out[K + 2 * L * k :][: 2 * L].chunk(2)
                slope = (1 - (3 / 7) ** 2) ** -1.5 / 3.5
                u = math.tan(math.asin(3 / 7)) + slope * log_std
                posterior = Normal(mean, (-1.5 + 3.5 * u.atan().sin()).exp())
                x = posterior.loc + 0.5 * posterior.scale
                now, then, action = state[t, b], state[t + 1, b], episodes.action[t, b].clamp(-1, 1)
                total[0] += (
                    q[k] * (encoder.reward_decoder(torch.cat([x, now, action, then])) - reward[t, b])[0] ** 2
                )
                guess = encoder.state_decoder(torch.cat([x, now, action]))
                total[1] += q[k] * (guess - (then - now)).square().mean()
                prior = Normal(encoder.prior_mean[k], encoder.prior_log_std[k].exp())
                total[2] += q[k] * kl_divergence(posterior, prior).sum()
    total /= 7 * B
    assert float(metrics["encoder/mixture_reward_error"]) == pytest.approx(float(total[0]), rel=1e-4)
    assert float(metrics["encoder/mixture_state_error"]) == pytest.approx(float(total[1]), rel=1e-4)
    expected = total[0] + total[1] + 0.1 * (total[2] + total[3])
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def randints(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is drawn from here on: the steps of beliefs, then those that they are asked about."""
    drawn: list[Tensor] = []
    randint = torch.randint
    monkeypatch.setattr("hmrl.himeta.losses.QUESTIONS", 7)

    def noted(*args: Any, **options: Any) -> Tensor:
        drawn.append(randint(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(hmrl.himeta.losses.torch, "randint", noted)
    return drawn


@pytest.mark.parametrize("belief", ["categorical", "continuous"])
def test_the_reward_loss_against_a_loop(belief: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of steps by itself; beliefs are attached, and it is one of the losses, by its weight."""
    changes = {"categorical_coef": 0.0, "reward_coef": 3.0, "decoder_hidden": (8,)}
    module = build_module(encoder_config(belief=belief, **changes))
    policy, config = module.policy, module.encoder_config
    assert config
    assert policy.task_encoder
    assert policy.task_encoder.reward_decoder
    episodes = trajectories(random_rollout())
    sequence = policy.encode_episodes(episodes.observation, episodes.action, episodes.reward, Acting())
    drawn = randints(monkeypatch)
    loss, metrics = belief_loss(policy, episodes, sequence, config)
    at, steps = drawn
    assert at.shape == steps.shape == (7, B)
    assert (int(at.max()), int(steps.max())) == (T, T - 1)
    state, total = policy.normalize(episodes.observation), torch.zeros(())
    reward = policy.normalize_reward(episodes.reward)
    for n in range(7):
        for b in range(B):
            t = int(steps[n, b])
            parts = state[t, b], episodes.action[t, b].clamp(-1, 1), state[t + 1, b]
            guess = policy.task_encoder.reward_decoder(torch.cat([sequence.belief[at[n, b], b], *parts]))
            total = total + (guess[0] - reward[t, b]) ** 2 / (7 * B)
    assert float(metrics["encoder/reward_error"]) == pytest.approx(float(total), rel=1e-4)
    assert float(loss) == pytest.approx(3 * float(total), rel=1e-4)
    parameters = [*policy.task_encoder.recurrent.parameters()]
    got = torch.autograd.grad(loss, parameters, retain_graph=True)
    expected = torch.autograd.grad(3 * total, parameters)
    assert max(float(g.abs().max()) for g in got) > 1e-4
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_nothing_is_reconstructed_across_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    module = mixture()
    policy = module.policy
    encoder = policy.task_encoder
    assert isinstance(encoder, MixtureEncoder)
    rollout = random_rollout(steps=2 * T)
    rollout.observation[:T], rollout.observation[T:] = 1.0, 3.0  # nothing moves but at the reset
    targets: list[Tensor] = []
    policy.normalize = lambda observation: targets.append(observation) or observation  # type: ignore[method-assign]
    encoder.state_decoder = torch.nn.Sequential(torch.nn.Linear(L + S + A, S))
    torch.nn.init.zeros_(encoder.state_decoder[0].weight)
    torch.nn.init.zeros_(encoder.state_decoder[0].bias)
    episodes = replace(trajectories(rollout), episodes=2)
    for seed in range(20):
        with seeded(seed):
            sequence = policy.encode_episodes(
                episodes.observation, episodes.action, episodes.reward, Acting()
            )
            _, metrics = mixture_loss(policy, encoder, episodes, sequence)
        assert float(metrics["encoder/mixture_state_error"]) == 0


def test_the_mixture_learns_by_itself_and_moves_nothing_else() -> None:
    module = mixture()
    before = {k: v.clone() for k, v in module.named_parameters()}
    fit(module, [iteration_batch(played(module))])
    moved = {k for k, v in module.named_parameters() if not torch.equal(v, before[k])}
    for part in ("reward_decoder", "state_decoder", "prior_mean", "recurrent", "head"):
        assert any(k.startswith(f"policy.task_encoder.{part}") for k in moved), part


@pytest.mark.parametrize("held", [1, 2, 3])
def test_a_macro_action_is_held(held: int) -> None:
    """The actor sees one z for so many decisions, and learning holds it alike."""
    module = build_module(encoder_config(), vae_config(), macro_interval=held, decision_interval=1)
    rollout = played(module, horizon=7)
    z = rollout.macro_action
    policy = module.policy
    state = policy.normalize(rollout.observation)[:-1]
    fresh = policy.macro_action(state, rollout.task_belief[:-1], Acting())
    for t in range(7):
        assert torch.allclose(z[t], fresh[t - t % held], atol=1e-6), t
    if held > 1:
        assert not torch.allclose(z[1], fresh[1], atol=1e-4)
    actor = Independent(policy.actor(state, rollout.task_belief[:-1], z), 1)
    assert torch.allclose(actor.log_prob(rollout.action), rollout.log_prob, atol=1e-5)
    belief, renewed = policy.renewed(rollout.observation, rollout.action, rollout.reward)
    assert torch.allclose(belief, rollout.task_belief, atol=1e-5)
    assert torch.allclose(renewed, z, atol=1e-5)


def test_imputation_off_is_a_plain_vae() -> None:
    module = build_module(encoder_config(), vae_config())
    episodes = trajectories(random_rollout())
    policy = module.policy
    assert policy.macro_vae
    sequence = policy.encode_episodes(episodes.observation, episodes.action, episodes.reward, Acting())
    posterior = policy.macro_vae.encode(policy.normalize(episodes.observation)[:-1], sequence.belief[:-1])
    standard = Normal(torch.zeros(A), torch.ones(A))
    expected = float(kl_divergence(posterior, standard).sum(-1).mean())
    kl = {
        prior: float(imputation_loss(policy, episodes, sequence, vae_config(prior=prior))[1]["vae/kl"])
        for prior in ("standard_normal", "policy")
    }
    assert kl["standard_normal"] == pytest.approx(expected, rel=1e-5)
    assert kl["policy"] != pytest.approx(expected, rel=1e-2)
