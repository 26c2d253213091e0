"""A small world for quick experiments: a point among walls must find a goal that it cannot see.

Families share the body, a point that is moved, and differ in walls and in the two places where the goal may
be. The point feels walls; at which place the goal is, it learns only from rewards, which say how long the way
to the goal is. In an episode there is hardly time to try both places, so that an agent without memory, which
does the same wherever it has been before, can only guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmrl.envs.benchmarks import EnvBatch
from hmrl.envs.layouts import CELLS, layout
from hmrl.types import EnvStep, FloatArray

STEP = 0.15  # the farthest a point gets in a simulator step, along each axis
TOUCH = 1.0  # the farthest it feels a wall
REACHED = 1.0  # cells from the goal: solved
NEARNESS = 1.0  # how fast rewards fall with the length of the way, half a layout's width being 1


class Points:
    """One point in each of B layouts: the dynamics, for one environment and for many.

    Lengths are those of a square from -1 to 1, times ``scale``; steps and touch do not grow with it.

    Args:
        families: of each point.
        scale: how many times as wide the layouts are.
    """

    def __init__(self, families: Sequence[str], scale: int = 1) -> None:
        names = list(dict.fromkeys(families))
        layouts = [layout(name) for name in names]
        self._goals = [layouts[names.index(family)].goals for family in families]
        self._free = [np.argwhere(~layouts[names.index(family)].wall) for family in families]
        self._in = np.array([names.index(family) for family in families])
        self._wall, self._clear, self._distance, self._towards = (
            np.stack([getattr(each, name) for each in layouts])
            for name in ("wall", "clear", "distance", "towards")
        )
        self._scale, self._cell = scale, 2 * scale / CELLS
        self.position = self._before = self.goal = np.zeros((len(families), 2))

    def place(self, seeds: Sequence[int]) -> None:
        """Draw where each point starts and where its goal is, as a function of its seed."""
        start, goal = np.empty_like(self.position), np.empty_like(self.position)
        for i, seed in enumerate(seeds):
            rng = np.random.default_rng(seed)
            start[i], goal[i] = (
                self._centre(rng.choice(cells)) + rng.uniform(-0.5, 0.5, 2) * self._cell
                for cells in (self._free[i], self._goals[i])
            )
        self.position = self._before = start
        self.goal = goal

    def move(self, action: FloatArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """One step by ``action`` ``[B, 2]`` in [-1, 1]; walls stop it, each axis on its own.

        Returns:
            Rewards ``[B]``, up to 1 the shorter the way to the goal and 1 more at it; and success ``[B]``.
        """
        self._before, position = self.position, self.position.copy()
        for axis in (0, 1):
            tried = position.copy()
            tried[:, axis] += STEP * np.clip(action[:, axis], -1, 1)
            free = ~self._wall[self._in, *self._cell_of(tried).T]
            position[free] = tried[free]
        self.position = position
        success = np.linalg.norm(position - self.goal, axis=1) <= REACHED * self._cell
        return np.exp(-NEARNESS * self.way(position, self.goal)[1] / self._scale) + success, success

    def way(self, position: FloatArray, goal: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Where to go next on a shortest way to the goal ``[B, 2]``, and its length ``[B]``.

        Args:
            position: ``[B, 2]``.
            goal: ``[B, 2]``, in free cells.
        """
        here, there = self._number(position), self._number(goal)
        step = self._towards[self._in, there, here]
        step = np.where(step < 0, there, step)  # in its cell already, or a noisy position in a wall
        centre = self._centre(np.stack(np.divmod(step, CELLS + 2), axis=-1))
        target = np.where((step == there)[:, None], goal, centre)
        length = np.linalg.norm(target - position, axis=1)
        return target, length + self._distance[self._in, there, step] * self._cell

    def observe(self, goal_visible: bool) -> FloatArray:
        """Position now, one step ago, free way right, left, up and down, goal or zeros. ``[B, 10]``"""
        cell = self._cell_of(self.position)
        inside = (self.position - self._centre(cell)) / self._cell  # of the cell, in [-0.5, 0.5]
        margin = 0.5 + np.stack([-inside, inside], axis=-1).reshape(-1, 4)
        free = np.minimum((self._clear[self._in, *cell.T] + margin) * self._cell, TOUCH)
        shown = self.goal if goal_visible else np.zeros_like(self.goal)
        return np.concatenate([self.position, self._before, free, shown], axis=1).astype(np.float32)

    def _cell_of(self, position: FloatArray) -> npt.NDArray[np.int64]:
        cell: npt.NDArray[np.int64] = np.floor((position + self._scale) / self._cell).astype(np.int64) + 1
        return cell.clip(0, CELLS + 1)

    def _centre(self, cell: npt.NDArray[np.int64]) -> FloatArray:
        centre: FloatArray = (cell - 0.5) * self._cell - self._scale
        return centre

    def _number(self, position: FloatArray) -> npt.NDArray[np.int64]:
        i, j = self._cell_of(position).T
        number: npt.NDArray[np.int64] = i * (CELLS + 2) + j
        return number


@dataclass(eq=False)
class GridWorldEnvs(EnvBatch):
    """The grid world as :class:`~hmrl.types.TaskEnvs`, all environments in one array.

    A goal's seed draws the start, too.

    Args:
        scale: how many times as wide the layouts are.
    """

    scale: int = 1

    def __post_init__(self) -> None:
        self._points = Points(self.families, self.scale)

    def reset(self, episode: int) -> FloatArray:
        """Start episode number ``episode`` everywhere; returns observations ``[B, 10]``."""
        self._points.place(self.seeds(episode))
        return self._points.observe(self.goal_visible)

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, 2]``."""
        reward, success = self._points.move(action)
        return EnvStep(self._points.observe(self.goal_visible), reward, success)

    def close(self) -> None:
        """There is no simulator to free."""
