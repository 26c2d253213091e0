"""The gaps that networks see are between the hand and the object of Meta-World itself."""

from __future__ import annotations

import metaworld
import pytest

from hmrl.envs.benchmarks import GAPS, META_WORLD


@pytest.mark.parametrize("family", ["pick-place", "push", "peg-insert-side", "basketball"])
def test_meta_world_has_hand_and_object_where_the_gaps_are(family: str) -> None:
    bench = metaworld.ML1(f"{family}-v3", seed=1)
    env = bench.train_classes[f"{family}-v3"]()
    env.set_task(bench.train_tasks[0])
    observation, _ = env.reset()
    hand, thing = env.get_endeff_pos(), env._get_pos_objects()[:3]
    for gap in GAPS:
        axis = gap.start
        found = observation[gap.end] - observation[gap.start]
        assert found == pytest.approx(thing[axis] - hand[axis], abs=1e-6)
    assert META_WORLD.gaps == GAPS
    env.close()
