"""The formulae against torch.distributions, scipy or loops that follow the definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from hmrl.himeta.formulas import (
    agreement,
    agreements,
    categorical_regulariser,
    clipped_policy_loss,
    discounted_sums,
    entropy,
    explained_variance,
    gae,
    goal_steps,
    imputation_elbo,
    log_reward,
    mutual_information,
    occupancy_weights,
    signed_log,
    standardize,
    sums_by_group,
)

# --- returns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma", "lam"), [(0.99, 0.9), (1.0, 1.0), (0.9, 0.0), (0.5, 0.95)], ids=lambda x: str(x)
)
@pytest.mark.parametrize("steps", [1, 7])
def test_gae_is_the_double_sum_over_td_errors(gamma: float, lam: float, steps: int) -> None:
    reward, value = torch.randn(steps, 3).double(), torch.randn(steps + 1, 3).double()
    advantage, target = gae(reward, value, gamma, lam)
    for t, b in itertools.product(range(steps), range(3)):
        expected = sum(
            (gamma * lam) ** (u - t) * (reward[u, b] + gamma * value[u + 1, b] - value[u, b])
            for u in range(t, steps)
        )
        torch.testing.assert_close(advantage[t, b], expected)
        torch.testing.assert_close(target[t, b], expected + value[t, b])


def test_gae_bootstraps_at_the_time_limit() -> None:
    """With lambda 1 the target is the discounted rewards plus gamma^(T-t) V(s_T)."""
    gamma, reward, value = 0.9, torch.randn(5, 2).double(), torch.randn(6, 2).double()
    _, target = gae(reward, value, gamma, 1.0)
    for t in range(5):
        rewards = sum(gamma ** (u - t) * reward[u] for u in range(t, 5))
        torch.testing.assert_close(target[t], rewards + gamma ** (5 - t) * value[5])


def test_discounted_sums() -> None:
    reward = torch.randn(6, 2).double()
    sums = discounted_sums(reward, 0.8)
    for t in range(6):
        torch.testing.assert_close(sums[t], sum(0.8 ** (t - u) * reward[u] for u in range(t + 1)))


def test_log_reward_values() -> None:
    r = torch.tensor([0.0, 0.5, 1.0, 3.0, 5.0, 10.0], dtype=torch.float64)
    below = 0.1 * np.log((math.e**3 - 1) / 3 * r[:4].numpy() + 1)
    above = 0.1 * (3 + 0.3 * (r[4:].numpy() - 3))
    np.testing.assert_allclose(log_reward(r).numpy(), np.concatenate([below, above]))


def test_log_reward_is_continuous_and_increasing() -> None:
    three = torch.tensor([3 - 1e-9, 3.0, 3 + 1e-9], dtype=torch.float64)
    torch.testing.assert_close(log_reward(three), torch.full((3,), 0.3, dtype=torch.float64))
    assert (log_reward(torch.linspace(0, 10, 200).double()).diff() > 0).all()


def test_signed_log_is_the_logarithm_of_log_reward_for_both_signs() -> None:
    r = torch.linspace(0, 3, 50).double()
    torch.testing.assert_close(0.1 * signed_log(r), log_reward(r))
    torch.testing.assert_close(signed_log(-r), -signed_log(r))
    np.testing.assert_allclose(
        float(signed_log(torch.tensor(20.0))), np.log(20 * (np.e**3 - 1) / 3 + 1), 1e-6
    )


def test_standardize_each_group_on_its_own() -> None:
    group = torch.tensor([0, 2, 0, 2, 2])  # group 1 is empty
    x = torch.randn(6, 5) * torch.tensor([1.0, 50, 1, 50, 50]) + group
    got = standardize(x, group, 3)
    for g in (0, 2):
        part = x[:, group == g].double()
        expected = (part - part.mean()) / part.std(unbiased=False)
        torch.testing.assert_close(got[:, group == g], expected.float())


@pytest.mark.parametrize("pooling", [0.0, 0.5])
def test_standardize_of_a_constant_group_is_zero(pooling: float) -> None:
    constant = torch.full((4, 2), 7.0)
    assert standardize(constant, torch.zeros(2, dtype=torch.long), 1, pooling).eq(0).all()


def test_standardize_with_a_scale_that_groups_share_in_part() -> None:
    group = torch.tensor([0, 2, 0, 2, 2])  # group 1 is empty
    x = torch.randn(6, 5) * torch.tensor([1.0, 50, 1, 50, 50]) + group
    got = standardize(x, group, 3, 0.3).double().numpy()
    parts = [x[:, group == g].double().numpy() for g in (0, 2)]
    shared = 0.3 * np.mean([part.var() for part in parts])
    scaled = [(part - part.mean()) / np.sqrt(part.var() + shared) for part in parts]
    whole = np.concatenate([part.ravel() for part in scaled]).std()
    for g, part in zip((0, 2), scaled, strict=True):
        np.testing.assert_allclose(got[:, group.numpy() == g], part / whole, rtol=1e-5, atol=1e-6)
    assert got[:, group.numpy() == 0].std() < 0.1 < 1 < got[:, group.numpy() == 2].std()
    apart, together = (standardize(x, group, 3, c) for c in (1e-12, 1e12))
    torch.testing.assert_close(apart, standardize(x, group, 3))
    centred = np.concatenate([(part - part.mean()).ravel() for part in parts])
    np.testing.assert_allclose(
        together[:, group == 0].numpy(), (parts[0] - parts[0].mean()) / centred.std(), rtol=1e-4
    )


def test_explained_variance_is_within_families() -> None:
    """A value that knows the family alone explains nothing, however far apart families' returns lie."""
    family = torch.tensor([0, 2, 2, 0, 2])  # of four: two are not there
    target = torch.randn(50, 5).double() + 100 * family
    prediction = target + 0.3 * torch.randn(50, 5).double()
    each = [
        1 - np.var((target - prediction)[:, family == f].numpy()) / np.var(target[:, family == f].numpy())
        for f in (0, 2)
    ]
    assert explained_variance(prediction, target, family, 4).item() == pytest.approx(np.mean(each))
    assert explained_variance(target, target, family, 4).item() == 1
    of_family = (100.0 * family).double().expand_as(target)
    assert explained_variance(of_family, target, family, 4).item() == pytest.approx(0, abs=1e-9)


