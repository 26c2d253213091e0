"""Which form of belief learns most about rewards? New task encoders on a run's replayed episodes, in minutes.

python scripts/offline_beliefs.py runs/ml10/checkpoints/last.ckpt

A belief is categorical:K, categorical:GxK (G variables of K categories each) or continuous:WIDTH. Each
encoder starts anew, with the settings of the checkpoint otherwise, and learns to predict the rewards of
other steps of the episode (hmrl.himeta.losses.reward_loss), nothing else. Printed: the squared error on
episodes that were held out, in deviations of the contexts' rewards over all of training, the mean and each
seed's, and seconds an update. It compares beliefs on the same episodes, no more: part of a reward is given
away by the step that is asked about, whatever the belief; and what an encoder learns in training, where
episodes change with it, may differ.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from hmrl.cli.messages import one_sentence
from hmrl.himeta.config import ActorCriticConfig, TaskEncoderConfig
from hmrl.himeta.losses import QUESTIONS, reward_loss
from hmrl.himeta.policy import HierarchicalPolicy, build_policy
from hmrl.rollouts.collect import seeded
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.system.errors import UserError
from hmrl.system.paths import file_to_write
from hmrl.system.rules import as_config
from hmrl.training import checkpoint
from hmrl.training.compatibility import check_settings
from hmrl.types import Acting, Gap, Trajectories

_TESTED = 500  # of each held-out episode


def config_of(belief: str, config: TaskEncoderConfig) -> TaskEncoderConfig:
    """``config`` with a belief such as "categorical:8x8", that predicts rewards."""
    kind, _, size = belief.partition(":")
    numbers = size.split("x")
    if kind not in ("categorical", "continuous") or not all(n.isdecimal() for n in numbers):
        raise UserError(f"belief {belief!r}: use categorical:K, categorical:GxK or continuous:WIDTH")
    if len(numbers) > (2 if kind == "categorical" else 1):
        raise UserError(f"belief {belief!r} has too many numbers: use categorical:GxK or continuous:WIDTH")
    *variables, categories = (int(n) for n in numbers)
    return replace(
        config,
        belief=kind,  # type: ignore[arg-type]
        categories=categories,
        variables=variables[0] if variables else 1,
        reward_coef=config.reward_coef or 1.0,
    )


def episodes_of(saved: dict[str, Any], path: Path) -> Trajectories:
    """Every episode of the checkpoint's replay, of all processes."""
    data = [state["replays"] for state in saved.values() if isinstance(state, dict) and "replays" in state]
    if not data or not any(state["size"] for state in data[0]):
        raise UserError(f"{path} holds no replayed episodes: use the last.ckpt of a run, not its weights")
    parts = []
    for state in data[0]:
        replay = TrajectoryReplay(int(state["size"]))
        replay.load_state_dict(state)
        parts.append(replay.sample(replay.size))
    names = ("observation", "action", "reward", "macro_action")
    joined = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names}
    of_trials = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("family", "hidden_goal")}
    return Trajectories(**joined, **of_trials, episodes=parts[0].episodes)


def with_new_encoder(settings: dict[str, Any], config: TaskEncoderConfig) -> HierarchicalPolicy:
    """A policy that begins anew, without a macro-VAE, in the world of a checkpoint's ``settings``."""
    return build_policy(
        config,
        None,
        ActorCriticConfig(),
        observation_dim=settings["observation_dim"],
        action_dim=settings["action_dim"],
        ego_indices=tuple(settings["ego_indices"]),
        decision_interval=settings["decision_interval"],
        gaps=[Gap(*gap) for gap in settings.get("gaps", ())],
    )


def learn(
    policy: HierarchicalPolicy, episodes: Trajectories, config: TaskEncoderConfig, updates: int
) -> float:
    """Seconds an update of ``policy``'s task encoder."""
    encoder = policy.task_encoder
    assert encoder
    policy.eval()  # as in training: dropout in what learns only
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.lr)
    started = time.perf_counter()
    for _ in range(updates):
        chosen = torch.randperm(len(episodes.family))[: config.trajectories]
        loss = error_of(policy, episodes.select(chosen), QUESTIONS)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(encoder.parameters(), config.max_grad_norm)
        optimizer.step()
    return (time.perf_counter() - started) / max(updates, 1)


def error_of(policy: HierarchicalPolicy, episodes: Trajectories, samples: int) -> torch.Tensor:
    """Squared error of predicted rewards, with gradients; a scalar."""
    assert policy.task_encoder
    sequence = policy.encode_episodes(episodes.observation, episodes.action, episodes.reward, Acting())
    return reward_loss(policy, policy.task_encoder, episodes, sequence, samples)


def compare(
    saved: dict[str, Any], episodes: Trajectories, beliefs: list[str], seeds: list[int], updates: int
) -> dict[str, dict[str, Any]]:
    """By belief: held-out errors, one a seed, before and after the updates, and seconds an update."""
    settings = saved["hyper_parameters"]
    if settings["task_encoder"] is None:
        raise UserError("the checkpoint is of an agent without a task encoder: its settings are needed")
    check_settings(settings)
    base = as_config(TaskEncoderConfig, settings["task_encoder"])
    moments = {
        name.removeprefix("policy."): value
        for name, value in saved["state_dict"].items()
        if re.match(r"policy\.(observation|reward)_moments\.", name)
    }
    with seeded(0):
        held_out, rest = torch.randperm(len(episodes.family)).tensor_split([len(episodes.family) // 5])
    tested, learnt = episodes.select(held_out), episodes.select(rest)
    found: dict[str, dict[str, Any]] = {}
    for belief in beliefs:
        config = config_of(belief, base)
        result: dict[str, Any] = {"before": [], "after": [], "seconds_an_update": []}
        for seed in seeds:
            with seeded(seed):
                policy = with_new_encoder(settings, config)
                unknown = policy.load_state_dict(moments, strict=False).unexpected_keys
                assert not unknown, unknown
                for name in ("before", "after"):
                    policy.eval()
                    with torch.no_grad(), seeded(0):  # the same questions each time
                        result[name].append(float(error_of(policy, tested, _TESTED)))
                    if name == "before":
                        result["seconds_an_update"].append(learn(policy, learnt, config, updates))
        found[belief] = result
        errors = ", ".join(f"{error:.3f}" for error in result["after"])
        seconds = mean(result["seconds_an_update"])
        print(f"{belief:<20}{mean(result['after']):.3f}   ({errors}; {seconds:.2f} s an update)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--beliefs", nargs="+", default=["categorical:32", "categorical:8x8", "continuous:32"]
    )
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=file_to_write, help="a JSON file, too")
    options = parser.parse_args()
    saved = checkpoint.load(options.checkpoint)
    with seeded(0):  # it shuffles them
        episodes = episodes_of(saved, options.checkpoint)
    print(f"error on {len(episodes.family) // 5} of {len(episodes.family)} episodes")
    found = compare(saved, episodes, options.beliefs, options.seeds, options.updates)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"updates": options.updates, "beliefs": found}, indent=2) + "\n")


if __name__ == "__main__":
    with one_sentence():
        main()
