"""Building a rank's share of environments."""

from __future__ import annotations

from collections.abc import Sequence

from hmrl.envs.benchmarks import HORIZON, Backend, Benchmark, Goals
from hmrl.envs.envpool import EnvPoolEnvs
from hmrl.envs.gridworld import GridWorldEnvs
from hmrl.envs.metaworld import MetaWorldEnvs
from hmrl.system.errors import UserError
from hmrl.types import TaskEnvs


def make_envs(
    backend: Backend,
    bench: Benchmark,
    goals: Goals,
    envs_per_family: int,
    *,
    horizon: int = HORIZON,
    goal_visible: bool = False,
    families: Sequence[str] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> TaskEnvs:
    """The environments of one rank: an equal number of every family.

    Args:
        envs_per_family: over all ranks.
        families: some of those of ``goals.split``, or None for all of them.

    Raises:
        UserError: if they do not divide over the ranks, the horizon is out of range, or the backend simulates
            another world or has fewer fixed goals.
    """
    if envs_per_family < 1 or envs_per_family % world_size:
        raise UserError(
            f"{envs_per_family} environments a family do not divide over {world_size} process(es): "
            f"use a positive multiple of {world_size}"
        )
    bench.check_backend("backend", backend)
    bench.check_horizon("horizon", horizon)
    bench.check_goals("goals.per_family", goals.per_family or 1, backend)
    if backend == "own":
        raise UserError(f"data.benchmark {bench.name} has environments of its own: override make_envs, too")
    share = envs_per_family // world_size
    each = [(f, rank * share + i) for f in families or bench.families(goals.split) for i in range(share)]
    names, slots = tuple(family for family, _ in each), [slot for _, slot in each]
    batch = (names, goals, slots, envs_per_family, horizon, goal_visible)
    if backend == "gridworld":
        return GridWorldEnvs(*batch, bench.world.scale)
    if backend == "envpool":
        return EnvPoolEnvs(*batch)
    return MetaWorldEnvs(*batch, bench=bench, asynchronous=backend == "metaworld_async")
