"""A copy of a checkpoint that holds the average beliefs of its training families, for agents without them.

python scripts/average_beliefs.py results/ml10-20m/default/agent.weights.ckpt --out runs/agent.beliefs.ckpt

Agents that are trained now have theirs in each checkpoint. They are needed for the protocol meta_world with
data.meta_world.adaptation beliefs. Here they are made of fresh rollouts in the world of training, with the
weights as they are; everything else in the checkpoint is copied.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from hmrl.cli.messages import one_sentence
from hmrl.envs.benchmarks import Goals
from hmrl.himeta.average_beliefs import AverageBeliefs
from hmrl.rollouts.collect import collect, seeded
from hmrl.system.errors import UserError
from hmrl.system.paths import file_to_write
from hmrl.training import checkpoint
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.loading import agent_of, data_of
from hmrl.training.module import HierarchicalMetaRL

_STREAM = 1000  # of goals and of acting: none of training's, nor of evaluation's


def average_beliefs(agent: HierarchicalMetaRL, data: MetaWorldDataModule, rollouts: int) -> AverageBeliefs:
    """Of fresh rollouts, each as large as one of training, on goals of their own where training has many."""
    found = AverageBeliefs(len(data.families))
    stream = _STREAM if data.goals_per_family is None else 0  # fixed goals are those of training
    goals = Goals("train", data.seed, data.goals_per_family, stream, data.episodes_per_trial)
    seen, age = (data.backend, goals, data.envs_per_family, data.perturbation, _STREAM), data.age(agent)
    envs = data.seen_envs(*seen, age=age)
    try:
        for number in range(rollouts):
            with seeded(data.seed, _STREAM, number):
                found.update(
                    collect(
                        envs,
                        agent.policy,
                        episode=number,
                        acting=agent.acting,
                        families=data.families,
                        split="train",
                        mode="training",
                        episodes=data.episodes_per_trial,
                    )
                )
    finally:
        envs.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=file_to_write, help="a file (default: beside it, as NAME.beliefs.ckpt)")
    parser.add_argument("--rollouts", type=int, default=3, help="rollouts of training's size (default: 3)")
    options = parser.parse_args()
    path: Path = options.checkpoint
    out: Path = options.out or path.with_suffix(".beliefs.ckpt")
    if options.rollouts < 1:
        raise UserError(f"--rollouts is {options.rollouts}: use 1 or more")
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out")
    saved: dict[str, Any] = checkpoint.load(path)
    if saved["hyper_parameters"]["task_encoder"] is None:
        raise UserError(f"{path} is of an agent without a task encoder, which has no beliefs")
    agent, data = agent_of(saved), data_of(saved)
    averages = average_beliefs(agent, data, options.rollouts)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    torch.save(saved | {"average_beliefs": averages.state_dict()}, temporary)
    temporary.replace(out)
    print(f"average beliefs of {len(averages.known())} families: {out}")


if __name__ == "__main__":
    with one_sentence():
        main()
