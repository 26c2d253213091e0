"""The replay against a plain Python list of the last rollouts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from hmrl.rollouts.replay import TrajectoryReplay, deal
from hmrl.system.errors import UserError
from hmrl.types import TRAJECTORY_TENSORS, Rollout, Trajectories
from support.agents import A, G, S, T, random_rollout


def numbered(first: int, count: int) -> Rollout:
    """Episodes that carry their number in every tensor (observations and rewards also their time step)."""
    number = torch.arange(first, first + count)
    time = 100 * torch.arange(T + 1).unsqueeze(1)
    return random_rollout(
        count,
        observation=(number + time).float().unsqueeze(-1).expand(-1, -1, S).clone(),
        action=number.float().expand(T, -1).unsqueeze(-1).expand(-1, -1, A).clone(),
        reward=(number + time[:T]).float(),
        macro_action=-number.float().expand(T, -1).unsqueeze(-1).expand(-1, -1, A),
        family=number,
    )


def filled(capacity: int, *counts: int, first: int = 0) -> TrajectoryReplay:
    replay = TrajectoryReplay(capacity)
    for count in counts:
        replay.append(numbered(first, count))
        first += count
    return replay


def assert_whole(sample: Trajectories) -> None:
    """Every field belongs to the same episode, by its number."""
    number = sample.family.float()
    time = 100.0 * torch.arange(T + 1).unsqueeze(1)
    assert torch.equal(sample.observation, (number + time).unsqueeze(-1).expand(-1, -1, S))
    assert torch.equal(sample.action, number.expand(T, -1).unsqueeze(-1).expand(-1, -1, A))
    assert torch.equal(sample.macro_action, -sample.action)
    assert torch.equal(sample.reward, number + time[:T])


def contents(replay: TrajectoryReplay) -> list[int]:
    return sorted(replay.sample(10**6).family.tolist())


def same_state(a: dict[str, Tensor | int], b: dict[str, Tensor | int]) -> bool:
    return set(a) == set(b) and all(
        torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a
    )


def last_rollouts(capacity: int, counts: Sequence[int]) -> list[int]:
    """Numbers of the episodes of as many of the last rollouts as fit as wholes."""
    kept: list[list[int]] = []
    for i in range(len(counts)):
        kept.append(list(range(sum(counts[:i]), sum(counts[: i + 1]))))
        while sum(map(len, kept)) > capacity:
            kept.pop(0)
    return [number for episodes in kept for number in episodes]


@pytest.mark.parametrize(
    ("capacity", "counts"),
    [(10, (4,)), (10, (4, 4, 4)), (5, (3, 3, 3, 3)), (4, (4, 4)), (12, (3, 11, 2, 4)), (1, (2 * (1,)))],
    ids=str,
)
def test_whole_rollouts_first_in_first_out(capacity: int, counts: tuple[int, ...]) -> None:
    assert contents(filled(capacity, *counts)) == last_rollouts(capacity, counts)


@pytest.mark.parametrize("environments", [10, 30, 70, 100])
@pytest.mark.parametrize("families", [10, 3])
def test_every_family_is_remembered_equally(environments: int, families: int) -> None:
    """Rollouts are sorted by family, and the capacity is no multiple of them."""
    replay = TrajectoryReplay(1000)
    for _ in range(9):
        family = torch.arange(families).repeat_interleave(environments)
        replay.append(random_rollout(len(family), family=family))
        counts = replay.sample(10**6).family.bincount(minlength=families)
        assert counts.min() == counts.max() > 0


def test_where_rollouts_fill_it_slots_and_samples_are_those_of_a_ring() -> None:
    """What was learnt before the replay knew of rollouts is learnt again, bit by bit."""
    replay, ring = TrajectoryReplay(12), torch.full((12,), -1)
    for i in range(8):
        replay.append(numbered(4 * i, 4))
        ring[(torch.arange(4) + 4 * i) % 12] = torch.arange(4 * i, 4 * i + 4)
        torch.manual_seed(i)
        sampled = replay.sample(5).family
        torch.manual_seed(i)
        assert sampled.tolist() == ring[torch.randperm(min(12, 4 * i + 4))[:5]].tolist()


def test_a_replay_below_one_rollout_is_refused_and_keeps_what_it_has() -> None:
    replay = filled(5, 4)
    with pytest.raises(
        UserError, match=r"data.replay_trajectories is 5, but a rollout has 6 .* use 6 or more"
    ):
        replay.append(numbered(9, 6))
    assert contents(replay) == [0, 1, 2, 3]


def test_a_cleared_replay_takes_rollouts_of_any_size() -> None:
    replay = filled(5, 4)
    replay.clear()
    assert (replay.size, contents(filled(5, 4))) == (0, [0, 1, 2, 3])
    replay.append(numbered(9, 5))
    assert contents(replay) == [9, 10, 11, 12, 13]


def test_every_field_of_a_sampled_episode_belongs_together() -> None:
    assert_whole(filled(5, 4, 4).sample(5))


@pytest.mark.parametrize("count", [1, 3, 6])
def test_samples_are_time_major_and_without_repetition(count: int) -> None:
    replay = filled(8, 6)
    shapes = {
        "observation": (T + 1, count, S),
        "action": (T, count, A),
        "reward": (T, count),
        "macro_action": (T, count, A),
        "family": (count,),
        "hidden_goal": (count, G),
    }
    assert set(shapes) == {f.name for f in fields(Trajectories)} - {"episodes"}
    for _ in range(20):
        sample = replay.sample(count)
        assert {name: tuple(getattr(sample, name).shape) for name in shapes} == shapes
        assert len(set(sample.family.tolist())) == count
        assert set(sample.family.tolist()) <= set(range(6))  # filled slots only


def test_more_than_there_is_gives_all_there_is() -> None:
    assert len(filled(8, 3).sample(20).family) == 3


def test_every_episode_is_sampled_and_sampling_follows_torchs_generator() -> None:
    replay = filled(6, 4)
    assert {int(replay.sample(1).family) for _ in range(200)} == {0, 1, 2, 3}
    torch.manual_seed(3)
    first = replay.sample(2).family
    torch.manual_seed(3)
    assert torch.equal(first, replay.sample(2).family)


def test_what_is_stored_is_a_copy() -> None:
    rollout = numbered(0, 3)
    replay = TrajectoryReplay(4)
    replay.append(rollout)
    rollout.observation.zero_()
    sample = replay.sample(3)
    assert sample.observation.any()
    sample.observation.zero_()
    assert replay.sample(3).observation.any()


def test_absent_macro_actions_have_width_zero() -> None:
    replay = TrajectoryReplay(4)
    replay.append(random_rollout(3, macro_action=torch.zeros(T, 3, 0)))
    assert replay.sample(2).macro_action.shape == (T, 2, 0)


@pytest.mark.parametrize("counts", [(), (3,), (5,), (4, 4), (2, 2, 2), (1, 2, 3, 1)], ids=str)
def test_state_dict_round_trip_including_what_comes_next(counts: tuple[int, ...]) -> None:
    replay = filled(5, *counts)
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(type(v) in (Tensor, int) for v in state.values())
    copy = TrajectoryReplay(5)
    copy.load_state_dict(state)
    assert same_state(copy.state_dict(), replay.state_dict())
    for r in (replay, copy):
        r.append(numbered(50, 3))
    assert same_state(copy.state_dict(), replay.state_dict())
    torch.manual_seed(0)
    a = replay.sample(2)
    torch.manual_seed(0)
    b = copy.sample(2)
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in TRAJECTORY_TENSORS)


def test_a_state_dict_does_not_change_with_the_replay() -> None:
    replay = filled(4, 4)
    state = replay.state_dict()
    replay.append(numbered(70, 2))
    assert contents(replay) == [70, 71]
    assert state["family"].tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("capacity", [3, 5, 9])
def test_a_replay_of_another_capacity_takes_over_the_newest_rollouts(capacity: int) -> None:
    """``replay_trajectories`` may be changed on resuming; empty slots must never be sampled."""
    old = filled(6, 2, 2, 2, 2)  # holds 2..7 and is about to overwrite slots in the middle
    replay = TrajectoryReplay(capacity)
    replay.load_state_dict(old.state_dict())
    held = list(range({3: 6, 5: 4, 9: 2}[capacity], 8))
    assert contents(replay) == held
    replay.append(numbered(8, 2))
    assert contents(replay) == [*held[0 if capacity == 9 else 2 :], 8, 9]


# --- dealt out to another number of processes -----------------------------------------------------


def shares(world_size: int, *replays: TrajectoryReplay) -> list[dict[str, Any]]:
    states = [replay.state_dict() for replay in replays]
    return [deal(states, rank, world_size) for rank in range(world_size)]


def rolled(rank: int, capacity: int, *counts: int, families: int = 2) -> TrajectoryReplay:
    """Rollouts sorted by family; rewards carry rank and number of the rollout."""
    replay = TrajectoryReplay(capacity)
    for number, count in enumerate(counts):
        family = torch.arange(families).repeat_interleave(count // families)
        replay.append(
            random_rollout(count, family=family, reward=torch.full((T, count), 100.0 * rank + number))
        )
    return replay


def held(state: dict[str, Any]) -> list[tuple[float, int]]:
    """Rollout and family of each trial."""
    pairs = zip(state["reward"][:, 0].tolist(), state["family"].tolist(), strict=True)
    return sorted(pairs) if state["size"] else []


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2), (4, 1)])
def test_every_trial_is_dealt_to_one_process_and_families_stay_even(before: int, after: int) -> None:
    replays = [rolled(rank, 40, 12, 12, 12, 12) for rank in range(before)]
    dealt = shares(after, *replays)
    assert sorted(p for share in dealt for p in held(share)) == sorted(
        p for replay in replays for p in held(replay.state_dict())
    )
    for share in dealt:
        for number in (1, 2, 3):
            of_one = [family for rollout, family in held(share) if rollout % 100 == number]
            assert abs(of_one.count(0) - of_one.count(1)) <= 1


@pytest.mark.parametrize("after", [1, 2, 3])
def test_processes_that_cannot_hold_all_keep_the_newest_rollouts(after: int) -> None:
    """And go on forgetting the oldest, as wholes."""
    for share in shares(after, *(rolled(rank, 36, 12, 12, 12) for rank in range(2))):
        whole = TrajectoryReplay(share["size"])
        whole.load_state_dict(share)
        assert held(whole.state_dict()) == held(share)
        replay = TrajectoryReplay(share["size"] - 1)
        replay.load_state_dict(share)
        newest = [pair for pair in held(share) if pair[0] % 100 != 0]
        assert held(replay.state_dict()) == newest
        replay.append(one_more(24 // after))
        assert {rollout for rollout, _ in held(replay.state_dict())} == {
            rollout for rollout, _ in newest if rollout % 100 == 2
        } | {900.0}


def one_more(count: int) -> Rollout:
    family = torch.arange(2).repeat_interleave(count // 2)
    return random_rollout(count, family=family, reward=torch.full((T, count), 900.0))


def test_nothing_is_dealt_as_nothing() -> None:
    for share in shares(3, TrajectoryReplay(9), rolled(0, 9, 2)):
        replay = TrajectoryReplay(9)
        replay.load_state_dict(share)
        assert replay.size == share["size"] <= 1


def test_a_dealt_trial_is_whole() -> None:
    (share,) = shares(1, filled(5, 5), filled(9, 3, first=100))
    replay = TrajectoryReplay(20)
    replay.load_state_dict(share)
    assert replay.size == 8
    assert_whole(replay.sample(20))
