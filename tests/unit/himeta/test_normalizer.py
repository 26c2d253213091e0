"""Running moments and reward scales against moments of everything seen at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hmrl.himeta.formulas import log_reward
from hmrl.himeta.normalizer import RewardScaler, RunningMoments


def merged(batches: list[tuple[Tensor, Tensor]], dim: int, groups: int) -> RunningMoments:
    moments = RunningMoments(dim, groups)
    for x, group in batches:
        moments.update(x, group)
    return moments


@pytest.mark.parametrize("sizes", [[5, 1, 40, 7], [30]], ids=str)
def test_merging_equals_the_moments_of_the_concatenation(sizes: list[int]) -> None:
    g = torch.Generator().manual_seed(0)
    batches = []
    for i, n in enumerate(sizes):
        x = torch.randn(n, 3, generator=g).double() * (i + 1) + i
        batches.append((x, torch.randint(0, 3, (n,), generator=g)))
    moments = merged(batches, 3, groups=4)  # group 3 never gets a sample
    x, group = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for i in range(3):
        part = x[group == i]
        assert moments.count[i] == len(part)
        torch.testing.assert_close(moments.mean[i], part.mean(0))
        torch.testing.assert_close(moments.var[i], part.var(0, unbiased=False))
    assert moments.count[3] == 0
    assert moments.mean[3].eq(0).all()
    assert moments.var[3].eq(1).all()


def test_a_group_that_is_absent_from_a_batch_keeps_its_moments() -> None:
    moments = merged([(torch.randn(9, 2), torch.arange(9) % 2)], 2, groups=2)
    mean, var = moments.mean[0].clone(), moments.var[0].clone()
    moments.update(torch.randn(5, 2) + 7, torch.ones(5, dtype=torch.long))
    assert torch.equal(moments.mean[0], mean)
    assert torch.equal(moments.var[0], var)


@pytest.mark.parametrize(("offset", "tolerance"), [(1e3, 1e-9), (1e6, 1e-3)])
def test_large_offsets_do_not_swamp_the_variance(offset: float, tolerance: float) -> None:
    x = np.random.default_rng(0).normal(offset, 1.0, size=(4000, 2))
    moments = merged([(torch.from_numpy(part), None) for part in np.split(x, 8)], 2, groups=1)  # type: ignore[misc]
    np.testing.assert_allclose(moments.mean[0].numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.var[0].numpy(), x.var(0), rtol=tolerance)


def test_normalising_before_the_first_update_is_the_identity() -> None:
    x = torch.randn(6, 3)
    torch.testing.assert_close(RunningMoments(3).normalize(x, clip=10, floor=0.01), x)


def test_normalize_scales_clips_and_floors() -> None:
    moments = RunningMoments(2)
    moments.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))  # means 2 and 5, deviations 1 and 0
    x = torch.tensor([[2.5, 5.1], [100.0, -100.0]])
    expected = torch.tensor([[0.5, 0.2], [4.0, -4.0]])
    torch.testing.assert_close(moments.normalize(x, clip=4, floor=0.5), expected)


def test_normalising_changes_no_moment() -> None:
    moments = merged([(torch.randn(9, 2), None)], 2, 1)  # type: ignore[list-item]
    before = {k: v.clone() for k, v in moments.state_dict().items()}
    moments.normalize(torch.randn(5, 2) + 3, 5, 0.01)
    assert all(torch.equal(v, before[k]) for k, v in moments.state_dict().items())


def test_moments_are_float64_buffers_of_the_checkpoint() -> None:
    moments = merged([(torch.randn(9, 2), torch.arange(9) % 2)], 2, groups=2)
    state = moments.state_dict()
    assert set(state) == {"count", "mean", "var"}
    assert all(v.dtype == torch.float64 for v in state.values())
    assert not list(moments.parameters())
    copy = RunningMoments(2, groups=2)
    copy.load_state_dict(state)
    for m in (moments, copy):
        m.update(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
    assert all(torch.equal(v, copy.state_dict()[k]) for k, v in moments.state_dict().items())


# --- rewards -------------------------------------------------------------------------------------

FAMILY = torch.tensor([0, 1, 0, 2])
GAMMA = 0.9


def observed(scale: str) -> tuple[RewardScaler, Tensor, Tensor]:
    """A scaler that saw two rollouts, the second rollout, and discounted sums ``[2T, B]`` of both."""
    scaler = RewardScaler(scale, GAMMA, families=3)  # type: ignore[arg-type]
    rollouts = [torch.rand(6, 4) * torch.tensor([1.0, 10.0, 1.0, 0.1]) for _ in range(2)]
    sums = []
    for reward in rollouts:
        scaler.observe(reward, FAMILY)
        sums += [sum(GAMMA ** (t - u) * reward[u] for u in range(t + 1)) for t in range(6)]
    return scaler, rollouts[1], torch.stack(sums)  # type: ignore[arg-type]


def test_family_scale_divides_by_each_familys_deviation_of_returns() -> None:
    scaler, reward, sums = observed("family")
    scaled = scaler(reward, FAMILY)
    for i in range(3):
        of = i == FAMILY
        torch.testing.assert_close(scaled[:, of], reward[:, of] / sums[:, of].std(unbiased=False))


def test_global_scale_divides_by_one_deviation() -> None:
    scaler, reward, sums = observed("global")
    torch.testing.assert_close(scaler(reward, FAMILY), reward / sums.std(unbiased=False))


@pytest.mark.parametrize("scale", ["log", "none"])
def test_fixed_scales_observe_nothing(scale: str) -> None:
    scaler, reward, _ = observed(scale)
    torch.testing.assert_close(scaler(reward, FAMILY), log_reward(reward) if scale == "log" else reward)
    assert scaler.moments.count.eq(0).all()


@pytest.mark.parametrize("scale", ["family", "global"])
def test_unseen_scales_are_one_and_constant_ones_are_floored(scale: str) -> None:
    scaler = RewardScaler(scale, GAMMA, families=3)  # type: ignore[arg-type]
    reward = torch.rand(5, 4)
    torch.testing.assert_close(scaler(reward, FAMILY), reward)
    scaler.observe(torch.zeros(5, 4), FAMILY)
    torch.testing.assert_close(scaler(reward, FAMILY), reward / 0.01)
