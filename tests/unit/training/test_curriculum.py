"""Which block it is, what forgetting is, and what becomes of families that a rollout has no episode of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hmrl.himeta.diagnostics import rollout_metrics
from hmrl.himeta.formulas import standardize
from hmrl.himeta.normalizer import RewardScaler
from hmrl.system.errors import UserError
from hmrl.training.callbacks.forgetting import heat_map
from hmrl.training.curriculum import CurriculumConfig, Schedule, backward_transfer, forgetting, learnt_before
from support.agents import random_rollout

FAMILIES = ("reach", "push", "sweep", "door-open")


def schedule(blocks: Any, per_block: int = 100, **changes: Any) -> Schedule:
    """Four families of 3 environments, each of which makes 5 steps an iteration: 60."""
    return CurriculumConfig(blocks, per_block, **changes).schedule(FAMILIES, 3, 5)


# --- which block -----------------------------------------------------------------------------------


def test_an_iteration_belongs_to_the_block_in_which_it_begins() -> None:
    plan = schedule([["push"], ["door-open", "reach"], ["sweep"]], per_block=150, cycles=2)
    begun, block, left = [], -1, 0
    for env_steps in range(0, 900, 60):
        if left <= 0:
            block, left = block + 1, left + 150
            begun.append(env_steps)
        assert plan.number(env_steps) == block
        assert plan.begins(env_steps) == (env_steps == begun[-1])
        left -= 60
    assert block == 5
    assert begun == [0, 180, 300, 480, 600, 780]
    assert plan.blocks == (("push",), ("reach", "door-open"), ("sweep",)) * 2  # in the families' order


def test_a_block_ends_with_the_iteration_that_reaches_its_steps() -> None:
    plan = schedule([["push"], ["reach"]], per_block=60)
    assert [plan.ended(n) for n in (0, 59, 60, 119, 120, 1000)] == [0, 0, 1, 1, 2, 2]
    assert [plan.number(n) for n in (0, 60, 120, 1000)] == [0, 1, 1, 1]  # the last one goes on
    assert [plan.begins(n) for n in (0, 60, 120, 180)] == [True, True, False, False]


def test_one_after_another_is_every_family_alone_in_the_benchmarks_order() -> None:
    assert schedule("one_after_another").blocks == tuple((family,) for family in FAMILIES)


@pytest.mark.parametrize(
    ("blocks", "per_block", "changes", "words"),
    [
        (
            [["reach"], ["lift"]],
            60,
            {},
            "names 'lift' twice in a block, or it is no training family: use some of reach",
        ),
        ([["reach", "reach"]], 60, {}, "names 'reach' twice in a block"),
        ([["reach"], []], 60, {}, "name one or more blocks of one or more families"),
        ([], 60, {}, "name one or more blocks"),
        (
            "one_after_another",
            59,
            {},
            "env_steps_per_block is 59, but one iteration has 60: use that or more",
        ),
        ("one_after_another", 0, {}, "env_steps_per_block is 0: use 1 or more"),
        ("one_after_another", 60, {"cycles": 0}, "cycles is 0: use 1 or more"),
    ],
)
def test_mistakes_in_a_curriculum_are_refused(
    blocks: Any, per_block: int, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        schedule(blocks, per_block, **changes)


def test_environments_must_divide_over_a_blocks_families_and_the_processes() -> None:
    config = CurriculumConfig([["reach", "push", "sweep"]], 100)
    assert config.schedule(FAMILIES, 3, 5).environments == 12
    config.schedule(FAMILIES, 3, 5).check(2)
    with pytest.raises(UserError, match=r"3 families, over which, in 1 process\(es\), the 8 training"):
        config.schedule(FAMILIES, 2, 5).check(1)
    with pytest.raises(UserError, match=r"3 families, over which, in 3 process\(es\), the 12 training"):
        config.schedule(FAMILIES, 3, 5).check(3)


def test_a_budget_beyond_the_last_block_is_refused() -> None:
    plan = schedule("one_after_another")
    plan.check_budget(400)
    with pytest.raises(UserError, match="is 401, but the 4 blocks of data"):
        plan.check_budget(401)


# --- what is forgotten -----------------------------------------------------------------------------


def rows(matrix: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(FAMILIES, row.tolist(), strict=True)) for row in matrix]


@pytest.mark.parametrize("k", [2, 3, 4])
def test_one_family_a_block_is_what_the_papers_define(k: int) -> None:
    a = np.random.default_rng(k).random((k, 4))
    blocks = [[family] for family in FAMILIES[:k]]
    total = transfer = 0.0
    for j in range(k - 1):  # tasks learnt before the last one
        best = a[0, j]
        for block in range(k - 1):
            best = max(best, a[block, j])
        total += best - a[k - 1, j]
        transfer += a[k - 1, j] - a[j, j]
    lost, moved = forgetting(rows(a), blocks), backward_transfer(rows(a), blocks)
    assert list(lost) == list(moved) == list(FAMILIES[: k - 1])
    assert sum(lost.values()) / (k - 1) == pytest.approx(total / (k - 1))
    assert sum(moved.values()) / (k - 1) == pytest.approx(transfer / (k - 1))


def test_a_family_counts_from_the_latest_block_that_trained_it() -> None:
    blocks = [["reach", "push"], ["sweep"], ["reach"], ["push"]]
    success = [
        {"reach": 0.9, "push": 0.5, "sweep": 0.6, "door-open": 0.8},
        {"reach": 0.2, "push": 0.1, "sweep": 0.3, "door-open": 0.0},
        {"reach": 0.7, "push": 0.4, "sweep": 0.1, "door-open": 0.0},
        {"reach": 0.4, "push": 0.6, "sweep": 0.2, "door-open": 0.0},
    ]
    # push is trained anew, door-open never was
    assert learnt_before(blocks) == {"reach": 2, "sweep": 1}
    assert backward_transfer(success, blocks) == pytest.approx({"reach": 0.4 - 0.7, "sweep": 0.2 - 0.3})
    assert forgetting(success, blocks) == pytest.approx({"reach": 0.9 - 0.4, "sweep": 0.6 - 0.2})


def test_nothing_can_be_forgotten_in_the_first_block() -> None:
    assert forgetting(rows(np.ones((1, 4))), [["reach"]]) == {}
    assert backward_transfer(rows(np.ones((1, 4))), [["reach"]]) == {}


def test_the_figure_shows_every_number_and_frames_what_was_trained() -> None:
    shown = [
        {"families": ["reach", "push"], "success": {"train": a, "test": {"sweep": 0.04}}}
        for a in ({"reach": 0.25, "push": 0.75}, {"reach": 0.5, "push": 1.0})
    ]
    shown[1]["families"] = ["push"]
    train, test, _ = heat_map(shown).axes
    assert [t.get_text() for t in train.texts] == ["0.25", "0.75", "0.50", "1.00"]
    assert [t.get_text() for t in test.texts] == ["0.04", "0.04"]
    assert [(p.get_x(), p.get_y()) for p in train.patches] == [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5)]
    assert not test.patches
    assert [t.get_text() for t in train.get_yticklabels()] == ["1: reach and push", "2: push"]


# --- families that a rollout has no episode of ------------------------------------------------------


def absent() -> tuple[Any, Any]:
    """A rollout of the first and third of three families, and the same one of these two alone."""
    rollout = random_rollout(
        episodes=4, family=torch.tensor([0, 2, 2, 0]), families=("reach", "push", "sweep")
    )
    return rollout, replace(rollout, family=torch.tensor([0, 1, 1, 0]), families=("reach", "sweep"))


@pytest.mark.parametrize("episodes", [1, 2])
def test_metrics_of_a_rollout_leave_an_absent_family_out(episodes: int) -> None:
    with_absent, without = (replace(rollout, episodes=episodes) for rollout in absent())
    metrics, expected = (rollout_metrics(r, r.task_belief.unsqueeze(-2)) for r in (with_absent, without))
    assert {name.replace("_in_block", "") for name in metrics} == expected.keys()
    assert "rollout/success/push" not in metrics
    assert "rollout/success/mean" not in metrics  # it is not of all training families
    assert not any(name.startswith("rollout/success_in_episode") for name in metrics)
    for name, value in metrics.items():
        assert torch.isfinite(value), name
        torch.testing.assert_close(value, expected[name.replace("_in_block", "")])
    won = with_absent.ever_success.double()
    by_family = [won[with_absent.episode_family == i].mean() for i in (0, 2)]
    assert metrics["rollout/success_in_block/mean"] == pytest.approx(sum(by_family) / 2)


def test_nothing_is_known_about_one_family_alone() -> None:
    rollout = random_rollout(episodes=2, family=torch.tensor([1, 1]), families=("reach", "push"))
    metrics = rollout_metrics(rollout, rollout.task_belief.unsqueeze(-2))
    assert "encoder/entropy" in metrics
    assert "encoder/family_information" not in metrics


def test_advantages_are_standardised_within_the_families_there_are() -> None:
    advantage = torch.randn(7, 4)
    group, alone = torch.tensor([0, 2, 2, 0]), torch.tensor([0, 1, 1, 0])
    assert torch.equal(standardize(advantage, group, 3), standardize(advantage, alone, 2))


def test_an_absent_familys_reward_scale_stays_as_it_was() -> None:
    scaler = RewardScaler("family", gamma=0.9, families=3)
    scaler.observe(5 * torch.rand(6, 3), torch.tensor([0, 1, 2]))
    before = {name: value.clone() for name, value in scaler.moments.named_buffers()}
    scaler.observe(50 * torch.rand(6, 2), torch.tensor([0, 2]))
    for name, value in scaler.moments.named_buffers():
        assert torch.equal(value[1], before[name][1]), name
        assert not torch.equal(value[[0, 2]], before[name][[0, 2]]), name
    replayed = scaler(torch.ones(6, 1), torch.tensor([1]))
    assert torch.equal(replayed, torch.ones(6, 1) / before["var"][1].sqrt().float())


def test_a_family_never_seen_has_its_rewards_as_they_are() -> None:
    scaler = RewardScaler("family", gamma=0.9, families=2)
    scaler.observe(5 * torch.rand(6, 2), torch.tensor([0, 0]))
    assert torch.equal(scaler(torch.ones(3, 1), torch.tensor([1])), torch.ones(3, 1))
