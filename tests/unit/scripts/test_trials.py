"""The script that plays trials on the simulator of training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import trials
from hmrl.envs.benchmarks import ACTION_DIM, OBSERVATION_DIM, Goals
from hmrl.evaluation.metaworld_protocol import SearchingTrialAgent, TrialAgent
from hmrl.rollouts.collect import seeded
from hmrl.system.errors import UserError
from hmrl.training import loading
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, EnvStep, Split
from support.toy import HORIZON as TOY_HORIZON
from support.toy import Episode, ToyDataModule, checkpoint_of, tiny_module, toy_data

B, HORIZON, EPISODES = 3, 5, 2


class Envs:
    """Observations say episode and step; rewards are the number of the step; solved in episode 1 alone."""

    families = ("reach", "reach", "push")
    horizon = HORIZON

    def reset(self, episode: int) -> np.ndarray:
        self.episode, self.t = episode, 0
        return self._observation()

    def step(self, action: np.ndarray) -> EnvStep:
        assert action.shape == (B, ACTION_DIM)
        self.t += 1
        solved = np.full(B, self.episode == 1 and self.t == 2)
        return EnvStep(self._observation(), np.full(B, float(self.t)), solved)

    def _observation(self) -> np.ndarray:
        return np.full((B, OBSERVATION_DIM), 10.0 * self.episode + self.t)


class Recorder:
    """Says what it was asked, in order."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def init(self) -> None:
        self.heard.append("init")

    def adapt(self) -> None:
        self.heard.append("adapt")

    def reset(self, mask: np.ndarray) -> None:
        self.heard.append("reset")

    def adapt_action(self, seen: np.ndarray) -> tuple[np.ndarray, dict]:
        self.heard.append(seen[0, 0])
        return np.zeros((B, ACTION_DIM)), {}

    def eval_action(self, seen: np.ndarray) -> np.ndarray:
        self.heard.append((seen[0, 0], seen[0, OBSERVATION_DIM + ACTION_DIM]))
        return np.zeros((B, ACTION_DIM))

    def step(self, timestep: Any) -> None:
        ends = np.logical_or(timestep.terminated, timestep.truncated)
        self.heard.append(("ends" if ends.all() else "goes on", timestep.reward[0]))


def test_a_trial_is_adaptation_then_evaluation_on_the_next_episodes() -> None:
    recorder = Recorder()
    success, total = trials.play(recorder, Envs(), EPISODES)  # type: ignore[arg-type]
    expected: list[Any] = ["init"]
    for episode in range(EPISODES):
        for t in range(HORIZON):
            expected += [10.0 * episode + t, ("ends" if t == HORIZON - 1 else "goes on", t + 1.0)]
    expected += ["adapt", "reset", *((10.0 * EPISODES + t, float(t)) for t in range(HORIZON))]
    assert recorder.heard == expected
    assert success.tolist() == [[0] * B, [1] * B, [0] * B]
    assert total.tolist() == [[15.0] * B] * 3


def run(monkeypatch: pytest.MonkeyPatch, module: Any, tmp_path: Path, *arguments: object) -> ToyDataModule:
    """``trials.py`` on the toy world; the data module that it made."""
    made: list[ToyDataModule] = []

    def make(**hparams: Any) -> ToyDataModule:
        made.append(toy_data(**hparams))
        return made[-1]

    monkeypatch.setattr(loading, "MetaWorldDataModule", make)
    content = checkpoint_of(module, toy_data()) | {"average_beliefs": module.average_beliefs.state_dict()}
    torch.save(content, tmp_path / "agent.ckpt")
    monkeypatch.setattr("sys.argv", ["trials", *map(str, (tmp_path / "agent.ckpt", *arguments))])
    trials.main()
    return made[-1]


