"""A world of the user's, through the public API alone: other families, other sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmrl import (
    Benchmark,
    EnvStep,
    EvaluationConfig,
    HierarchicalMetaRL,
    LatentAnalysis,
    MetaWorldDataModule,
    UserError,
    World,
    make_trainer,
)
from support.toy import tiny_networks, toy_data

HORIZON = 8


class Points:
    """Points in the plane (position now, and one step ago) that are to go to one of two hidden sides."""

    def __init__(self, families: Sequence[str], horizon: int) -> None:
        self.families, self.horizon = tuple(families), horizon
        self._side = np.array([1.0 if family == "right" else -1.0 for family in families])

    def reset(self, episode: int) -> Any:
        self._now = np.zeros((len(self.families), 2))
        return np.concatenate([self._now, self._now], axis=1)

    def step(self, action: Any) -> EnvStep:
        assert action.shape == self._now.shape
        before, self._now = self._now, self._now + 0.1 * action
        reward = self._side * self._now[:, 0]
        return EnvStep(np.concatenate([self._now, before], axis=1), reward, reward > 0.2)

    def close(self) -> None:
        """Nothing to free."""


class PointsData(MetaWorldDataModule):
    def describe(self, *arguments: Any) -> Benchmark:
        world = World(observation_dim=4, action_dim=2, ego_indices=(0, 1), horizon=HORIZON)
        return Benchmark("Points", train=("left", "right"), test=("right",), world=world)

    def make_envs(
        self, backend: Any, goals: Any, envs_per_family: int, *, families: Any = None, **options: Any
    ) -> Points:
        names = families or self.benchmark.families(goals.split)
        return Points([name for name in names for _ in range(envs_per_family)], self.horizon)


def points(cls: type[MetaWorldDataModule] = PointsData, **changes: Any) -> MetaWorldDataModule:
    few = EvaluationConfig(goals_per_family=2, envs_per_family=1, backend="own")
    options = {"backend": "own", "horizon": HORIZON, "envs_per_family": 4, "validation": few, "test": few}
    return cls(**(options | changes))


class Shown(Points):
    """They hand out the array that they go on with, and show their side in it if they may."""

    def __init__(self, families: Sequence[str], horizon: int, visible: bool) -> None:
        super().__init__(families, horizon)
        self.visible = visible

    def reset(self, episode: int) -> Any:
        self._all = np.concatenate([super().reset(episode), self._side[:, None]], axis=1)
        return self._all if self.visible else self._all * [1, 1, 1, 1, 0]

    def step(self, action: Any) -> EnvStep:
        self._side = self._all[:, 4]
        taken = super().step(action)
        self._all[:, :4] = taken.observation
        return taken._replace(observation=self._all if self.visible else self._all * [1, 1, 1, 1, 0])


@pytest.mark.parametrize("indices", [(), (4,)], ids=["a goal nobody declared", "declared"])
@pytest.mark.parametrize("told", ["nobody", "critic", "encoder"])
def test_goals_are_hidden_from_the_agent_whoever_is_told_them_in_training(
    indices: tuple[int, ...], told: str, tmp_path: Path
) -> None:
    """And hiding them leaves the world as it is, which hands out the array that holds them."""

    class ShownData(PointsData):
        def describe(self, *arguments: Any) -> Benchmark:
            world = World(5, 2, ego_indices=(0, 1), goal_indices=indices, horizon=HORIZON)
            return Benchmark("Shown", train=("left", "right"), test=("right",), world=world)

        def make_envs(
            self,
            backend: Any,
            goals: Any,
            envs_per_family: int,
            *,
            goal_visible: bool = False,
            **options: Any,
        ) -> Points:
            names = options.get("families") or self.benchmark.families(goals.split)
            return Shown([name for name in names for _ in range(envs_per_family)], self.horizon, goal_visible)

    data = points(ShownData)
    networks = tiny_networks()
    critic_input = "task" if told == "critic" else "belief"
    networks["actor_critic"] = replace(networks["actor_critic"], critic_input=critic_input)
    networks["task_encoder"] = replace(networks["task_encoder"], goal_coef=float(told == "encoder"))
    model = HierarchicalMetaRL(**data.sizes, **networks)
    options = {"accelerator": "cpu", "devices": 1, "check_val_every_n_epoch": 2}
    make_trainer(tmp_path, 2 * 4 * HORIZON, **options).fit(model, data)
    replayed = data.replay.sample(100)
    assert (replayed.observation[..., 4] == 0).all()
    side = 2.0 * replayed.family - 1
    known = side[:, None] if indices and told != "nobody" else side[:, None][:, :0]
    assert torch.equal(replayed.hidden_goal, known)
    assert torch.allclose(replayed.reward[0], 2 * side * 0.15 * replayed.action[0, :, 0].clamp(-1, 1))


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("goal_dim", "goal_dim is 0, but goals have 3 numbers: pass goal_dim=data.goal_dim"),
        ("gaps", r"gaps are \[\] and those of this world \[\[4, 0, 0.03\].*: pass gaps=data.gaps"),
    ],
)
def test_what_a_model_must_know_of_its_world_is_asked_for_before_a_rollout(
    tmp_path: Path, missing: str, said: str
) -> None:
    data = toy_data()
    forgotten = {name: value for name, value in data.sizes.items() if name != missing}
    model = HierarchicalMetaRL(**forgotten, **tiny_networks())
    with pytest.raises(UserError, match=said):
        make_trainer(tmp_path, 1, accelerator="cpu", devices=1).fit(model, data)
    assert data.replay.size == 0


def test_a_world_of_ones_own_trains_and_is_tested(tmp_path: Path) -> None:
    data = points()
    assert (data.families, data.observation_dim, data.action_dim) == (("left", "right"), 4, 2)
    model = HierarchicalMetaRL(**data.sizes, **tiny_networks())
    steps = 2 * 4 * HORIZON
    options = {"accelerator": "cpu", "devices": 1, "check_val_every_n_epoch": 2}
    trainer = make_trainer(str(tmp_path), 2 * steps, [LatentAnalysis(str(tmp_path))], **options)
    trainer.fit(model, data)
    assert int(model.env_steps) == 2 * steps
    trainer.test(model, data)
    results = json.loads((tmp_path / "test-first_episode.json").read_text())
    assert results["data"]["benchmark"] == "Points"
    assert set(results["scores"]["train"]["sampled"]) == {"left", "right", "mean"}
    assert set(results["scores"]["test"]["sampled"]) == {"right", "mean"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"backend": "envpool"}, ("data.backend is envpool", "Points", "use own")),
        ({"test": EvaluationConfig(2, 1, "metaworld")}, ("data.test.backend is metaworld", "use own")),
        ({"test": EvaluationConfig(2, 1, "own", agent="expert")}, ("data.test.agent is expert", "Points")),
        (
            {"test": EvaluationConfig(2, 1, "own", "meta_world")},
            ("data.test.protocol is meta_world", "Points"),
        ),
    ],
)
def test_what_a_world_of_ones_own_has_not_is_refused(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        points(**changes)
    for part in parts:
        assert part in str(error.value)


def test_a_description_without_environments_is_refused() -> None:
    class Unfinished(PointsData):
        make_envs = MetaWorldDataModule.make_envs  # type: ignore[assignment]

    data = points(Unfinished)
    with pytest.raises(UserError, match="override make_envs"):
        data.make_envs("own", data.validation.goals_of("train", 1, "own", None, training=0, stream=2), 1)


def test_the_backend_of_other_worlds_is_refused_for_metaworld() -> None:
    with pytest.raises(UserError, match="backend is own, which cannot run"):
        MetaWorldDataModule(backend="own")