# --- low level -----------------------------------------------------------------------------------


def test_clipped_policy_loss_elementwise() -> None:
    new, old, advantage = torch.randn(3, 500).double()
    got = clipped_policy_loss(new, old, advantage, 0.2)
    losses, clipped = [], 0
    for n, o, a in zip(new.tolist(), old.tolist(), advantage.tolist(), strict=True):
        ratio = math.exp(n - o)
        losses.append(-min(ratio * a, min(max(ratio, 0.8), 1.2) * a))
        clipped += abs(ratio - 1) > 0.2
    assert got.loss.item() == pytest.approx(np.mean(losses))
    assert got.clip_fraction.item() == pytest.approx(clipped / 500)


@pytest.mark.parametrize(("advantage", "log_ratio", "moves"), [(1, 0.5, 0), (-1, -0.5, 0), (1, -0.5, 1)])
def test_no_gradient_beyond_the_clip(advantage: float, log_ratio: float, moves: bool) -> None:
    new = torch.tensor([log_ratio], requires_grad=True)
    clipped_policy_loss(new, torch.zeros(1), torch.tensor([float(advantage)]), 0.2).loss.backward()
    assert new.grad is not None
    assert bool(new.grad.abs() > 0) == bool(moves)


def test_approx_kl_has_the_kl_as_expectation_and_is_never_negative() -> None:
    """E_old[(r - 1) - log r] = KL(old || new), by quadrature over two Gaussians."""
    old, new = Normal(0.2, 0.8), Normal(-0.3, 1.1)
    x = torch.linspace(-12, 12, 4_001, dtype=torch.float64)
    weight = old.log_prob(x).exp() * (x[1] - x[0])
    each = torch.stack(
        [
            clipped_policy_loss(n, o, n, 0.2).approx_kl
            for n, o in zip(new.log_prob(x), old.log_prob(x), strict=True)
        ]
    )
    assert (each >= 0).all()
    assert (weight * each).sum().item() == pytest.approx(kl_divergence(old, new).item(), rel=1e-6)


def test_agreement_is_the_share_of_dimensions_that_point_alike() -> None:
    action = torch.tensor([[0.5, -0.5, 0.1], [1.0, 1.0, 1.0]])
    macro_action = torch.tensor([[0.1, 0.1, 0.0], [-1.0, -1.0, -1.0]])
    torch.testing.assert_close(agreement(action, macro_action), torch.tensor([2 / 3, 0.0]))


