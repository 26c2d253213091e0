"""The rooms of the grid world's families, drawn, and the shortest ways through them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CELLS = 11  # along a side of every layout

# '#' is wall, and the goal is at one G or the other. Points start anywhere.
_NAMES, *_LINES = (
    line.split()
    for line in """
    hall        shaft       elbow       zed         arch        cup         ess         corner
    ########### ####.G.#### ########### ########### ########### ########### ########### ###########
    ########### ####...#### ##...###### ########### ########### ########### ########### ###########
    ########### ####...#### ##.G.###### #......#### #.........# #...###...# ####......# #........##
    ########### ####...#### ##...###### #.G....#### #.........# #.G.###.G.# ####....G.# #.G......##
    ........... ####...#### ##...###### #......#### #.........# #...###...# ####......# #........##
    G.........G ####...#### ##...###### ####...#### #...###...# #...###...# ####...#### ######...##
    ........... ####...#### ##........# ####......# #...###...# #.........# #......#### ######...##
    ########### ####...#### ##......G.# ####....G.# #.G.###.G.# #.........# #.G....#### ######...##
    ########### ####...#### ##........# ####......# #...###...# #.........# #......#### ######.G.##
    ########### ####...#### ########### ########### ########### ########### ########### ######...##
    ########### ####.G.#### ########### ########### ########### ########### ########### ###########
    """.strip().splitlines()
)
TRAIN_LAYOUTS, TEST_LAYOUTS = tuple(_NAMES[:5]), tuple(_NAMES[5:])
_DRAWN = dict(zip(_NAMES, zip(*_LINES, strict=True), strict=True))


class Layout(NamedTuple):
    """What is to be known about a layout; a cell (i, j), i to the right and j upwards, has number 13 i + j.

    The wall around it counts: cells have i and j in 0..12.
    """

    wall: npt.NDArray[np.bool_]  # [13, 13]
    goals: npt.NDArray[np.int64]  # [goals, 2], cells
    clear: npt.NDArray[np.int64]  # [13, 13, 4], free cells next to each: right, left, up, down
    distance: npt.NDArray[np.float64]  # [169, 169], from centre to centre, in cells
    towards: npt.NDArray[np.int64]  # [169, 169], [goal, cell]: the next cell on a shortest way, or -1


@cache
def layout(family: str) -> Layout:
    """The layout of a family."""
    drawing = np.array([list(line) for line in _DRAWN[family]])
    symbols = np.pad(drawing, 1, constant_values="#")[::-1].T
    wall = symbols == "#"
    distance, towards = _shortest_ways(wall)
    return Layout(wall, np.argwhere(symbols == "G"), _clear(wall), distance, towards)


def _clear(wall: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    count = np.zeros((*wall.shape, 4), dtype=np.int64)
    for way, (axis, sign) in enumerate(((0, 1), (0, -1), (1, 1), (1, -1))):
        free, reach = ~wall, ~wall
        for _ in range(CELLS):
            reach = free & np.roll(reach, -sign, axis)  # the wall around stops what comes from the other side
            count[..., way] += reach
    return count


def _shortest_ways(
    wall: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Over the eight neighbours; diagonally only where no wall's corner is cut."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import shortest_path

    numbers = np.arange(wall.size).reshape(wall.shape)
    inner = (slice(1, -1), slice(1, -1))
    edges = []
    for di, dj in ((1, 0), (0, 1), (1, 1), (1, -1)):
        shifted = [np.roll(~wall, step, (0, 1)) for step in ((-di, 0), (0, -dj), (-di, -dj))]
        free = (~wall & shifted[0] & shifted[1] & shifted[2])[inner]
        here, there = numbers[inner][free], np.roll(numbers, (-di, -dj), (0, 1))[inner][free]
        edges.append((here, there, np.full(len(here), np.hypot(di, dj))))
    here, there, length = (np.concatenate(part) for part in zip(*edges, strict=True))
    graph = csr_array((length, (here, there)), shape=(wall.size, wall.size))
    distance, towards = shortest_path(graph, directed=False, return_predecessors=True)
    return distance, np.where(towards < 0, -1, towards).astype(np.int64)
