"""The script that plays trials on the simulator of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import trials
from hmrl.envs.benchmarks import ACTION_DIM, OBSERVATION_DIM
from hmrl.types import EnvStep
from support.toy import ToyDataModule, tiny_module, toy_data

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
    agent = Recorder()
    success, total = trials.play(agent, Envs(), EPISODES)  # type: ignore[arg-type]
    expected: list[Any] = ["init"]
    for episode in range(EPISODES):
        for t in range(HORIZON):
            expected += [10.0 * episode + t, ("ends" if t == HORIZON - 1 else "goes on", t + 1.0)]
    expected += ["adapt", "reset", *((10.0 * EPISODES + t, float(t)) for t in range(HORIZON))]
    assert agent.heard == expected
    assert success.tolist() == [[0] * B, [1] * B, [0] * B]
    assert total.tolist() == [[15.0] * B] * 3


def run(
    monkeypatch: pytest.MonkeyPatch, module: Any, tmp_path: Path, *arguments: object
) -> list[ToyDataModule]:
    """``trials.py`` on the toy world; the data modules that it made."""
    made: list[ToyDataModule] = []
    monkeypatch.setattr(
        trials, "MetaWorldDataModule", lambda **hparams: made.append(toy_data(**hparams)) or made[-1]
    )
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(toy_data().hparams),
        "average_beliefs": module.average_beliefs.state_dict(),
    }
    torch.save(content, tmp_path / "agent.ckpt")
    monkeypatch.setattr("sys.argv", ["trials", *map(str, (tmp_path / "agent.ckpt", *arguments))])
    trials.main()
    return made


@pytest.mark.parametrize("adaptation", ["memory", "beliefs"])
def test_the_table_is_what_the_environments_saw(
    adaptation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tiny_module(toy_data())
    beliefs = module.average_beliefs
    beliefs.mean = torch.rand(10, 7, module.policy.task_encoder.belief_dim)
    beliefs.count = torch.ones(10, dtype=torch.long)
    out = tmp_path / "trials.csv"
    options = ("--adaptation", adaptation, "--episodes", 3, "--goals", 2, "--out", out)
    (data,) = run(monkeypatch, module, tmp_path, *options)
    printed = capsys.readouterr().out.splitlines()
    table = pd.read_csv(out).set_index(["split", "adaptation", "episode", "family"])
    seen = data.episodes
    assert len(seen) == 15 * 2 * 4
    assert len({(e.family, e.goal) for e in seen}) == 15 * 2  # a goal a trial
    for split, families in (("train", 10), ("test", 5)):
        means = []
        for number in range(4):
            own = [e for e in seen if (e.split, e.number) == (split, number)]
            assert len(own) == families * 2
            by_family = {e.family: [x for x in own if x.family == e.family] for e in own}
            for family, episodes in by_family.items():
                row = table.loc[(split, adaptation, number + 1, family)]
                assert row["success"] == np.mean([any(e.successes) for e in episodes])
                assert row["return"] == pytest.approx(np.mean([sum(e.rewards) for e in episodes]), abs=1e-4)
            means.append(
                np.mean([table.loc[(split, adaptation, number + 1, f), "success"] for f in by_family])
            )
            found = table.loc[(split, adaptation, number + 1, "mean"), "success"]
            assert found == pytest.approx(means[-1], abs=1e-4)
        shown = next(line for line in printed if line.startswith(split))
        assert [float(x) for x in shown.split()[1:]] == pytest.approx(means, abs=1e-3)


def test_an_agent_that_cannot_search_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module(toy_data(), task_encoder=None)
    with pytest.raises(SystemExit, match=r"trials: .*adaptation is beliefs, but this agent has none"):
        run(monkeypatch, module, tmp_path, "--adaptation", "beliefs")
