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
from hmrl.types import Gap, Split

OBSERVATION_DIM = 39
ACTION_DIM = 4
HORIZON = 500
GOALS_PER_FAMILY = 50  # of Meta-World's own, in each split
# Hand xyz and gripper opening, now (0-3) and one simulator step ago (18-21).
EGO_INDICES = (0, 1, 2, 3, 18, 19, 20, 21)
GOAL_INDICES = (36, 37, 38)
# From the hand to the object (4-6): grasping is a matter of centimetres, and states differ by decimetres.
GAPS = tuple(Gap(4 + i, i, metres) for metres in (0.03, 0.15) for i in range(3))

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
        gaps: differences of an observation's entries that matter at a small scale (``model.close_up``).
        scale: of the grid world, how many times as wide its layouts are.
    """

    observation_dim: int
    action_dim: int
    ego_indices: tuple[int, ...]
    goal_indices: tuple[int, ...] = ()
    horizon: int = HORIZON
    backends: tuple[Backend, ...] = ("own",)
    gaps: tuple[Gap, ...] = ()
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


_SIMULATORS: tuple[Backend, ...] = ("envpool", "metaworld", "metaworld_async")
META_WORLD = World(OBSERVATION_DIM, ACTION_DIM, EGO_INDICES, GOAL_INDICES, backends=_SIMULATORS, gaps=GAPS)
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

    # What cannot be is refused with a UserError, under the name ``key`` of the setting, as "data.backend".

    def check_backend(self, key: str, backend: Backend) -> None:
        """Refuse a simulator of another world."""
        if backend not in self.world.backends:
            raise UserError(
                f"{key} is {backend}, which cannot run data.benchmark {self.name}: use "
                f"{' or '.join(self.world.backends)}"
            )

    def check_installed(self, key: str, backend: Backend) -> None:
        """Refuse EnvPool where it is missing: it is not to be had for every platform."""
        if backend == "envpool" and find_spec("envpool") is None:
            raise UserError(
                f"{key} is envpool, which is not installed: use metaworld or metaworld_async, or "
                "pip install envpool where it has a wheel for this platform"
            )

    def check_goals(self, key: str, goals: int, backend: Backend) -> None:
        """Refuse more fixed goals a family than a simulator has."""
        if (fixed := self.fixed_goals(backend)) and goals > fixed:
            raise UserError(
                f"{key} is {goals}, but Meta-World has {fixed} goals a family: use no more, or the envpool "
                "backend"
            )

    def check_horizon(self, key: str, horizon: int) -> None:
        """Refuse episodes longer than the world's, or empty ones."""
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
        """Which of the fixed goals an environment meets; arguments as of :class:`EnvBatch`."""
        assert self.per_family is not None
        return (slot + episode // self.repeats * stride) % self.per_family

    def seed_for(self, family: str, *index: int) -> int:
        """A 31-bit seed for ``index`` (a goal slot, or an environment and a generation) of ``family``."""
        key = (self.stream, int(self.split == "test"), *family.encode(), 0, *index)
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0] >> 1)


@dataclass(eq=False)
class EnvBatch:
    """A rank's environments, whatever simulates them: :class:`~hmrl.types.TaskEnvs` without the simulator.

    Args:
        families: of each environment; equal ones must be adjacent.
        goals: which goals.
        slots: number of each environment among all of its family, over all ranks.
        stride: environments of a family, over all ranks.
        horizon: simulator steps of an episode.
        goal_visible: show the goal in the observation; scripted experts need it, agents never get it.
    """

    families: tuple[str, ...]
    goals: Goals
    slots: Sequence[int]
    stride: int
    horizon: int
    goal_visible: bool = False

    def keys(self, episode: int) -> list[tuple[int, ...]]:
        """What names each environment's goal in its family: the fixed one's number, or slot and trial."""
        if self.goals.per_family is None:
            return [(slot, episode // self.goals.repeats) for slot in self.slots]
        return [(self.goals.number(slot, episode, self.stride),) for slot in self.slots]

    def seeds(self, episode: int) -> list[int]:
        """Of each environment's goal: a function of the goal alone."""
        keyed = zip(self.families, self.keys(episode), strict=True)
        return [self.goals.seed_for(family, *key) for family, key in keyed]


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
    if name not in (known := get_args(BenchmarkName)):
        raise UserError(f"data.benchmark is {name!r}, but it must be one of {', '.join(known)}")
    train, test = tuple(map(short_name, train)), tuple(map(short_name, test))
    for key, names in (("data.train_families", train), ("data.test_families", test)):
        if names and name not in ("ML1", "custom"):
            raise UserError(
                f"{key} is {list(names)}, but data.benchmark {name} has its own families: leave it empty, or "
                "choose families with data.benchmark custom (or ML1)"
            )
        for family in names:
            if family not in all_families():
                raise UserError(
                    f"{key} names {family!r}, which is no family of Meta-World: use some of "
                    f"{', '.join(all_families())}"
                )
            if names.count(family) > 1:
                raise UserError(f"{key} names {family!r} twice: name each family once")
        if name == "custom" and not names:
            raise UserError(f"{key} is [], but data.benchmark custom wants one or more families there")
    if name == "ML1":
        if len(train) != 1 or test not in ((), train):
            raise UserError(
                "data.benchmark ML1 wants exactly one family in data.train_families and none in "
                f"data.test_families, but they are {list(train)} and {list(test)}"
            )
        return Benchmark(name, train, train)
    if name == "custom":
        if both := sorted(set(train) & set(test)):
            raise UserError(
                f"data.test_families names {', '.join(both)}, which data.train_families names, too: "
                "test families must be held out"
            )
        return Benchmark(name, train, test)
    if name in _GRID_WORLDS:
        return Benchmark(name, TRAIN_LAYOUTS, TEST_LAYOUTS, world_of(name))
    from metaworld import env_dict

    own = getattr(env_dict, f"{name}_V3")
    return Benchmark(name, tuple(map(short_name, own["train"])), tuple(map(short_name, own["test"])))
