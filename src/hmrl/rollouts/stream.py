"""Rollouts in the shape that Lightning iterates over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.system.memory import give_back_memory
from hmrl.types import Rollout

T = TypeVar("T")


@dataclass
class Batch:
    """One iteration's data: a fresh rollout, and the replay that already contains it."""

    rollout: Rollout
    replay: TrajectoryReplay


@dataclass(eq=False)
class RolloutStream(Generic[T]):
    """A sized iterable of rollouts, each collected when it is asked for.

    The length matters: without one, Lightning prefetches a batch, which would then have been collected
    with weights one update old.
    """

    length: int
    draw: Callable[[int], T]
    close: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[T]:
        try:
            yield from map(self.draw, range(self.length))
        finally:
            self.close()
            give_back_memory()  # that of simulators, after an evaluation
