"""Networks see small gaps magnified, beside the observation, when they act and when they learn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmrl.envs.benchmarks import GAPS
from hmrl.system.errors import UserError
from hmrl.training.compatibility import check_gaps, check_settings, network_differences
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Gap
from support.agents import B, S, build_module, encoder_config, full_module, random_rollout, vae_config

CLOSE_UP: dict[str, Any] = {"close_up": True, "gaps": [Gap(2, 0, 0.5), Gap(6, 1, 2.0)]}


def test_a_gap_is_a_squashed_difference_in_the_units_of_the_observation() -> None:
    policy = full_module(**CLOSE_UP).policy
    observation = torch.randn(3, 5, S)
    seen, raw = policy.normalize(observation), observation.double().numpy()
    assert seen.shape == (3, 5, S + 2)
    standardised = policy.observation_moments.normalize(observation, 5.0, 0.01)
    torch.testing.assert_close(seen[..., :S], standardised, rtol=0, atol=0)
    wanted = np.stack([(raw[..., 2] - raw[..., 0]) / 0.5, (raw[..., 6] - raw[..., 1]) / 2.0], axis=-1)
    np.testing.assert_allclose(seen[..., S:], np.tanh(wanted), rtol=1e-5)


def test_every_network_that_sees_states_sees_the_gaps() -> None:
    """A gap is moved where standardisation is blind, beyond its clip: y, z, action and value move."""
    policy = full_module(**CLOSE_UP).policy
    near = torch.zeros(2, B, S)
    near[..., [0, 2]] = 1000.0
    far = near.clone()
    far[..., 2] += 0.5
    states = policy.normalize(near), policy.normalize(far)
    torch.testing.assert_close(states[0][..., :S], states[1][..., :S], rtol=0, atol=0)
    step = near.new_zeros(1, B, 2), near.new_zeros(1, B)
    y, y2 = (policy.encode_episodes(x, *step, Acting()).belief for x in (near, far))
    assert not torch.equal(y, y2)
    z, z2 = (policy.macro_action(s, y, Acting()) for s in states)
    assert not torch.equal(z, z2)
    assert not torch.equal(*(policy.actor(s, y, z).mean for s in states))
    assert not torch.equal(*(policy.value(s, y, y[0, :, :0]) for s in states))


def test_acting_and_learning_see_the_same() -> None:
    policy = full_module(**CLOSE_UP).policy
    rollout = random_rollout()
    carry = policy.initial_carry(B)
    reward = torch.cat([torch.zeros(1, B), rollout.reward])
    learnt, _ = policy.renewed(rollout.observation, rollout.action, rollout.reward)
    for t, observation in enumerate(rollout.observation):
        step, carry = policy.act(observation, reward[t], carry, Acting())
        torch.testing.assert_close(step.task_belief, learnt[t])
        if t < len(rollout.action):
            carry = replace(carry, action=rollout.action[t])


def test_without_a_close_up_the_agent_is_the_one_of_before() -> None:
    plain, off = full_module(), full_module(close_up=False, gaps=CLOSE_UP["gaps"])
    assert off.hparams["gaps"] == []
    for (name, a), (other, b) in zip(plain.state_dict().items(), off.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_another_close_up_is_another_network_and_named() -> None:
    saved = full_module().hparams
    here = build_module(encoder_config(), vae_config(), **CLOSE_UP).hparams
    found = network_differences(saved, here)
    assert set(found) == {"model.gaps"}
    other = full_module(close_up=True, gaps=[Gap(2, 0, 0.5), Gap(6, 1, 1.0)]).hparams
    assert set(network_differences(here, other)) == {"model.gaps"}


def test_an_older_export_is_trained_on_without_a_close_up() -> None:
    """Also where a world has gaps: ``close_up`` then is what the weights are of."""
    path = Path(__file__).parents[3] / "results/ml10-20m/flat/agent.weights.ckpt"
    hparams = HierarchicalMetaRL.load_from_checkpoint(path, map_location="cpu").hparams
    assert hparams["close_up"] is False
    check_gaps(hparams["close_up"], hparams["gaps"], GAPS)
    with pytest.raises(UserError, match=r"pass gaps=data\.gaps, or close_up=False"):
        check_gaps(True, [], GAPS)


@pytest.mark.parametrize(
    "gap",
    [Gap(S, 0, 0.5), Gap(0, -1, 0.5), Gap(2, 0, 0.0), Gap(2, 0, math.inf), Gap(1.5, 0, 1.0)],  # type: ignore[arg-type]
)
def test_a_gap_that_cannot_be_is_refused(gap: Gap) -> None:
    with pytest.raises(
        UserError, match=rf"a gap is \[{gap.end}, {gap.start}, {gap.scale}\]: use two of 0 to {S - 1}"
    ):
        full_module(close_up=True, gaps=[gap])


def test_a_checkpoint_from_before_there_were_gaps_has_none() -> None:
    older = {k: v for k, v in full_module().hparams.items() if k not in ("close_up", "gaps")}
    check_settings(older)
    assert network_differences(older, full_module().hparams) == {}
    assert set(network_differences(older, full_module(**CLOSE_UP).hparams)) == {"model.gaps"}


def test_observations_of_another_width_are_still_refused() -> None:
    policy = full_module(**CLOSE_UP).policy
    with pytest.raises(Exception, match=rf"must be \[{B}, {S}\]"):
        policy.act(torch.zeros(B, S + 2), torch.zeros(B), policy.initial_carry(B), Acting())
