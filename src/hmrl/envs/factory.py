"""Building a rank's share of environments."""

from __future__ import annotations

from typing import Literal

from hmrl.envs.benchmarks import HORIZON, Benchmark, Goals
from hmrl.envs.envpool import EnvPoolEnvs
from hmrl.envs.metaworld import MetaWorldEnvs
from hmrl.types import TaskEnvs, UserError

Backend = Literal["envpool", "metaworld", "metaworld_async"]


def make_envs(
    backend: Backend,
    bench: Benchmark,
    goals: Goals,
    envs_per_family: int,
    *,
    horizon: int = HORIZON,
    goal_visible: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> TaskEnvs:
    """The environments of one rank: an equal number of every family of ``goals.split``.

    Args:
        envs_per_family: over all ranks.

    Raises:
        UserError: if they do not divide over the ranks, or the horizon is out of range.
    """
    if envs_per_family < 1 or envs_per_family % world_size:
        raise UserError(
            f"{envs_per_family} environments a family do not divide over {world_size} process(es): "
            f"use a positive multiple of {world_size}"
        )
    if not 1 <= horizon <= HORIZON:
        raise UserError(f"horizon {horizon} is not in 1..{HORIZON}, the length of a Meta-World episode")
    share = envs_per_family // world_size
    slots_of_rank = range(rank * share, (rank + 1) * share)
    families = [family for family in bench.families(goals.split) for _ in slots_of_rank]
    slots = [slot for _ in bench.families(goals.split) for slot in slots_of_rank]
    if backend == "envpool":
        return EnvPoolEnvs(families, goals, slots, envs_per_family, horizon, goal_visible)
    return MetaWorldEnvs(
        bench, families, goals, slots, envs_per_family, horizon, goal_visible, backend == "metaworld_async"
    )
