"""How far the policy has moved since: by what it would do now, in the way it acts."""

from __future__ import annotations

import torch

from hmrl.himeta.diagnostics import Movement
from support.agents import build_module, encoder_config, random_rollout, vae_config


def test_nothing_has_moved_where_nothing_has_learnt_whatever_was_dropped_out() -> None:
    policy = build_module(encoder_config(dropout=0.5), vae_config(dropout=0.5)).policy
    for beliefs_stay in (False, True):
        policy.train()  # as learning leaves the level that has learnt
        moved = Movement(policy, random_rollout(), beliefs_stay)
        policy.train()
        moved.measure()
        assert float(moved.kl) == 0


def test_a_step_of_a_level_moves_it() -> None:
    policy = build_module(encoder_config(), vae_config()).policy
    moved = Movement(policy, random_rollout())
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter += 0.1
    moved.measure()
    assert float(moved.kl) > 0.01
