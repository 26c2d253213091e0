"""The script that asks what a belief knows about families that look alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

import knowledge
from hmrl.envs.benchmarks import Goals
from hmrl.envs.wrappers.perturb import Change, Perturbation
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Rollout
from support.agents import FAMILIES, ToyEnvs, build_module, encoder_config, play, vae_config
from support.toy import ToyDataModule, tiny_module, toy_data


def played(agent: HierarchicalMetaRL) -> Rollout:
    return play(agent, ToyEnvs(2 * len(FAMILIES)), key=[3])


def test_swapped_beliefs_are_another_familys_at_the_same_decision() -> None:
    agent = build_module(encoder_config(), vae_config())
    rollout, t = played(agent), 3
    found = knowledge.findings(agent, rollout, [t], 1)
    policy = agent.policy
    state = policy.normalize(rollout.observation)[t]
    columns = [(rollout.family == k).nonzero().flatten() for k in range(len(FAMILIES))]
    with torch.no_grad():
        for k, name in enumerate(FAMILIES):
            for donor, other in enumerate(FAMILIES):
                if donor == k:
                    continue
                s = state[columns[k]]
                policies = []
                for source in (k, donor):
                    y = rollout.task_belief[t, columns[source]]
                    policies.append(policy.actor(s, y, policy.macro_vae.encode(s, y).mean))  # type: ignore[union-attr]
                expected = kl_divergence(*policies).sum(-1).mean().item()
                got = found["kl_of_swapped_beliefs"][t][f"{name} given {other}"]
                assert got == pytest.approx(expected, rel=1e-4, abs=1e-9)
    seen = rollout.observation[t, columns[1], 1].mean().item()
    assert found["observed"][t][FAMILIES[1]] == pytest.approx(seen)


def test_a_world_that_changes_is_as_training_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has come to is a function of the seed of training, not of that of these episodes."""
    wear = Perturbation(reward_scale=Change("random_walk", 0.5, over_episodes=5))
    data = toy_data(perturbation=wear, seed=1)
    module = tiny_module(data)
    module.iteration += 4
    made = list[ToyDataModule]()

    def make(**options: Any) -> ToyDataModule:
        made.append(toy_data(**options))
        return made[-1]

    monkeypatch.setattr(knowledge, "MetaWorldDataModule", make)
    rollout = knowledge.episodes(module, data, ["reach", "push"], 2, 1000)
    there = data.seen_envs("envpool", Goals("train", 1, None, 0), 2, wear, 0, age=4)
    there.reset(0)
    factor = there.step(np.zeros((len(there.families), 4), dtype=np.float32)).reward.sum()
    factor /= sum(episode.rewards[0] for episode in data.episodes)
    earned = sum(sum(episode.rewards) for episode in made[-1].episodes)
    assert abs(factor - 1) > 0.05
    assert float(rollout.reward.sum()) == pytest.approx(factor * earned, rel=1e-5)


def test_noise_of_an_agent_that_acts_on_draws_is_no_knowledge() -> None:
    """Its beliefs' probabilities are looked at, and z's mean: equal beliefs move nothing."""
    torch.manual_seed(0)
    drawn = Acting(task_belief="sample", macro_action="sample")
    agent = build_module(encoder_config(), vae_config(), acting=drawn, ppo={"latents": "acted"})
    head = agent.policy.task_encoder.head[-1]  # type: ignore[union-attr]
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    found = knowledge.findings(agent, played(agent), [2], 0)
    assert found["information"][2] == pytest.approx(0, abs=1e-6)
    assert all(kl == pytest.approx(0, abs=1e-6) for kl in found["kl_of_swapped_beliefs"][2].values())


def test_information_is_that_of_the_belief_and_not_found_by_chance() -> None:
    agent = build_module(encoder_config(categories=len(FAMILIES)), vae_config())
    rollout = played(agent)
    rollout.task_belief = torch.eye(len(FAMILIES))[rollout.family].expand(len(rollout.task_belief), -1, -1)
    found = knowledge.findings(agent, rollout, [0, 2], 0)
    limit = torch.tensor(float(len(FAMILIES))).log().item()
    assert found["information"] == {t: pytest.approx(limit, rel=1e-4) for t in (0, 2)}
    assert all(value < limit - 0.05 for value in found["information_by_chance"].values())