def test_agreement_by_chance_is_within_families() -> None:
    """Where a family's actions and macro-actions always point one way, that is chance."""
    family = torch.tensor([0, 0, 2])
    way = torch.tensor([1.0, 1.0, -1.0]).reshape(1, 3, 1).expand(40, 3, 2)
    assert [float(x) for x in agreements(way, way, family, 3)] == [1, 1]
    action, z = torch.randn(2, 40, 3, 2)
    agreed, chance = agreements(action, z, family, 3)
    found: list[list[float]] = [[], []]
    for f in (0, 2):
        a, b = (x[:, family == f].flatten(0, 1) >= 0 for x in (action, z))
        found[0].append((a == b).float().mean().item())
        found[1].append(np.mean([(a[:, d, None] == b[None, :, d]).float().mean() for d in range(2)]))
    assert float(agreed) == pytest.approx(np.mean(found[0]))
    assert float(chance) == pytest.approx(np.mean(found[1]))


# --- intermediate level --------------------------------------------------------------------------


def naive_goal(strategy: str, categories: list[int], t: int, n: int, n_max: int) -> int:
    last = len(categories) - 1
    if strategy == "constant_discretisation":
        cuts = [c for c in range(0, last + n, n) if c > t]
        return min(cuts[0], last)
    if strategy == "constant_margin":
        return min(t + n, last)
    for step in range(t + 1, last + 1):
        if categories[step] != categories[step - 1] or step - t == n_max:
            return step
    return last


@pytest.mark.parametrize("strategy", ["constant_discretisation", "constant_margin", "sub_task"])
@pytest.mark.parametrize(
    ("steps", "n", "n_max"), [(13, 5, 4), (12, 3, 20), (1, 1, 1), (1, 5, 5), (4, 9, 2), (9, 1, 1)]
)
@pytest.mark.parametrize("sticky", [False, True], ids=["flickering", "long segments"])
def test_goal_steps_follow_the_definition(
    strategy: str, steps: int, n: int, n_max: int, sticky: bool
) -> None:
    belief = torch.rand(steps + 1, 6, 3)
    if sticky:
        belief = belief[torch.arange(steps + 1) // 4 * 4]
    got = goal_steps(strategy, belief, n, n_max)  # type: ignore[arg-type]
    category = belief.argmax(-1).T.tolist()
    expected = [[naive_goal(strategy, category[b], t, n, n_max) for b in range(6)] for t in range(steps)]
    assert got.tolist() == expected
    assert got.dtype == torch.long


def elbo_inputs() -> tuple[torch.Tensor, torch.Tensor, Normal, Normal, list[torch.Tensor]]:
    leaves = [torch.randn(5, 4, 2).double().requires_grad_() for _ in range(4)]
    q, p = Normal(leaves[0], leaves[1].exp()), Normal(leaves[2], leaves[3].exp())
    return torch.randn(5, 4, 3).double(), torch.randn(5, 4, 3).double().requires_grad_(), q, p, leaves


def test_imputation_elbo_against_multivariate_normals() -> None:
    target, prediction, q, p, _ = elbo_inputs()
    terms = imputation_elbo(target, prediction, 0.3, q, p)
    decoder = MultivariateNormal(prediction, 0.3**2 * torch.eye(3).double())
    torch.testing.assert_close(terms.log_likelihood, decoder.log_prob(target))
    full = [MultivariateNormal(d.mean, torch.diag_embed(d.variance)) for d in (q, p)]
    torch.testing.assert_close(terms.kl, kl_divergence(*full))


def test_imputation_elbo_gradients_stop_at_the_prior_alone() -> None:
    target, prediction, q, p, leaves = elbo_inputs()
    terms = imputation_elbo(target, prediction, 0.3, q, p)
    (terms.log_likelihood.sum() - terms.kl.sum()).backward()
    assert [leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves] == [True, True, False, False]
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad, (target - prediction.detach()) / 0.3**2)
    free = [leaf.detach().requires_grad_() for leaf in leaves]
    kl = kl_divergence(Normal(free[0], free[1].exp()), Normal(free[2], free[3].exp())).sum()
    expected = torch.autograd.grad(-kl, free[:2])
    for leaf, gradient in zip(leaves[:2], expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


# --- high level ----------------------------------------------------------------------------------


def test_entropy_against_scipy() -> None:
    p = torch.randn(4, 3, 5).softmax(-1)
    np.testing.assert_allclose(entropy(p).numpy(), stats.entropy(p.numpy(), axis=-1), rtol=1e-5)
    assert entropy(torch.tensor([1.0, 0.0, 0.0])) == 0


@pytest.mark.parametrize("form", ["conditional", "marginal", "information"])
def test_regulariser_of_certain_beliefs_has_a_finite_gradient(form: str) -> None:
    """The derivative of p log p is infinite at 0, which a saturated softmax reaches."""
    logits = torch.tensor([[200.0, 0.0, -200.0], [200.0, -200.0, 0.0]], requires_grad=True)
    categorical_regulariser(logits.softmax(-1), form).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_categorical_regulariser_forms() -> None:
    p = torch.randn(4, 3, 5).double().softmax(-1)
    rows = p.reshape(-1, 5).numpy()
    conditional, marginal = np.mean([stats.entropy(r) for r in rows]), stats.entropy(rows.mean(0))
    expected = {"conditional": conditional, "marginal": marginal, "information": marginal - conditional}
    for form, h in expected.items():
        assert categorical_regulariser(p, form).item() == pytest.approx(np.log(5) - h)  # type: ignore[arg-type]


def test_categorical_regulariser_extremes() -> None:
    uniform = torch.full((4, 6, 3), 1 / 3)
    one = torch.eye(3)[torch.zeros(4, 6, dtype=torch.long)]
    each_certain = torch.eye(3)[torch.arange(24).reshape(4, 6) % 3]
    most = math.log(3)
    table = {
        "conditional": (0, most, most),
        "marginal": (0, most, 0),  # certain beliefs cost nothing if all categories are used
        "information": (most, most, 0),
    }
    for form, expected in table.items():
        got = [categorical_regulariser(p, form).item() for p in (uniform, one, each_certain)]  # type: ignore[arg-type]
        assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [2, 5, 20])
