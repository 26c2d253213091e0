"""Families, splits and goals of Meta-World's meta-learning benchmarks, and of the grid world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import numpy as np

from hmrl.envs.layouts import TEST_LAYOUTS, TRAIN_LAYOUTS
from hmrl.system.errors import UserError
from hmrl.types import Split

OBSERVATION_DIM = 39
ACTION_DIM = 4
HORIZON = 500
GOALS_PER_FAMILY = 50  # of Meta-World's own, in each split
# Hand xyz and gripper opening, now (0-3) and one simulator step ago (18-21).
EGO_INDICES = (0, 1, 2, 3, 18, 19, 20, 21)
GOAL_INDICES = (36, 37, 38)

BenchmarkName = Literal["ML1", "ML10", "ML25", "ML45", "custom", "GridWorld", "GridWorldLarge"]
Backend = Literal["envpool", "metaworld", "metaworld_async", "gridworld", "own"]
EgoState = Literal["ego", "everything", "other"]


@dataclass(frozen=True)
class World:
    """What all families of a benchmark share.

    Args:
        observation_dim, action_dim: S and A.
        ego_indices: dimensions of the observation that are the body's own.
        goal_indices: those that show the goal to experts and are zero for agents.
        horizon: most simulator steps of an episode.
        backends: simulators that can run it; ``own`` is a world of the user's.
        scale: of the grid world, how many times as wide its layouts are.
    """

    observation_dim: int
    action_dim: int
    ego_indices: tuple[int, ...]
    goal_indices: tuple[int, ...] = ()
    horizon: int = HORIZON
    backends: tuple[Backend, ...] = ("own",)
    scale: int = 1

    def decoded(self, state: EgoState) -> tuple[int, ...]:
        """Observation dimensions that macro-actions are about: an ablation of the ego-state.

        Args:
            state: ``ego``: the body's own; ``everything``: all but the hidden goal's; ``other``: those of
                everything that are not the body's own.

        Raises:
            UserError: for another one.
        """
        if state not in (allowed := get_args(EgoState)):
            raise UserError(f"data.ego_state is {state!r}: use one of {', '.join(allowed)}")
        if state == "ego":
            return self.ego_indices
        left_out = self.goal_indices + (self.ego_indices if state == "other" else ())
        return tuple(i for i in range(self.observation_dim) if i not in left_out)


META_WORLD = World(
    OBSERVATION_DIM,
    ACTION_DIM,
    EGO_INDICES,
    GOAL_INDICES,
    HORIZON,
    backends=("envpool", "metaworld", "metaworld_async"),
)
# Position now (0-1) and one step ago (2-3), free way in four directions (4-7), goal (8-9).
GRID_WORLD = World(10, 2, (0, 1, 2, 3), (8, 9), 24, backends=("gridworld",))
_GRID_WORLDS = {"GridWorld": GRID_WORLD, "GridWorldLarge": replace(GRID_WORLD, horizon=96, scale=4)}


def world_of(name: str) -> World:
    """The world of the benchmark of this name."""
    return _GRID_WORLDS.get(name, META_WORLD)


@dataclass(frozen=True)
class Benchmark:
    """Names without Meta-World's ``-v3`` suffix, in Meta-World's order."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    world: World = META_WORLD

    def families(self, split: Split) -> tuple[str, ...]:
        """The families of one split."""
        return self.train if split == "train" else self.test

    def fixed_goals(self, backend: Backend) -> int | None:
        """How many fixed goals a family has on a simulator; None: as many as are asked for."""
        return GOALS_PER_FAMILY if backend in ("metaworld", "metaworld_async") else None

    def check_backend(self, key: str, backend: Backend) -> None:
        """Refuse a simulator of another world.

        Args:
            key: where it is set, as "data.backend".

        Raises:
            UserError: with those that can run this benchmark.
        """
        if backend not in self.world.backends:
            raise UserError(
                f"{key} is {backend}, which cannot run data.benchmark {self.name}: use "
                f"{' or '.join(self.world.backends)}"
            )

    def check_installed(self, key: str, backend: Backend) -> None:
        """Refuse EnvPool where it is missing: it is not to be had for every platform.

        Args:
            key: where it is set, as "data.backend".

        Raises:
            UserError: with what works everywhere.
        """
        if backend == "envpool" and find_spec("envpool") is None:
            raise UserError(
                f"{key} is envpool, which is not installed: use metaworld or metaworld_async, or "
                "pip install envpool where it has a wheel for this platform"
            )

    def check_goals(self, key: str, goals: int, backend: Backend) -> None:
        """Refuse more fixed goals a family than a simulator has.

        Args:
            key: where it is set, as "data.test.goals".

        Raises:
            UserError: with their number.
        """
        if (fixed := self.fixed_goals(backend)) and goals > fixed:
            raise UserError(
                f"{key} is {goals}, but Meta-World has {fixed} goals a family: use no more, or the envpool "
                "backend"
            )

    def check_horizon(self, key: str, horizon: int) -> None:
        """Refuse episodes longer than the world's, or empty ones.

        Args:
            key: where it is set, as "data.horizon".

        Raises:
            UserError: with what is allowed.
        """
        if not 1 <= horizon <= self.world.horizon:
            raise UserError(f"{key} is {horizon}: use 1 to {self.world.horizon}, the length of an episode")


