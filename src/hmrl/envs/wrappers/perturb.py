"""Environments that are not as they seem: noise, missing observations, and worlds that change.

Perturbations are between simulator and agent. Success is the simulator's and never touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hmrl.envs.wrappers.nonstationary import Change
from hmrl.system.errors import UserError
from hmrl.types import EnvStep, FloatArray, TaskEnvs

Part = Literal["observation", "sensor"]
Shown = Literal["zeros", "last"]

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

    probability: float = 0.0
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

    noise_std: float = 0.0
    missing: Missing = field(default_factory=Missing)
    action_gain: Change | None = None
    observation_bias: Change | None = None
    reward_scale: Change | None = None

    def __post_init__(self) -> None:
        plain: Any = self  # a checkpoint holds mappings
        if isinstance(plain.missing, Mapping):
            self.missing = Missing(**plain.missing)
        for name in _CHANGES:
            if isinstance(value := getattr(self, name), Mapping):
                setattr(self, name, Change(**value))

    @classmethod
    def of(cls, value: Any) -> Perturbation | None:
        """``value`` itself, or built from the plain mapping that a checkpoint holds."""
        return cls(**value) if isinstance(value, Mapping) else value

    def over_training(self) -> bool:
        """Whether something changes over training, so that the world has an age."""
        changes = (getattr(self, name) for name in _CHANGES)
        return any(change is not None and change.over_episodes is not None for change in changes)

    def is_random(self) -> bool:
        """Whether it makes two episodes on one goal differ."""
        drawn = self.noise_std > 0 or 0 < self.missing.probability < 1
        for name in _CHANGES:
            change: Change | None = getattr(self, name)
            if change is not None and change.over_episodes is None:  # else all episodes have one course
                drawn |= change.kind != "linear" or name == "observation_bias"  # which goes up or down
        return drawn

    def untold(self) -> Perturbation:
        """The same, but that nobody is told what is missing."""
        return replace(self, missing=replace(self.missing, told=False))

    def check(self, key: str) -> None:
        """Refuse what could not be done.

        Args:
            key: where these settings stand, as "data.perturbation".

        Raises:
            UserError: naming the setting.
        """
        if not 0 <= self.noise_std < inf:
            raise UserError(f"{key}.noise_std is {self.noise_std}, but it must be 0 or more and finite")
        missing = self.missing
        if not 0 <= missing.probability <= 1:
            raise UserError(f"{key}.missing.probability is {missing.probability}, but it must be in [0, 1]")
        for name, allowed in (("part", Part), ("shown", Shown)):
            if (value := getattr(missing, name)) not in get_args(allowed):
                raise UserError(f"{key}.missing.{name} is {value!r}: use {' or '.join(get_args(allowed))}")
        for name in _CHANGES:
            change: Change | None = getattr(self, name)
            if change:
                change.check(f"{key}.{name}")

    def check_evaluation(self, key: str, own: Perturbation | None, protocol: str) -> None:
        """Refuse an evaluation that does not fit training, whose perturbation this is.

        Args:
            key: where the evaluation's settings stand, as "data.test".
            own: its perturbation; None for training's.
            protocol: its protocol.

        Raises:
            UserError: naming the setting.
        """
        if own is not None:
            own.check(f"{key}.perturbation")
        effective = self if own is None else own
        if protocol == "meta_world" and effective != Perturbation():
            raise UserError(
                f"{key}.protocol is meta_world, whose environments are Meta-World's own and cannot be "
                f"perturbed: use {key}.perturbation {{}} for none, or {key}.protocol first_episode"
            )
        here, there = effective.missing, self.missing
        if here.told != there.told:
            raise UserError(
                f"{key}.perturbation.missing.told is {_yaml(here.told)}, but in training it is "
                f"{_yaml(there.told)}, and an agent's observations must be equally wide in both: use "
                f"{_yaml(there.told)}, if need be with probability 0"
            )
        if here.told and here.part != there.part:
            raise UserError(
                f"{key}.perturbation.missing.part is {here.part}, but in training it is {there.part}, and an "
                f"agent that is told what is missing must be told it likewise in both: use {there.part}"
            )


def sensors_of(observation_dim: int) -> tuple[int, ...]:
    """Which sensor each number of an observation comes from; in an unknown world, each its own one."""
    return _SENSORS.get(observation_dim, tuple(range(observation_dim)))


def _yaml(value: bool) -> str:
    return str(value).lower()


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

    def __init__(
        self,
        envs: TaskEnvs,
        perturbation: Perturbation,
        sensors: Sequence[int],
        key: tuple[int, ...],
        first_slot: int,
        stride: int,
        age: int | None = None,
    ) -> None:
        self.families, self.horizon = envs.families, envs.horizon
        self._envs, self._perturbation, self._sensors = envs, perturbation, list(sensors)
        (self._seed, *self._key), self._stride, self._age = key, stride, age
        seen: Counter[str] = Counter()
        self._slots: list[int] = []
        for family in self.families:
            self._slots.append(first_slot + seen[family])
            seen[family] += 1

    def reset(self, episode: int) -> FloatArray:
        """Start episode number ``episode`` everywhere; returns observations ``[B, S + mask]``."""
        perturbation = self._perturbation
        self._elapsed = 0
        self._noise = self._generators(_NOISE, episode)
        self._missing = self._generators(_MISSING, episode)
        self._gain = 1 + self._course(perturbation.action_gain, _ACTION_GAIN, episode)
        self._bias = self._course(
            perturbation.observation_bias, _OBSERVATION_BIAS, episode, max(self._sensors) + 1
        )
        self._scale = 1 + self._course(perturbation.reward_scale, _REWARD_SCALE, episode)
        self._last = np.zeros((len(self.families), len(self._sensors)))
        return self._seen(self._envs.reset(episode))

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, A]`` in [-1, 1]."""
        gain, scale = self._gain[self._elapsed], self._scale[self._elapsed][:, 0]
        taken = self._envs.step(np.clip(action * gain, -1, 1).astype(action.dtype))
        self._elapsed += 1
        reward = (taken.reward * scale).astype(taken.reward.dtype)
        return EnvStep(self._seen(taken.observation), reward, taken.success)

    def close(self) -> None:
        """Free the simulators."""
        self._envs.close()

    def _seen(self, observation: FloatArray) -> FloatArray:
        """What the agent sees of ``observation`` ``[B, S]``; a new array of the same type."""
        std, missing = self._perturbation.noise_std, self._perturbation.missing
        error = self._bias[self._elapsed][:, self._sensors]
        if std:
            width = len(self._sensors)
            error = error + std * np.stack([rng.standard_normal(width) for rng in self._noise])
        seen = observation + error * (observation != 0)
        mask = missing.draw(self._missing, self._sensors)
        lost = mask[:, self._sensors] if missing.part == "sensor" else mask
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
        sequence = np.random.SeedSequence(self._seed, spawn_key=(_WORLD, cause))
        course = change.course(change.over_episodes, width, np.random.default_rng(sequence))
        age = episode if self._age is None else self._age
        return np.broadcast_to(course[min(age, change.over_episodes)], shape)

    def _generators(self, cause: int, episode: int) -> list[np.random.Generator]:
        """One an environment, at the start of its stream of draws."""
        named = zip(self.families, self._slots, strict=True)
        keys = [
            (*self._key, *family.encode(), _NOT_A_GOAL, slot + episode * self._stride, cause)
            for family, slot in named
        ]
        return [np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=k)) for k in keys]
