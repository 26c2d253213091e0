"""Families are Meta-World's own, and only training families are ever trained on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import envpool
import pytest
from metaworld import env_dict

import hmrl.envs.metaworld
from hmrl.envs import benchmark, make_envs
from hmrl.envs.benchmarks import Goals, all_families
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.average_beliefs import AverageBeliefs
from hmrl.system.errors import UserError
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.types import Acting
from support.meta_world import RandomAgent


@pytest.mark.parametrize(("name", "train", "test"), [("ML10", 10, 5), ("ML25", 25, 5), ("ML45", 45, 5)])
def test_families_are_metaworlds_own(name: Any, train: int, test: int) -> None:
    bench, own = benchmark(name), getattr(env_dict, f"{name}_V3")
    assert [f"{f}-v3" for f in bench.train] == list(own["train"])
    assert [f"{f}-v3" for f in bench.test] == list(own["test"])
    assert (len(bench.train), len(bench.test)) == (train, test)
    # Meta-World's own ML25 holds basketball out and trains on it, too.
    assert set(bench.train) & set(bench.test) == ({"basketball"} if name == "ML25" else set())
    assert bench.families("train") == bench.train
    assert bench.families("test") == bench.test


def test_ml10_is_the_published_list() -> None:
    bench = benchmark("ML10")
    assert set(bench.train) == {
        *("reach", "push", "pick-place", "door-open", "drawer-close", "button-press-topdown"),
        *("peg-insert-side", "window-open", "sweep", "basketball"),
    }
    assert set(bench.test) == {"drawer-open", "door-close", "shelf-place", "sweep-into", "lever-pull"}


def test_ml1_has_one_family_in_both_splits() -> None:
    assert len(all_families()) == 50
    for family in all_families():
        bench = benchmark("ML1", [family])
        assert bench.train == bench.test == (family,)
    assert benchmark("ML1", ["reach-v3"], ["reach"]) == benchmark("ML1", ["reach"])


def test_custom_keeps_the_lists_in_order_with_or_without_suffix() -> None:
    bench = benchmark("custom", ["window-open", "reach-v3"], ["door-close"])
    assert (bench.train, bench.test) == (("window-open", "reach"), ("door-close",))


@pytest.mark.parametrize(
    ("name", "train", "test", "named"),
    [
        ("custom", ["reach", "juggle"], ["push"], "juggle"),
        ("custom", ["reach"], ["juggle-v3"], "juggle"),
        ("ML1", ["juggle"], [], "juggle"),
        ("custom", ["reach", "push"], ["push"], "push"),
        ("custom", ["reach", "reach"], ["push"], "reach"),
        ("custom", ["reach"], [], "data.test_families"),
        ("custom", [], ["reach"], "data.train_families"),
        ("ML1", ["reach", "push"], [], "push"),
        ("ML1", ["reach"], ["push"], "push"),
        ("ML1", [], [], "data.train_families"),
        ("ML10", ["reach"], [], "ML10"),
        ("ML45", [], ["reach"], "ML45"),
    ],
)
def test_wrong_families_are_refused_by_name(name: Any, train: list[str], test: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        benchmark(name, train, test)


@pytest.mark.parametrize(
    ("envs_per_family", "world_size", "horizon"), [(3, 2, 9), (0, 1, 9), (1, 1, 501), (1, 1, 0)]
)
def test_impossible_environments_are_refused(envs_per_family: int, world_size: int, horizon: int) -> None:
    wrong = envs_per_family if horizon == 9 else horizon
    with pytest.raises(UserError, match=str(wrong)):
        make_envs(
            "envpool",
            benchmark("ML10"),
            Goals("train", 1, None, 0),
            envs_per_family,
            horizon=horizon,
            world_size=world_size,
        )


def test_the_grid_worlds_have_families_of_their_own() -> None:
    small, large = benchmark("GridWorld"), benchmark("GridWorldLarge")
    assert (len(small.train), len(small.test)) == (5, 3)
    assert not set(small.train) & set(small.test)
    assert (large.train, large.test) == (small.train, small.test)
    assert (large.world.scale, large.world.horizon) == (4 * small.world.scale, 4 * small.world.horizon)
    with pytest.raises(UserError, match="hall"):
        benchmark("custom", ["hall"], ["reach"])


@pytest.mark.parametrize(("name", "backend"), [("ML10", "gridworld"), ("GridWorld", "envpool")])
def test_a_simulator_of_another_world_is_refused(name: Any, backend: Any) -> None:
    with pytest.raises(UserError, match=f"{backend}, which cannot run data.benchmark {name}"):
        make_envs(backend, benchmark(name), Goals("train", 1, None, 0), 1, horizon=3)


def test_only_the_reference_simulator_has_a_number_of_fixed_goals() -> None:
    assert benchmark("ML10").fixed_goals("metaworld") == 50
    assert benchmark("ML10").fixed_goals("metaworld_async") == 50
    assert benchmark("ML10").fixed_goals("envpool") is None
    assert benchmark("GridWorld").fixed_goals("gridworld") is None


class RandomPolicy(RandomAgent):
    def is_random(self, acting: Acting) -> bool:
        return True


def _attached(data: MetaWorldDataModule) -> MetaWorldDataModule:
    """The data module as inside a trainer whose module acts at random."""
    module = SimpleNamespace(
        policy=RandomPolicy(),
        acting=Acting(),
        iteration=0,
        uses_goals=False,
        average_beliefs=AverageBeliefs(0),
    )
    data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    return data


@pytest.mark.simulator
def test_training_simulates_training_families_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = envpool.make
    monkeypatch.setattr(envpool, "make", lambda task, *a, **k: made.append(task) or make(task, *a, **k))
    data = _attached(
        MetaWorldDataModule(
            envs_per_family=1, horizon=3, validation=EvaluationConfig(1, 1), modes={"sampled": Acting()}
        )
    )
    for _ in range(2):
        for batch in data.train_dataloader():
            assert batch.rollout.families == data.benchmark.train
            assert batch.rollout.split == "train"
            assert batch.rollout.family.tolist() == list(range(10))
        data.trainer.lightning_module.iteration += 1  # type: ignore[union-attr]
    names = {"".join(part.capitalize() for part in f.split("-")): f for f in all_families()}
    asked = [names[task.removeprefix("MetaWorld/").removesuffix("-v3")] for task in made]
    assert sorted(asked) == sorted(data.benchmark.train)

    made.clear()
    train_stream, test_stream = data.val_dataloader()
    assert [r.families for r in train_stream] == [data.benchmark.train]
    assert not any("ShelfPlace" in task for task in made)
    assert [r.families for r in test_stream] == [data.benchmark.test]
    assert any("ShelfPlace" in task for task in made)
    assert data.replay.size == 20  # what validation saw is not learned from
    data.teardown("fit")


@pytest.mark.simulator
def test_training_on_the_reference_simulator_steps_training_families_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stepped: list[str] = []
    step = hmrl.envs.metaworld.GoalEnv.step

    def noted(self: Any, action: Any) -> Any:
        stepped.append(type(self.simulator).__name__)
        return step(self, action)

    monkeypatch.setattr(hmrl.envs.metaworld.GoalEnv, "step", noted)
    data = _attached(
        MetaWorldDataModule(
            "custom", ["reach", "push"], ["drawer-open"], "metaworld", envs_per_family=1, horizon=3
        )
    )
    list(data.train_dataloader())
    assert sorted(stepped) == ["SawyerPushEnvV3"] * 3 + ["SawyerReachEnvV3"] * 3
    data.teardown("fit")