def test_occupancy_weights(k: int) -> None:
    got = occupancy_weights(k)
    expected = [math.log(k) * math.exp(i) / math.exp(k) for i in range(1, k + 1)]
    torch.testing.assert_close(got, torch.tensor(expected))
    assert got[-1].item() == pytest.approx(math.log(k))
    assert (got.diff() > 0).all()


def test_occupancy_weights_at_the_edges() -> None:
    assert occupancy_weights(1).tolist() == [0]
    assert occupancy_weights(5000).isfinite().all()  # e^5000 overflows


def test_mutual_information_against_a_count_table() -> None:
    rng = np.random.default_rng(0)
    category, group = rng.integers(0, 4, 300), rng.integers(0, 2, 300)
    group = np.where(category == 0, 2, group)  # group 2 knows its category
    table = np.zeros((4, 5))  # groups 3 and 4 are empty
    np.add.at(table, (category, group), 1 / 300)
    outer = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    used = table > 0
    expected = (table[used] * np.log(table[used] / outer[used])).sum()
    probabilities = torch.eye(4, dtype=torch.float64)[torch.from_numpy(category)]
    got = mutual_information(probabilities, torch.from_numpy(group), 5)
    assert got.item() == pytest.approx(expected)


def test_mutual_information_extremes() -> None:
    group = torch.arange(30) % 3
    belief = torch.tensor([0.2, 0.3, 0.5]).expand(30, 3)
    assert mutual_information(belief, group, 3).item() == pytest.approx(0, abs=1e-6)
    assert mutual_information(torch.eye(3)[group], group, 3).item() == pytest.approx(math.log(3))


def test_mutual_information_of_soft_beliefs() -> None:
    """I = sum_g p(g) KL(E[q | g] || E q)."""
    q, group = torch.randn(200, 4).double().softmax(-1), torch.randint(0, 3, (200,))
    expected = sum(
        (group == g).double().mean().item() * stats.entropy(q[group == g].mean(0).numpy(), q.mean(0).numpy())
        for g in range(3)
    )
    assert mutual_information(q, group, 3).item() == pytest.approx(expected)


def test_sums_by_group_are_those_of_a_loop() -> None:
    x, group = torch.randn(50, 3, dtype=torch.float64), torch.randint(4, (50,))
    sums = sums_by_group(x, group, 5)
    for g in range(5):
        torch.testing.assert_close(sums[g], x[group == g].sum(0), rtol=1e-12, atol=1e-12)
