"""Average beliefs of training families: means by decision, that learning does not notice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hmrl.himeta.average_beliefs import AverageBeliefs
from hmrl.types import Rollout
from support.agents import (
    FAMILIES,
    B,
    K,
    T,
    build_module,
    fit,
    full_module,
    iteration_batch,
    random_rollout,
    vae_config,
)


def means(rollout: Rollout, episodes: int = 1) -> Tensor:
    """Of a rollout's beliefs, in loops. ``[F, T, K]``"""
    length = len(rollout.action) // episodes
    found = torch.zeros(len(FAMILIES), length, K)
    for f in range(len(FAMILIES)):
        for t in range(length):
            own = [
                rollout.task_belief[e * length + t, b]
                for e in range(episodes)
                for b in range(len(rollout.family))
                if rollout.family[b] == f
            ]
            found[f, t] = torch.stack(own).mean(0)
    return found


def test_the_first_ten_rollouts_count_alike_and_later_ones_a_tenth() -> None:
    averages, expected = AverageBeliefs(len(FAMILIES)), torch.zeros(len(FAMILIES), T, K)
    for i in range(14):
        rollout = random_rollout(seed=i)
        averages.update(rollout)
        expected += (means(rollout) - expected) / min(i + 1, 10)
        assert torch.allclose(averages.mean, expected, atol=1e-6)
    assert averages.known().sum(-1).allclose(torch.ones(len(FAMILIES), T))


@pytest.mark.parametrize("episodes", [1, 2, 3])
def test_every_episode_of_a_trial_counts(episodes: int) -> None:
    rollout = replace(random_rollout(5, steps=episodes * T), episodes=episodes)
    averages = AverageBeliefs(len(FAMILIES))
    averages.update(rollout)
    assert averages.mean.shape == (len(FAMILIES), T, K)
    assert torch.allclose(averages.mean, means(rollout, episodes), atol=1e-6)


def test_a_family_that_is_absent_keeps_what_it_has() -> None:
    averages, first = AverageBeliefs(len(FAMILIES)), torch.zeros(B, dtype=torch.long)
    averages.update(random_rollout(family=first))
    assert averages.count.tolist() == [1, 0]
    assert len(averages.known()) == 1
    averages.update(random_rollout(seed=1, family=1 + first))
    assert torch.equal(averages.mean[0], random_rollout().task_belief[:-1].double().mean(1).float())
    assert torch.equal(averages.mean[1], random_rollout(seed=1).task_belief[:-1].double().mean(1).float())


def test_longer_episodes_begin_anew() -> None:
    averages = AverageBeliefs(len(FAMILIES))
    averages.update(random_rollout())
    averages.update(random_rollout(steps=T + 1))
    assert averages.mean.shape[1] == T + 1
    assert averages.count.tolist() == [1, 1]


def learnt(monkeypatch: pytest.MonkeyPatch, update: Any) -> tuple[Any, dict[str, Tensor]]:
    with monkeypatch.context() as patch:
        if update is not None:
            patch.setattr(AverageBeliefs, "update", update)
        module = full_module()
        fit(module, [iteration_batch(random_rollout(seed=i)) for i in range(2)])
    return module, module.state_dict()


def test_learning_does_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    with_them, weights = learnt(monkeypatch, None)
    without, expected = learnt(monkeypatch, lambda self, rollout: None)
    assert with_them.average_beliefs.count.tolist() == [2, 2]
    assert not len(without.average_beliefs.known())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in weights)


def test_checkpoints_hold_them_and_older_ones_load() -> None:
    module = full_module()
    module.average_beliefs.update(random_rollout())
    saved: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "format": 2,
    }
    older = full_module()
    older.on_load_checkpoint(dict(saved))
    assert not len(older.average_beliefs.known())
    module.on_save_checkpoint(saved)
    loaded = full_module()
    loaded.on_load_checkpoint(saved)
    assert torch.equal(loaded.average_beliefs.known(), module.average_beliefs.known())
    assert len(loaded.average_beliefs.known()) == len(FAMILIES)


def test_an_agent_without_beliefs_has_no_averages() -> None:
    module = build_module(None, vae_config())
    fit(module, [iteration_batch(random_rollout(task_belief=torch.zeros(T + 1, B, 0)))])
    saved: dict[str, Any] = {}
    module.on_save_checkpoint(saved)
    assert saved == {}
