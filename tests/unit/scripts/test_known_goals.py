"""The script that asks what a belief knows of hidden goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import known_goals
from hmrl.rollouts.collect import seeded
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.system.errors import UserError
from support.agents import G, build_module, encoder_config, random_rollout, trajectories, vae_config


def checkpoint(**changes: Any) -> dict[str, Any]:
    module = build_module(encoder_config(lr=0.02, hidden=16, **changes), vae_config(), goal_dim=G)
    return {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}


def left(*, seen: bool) -> float:
    """Of the goals' variance, where the observation shows the goal and where nothing does."""
    rollout = random_rollout(episodes=240)
    if seen:
        rollout.observation[..., :G] = rollout.hidden_goal
    episodes = trajectories(rollout)
    parts = torch.arange(240).split(200)
    with seeded(0):
        learnt, tested = (episodes.select(part) for part in parts)
        policy = known_goals.policy_of(checkpoint(), "change", learnt)
        found = known_goals.unexplained(policy, learnt, tested, 2, 300, encoder_learns=True)
    assert found.shape == (len(rollout.observation), 2)
    return float(found[-1].mean())


def test_goals_that_can_be_seen_are_found_and_others_are_not() -> None:
    assert left(seen=True) < 0.6
    assert left(seen=False) > 0.9


def test_a_probe_leaves_the_encoder_as_it_is_and_fixed_goals_have_no_share() -> None:
    rollout = random_rollout(episodes=40)
    rollout.hidden_goal[rollout.family == 1] = 0.5
    episodes = trajectories(rollout)
    policy = known_goals.policy_of(checkpoint(), None, episodes)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    found = known_goals.unexplained(policy, episodes, episodes, 2, 3, encoder_learns=False)
    assert found[:, 0].isfinite().all()
    assert found[:, 1].isnan().all()
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_an_agent_without_memory_is_refused() -> None:
    saved = checkpoint()
    saved["hyper_parameters"]["task_encoder"] = None
    with pytest.raises(UserError, match="without a task encoder"):
        known_goals.policy_of(saved, None, trajectories(random_rollout()))


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was drawn before: the replay is shuffled before it is divided."""
    replay = TrajectoryReplay(40)
    for seed in range(10):
        replay.append(random_rollout(seed=seed))
    saved = checkpoint() | {"ToyDataModule": {"replays": [replay.state_dict()]}}
    monkeypatch.setattr(known_goals.checkpoint, "load", lambda path: saved)
    found = []
    for before in (1, 2):
        torch.manual_seed(before)
        out = tmp_path / f"{before}.json"
        options = ["--encoder", "change", "--updates", "2", "--decisions", "0", "2", "--out", str(out)]
        monkeypatch.setattr("sys.argv", ["known_goals", "last.ckpt", *options])
        known_goals.main()
        found.append(json.loads(out.read_text())["unexplained"])
    assert found[0] == found[1]
    assert found[0]
