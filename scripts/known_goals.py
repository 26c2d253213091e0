"""What does a belief know of the hidden goal? A probe on the beliefs of a run's replayed episodes.

python scripts/known_goals.py runs/ml10/checkpoints/last.ckpt

A small network learns to read the goal off the belief, and sees nothing else. Goals are standardised within
their families, and each family has outputs of its own. Printed, for each family whose goals vary: the share
of their variance that the network cannot explain on held-out episodes, at some decisions. 1 is a belief that
knows nothing, 0 one that knows the goal. Some goals can be seen: a door's handle is where the goal is. Those
of reach, push and pick-place cannot.

With --encoder, a task encoder begins anew and learns together with the network, from goals alone: what its
memory could know after so many updates. The checkpoint must be the last.ckpt of a run in which critic or
encoder are told goals.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from hmrl.cli.messages import one_sentence
from hmrl.himeta.config import ContextReward, TaskEncoderConfig
from hmrl.himeta.normalizer import GoalScaler
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.rollouts.collect import seeded
from hmrl.system.errors import UserError
from hmrl.system.paths import file_to_write
from hmrl.system.rules import as_config
from hmrl.training import checkpoint
from hmrl.training.loading import agent_of
from hmrl.types import Acting, Trajectories
from offline_beliefs import episodes_of, with_new_encoder


class Probe(nn.Module):
    """From beliefs ``[T, N, K]`` of families ``[N]`` to goals ``[T, N, G]``.

    Args:
        belief_dim, families, goal_dim: K, their number and G.
    """

    def __init__(self, belief_dim: int, families: int, goal_dim: int) -> None:
        super().__init__()
        self.goal_dim = goal_dim
        self.net = nn.Sequential(nn.Linear(belief_dim, 128), nn.Tanh(), nn.Linear(128, families * goal_dim))

    def forward(self, belief: Tensor, family: Tensor) -> Tensor:
        """Goals."""
        of_each: Tensor = self.net(belief).unflatten(-1, (-1, self.goal_dim))
        return of_each[:, torch.arange(len(family)), family]


def beliefs(policy: HierarchicalPolicy, episodes: Trajectories) -> Tensor:
    """``[T+1, N, K]``"""
    return policy.encode_episodes(episodes.observation, episodes.action, episodes.reward, Acting()).belief


def unexplained(
    policy: HierarchicalPolicy,
    learnt: Trajectories,
    tested: Trajectories,
    families: int,
    updates: int,
    *,
    encoder_learns: bool,
) -> Tensor:
    """The share of goals' variance that is left, ``[T+1, families]``; NaN where goals do not vary."""
    goal_dim = learnt.hidden_goal.shape[1]
    scaler = GoalScaler(goal_dim, families)
    for part in (learnt, tested):
        scaler.observe(part.hidden_goal, part.family)
    probe = Probe(policy.task_encoder.belief_dim, families, goal_dim)  # type: ignore[union-attr]
    learning = [*probe.parameters(), *(policy.task_encoder.parameters() if encoder_learns else ())]  # type: ignore[union-attr]
    optimizer = torch.optim.Adam(learning, lr=2e-3)
    policy.eval()
    for _ in range(updates):
        some = learnt.select(torch.randperm(len(learnt.family))[:20])
        with torch.set_grad_enabled(encoder_learns):
            y = beliefs(policy, some)
        error = probe(y, some.family) - scaler(some.hidden_goal, some.family)
        optimizer.zero_grad()
        error.square().mean().backward()
        clip_grad_norm_(learning, 1.0)
        optimizer.step()
    with torch.no_grad():
        goal = scaler(tested.hidden_goal, tested.family)
        error = (probe(beliefs(policy, tested), tested.family) - goal).square().sum(-1)
        spread = goal.square().sum(-1)
    left = [
        error[:, own].mean(1) / spread[own].mean()
        if spread[own := tested.family == k].mean() > 1e-3
        else error.new_full((len(error),), torch.nan)
        for k in range(families)
    ]
    return torch.stack(left, dim=1)


def policy_of(saved: dict[str, Any], context: str | None, learnt: Trajectories) -> HierarchicalPolicy:
    """The checkpoint's policy; with a ``context``, a new encoder and the moments of ``learnt``."""
    settings = saved["hyper_parameters"]
    if settings["task_encoder"] is None:
        raise UserError("the checkpoint is of an agent without a task encoder")
    if context is None:
        return agent_of(saved).policy
    config = as_config(TaskEncoderConfig, settings["task_encoder"])
    new = with_new_encoder(settings, replace(config, context_reward=context, goal_coef=0.0))  # type: ignore[arg-type]
    new.observe(learnt.observation, learnt.reward, learnt.hidden_goal[:, :0])  # its critic is told none
    return new


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--encoder", choices=get_args(ContextReward), help="of a new one: context_reward")
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--decisions", type=int, nargs="+", default=[5, 25, 50, 100, 200])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=file_to_write, help="a JSON file, too")
    options = parser.parse_args()
    saved = checkpoint.load(options.checkpoint)
    names = saved["hyper_parameters"]["families"]
    with seeded(options.seed):
        episodes = episodes_of(saved, options.checkpoint)  # which shuffles them
        if not episodes.hidden_goal.shape[1]:
            raise UserError(f"{options.checkpoint} holds no goals: nobody was told them in training")
        parts = torch.randperm(len(episodes.family)).tensor_split([len(episodes.family) // 5])
        tested, learnt = (episodes.select(part) for part in parts)
        policy = policy_of(saved, options.encoder, learnt)
        learns = options.encoder is not None
        left = unexplained(policy, learnt, tested, len(names), options.updates, encoder_learns=learns)
    decisions = [t for t in options.decisions if t < len(left)]
    print(f"unexplained share of the goal's variance, {len(tested.family)} held-out episodes, at decision")
    print(" " * 24 + "".join(f"{t:>7}" for t in decisions))
    found = {}
    for k, name in enumerate(names):
        if not left[:, k].isnan().any():
            found[name] = {t: round(float(left[t, k]), 3) for t in decisions}
            print(f"{name:<24}" + "".join(f"{value:>7.2f}" for value in found[name].values()))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps({"updates": options.updates, "unexplained": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    with one_sentence():
        main()
