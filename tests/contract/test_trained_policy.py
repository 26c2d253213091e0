"""The published agent does in EnvPool, where it was trained, what it does in Meta-World."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact, ttest_ind

from hmrl.envs import Backend, benchmark, make_envs
from hmrl.envs.benchmarks import Goals
from hmrl.rollouts.collect import collect, seeded
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Rollout, Split

pytestmark = [pytest.mark.slow, pytest.mark.simulator]

WEIGHTS = Path(__file__).parents[2] / "results/ml10-20m/default/agent.weights.ckpt"
ML10 = benchmark("ML10")
ROUNDS, ENVS = {"envpool": 1, "metaworld": 4}, {"envpool": 8, "metaworld": 2}  # 8 goals a family on either
HORIZON = 300  # what is solved is mostly solved by then
# Rewards before success differ there (see test_backends_agree), and rewards are what the agent remembers.
MOVING_MARGIN = ("pick-place", "sweep", "sweep-into")


@cache
def episodes(backend: Backend, split: Split) -> list[Rollout]:
    policy = HierarchicalMetaRL.load_from_checkpoint(WEIGHTS, map_location="cpu").policy
    envs = make_envs(backend, ML10, Goals(split, 11, 8, 3), ENVS[backend], horizon=HORIZON)
    rollouts = []
    for number in range(ROUNDS[backend]):
        with seeded(11, number):
            rollouts.append(
                collect(
                    envs,
                    policy,
                    episode=number,
                    acting=Acting(),
                    families=ML10.families(split),
                    split=split,
                    mode="sampled",
                )
            )
    envs.close()
    return rollouts


def of_family(backend: Backend, split: Split, family: str) -> tuple[np.ndarray, np.ndarray]:
    rollouts = episodes(backend, split)
    index = ML10.families(split).index(family)
    success = torch.cat([r.ever_success[r.family == index] for r in rollouts])
    returns = torch.cat([r.episode_return[r.family == index] for r in rollouts])
    assert len(success) == 8
    return success.numpy(), returns.numpy()


@pytest.mark.parametrize("family", [*ML10.train, *ML10.test])
def test_a_trained_agent_does_the_same_in_both(family: str) -> None:
    """Returns (where rewards are the same) and successes within their intervals, at 99.9 % each."""
    split: Split = "train" if family in ML10.train else "test"
    success, returns = of_family("envpool", split, family)
    reference_success, reference_returns = of_family("metaworld", split, family)
    won, reference = int(success.sum()), int(reference_success.sum())
    assert fisher_exact([[won, 8 - won], [reference, 8 - reference]]).pvalue > 1e-3
    if family not in MOVING_MARGIN:
        assert ttest_ind(returns, reference_returns, equal_var=False).pvalue > 1e-3


def test_the_mean_success_is_the_same() -> None:
    """Over all families; 120 episodes on either, so that a difference of 0.25 would be seen."""
    both: list[np.ndarray] = []
    for backend in ("envpool", "metaworld"):
        families = [of_family(backend, "train", f)[0] for f in ML10.train]  # type: ignore[arg-type]
        families += [of_family(backend, "test", f)[0] for f in ML10.test]  # type: ignore[arg-type]
        both.append(np.concatenate(families))
    difference = both[0].mean() - both[1].mean()
    assert abs(difference) < 0.15
    assert both[1].mean() > 0.2  # it was trained, after all
