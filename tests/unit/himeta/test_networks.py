"""Shapes, ranges and dependence of each network; distributions against torch.distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from hmrl.himeta.config import ActorCriticConfig
from hmrl.himeta.formulas import bounded, linear_recurrence
from hmrl.himeta.networks import Actor, Critic, MacroVAE, MinGRU, MixtureEncoder, TaskEncoder, mlp
from hmrl.himeta.policy import build_policy

S, A, K, E = 7, 2, 3, 4


def actor(state_dependent_std: bool = False, log_std_init: float = -0.3) -> Actor:
    net = Actor(
        S,
        K,
        A,
        A,
        hidden=(8,),
        log_std_init=log_std_init,
        log_std_range=(-1.0, 0.5),
        state_dependent_std=state_dependent_std,
    )
    nn.init.normal_(net.net[-1].weight, std=3)
    return net


def encoder(cell: str = "gru", dropout: float = 0.0, reward_change: bool = False) -> TaskEncoder:
    return TaskEncoder(
        S,
        A,
        categories=K,
        cell=cell,  # type: ignore[arg-type]
        hidden=8,
        embedding_hidden=(5, 4, 3),
        head_hidden=(6,),
        dropout=dropout,
        reward_change=reward_change,
    )


def logits_of(
    net: TaskEncoder, state: Tensor, action: Tensor, reward: Tensor, hidden: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    memory, hidden = net.remember(state, action, reward, hidden)
    return net.head(memory), hidden


def vae(dropout: float = 0.0) -> MacroVAE:
    return MacroVAE(
        S, K, A, E, encoder_hidden=(8,), decoder_hidden=(8,), dropout=dropout, log_std_range=(-2.0, 0.5)
    )


# --- mlp -----------------------------------------------------------------------------------------


def test_mlp_puts_activation_and_dropout_between_layers_and_nothing_behind() -> None:
    kinds = [type(m) for m in mlp(3, [4, 5], 2, nn.Tanh, dropout=0.5)]
    assert kinds == [nn.Linear, nn.Tanh, nn.Dropout, nn.Linear, nn.Tanh, nn.Dropout, nn.Linear]
    assert [type(m) for m in mlp(3, [], 2, nn.Tanh)] == [nn.Linear]


def test_mlp_is_orthogonal_with_zero_biases() -> None:
    first, _, last = mlp(6, [6], 6, nn.Tanh, out_gain=0.01)
    torch.testing.assert_close(first.weight @ first.weight.T, 2 * torch.eye(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(last.weight @ last.weight.T, 1e-4 * torch.eye(6), atol=1e-8, rtol=0)
    assert first.bias.eq(0).all()
    assert last.bias.eq(0).all()


# --- actor and critic ----------------------------------------------------------------------------


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_action_log_prob_and_entropy(state_dependent_std: bool) -> None:
    d = actor(state_dependent_std)(torch.randn(5, S), torch.randn(5, K), torch.randn(5, A))
    action = torch.randn(5, A) * 2
    full = MultivariateNormal(d.mean, torch.diag_embed(d.stddev**2))
    torch.testing.assert_close(Independent(d, 1).log_prob(action), full.log_prob(action))
    torch.testing.assert_close(Independent(d, 1).entropy(), full.entropy())


def test_actor_mean_is_bounded_and_std_is_the_clamped_parameter() -> None:
    for init, expected in ((-0.3, -0.3), (-9, -1.0), (9, 0.5)):
        d = actor(log_std_init=init)(100 * torch.randn(50, S), torch.randn(50, K), torch.randn(50, A))
        assert d.mean.abs().max() <= 1
        torch.testing.assert_close(d.stddev, torch.full((50, A), expected).exp())


def test_state_dependent_std_depends_on_the_state_within_its_range() -> None:
    d = actor(True)(0.3 * torch.randn(50, S), torch.zeros(50, K), torch.zeros(50, A))
    assert len(d.stddev[:, 0].unique()) > 5
    assert d.stddev.log().min() >= -1 - 1e-6
    assert d.stddev.log().max() <= 0.5 + 1e-6


@pytest.mark.parametrize("raw", [-30.0, -3.0, 0.0, 3.0, 30.0])
@pytest.mark.parametrize("made_by", ["actor", "macro_vae", "mixture", "mixture_prior"])
def test_a_deviation_out_of_its_range_can_come_back(made_by: str, raw: float) -> None:
    if made_by == "actor":
        net, (low, high) = actor(True), (-1.0, 0.5)
        parameter = net.net[-1].bias
        std = lambda: net(torch.zeros(1, S), torch.zeros(1, K), torch.zeros(1, A)).stddev  # noqa: E731
    elif made_by == "macro_vae":
        macro, (low, high) = vae(), (-2.0, 0.5)
        parameter = macro.encoder[-1].bias
        std = lambda: macro.encode(torch.zeros(1, S), torch.zeros(1, K)).stddev  # noqa: E731
    else:
        options = {"hidden": 8, "embedding_hidden": (5, 4, 3), "head_hidden": (6,), "dropout": 0.0}
        mixture = MixtureEncoder(S, A, categories=K, cell="gru", latent_dim=2, decoder_hidden=(8,), **options)
        low, high = -5.0, 2.0
        parameter = mixture.head[-1].bias if made_by == "mixture" else mixture.prior_log_std
        zeros = torch.zeros(2, 1, S), torch.zeros(1, 1, A), torch.zeros(2, 1)
        hidden = mixture.initial_hidden(1, torch.device("cpu"))
        std = lambda: (  # noqa: E731
            mixture.components(logits_of(mixture, *zeros, hidden)[0])[1]
            if made_by == "mixture"
            else mixture.prior()[1]
        )
    with torch.no_grad():
        parameter.fill_(raw)
    found = std()
    assert low - 1e-5 <= found.log().min()
    assert found.log().max() <= high + 1e-5
    (slope,) = torch.autograd.grad(found.log().sum(), parameter)
    moved = slope.abs().max()
    assert moved > (0.5 if raw == 0 else 0)


def test_a_bounded_value_is_an_algebraic_sigmoid_through_its_start() -> None:
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    for low, high, start in ((-2.0, 0.5, 0.0), (-0.25, 0.25, 0.0), (-1.0, 0.5, -0.3)):
        middle, half = (low + high) / 2, (high - low) / 2
        angle = math.asin((start - middle) / half)  # u / sqrt(1 + u^2) is sin(atan(u))
        expected = middle + half * (math.tan(angle) + x / (half * math.cos(angle) ** 3)).atan().sin()
        torch.testing.assert_close(bounded(x, low, high, start), expected)
        near = torch.tensor([-1e-4, 0.0, 1e-4], dtype=torch.float64)
        torch.testing.assert_close(bounded(near, low, high, start), start + near, rtol=0, atol=1e-6)
    assert float(bounded(torch.zeros(1), -0.5, 0.5, -0.5)) == pytest.approx(-0.45)
    assert bounded(torch.randn(3), 0.2, 0.2).tolist() == pytest.approx([0.2] * 3)


def test_critic_gives_one_value_for_each_state() -> None:
    critic = Critic(S, K, hidden=(8,))
    state, belief = torch.randn(6, 4, S), torch.randn(6, 4, K)
    value = critic(state, belief, state[..., :0])
    assert value.shape == (6, 4)
    torch.testing.assert_close(critic(state[2, 3], belief[2, 3], state[2, 3, :0]), value[2, 3])


def test_critic_with_layer_norm() -> None:
    """SiLU of normalised activations, recomputed; the output is not normalised, nor is the actor."""
    critic = Critic(S, K, hidden=(8, 7), layer_norm=True)
    for module in critic.net:
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    state, belief = torch.randn(6, S), torch.randn(6, K)
    x = torch.cat([state, belief], dim=-1)
    linear = [module for module in critic.net if isinstance(module, nn.Linear)]
    norm = [module for module in critic.net if isinstance(module, nn.LayerNorm)]
    assert [len(module.weight) for module in norm] == [8, 7]
    for first, second in zip(linear, norm, strict=False):
        x = x @ first.weight.T + first.bias
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * second.weight + second.bias
        x = x * (1 / (1 + (-x).exp()))
    expected = (x @ linear[-1].weight.T + linear[-1].bias).squeeze(-1)
    torch.testing.assert_close(critic(state, belief, state[..., :0]), expected)
    modules = build_policy(
        None,
        None,
        ActorCriticConfig(critic_layer_norm=True),
        observation_dim=S,
        action_dim=A,
        ego_indices=(0,),
        decision_interval=1,
    )
    assert any(isinstance(module, nn.LayerNorm) for module in modules.critic.modules())
    assert not any(isinstance(module, nn.LayerNorm) for module in modules.actor.modules())


# --- macro-VAE -----------------------------------------------------------------------------------


def test_vae_posterior_ranges_and_separate_heads() -> None:
    net = vae()
    nn.init.normal_(net.encoder[-1].weight, std=5)
    q = net.encode(torch.randn(200, S), torch.randn(200, K))
    assert isinstance(q, Normal)
    assert q.mean.shape == (200, A)
    assert q.mean.abs().max() <= 1
    assert q.stddev.log().min() >= -2 - 1e-6
    assert q.stddev.log().max() <= 0.5 + 1e-6
    (mean_head,) = torch.autograd.grad(q.mean.sum(), net.encoder[-1].weight, retain_graph=True)
    (std_head,) = torch.autograd.grad(q.stddev.sum(), net.encoder[-1].weight)
    assert mean_head[:A].any()
    assert not mean_head[A:].any()
    assert std_head[A:].any()
    assert not std_head[:A].any()


def test_vae_dropout_is_in_the_decoder_alone() -> None:
    net = vae(dropout=0.9).train()
    state, belief, ego, z = torch.randn(5, S), torch.randn(5, K), torch.randn(5, E), torch.randn(5, A)
    assert torch.equal(net.encode(state, belief).mean, net.encode(state, belief).mean)
    assert not torch.equal(net.decode(ego, z), net.decode(ego, z))
    net.eval()
    assert torch.equal(net.decode(ego, z), net.decode(ego, z))


# --- task encoder --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("cell", ["gru", "lstm", "mingru"])
def test_encoder_in_one_go_equals_step_by_step(cell: str, change: bool) -> None:
    net, steps = encoder(cell, reward_change=change), 6
    state, action, reward = torch.randn(steps + 1, 4, S), torch.randn(steps, 4, A), torch.randn(steps + 1, 4)
    hidden = net.initial_hidden(4, torch.device("cpu"))
    assert [tuple(h.shape) for h in hidden] == [(1, 4, 8)] * (2 if cell == "lstm" else 1)
    assert all(h.eq(0).all() for h in hidden)
    logits, last = logits_of(net, state, action, reward, hidden)
    for t in range(steps):
        one, hidden = logits_of(net, state[t : t + 2], action[t : t + 1], reward[t : t + 2], hidden)
        torch.testing.assert_close(one[0], logits[t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden, last, atol=1e-5, rtol=1e-5)


def test_encoder_sees_the_executed_action_and_every_part_of_the_context() -> None:
    for change in (False, True):
        net = encoder(reward_change=change)
        state, action, reward = torch.randn(2, 4, S), 0.5 * torch.randn(1, 4, A), torch.randn(2, 4)
        hidden = net.initial_hidden(4, torch.device("cpu"))
        logits, _ = logits_of(net, state, action, reward, hidden)
        others = {"state": state.clone(), "next state": state.clone(), "reward": reward.clone()}
        others["state"][0] += 0.3
        others["next state"][1] += 0.3
        others["reward"][1] += 0.3
        seen = [logits_of(net, others[key], action, reward, hidden)[0] for key in ("state", "next state")]
        seen += [
            logits_of(net, state, action + 0.3, reward, hidden)[0],
            logits_of(net, state, action, others["reward"], hidden)[0],
        ]
        assert not any(torch.allclose(x, logits) for x in seen)
        earlier = reward.clone()
        earlier[0] += 0.3
        assert torch.equal(logits_of(net, state, action, earlier, hidden)[0], logits) != change
        at_limit, beyond = (
            logits_of(net, state, torch.full((1, 4, A), a), reward, hidden)[0] for a in (1.0, 7.0)
        )
        assert torch.equal(at_limit, beyond)


def test_the_context_holds_the_change_of_the_reward_and_its_product_with_that_of_the_state() -> None:
    net = encoder(reward_change=True)
    state, action, reward = torch.randn(3, 4, S), torch.randn(2, 4, A), torch.randn(3, 4)
    context = net.context(state, action, reward)
    assert context.shape[-1] == net.recurrent.input_size == 2 * S + A + 2 + S
    for t in range(2):
        dr, ds = 10 * (reward[t + 1] - reward[t]), 5 * (state[t + 1] - state[t])
        product = np.tanh(dr.numpy())[:, None] * np.tanh(ds.numpy())
        np.testing.assert_allclose(context[t, :, -S:].detach().numpy(), product, rtol=1e-5, atol=1e-6)
        assert net.embed_change is not None
        torch.testing.assert_close(context[t, :, -S - 1 : -S], net.embed_change(dr.unsqueeze(-1)))
    torch.testing.assert_close(context[..., : 2 * S + A + 1], plain_context(net, state, action, reward))


def plain_context(net: TaskEncoder, state: Tensor, action: Tensor, reward: Tensor) -> Tensor:
    parts = [net.embed_state(state[:-1]), net.embed_action(action.clamp(-1, 1))]
    return torch.cat([*parts, net.embed_reward(reward[1:].unsqueeze(-1)), net.embed_state(state[1:])], -1)


def test_encoder_embeddings_are_as_wide_as_their_inputs() -> None:
    net = encoder()
    widths = [m[-1].out_features for m in (net.embed_state, net.embed_action, net.embed_reward)]
    assert widths == [S, A, 1]
    assert net.recurrent.input_size == 2 * S + A + 1


# --- the recurrence --------------------------------------------------------------------------------


def test_linear_recurrence_and_its_gradients_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    parts = [torch.rand(7, 3, 5), torch.randn(7, 3, 5), torch.randn(3, 5)]
    parts = [x.double().requires_grad_() for x in parts]
    keep, update, start = parts
    state, looped = start, []
    for t in range(7):
        state = keep[t] * state + update[t]
        looped.append(state)
    weight = torch.randn(7, 3, 5).double()
    expected = torch.stack(looped)
    found = linear_recurrence(*parts)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((weight * found.square()).sum(), parts),
        torch.autograd.grad((weight * expected.square()).sum(), parts),
    )
    assert torch.autograd.gradcheck(linear_recurrence, parts)


def test_a_mingru_keeps_its_memory_by_its_gate_alone() -> None:
    """h_t = (1 - z_t) h_{t-1} + z_t candidate_t, written out; memories of 2 to 250 steps at first."""
    net = MinGRU(6, 400)
    x, start = torch.randn(4, 2, 6), torch.randn(1, 2, 400)
    states, last = net(x, start)
    state = start[0]
    for t in range(4):
        z = 1 / (1 + torch.exp(-(x[t] @ net.gate.weight.T + net.gate.bias)))
        state = (1 - z) * state + z * (x[t] @ net.candidate.weight.T + net.candidate.bias)
        torch.testing.assert_close(states[t], state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last[0], states[-1])
    memory = 1 / net.gate.bias.sigmoid()  # steps
    assert memory.min() >= 2
    assert memory.max() <= 250
    assert memory.max() > 200
