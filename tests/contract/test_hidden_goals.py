"""What hides goals in training hides them as the simulators do, and knows them."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from hmrl.envs import Backend, benchmark, make_envs
from hmrl.envs.benchmarks import Goals
from hmrl.envs.wrappers.shown import HiddenGoals

pytestmark = pytest.mark.simulator


@pytest.mark.parametrize(
    ("backend", "world"), [("envpool", "ML10"), ("metaworld", "ML10"), ("gridworld", "GridWorld")]
)
def test_what_is_seen_is_the_same_as_where_the_simulator_hides_the_goal(backend: Backend, world: str) -> None:
    bench = benchmark(world)  # type: ignore[arg-type]
    goals, indices = Goals("train", 1, None, 0), list(bench.world.goal_indices)
    batches = [make_envs(backend, bench, goals, 2, horizon=20, goal_visible=v) for v in (False, True, True)]
    hidden, shown = batches[:2]
    wrapped = HiddenGoals(batches[2], indices, shown=False)
    rng = np.random.default_rng(0)
    with closing(hidden), closing(shown), closing(wrapped):
        for episode in range(2):
            first = [envs.reset(episode) for envs in (hidden, shown, wrapped)]
            assert np.array_equal(first[0], first[2])
            assert np.array_equal(wrapped.goal, first[1][:, indices].astype(np.float32))
            assert np.abs(wrapped.goal).max() > 0
            for _ in range(20):
                action = rng.uniform(-1, 1, (len(hidden.families), bench.world.action_dim))
                action = action.astype(np.float32)
                one, _, other = (envs.step(action) for envs in (hidden, shown, wrapped))
                for a, b in zip(one, other, strict=True):
                    assert np.array_equal(a, b)