def agent() -> HierarchicalMetaRL:
    """With beliefs on which it acts otherwise than on its own."""
    with seeded(8):
        module = tiny_module(toy_data())
        for parameter in module.policy.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        beliefs, decisions = module.average_beliefs, -(-TOY_HORIZON // module.policy.decision_interval)
        beliefs.mean = torch.rand(10, decisions, module.policy.task_encoder.belief_dim)  # type: ignore[union-attr]
        beliefs.count = torch.ones(10, dtype=torch.long)
    return module


def means(seen: list[Episode], split: str, number: int) -> dict[str, tuple[float, float]]:
    """Success and return by family of what the toy world recorded."""
    own = [e for e in seen if (e.split, e.number) == (split, number)]
    found = {}
    for family in dict.fromkeys(e.family for e in own):
        episodes = [e for e in own if e.family == family]
        solved, earned = [any(e.successes) for e in episodes], [sum(e.rewards) for e in episodes]
        found[family] = (float(np.mean(solved)), float(np.mean(earned)))
    return found


@pytest.mark.parametrize("adaptation", ["memory", "beliefs"])
def test_the_table_is_what_the_agent_does_in_trials_on_fresh_goals(
    adaptation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, out = agent(), tmp_path / "trials.csv"
    options = ("--adaptation", adaptation, "--episodes", 3, "--goals", 2, "--seed", 5, "--out", out)
    seen = run(monkeypatch, module, tmp_path, *options).episodes
    printed = capsys.readouterr().out.splitlines()
    table = pd.read_csv(out).set_index(["split", "adaptation", "episode", "family"])
    assert len(seen) == 15 * 2 * 4
    assert len({(e.family, e.goal) for e in seen}) == 15 * 2  # a goal a trial

    data = toy_data()
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        envs = data.make_envs(data.backend, Goals(split, 5, None, 1001, 4), 2)
        who: tuple[Any, ...] = (module.policy, Acting(), envs.families)
        player = TrialAgent(*who)
        if adaptation == "beliefs":
            player = SearchingTrialAgent(*who, module.average_beliefs.mean, 3)
        with seeded(5, 1001, int(split == "test")):
            success, total = trials.play(player, envs, 3)
        family = np.array(envs.families)
        shown = next(line for line in printed if line.startswith(split)).split()[1:]
        for number in range(4):
            found = means(seen, split, number)
            assert found == means(data.episodes, split, number)
            for name, (solved, earned) in found.items():
                row = table.loc[(split, adaptation, number + 1, name)]
                assert row["success"] == solved == success[number, family == name].mean()
                assert row["return"] == pytest.approx(earned, abs=1e-4)
                assert row["return"] == pytest.approx(total[number, family == name].mean(), abs=1e-4)
            of_all = np.mean([solved for solved, _ in found.values()])
            mean = table.loc[(split, adaptation, number + 1, "mean"), "success"]
            assert mean == pytest.approx(of_all, abs=1e-4)
            assert float(shown[number]) == pytest.approx(of_all, abs=1e-3)


def test_beliefs_are_another_way_to_adapt_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = agent()
    memory, beliefs = (
        run(monkeypatch, module, tmp_path, "--adaptation", name, "--episodes", 3, "--goals", 1).episodes
        for name in ("memory", "beliefs")
    )
    for number in range(4):
        left, right = (means(seen, "train", number) for seen in (memory, beliefs))
        assert (left == right) == (number == 0)


@pytest.mark.parametrize(
    ("networks", "arguments", "said"),
    [
        (
            {"task_encoder": None},
            ("--adaptation", "beliefs"),
            "adaptation is beliefs, but this agent has none",
        ),
        ({}, ("--adaptation", "beliefs"), "the checkpoint holds no average beliefs"),
        ({}, ("--episodes", 0), "--episodes is 0: use 1 or more"),
        ({}, ("--goals", 0), "--goals is 0: use 1 or more"),
        ({}, ("--seed", -1), "--seed is -1: use 0 or more"),
    ],
)
def test_what_cannot_be_played_is_refused(
    networks: dict[str, Any],
    arguments: tuple[object, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = tiny_module(toy_data(), **networks)
    with pytest.raises(UserError, match=re.escape(said)):
        run(monkeypatch, module, tmp_path, *arguments)


@pytest.mark.parametrize(
    "world",
    [{"goals_shown": True}, {"benchmark": "GridWorld", "backend": "gridworld"}],
    ids=["goals", "grid"],
)
def test_worlds_that_meta_worlds_protocol_refuses_are_refused(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MetaWorldDataModule", lambda **hparams: toy_data(**hparams | world))
    torch.save(checkpoint_of(agent(), toy_data()), tmp_path / "agent.ckpt")
    monkeypatch.setattr("sys.argv", ["trials", str(tmp_path / "agent.ckpt")])
    with pytest.raises(UserError, match=r"data\."):
        trials.main()
