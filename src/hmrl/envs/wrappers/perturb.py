"""Environments that are not as they seem: noise, missing observations, and worlds that change.

Perturbations are between simulator and agent. Success is the simulator's and never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from hmrl.system.errors import UserError
from hmrl.system.rules import From0To1, NotNegative, Rule, as_config, check
from hmrl.types import EnvStep, FloatArray, TaskEnvs

Kind = Literal["linear", "random_walk", "jump"]
Part = Literal["observation", "sensor"]
Shown = Literal["zeros", "last"]
Size = Annotated[float, Rule("finite and not 0; null stands for no change", lambda x: 0 < abs(x) < inf)]
Episodes = Annotated[
    int | None,
    Rule("1 or more episodes of training, or null for a change within each", lambda x: x is None or x >= 1),
]

# Which sensor each number comes from, by the length of an observation. Meta-World: 18 now, the same ones one
# simulator step ago, the goal. Grid world: 2 now, the same ones one step ago, 4 ways, the goal.
_SENSORS = {
    39: (*range(18), *range(18), 18, 19, 20),
    10: (*range(2), *range(2), *range(2, 8)),
}

_WORLD = 5  # stream of random numbers; training, learning, validation, test and video have those before
_NOT_A_GOAL = 1  # stands in keys where goals' seeds have 0 (hmrl.envs.benchmarks.Goals)
_NOISE, _MISSING, _ACTION_GAIN, _OBSERVATION_BIAS, _REWARD_SCALE = range(5)
_CHANGES = ("action_gain", "observation_bias", "reward_scale")


@dataclass
class Change:
    """How a number leaves its value, over an episode or over training.

    Args:
        kind: ``linear``: steadily, to ``size`` at the end. ``random_walk``: by independent Gaussian steps,
            whose sum has the standard deviation ``size`` at the end. ``jump``: all at once, at a random
            moment.
        size: how far, in units of what changes; never 0.
        over_episodes: None: within each episode, with a draw of its own for every environment and episode. A
            number: over so many episodes of training, constant within each of them, on one course for all
            environments; afterwards nothing changes any more.
    """

    kind: Kind = "linear"
    size: Size = 0.0
    over_episodes: Episodes = None

    def course(self, length: int, width: int, rng: np.random.Generator) -> FloatArray:
        """How far ``width`` numbers are from their values at the moments 0 to ``length``.

        All start at 0. A single number goes where ``size`` points; several go up or down, each by a draw of
        its own, and jump together.

        Returns:
            ``[length + 1, width]``
        """
        sign = rng.choice((-1.0, 1.0), width) if width > 1 else np.ones(1)
        moment = np.arange(length + 1)[:, None]
        if self.kind == "linear":
            return self.size * sign * moment / length
        if self.kind == "jump":
            return self.size * sign * (moment >= rng.integers(1, max(length, 2)))
        steps = rng.standard_normal((length, width)) * self.size / np.sqrt(length)
        return np.concatenate([np.zeros((1, width)), np.cumsum(steps, axis=0)])


@dataclass
class Missing:
    """Observations that do not arrive.

    Args:
        probability: at each simulator step, independently; that is also the probability at each decision.
        part: the whole ``observation`` of an environment, or each ``sensor`` by itself, with what it reported
            one step ago.
        shown: instead of what is missing: ``zeros``, or the ``last`` value that was seen in the episode, at
            whatever simulator step (zeros before the first).
        told: append to the observation what is missing, 1, and what is not, 0: one number, or one a sensor.
    """

    probability: From0To1 = 0.0
    part: Part = "observation"
    shown: Shown = "zeros"
    told: bool = False

    def mask_width(self, sensors: Sequence[int]) -> int:
        """Numbers that are appended to an observation whose numbers come from ``sensors`` ``[S]``."""
        return self._width(sensors) if self.told else 0

    def draw(
        self, generators: Sequence[np.random.Generator], sensors: Sequence[int]
    ) -> npt.NDArray[np.bool_]:
        """What is missing at one simulator step, one generator an environment. ``[B, 1 or sensors]`` bool"""
        width = self._width(sensors)
        return np.stack([rng.random(width) for rng in generators]) < self.probability

    def _width(self, sensors: Sequence[int]) -> int:
        return 1 if self.part == "observation" else max(sensors) + 1


@dataclass
class Perturbation:
    """What stands between simulator and agent; the default is nothing.

    A number of an observation that is exactly 0 says that there is nothing (a hidden goal, no second object):
    neither noise nor bias touches it. The order is bias, noise, missing.

    Args:
        noise_std: standard deviation of Gaussian noise on each number of an observation at each simulator
            step, in the observation's own units: metres for positions; gripper opening and quaternions have
            none.
        missing: observations that do not arrive.
        action_gain: actions are multiplied by 1 + what this has come to, then clipped to [-1, 1].
        observation_bias: what this has come to is added to each number of an observation, up or down by a
            draw of each sensor's own, in the observation's own units.
        reward_scale: rewards are multiplied by 1 + what this has come to. The agent sees and learns from
            these, and returns everywhere are sums of these.
    """

    noise_std: NotNegative = 0.0
    missing: Missing = field(default_factory=Missing)
    action_gain: Change | None = None
    observation_bias: Change | None = None
    reward_scale: Change | None = None

    def __post_init__(self) -> None:
        self.missing = as_config(Missing, self.missing)  # a checkpoint holds mappings
        for name in _CHANGES:
            setattr(self, name, as_config(Change, getattr(self, name)))

    def _changes(self) -> dict[str, Change]:
        return {name: change for name in _CHANGES if (change := getattr(self, name))}

    def over_training(self) -> bool:
        """Whether something changes over training, so that the world has an age."""
        return any(change.over_episodes is not None for change in self._changes().values())

    def is_random(self) -> bool:
        """Whether it makes two episodes on one goal differ."""
        drawn = self.noise_std > 0 or 0 < self.missing.probability < 1
        return drawn or any(
            change.kind != "linear" or name == "observation_bias"  # which goes up or down
            for name, change in self._changes().items()
            if change.over_episodes is None  # else all episodes have one course
        )

    def untold(self) -> Perturbation:
        """The same, but that nobody is told what is missing."""
        return replace(self, missing=replace(self.missing, told=False))

    def check(self, key: str) -> None:
        """Refuse, with a UserError that names the setting under ``key``, what could not be done."""
        check(self, key)

    def check_evaluation(self, key: str, own: Perturbation | None, protocol: str) -> None:
        """Refuse, with a UserError, an evaluation that does not fit training, whose perturbation this is.

        Args:
            key: where the evaluation's settings stand, as "data.test".
            own: its perturbation; None for training's.
            protocol: its protocol.
        """
        if own is not None:
            own.check(f"{key}.perturbation")
        effective = self if own is None else own
        if protocol == "meta_world" and effective != Perturbation():
            raise UserError(
                f"{key}.protocol is meta_world, whose environments are Meta-World's own and cannot be "
                f"perturbed: use {key}.perturbation {{}} for none, or {key}.protocol first_episode"
            )
        for name in ("told", "part") if effective.missing.told or self.missing.told else ():
            here, there = (str(getattr(m, name)).lower() for m in (effective.missing, self.missing))
            if here != there:
                raise UserError(
                    f"{key}.perturbation.missing.{name} is {here}, but in training it is {there}, and agents "
                    f"must be told alike what is missing: use {there}, if need be with probability 0"
                )


def sensors_of(observation_dim: int) -> tuple[int, ...]:
    """Which sensor each number of an observation comes from; in an unknown world, each its own one."""
    return _SENSORS.get(observation_dim, tuple(range(observation_dim)))


@dataclass(eq=False)
class PerturbedEnvs:
    """Environments behind a perturbation.

    What is drawn is a function of key, family and the number of the episode within its family, over all
    ranks: nothing else, whatever was run before, makes a difference.

    Args:
        envs: B environments, of which those of a family stand in the order of their slots.
        perturbation: which.
        sensors: of each number of an observation, where it comes from. ``[S]``
        key: the seed, and the numbers of these environments' own stream of draws.
        first_slot: of this rank, among all environments of a family.
        stride: environments of a family over all ranks.
        age: episodes of training that the world has gone through, for what changes over training; None in
            training itself, where it is the episode's number.
    """

    envs: TaskEnvs
    perturbation: Perturbation
    sensors: Sequence[int]
    key: tuple[int, ...]
    first_slot: int
    stride: int
    age: int | None = None

    def __post_init__(self) -> None:
        self.families, self.horizon = self.envs.families, self.envs.horizon
        before = (self.families[:i].count(family) for i, family in enumerate(self.families))
        self._slots = [self.first_slot + count for count in before]

    def reset(self, episode: int) -> FloatArray:
        """Start episode number ``episode`` everywhere; returns observations ``[B, S + mask]``."""
        perturbation = self.perturbation
        self._elapsed = 0
        self._noise = self._generators(_NOISE, episode)
        self._missing = self._generators(_MISSING, episode)
        self._gain = 1 + self._course(perturbation.action_gain, _ACTION_GAIN, episode)
        self._bias = self._course(
            perturbation.observation_bias, _OBSERVATION_BIAS, episode, max(self.sensors) + 1
        )
        self._scale = 1 + self._course(perturbation.reward_scale, _REWARD_SCALE, episode)
        self._last = np.zeros((len(self.families), len(self.sensors)))
        return self._seen(self.envs.reset(episode))

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, A]`` in [-1, 1]."""
        gain, scale = self._gain[self._elapsed], self._scale[self._elapsed][:, 0]
        taken = self.envs.step(np.clip(action * gain, -1, 1).astype(action.dtype))
        self._elapsed += 1
        reward = (taken.reward * scale).astype(taken.reward.dtype)
        return EnvStep(self._seen(taken.observation), reward, taken.success)

    def close(self) -> None:
        """Free the simulators."""
        self.envs.close()

    def _seen(self, observation: FloatArray) -> FloatArray:
        """What the agent sees of ``observation`` ``[B, S]``; a new array of the same type."""
        std, missing = self.perturbation.noise_std, self.perturbation.missing
        error = self._bias[self._elapsed][:, list(self.sensors)]
        if std:
            width = len(self.sensors)
            error = error + std * np.stack([rng.standard_normal(width) for rng in self._noise])
        seen = observation + error * (observation != 0)
        mask = missing.draw(self._missing, self.sensors)
        lost = mask[:, list(self.sensors)] if missing.part == "sensor" else mask
        seen = np.where(lost, self._last, seen)
        if missing.shown == "last":
            self._last = seen
        parts = [seen, mask] if missing.told else [seen]
        return np.concatenate(parts, axis=1).astype(observation.dtype)

    def _course(self, change: Change | None, cause: int, episode: int, width: int = 1) -> FloatArray:
        """Of this episode, at each of its moments. ``[horizon + 1, B, width]``"""
        shape = (self.horizon + 1, len(self.families), width)
        if change is None:
            return np.broadcast_to(0.0, shape)
        if change.over_episodes is None:
            generators = self._generators(cause, episode)
            return np.stack([change.course(self.horizon, width, rng) for rng in generators], axis=1)
        sequence = np.random.SeedSequence(self.key[0], spawn_key=(_WORLD, cause))
        course = change.course(change.over_episodes, width, np.random.default_rng(sequence))
        age = episode if self.age is None else self.age
        return np.broadcast_to(course[min(age, change.over_episodes)], shape)

    def _generators(self, cause: int, episode: int) -> list[np.random.Generator]:
        """One an environment, at the start of its stream of draws."""
        seed, *stream = self.key
        keys = [
            (*stream, *family.encode(), _NOT_A_GOAL, slot + episode * self.stride, cause)
            for family, slot in zip(self.families, self._slots, strict=True)
        ]
        return [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)) for key in keys]
