"""Trials of several episodes on one goal: memory goes on, episodes are told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import hmrl.himeta.losses
from hmrl.evaluation.metrics import FamilyOutcomes
from hmrl.himeta.diagnostics import rollout_metrics
from hmrl.himeta.formulas import goal_steps
from hmrl.himeta.losses import macro_vae_loss
from hmrl.rollouts.replay import TrajectoryReplay, deal
from hmrl.system.errors import UserError
from hmrl.types import Acting, Rollout
from support.agents import (
    FAMILIES,
    B,
    K,
    S,
    T,
    ToyEnvs,
    full_module,
    play,
    random_rollout,
    trajectories,
    vae_config,
)

E = 3


class RepeatingEnvs(ToyEnvs):
    """The toy world with its goal kept for a trial."""

    def reset(self, episode: int) -> np.ndarray:
        self.started = [*getattr(self, "started", []), episode]
        return super().reset(episode // E)


def trial(module: Any, episode: int = 2) -> tuple[Rollout, RepeatingEnvs]:
    envs = RepeatingEnvs()
    rollout = play(module, envs, key=[1, 2], episode=episode, episodes=E, acting=Acting())
    return rollout, envs


def test_a_trial_is_its_episodes_one_after_the_other() -> None:
    rollout, envs = trial(full_module())
    decisions = 4  # of 7 simulator steps, two each
    assert envs.started == [6, 7, 8]
    assert rollout.reward.shape == (E * decisions, B)
    assert rollout.observation.shape == (E * decisions + 1, B, S)
    assert rollout.env_steps == E * 7 * B
    starts = rollout.observation[:-1:decisions]
    assert torch.equal(starts[0], starts[1])  # the same goal and start again
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(rollout.action[:decisions], rollout.action[decisions : 2 * decisions])


def test_memory_is_kept_over_a_trial_and_learning_sees_what_acting_saw() -> None:
    module = full_module()
    rollout, _ = trial(module)
    sequence = module.policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting())
    assert torch.allclose(sequence.belief, rollout.task_belief, atol=1e-6)
    alone = module.policy.encode_episodes(
        rollout.observation[4:9], rollout.action[4:8], rollout.reward[4:8], Acting()
    )
    assert not torch.allclose(alone.belief[0], rollout.task_belief[4], atol=1e-3)


def test_every_episode_has_an_outcome() -> None:
    success = torch.zeros(E * T, 2, dtype=torch.bool)
    success[T, 0] = success[2 * T + 1, 0] = success[0, 1] = True
    final = torch.tensor([False, False, False, True, True, False])
    reward = torch.arange(E * T, dtype=torch.float32).unsqueeze(1).repeat(1, 2)
    rollout = random_rollout(2, E * T, success=success, final_success=final, reward=reward)
    rollout = replace(rollout, episodes=E, goal=torch.tensor([7, 9]), env_steps=2 * E * T)
    outcomes = rollout.outcomes()
    assert outcomes.success.tolist() == [False, True, True, False, True, False]
    assert outcomes.final_success.tolist() == final.tolist()
    assert outcomes.family.tolist() == [0, 1] * E
    assert outcomes.goal.tolist() == [7, 9] * E
    assert outcomes.number.tolist() == [0, 0, 1, 1, 2, 2]
    assert outcomes.length.tolist() == [T] * 6
    totals = [sum(range(n * T, (n + 1) * T)) for n in range(E)]
    assert outcomes.episode_return.tolist() == [t for t in totals for _ in range(2)]
    metric = FamilyOutcomes(FAMILIES)
    metric.update(outcomes)
    scores = metric.compute()
    assert [scores[f].success for f in FAMILIES] == pytest.approx([2 / 3, 1 / 3])
    metrics = rollout_metrics(rollout, rollout.task_belief.unsqueeze(-2))
    assert float(metrics["rollout/success/mean"]) == pytest.approx(0.5)
    by_number = [float(metrics[f"rollout/success_in_episode_{n}/mean"]) for n in (1, 2, 3)]
    assert by_number == [0.5, 0.5, 0.5]
    assert float(metrics[f"rollout/return/{FAMILIES[0]}"]) == pytest.approx(sum(totals) / 3)


def test_success_so_far_begins_anew_with_each_episode() -> None:
    success = torch.zeros(2 * T, 2, dtype=torch.bool)
    success[T - 1, :] = True
    final = torch.zeros(4, dtype=torch.bool)
    rollout = replace(random_rollout(2, 2 * T, success=success, final_success=final), episodes=2)
    assert float(
        rollout_metrics(rollout, rollout.task_belief.unsqueeze(-2))["rollout/success_time_avg/mean"]
    ) == pytest.approx(0.5 / T)


@pytest.mark.parametrize("strategy", ["constant_discretisation", "constant_margin", "sub_task"])
@pytest.mark.parametrize("n", [1, 2, 4, 50])
def test_goals_stay_within_their_episode(strategy: Any, n: int) -> None:
    """As in each episode alone, up to its last observation on record."""
    torch.manual_seed(n)
    length = 5
    belief = torch.rand(E * length + 1, B, K)
    goals = goal_steps(strategy, belief, n, n, E)
    for e in range(E):
        first, last = e * length, (e + 1) * length if e == E - 1 else (e + 1) * length - 1
        alone = goal_steps(strategy, belief[first : last + 1], n, n) + first
        assert torch.equal(goals[first:last], alone)
        if e < E - 1:
            assert (goals[last] == last).all()
    assert torch.equal(goal_steps(strategy, belief, n, n, 1), goal_steps(strategy, belief, n, n))


def test_macro_actions_learn_from_goals_within_their_episode() -> None:
    """The loss of a trial whose second episode starts elsewhere is not moved by where that is."""
    module = full_module()
    config = vae_config(goal_state="constant_margin", n=2)
    assert module.policy.task_encoder is not None
    for parameter in module.policy.task_encoder.parameters():
        torch.nn.init.zeros_(parameter)  # beliefs would carry the next episode's states into later ones

    def target_error(episodes: int) -> float:
        """Of standing still: the mean square of targets, in the units of the decoder's error."""
        rollout = random_rollout(steps=2 * T)
        rollout.observation[:T] = 1.0  # nothing moves within an episode
        rollout.observation[T:] = 3.0
        moved = replace(trajectories(rollout), episodes=episodes)
        seen: list[torch.Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            elbo = hmrl.himeta.losses.imputation_elbo
            patch.setattr(
                hmrl.himeta.losses,
                "imputation_elbo",
                lambda target, *rest: seen.append(target) or elbo(target, *rest),
            )
            macro_vae_loss(module.policy, moved, config, Acting())
        return float(seen[0].square().sum())

    assert target_error(2) == 0
    assert target_error(1) > 0


def test_the_replay_keeps_trials_whole() -> None:
    replay = TrajectoryReplay(6)
    replay.append(replace(random_rollout(4, 2 * T), episodes=2))
    assert replay.sample(2).episodes == 2
    other = TrajectoryReplay(6)
    other.load_state_dict(replay.state_dict())
    assert other.sample(2).episodes == 2
    assert deal([replay.state_dict()], 0, 2)["episodes"] == 2
    with pytest.raises(UserError, match=r"trials of episodes \[2\], now they have \[1\].*episodes_per_trial"):
        replay.append(random_rollout(4, 2 * T))