def same_goals(one: Backend, other: Backend) -> bool:
    """Whether two simulators have the same goals for a seed."""
    return one == other or {one, other} == {"metaworld", "metaworld_async"}


@dataclass(frozen=True)
class Goals:
    """Which goals environments draw.

    A goal is Meta-World's random vector: where objects start and where they must go.

    Args:
        split: train and test goals never share a seed, in ML1 neither.
        seed: root of the goals' seeds.
        per_family: so many fixed goals a family, or a fresh one for every episode (None).
        stream: which of several independent streams: training, validation, test.
        repeats: episodes in a row on each goal.
    """

    split: Split
    seed: int
    per_family: int | None
    stream: int
    repeats: int = 1

    def number(self, slot: int, episode: int, stride: int) -> int:
        """Which of the fixed goals an environment meets.

        Args:
            slot: the environment's, among all of its family.
            episode: number of the episode.
            stride: environments of this family over all ranks.
        """
        assert self.per_family is not None
        return (slot + episode // self.repeats * stride) % self.per_family

    def seed_for(self, family: str, *index: int) -> int:
        """A 31-bit seed for ``index`` (a goal slot, or an environment and a generation) of ``family``."""
        key = (self.stream, int(self.split == "test"), *family.encode(), 0, *index)
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0] >> 1)


@cache
def all_families() -> tuple[str, ...]:
    """Meta-World's fifty families."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return tuple(short_name(name) for name in ALL_V3_ENVIRONMENTS)


def short_name(name: str) -> str:
    """``reach-v3`` -> ``reach``."""
    return name.removesuffix("-v3")


def metaworld_name(family: str) -> str:
    """``reach`` -> ``reach-v3``."""
    return f"{family}-v3"


def benchmark(name: BenchmarkName, train: Sequence[str] = (), test: Sequence[str] = ()) -> Benchmark:
    """The families of a benchmark.

    Args:
        name: ML10, ML25, ML45 and the grid worlds know their families; ML1 takes one in ``train``, whose
            test split has other goals; custom takes both lists.

    Raises:
        UserError: for an unknown family, or lists that do not fit the benchmark.
    """
    from metaworld import env_dict

    if name not in (known := get_args(BenchmarkName)):
        raise UserError(f"data.benchmark is {name!r}, but it must be one of {', '.join(known)}")
    train, test = [short_name(f) for f in train], [short_name(f) for f in test]
    given = {"data.train_families": train, "data.test_families": test}
    for key, names in given.items():
        for family in names:
            if name not in _GRID_WORLDS and family not in all_families():
                raise UserError(
                    f"{key} names {family!r}, which is no family of Meta-World: use some of "
                    f"{', '.join(all_families())}"
                )
            if names.count(family) > 1:
                raise UserError(f"{key} names {family!r} twice: name each family once")
    if name == "ML1":
        if len(train) != 1 or (test and test != train):
            raise UserError(
                "data.benchmark ML1 wants exactly one family in data.train_families and none in "
                f"data.test_families, but they are {train} and {test}"
            )
        return Benchmark(name, (train[0],), (train[0],))
    if name == "custom":
        for key, names in given.items():
            if not names:
                raise UserError(f"{key} is [], but data.benchmark custom wants one or more families there")
        if both := sorted(set(train) & set(test)):
            raise UserError(
                f"data.test_families names {', '.join(both)}, which data.train_families names, too: "
                "test families must be held out"
            )
        return Benchmark(name, tuple(train), tuple(test))
    for key, names in given.items():
        if names:
            raise UserError(
                f"{key} is {names}, but data.benchmark {name} has its own families: leave it empty, or "
                "choose families with data.benchmark custom (or ML1)"
            )
    if name in _GRID_WORLDS:
        return Benchmark(name, TRAIN_LAYOUTS, TEST_LAYOUTS, world_of(name))
    splits = getattr(env_dict, f"{name}_V3")
    return Benchmark(
        name,
        tuple(short_name(f) for f in splits["train"]),
        tuple(short_name(f) for f in splits["test"]),
    )
