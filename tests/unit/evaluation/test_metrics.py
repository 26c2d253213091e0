"""Success rates against NumPy, intervals against the closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.utilities import dim_zero_sum

from hmrl.evaluation.metrics import FamilyOutcomes
from hmrl.himeta.diagnostics import rollout_metrics
from hmrl.types import Rollout
from support.agents import FAMILIES, T, random_rollout

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


def uneven(episodes: int, seed: int) -> Rollout:
    """More episodes of the first family than of the second."""
    family = (torch.arange(episodes) % 3 == 2).long()
    return random_rollout(episodes, seed=seed, family=family)


def scored(*rollouts: Rollout) -> FamilyOutcomes:
    metric = FamilyOutcomes(FAMILIES)
    for rollout in rollouts:
        metric.update(rollout.outcomes())
    return metric


def test_scores_against_numpy() -> None:
    rollouts = [uneven(11, 0), uneven(7, 1)]
    scores = scored(*rollouts).compute()
    family = np.concatenate([r.family for r in rollouts])
    won = np.concatenate([r.success.numpy().max(0) for r in rollouts])
    final = np.concatenate([r.final_success for r in rollouts])
    returns = np.concatenate([r.reward.numpy().sum(0) for r in rollouts])
    for i, name in enumerate(FAMILIES):
        of = family == i
        s = scores[name]
        assert s.episodes == of.sum()
        expected = won[of].mean(), final[of].mean(), returns[of].mean()
        assert (s.success, s.final_success, s.episode_return) == pytest.approx(expected, rel=1e-6)
    each = [scores[f] for f in FAMILIES]
    assert each[0].episodes != each[1].episodes
    assert scores["mean"].episodes == len(family)
    for field in (
        "success",
        "final_success",
        "episode_return",
    ):  # families count alike, however many episodes
        assert getattr(scores["mean"], field) == pytest.approx(np.mean([getattr(s, field) for s in each]))


@pytest.mark.parametrize(("won", "n"), [(0, 5), (5, 5), (3, 5), (17, 50)])
def test_family_interval_is_wilsons(won: int, n: int) -> None:
    success = torch.zeros(T, n, dtype=torch.bool)
    success[2, :won] = True
    rollout = random_rollout(n, success=success, family=torch.zeros(n, dtype=torch.long), families=("reach",))
    metric = FamilyOutcomes(["reach"])
    metric.update(rollout.outcomes())
    score = metric.compute()["reach"]
    p, centre = won / n, (won + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * math.sqrt(n * p * (1 - p) + Z**2 / 4)
    assert (score.low, score.high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)


def test_interval_of_the_mean_is_that_of_a_stratified_sample() -> None:
    scores = scored(uneven(60, 0)).compute()
    each = [scores[f] for f in FAMILIES]
    smoothed = [(s.success * s.episodes + 1) / (s.episodes + 2) for s in each]
    variance = sum(p * (1 - p) / s.episodes for p, s in zip(smoothed, each, strict=True)) / len(each) ** 2
    mean = scores["mean"]
    expected = (max(0, mean.success - Z * variance**0.5), min(1, mean.success + Z * variance**0.5))
    assert (mean.low, mean.high) == pytest.approx(expected)
    assert 0 <= mean.low < mean.success < mean.high <= 1


def test_summing_over_ranks_equals_one_metric_that_saw_all() -> None:
    """As DDP reduces the state, with uneven shards of which one lacks a family."""
    shards = [uneven(11, 0), uneven(4, 1), random_rollout(3, seed=2, family=torch.zeros(3, dtype=torch.long))]
    ranks = [scored(shard) for shard in shards]
    assert ranks[0]._reductions == {"outcomes": dim_zero_sum}
    merged = FamilyOutcomes(FAMILIES)
    merged.outcomes = dim_zero_sum(torch.stack([m.outcomes for m in ranks]))
    one = scored(*shards).compute()
    for name, score in merged.compute().items():
        assert tuple(score) == pytest.approx(tuple(one[name]), rel=1e-12)


def test_reset_forgets() -> None:
    metric = scored(uneven(6, 0))
    metric.reset()
    metric.update(uneven(9, 1).outcomes())
    assert metric.compute() == scored(uneven(9, 1)).compute()


def test_unscored_families_are_errors() -> None:
    only_first = random_rollout(3, family=torch.zeros(3, dtype=torch.long))
    with pytest.raises(RuntimeError, match="push"):
        scored(only_first).compute()


def test_training_metrics_against_numpy() -> None:
    rollout = uneven(11, 0)
    metrics = rollout_metrics(rollout, rollout.task_belief.unsqueeze(-2))
    family, success = rollout.family.numpy(), rollout.success.numpy()
    so_far = np.maximum.accumulate(success, axis=0).mean(0)
    per_family = {name: success.max(0)[family == i].mean() for i, name in enumerate(FAMILIES)}
    for name, value in per_family.items():
        assert metrics[f"rollout/success/{name}"].item() == pytest.approx(value)
    assert metrics["rollout/success/mean"].item() == pytest.approx(np.mean(list(per_family.values())))
    expected = np.mean([so_far[family == i].mean() for i in range(2)])
    assert metrics["rollout/success_time_avg/mean"].item() == pytest.approx(expected)
    belief = rollout.task_belief.flatten(0, 1).double().numpy()
    mean = belief.mean(0)
    assert metrics["encoder/marginal_entropy"].item() == pytest.approx(-(mean * np.log(mean)).sum(), rel=1e-5)
    assert metrics["encoder/entropy"].item() == pytest.approx(
        -(belief * np.log(belief)).sum(1).mean(), rel=1e-5
    )
    assert metrics["encoder/largest_category"].item() == pytest.approx(mean.max(), rel=1e-5)


def test_equal_episodes_count_once() -> None:
    """Of three goals a family, met three, two and two times, where nothing else is drawn."""
    goal, family = torch.arange(7).repeat(2), torch.arange(2).repeat_interleave(7)
    won = (goal % 3 == 0) | (family == 1)
    success = won.expand(T, -1)
    reward = (1.0 + goal % 3).expand(T, -1)
    rollout = random_rollout(14, success=success, family=family, goal=goal, reward=reward, distinct=3)
    ranks = [FamilyOutcomes(FAMILIES, 3) for _ in range(2)]
    outcomes = rollout.outcomes()
    for i, metric in enumerate(ranks):  # copies lie on different ranks
        mine = torch.arange(14) % 2 == i
        columns = {k: v[mine] for k, v in vars(outcomes).items() if isinstance(v, torch.Tensor)}
        metric.update(replace(outcomes, **columns))
    ranks[0].outcomes = dim_zero_sum(torch.stack([metric.outcomes for metric in ranks]))
    first, second = (ranks[0].compute()[name] for name in FAMILIES)
    assert (first.episodes, second.episodes) == (3, 3)
    assert (first.success, second.success) == pytest.approx((1 / 3, 1))
    assert first.episode_return == pytest.approx(2 * T)
    centre, half = (1 + Z**2 / 2) / (3 + Z**2), Z / (3 + Z**2) * math.sqrt(2 / 3 + Z**2 / 4)
    assert (first.low, first.high) == pytest.approx((centre - half, centre + half))


def test_one_episode_and_its_copies_have_no_interval() -> None:
    family = torch.arange(2).repeat(5)
    metric = FamilyOutcomes(FAMILIES, 1)
    metric.update(random_rollout(10, success=(family == 1).expand(T, -1), family=family).outcomes())
    scores = metric.compute()
    assert [scores[name].success for name in (*FAMILIES, "mean")] == [0, 1, 0.5]
    assert [scores[name].episodes for name in (*FAMILIES, "mean")] == [1, 1, 2]
    assert all((score.low, score.high) == (None, None) for score in scores.values())
