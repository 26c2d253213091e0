"""Success in each episode of a trial: does an agent adapt to a task, by memory or by beliefs?

python scripts/trials.py runs/ml10/checkpoints/last.ckpt --adaptation beliefs --out runs/trials.csv

A trial has adaptation episodes and one evaluation episode, all of full length on one fresh goal. Agents act,
and are refused, as in the protocol meta_world. But the simulator is that of training, and no episode ends at
success: the numbers are not that protocol's. Printed and written are means over goals. In the first episode
nothing has been adapted to. A checkpoint without average beliefs needs scripts/average_beliefs.py first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from metaworld.evaluation import Timestep

from hmrl.cli.messages import one_sentence
from hmrl.envs.benchmarks import ACTION_DIM, Goals
from hmrl.evaluation.belief_search import check_beliefs
from hmrl.evaluation.metaworld_protocol import SearchingTrialAgent, TrialAgent
from hmrl.evaluation.protocols import Adaptation, EvaluationConfig
from hmrl.rollouts.collect import few_threads, seeded
from hmrl.system.errors import UserError
from hmrl.system.paths import file_to_write
from hmrl.training import checkpoint
from hmrl.training.compatibility import check_deviations
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.loading import agent_of, data_of
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, FloatArray, Split, TaskEnvs

_STREAM = 1001  # of goals and of acting: none of training's, nor of evaluation's


def play(agent: TrialAgent, envs: TaskEnvs, adaptation_episodes: int) -> tuple[FloatArray, FloatArray]:
    """One trial in each of B environments, whose next episodes must be on one goal.

    Returns:
        Success (0 or 1) and return of each episode, the last of which is the evaluation. ``[E + 1, B]`` twice
    """
    episodes, count = adaptation_episodes + 1, len(envs.families)
    success, total = np.zeros((episodes, count)), np.zeros((episodes, count))
    reward = np.zeros(count)
    agent.init()
    for number in range(episodes):
        evaluates = number == adaptation_episodes
        if evaluates:
            agent.adapt()
        observation = envs.reset(number)
        begins = np.ones(count, dtype=np.bool_)
        if evaluates:
            agent.reset(begins)
            reward = np.zeros(count)
        for step in range(envs.horizon):
            padding = np.zeros((count, ACTION_DIM + 1))
            seen = np.concatenate([observation, padding[:, :-1], reward[:, None], padding[:, -1:]], axis=1)
            action = agent.eval_action(seen) if evaluates else agent.adapt_action(seen)[0]
            observation, reward, solved = envs.step(action)
            success[number] = np.maximum(success[number], solved)
            total[number] += reward
            if not evaluates:
                ends = np.full(count, step == envs.horizon - 1)
                agent.step(Timestep(seen, action, reward, np.zeros_like(ends), ends, {}))
    return success, total


def table(agent: HierarchicalMetaRL, data: MetaWorldDataModule, options: argparse.Namespace) -> pd.DataFrame:
    """A row for each split, family (or mean) and episode of the trials."""
    rows: list[dict[str, Any]] = []
    averages = agent.average_beliefs.known()
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        goals = Goals(split, options.seed, None, _STREAM, options.episodes + 1)
        envs = data.make_envs(data.backend, goals, options.goals)
        try:
            who: tuple[Any, ...] = (agent.policy, Acting(), envs.families)
            player = TrialAgent(*who)
            if options.adaptation == "beliefs":
                player = SearchingTrialAgent(*who, averages, options.episodes)
            with seeded(options.seed, _STREAM, int(split == "test")), few_threads(len(envs.families)):
                success, total = play(player, envs, options.episodes)
        finally:
            envs.close()
        family = np.array(envs.families)
        for number in range(len(success)):
            of = {f: (success[number, family == f].mean(), total[number, family == f].mean()) for f in family}
            of["mean"] = tuple(np.mean(list(of.values()), axis=0))
            where = {"split": split, "adaptation": options.adaptation, "episode": number + 1}
            rows += [where | {"family": f, "success": s, "return": r} for f, (s, r) in of.items()]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--adaptation", choices=get_args(Adaptation), default="memory")
    parser.add_argument("--episodes", type=int, default=10, help="of adaptation")
    parser.add_argument("--goals", type=int, default=20, help="a family, each with one trial")
    parser.add_argument("--seed", type=int, default=1, help="of goals and actions")
    parser.add_argument("--out", type=file_to_write, help="a CSV file, too")
    options = parser.parse_args()
    for name, least in (("episodes", 1), ("goals", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} is {getattr(options, name)}: use {least} or more")
    saved = checkpoint.load(options.checkpoint)
    agent = agent_of(saved)
    check_deviations(saved, [Acting()], training=False)
    data = data_of(saved, test=EvaluationConfig(backend="metaworld", protocol="meta_world"))
    data.check("test", 1)
    if options.adaptation == "beliefs":
        decisions = -(-data.horizon // agent.policy.decision_interval)
        check_beliefs(agent.policy, agent.average_beliefs.known(), decisions)
    found = table(agent, data, options)
    means = found[found["family"] == "mean"].pivot(index="split", columns="episode", values="success")
    print(f"success by episode of the trial, {options.goals} goals a family; the last is the evaluation")
    print(means.loc[["train", "test"]].round(3).to_string())
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found.round(4).to_csv(options.out, index=False)


if __name__ == "__main__":
    with one_sentence():
        main()
