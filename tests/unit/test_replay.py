"""The replay against a plain Python list of the last episodes."""

from __future__ import annotations

import io
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from hmrl.replay import TrajectoryReplay, deal
from hmrl.types import TRAJECTORY_TENSORS, Rollout, Trajectories

from .helpers import A, S, T, random_rollout


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


def filled(capacity: int, *counts: int) -> TrajectoryReplay:
    replay, first = TrajectoryReplay(capacity), 0
    for count in counts:
        replay.append(numbered(first, count))
        first += count
    return replay


def contents(replay: TrajectoryReplay) -> list[int]:
    return sorted(replay.sample(10**6).family.tolist())


def same_state(a: dict[str, Tensor | int], b: dict[str, Tensor | int]) -> bool:
    return set(a) == set(b) and all(
        torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a
    )


@pytest.mark.parametrize(
    ("capacity", "counts"),
    [(10, (4,)), (10, (4, 4, 4)), (5, (3, 3, 3, 3)), (4, (4, 4)), (4, (11,)), (4, (3, 11, 2)), (1, (2, 2))],
    ids=str,
)
def test_first_in_first_out(capacity: int, counts: tuple[int, ...]) -> None:
    total = sum(counts)
    assert contents(filled(capacity, *counts)) == list(range(max(0, total - capacity), total))


def test_every_field_of_a_sampled_episode_belongs_together() -> None:
    sample = filled(5, 4, 4).sample(5)
    number = sample.family.float()
    time = 100.0 * torch.arange(T + 1).unsqueeze(1)
    assert torch.equal(sample.observation, (number + time).unsqueeze(-1).expand(-1, -1, S))
    assert torch.equal(sample.action, number.expand(T, -1).unsqueeze(-1).expand(-1, -1, A))
    assert torch.equal(sample.macro_action, -sample.action)
    assert torch.equal(sample.reward, number + time[:T])


@pytest.mark.parametrize("count", [1, 3, 6])
def test_samples_are_time_major_and_without_repetition(count: int) -> None:
    replay = filled(8, 6)
    shapes = {
        "observation": (T + 1, count, S),
        "action": (T, count, A),
        "reward": (T, count),
        "macro_action": (T, count, A),
        "family": (count,),
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
    replay = filled(4, 6)
    assert {int(replay.sample(1).family) for _ in range(200)} == {2, 3, 4, 5}
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


@pytest.mark.parametrize("counts", [(), (3,), (5,), (4, 4), (4, 4, 4)], ids=str)
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
    assert state["family"].tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("capacity", [3, 9])
def test_a_replay_of_another_capacity_takes_over_the_newest_episodes(capacity: int) -> None:
    """``replay_trajectories`` may be changed on resuming; empty slots must never be sampled."""
    old = filled(5, 4, 4)  # holds 3..7 and is about to overwrite a slot in the middle
    replay = TrajectoryReplay(capacity)
    replay.load_state_dict(old.state_dict())
    assert contents(replay) == list(range(8 - min(capacity, 5), 8))
    replay.append(numbered(8, 2))
    assert contents(replay) == list(range(10 - min(capacity, 7), 10))


# --- dealt out to another number of processes -----------------------------------------------------


def shares(world_size: int, *replays: TrajectoryReplay) -> list[dict[str, Any]]:
    states = [replay.state_dict() for replay in replays]
    return [deal(states, rank, world_size) for rank in range(world_size)]


def of_rank(rank: int, capacity: int, *counts: int) -> TrajectoryReplay:
    """Episodes are numbered from 100 times the rank on."""
    replay, first = TrajectoryReplay(capacity), 100 * rank
    for count in counts:
        replay.append(numbered(first, count))
        first += count
    return replay


WRAPPED = (5, 4, 4)  # holds 3..7, of which the oldest is in slot 3


def numbers(share: dict[str, Any]) -> list[int]:
    return share["family"].tolist() if share["size"] else []


@pytest.mark.parametrize(
    ("world_size", "replays", "expected"),
    [
        (1, [(9, 3), (9, 3)], [[0, 100, 1, 101, 2, 102]]),
        (1, [WRAPPED, WRAPPED], [[3, 103, 4, 104, 5, 105, 6, 106, 7, 107]]),
        (2, [(9, 4)], [[0, 2], [1, 3]]),
        (2, [(9, 5)], [[0, 2, 4], [1, 3]]),
        (2, [WRAPPED], [[3, 5, 7], [4, 6]]),
        (3, [WRAPPED, WRAPPED], [[3, 104, 6, 107], [103, 5, 106], [4, 105, 7]]),
        (3, [(9, 4), (9, 4)], [[0, 101, 3], [100, 2, 103], [1, 102]]),
        (2, [(9, 2), (9, 1), (9, 1)], [[0, 100], [1, 200]]),  # what is newest is equally old
        (3, [(9, 2)], [[0], [1], []]),
        (2, [(9,), (9, 3)], [[100, 102], [101]]),
        (1, [(9,), (9,)], [[]]),
        (3, [(9,)], [[], [], []]),
    ],
    ids=str,
)
def test_every_episode_is_dealt_to_one_process_oldest_first(
    world_size: int, replays: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    dealt = shares(world_size, *(of_rank(rank, *filling) for rank, filling in enumerate(replays)))
    assert [numbers(share) for share in dealt] == expected
    for share in dealt:
        assert share["size"] == share["next"] == len(numbers(share))


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_that_cannot_hold_all_keep_the_newest(world_size: int, capacity: int) -> None:
    """And go on forgetting the oldest."""
    dealt = shares(world_size, of_rank(0, *WRAPPED), of_rank(1, *WRAPPED))
    in_order = [3, 103, 4, 104, 5, 105, 6, 106, 7, 107]
    kept: list[int] = []
    for rank, share in enumerate(dealt):
        replay = TrajectoryReplay(capacity)
        replay.load_state_dict(share)
        held = contents(replay)
        kept += held
        replay.append(numbered(900 + rank, 1))
        oldest_first = [n for n in in_order if n in held]
        forgotten = 1 if len(held) == capacity else 0
        assert contents(replay) == sorted([*oldest_first[forgotten:], 900 + rank])
    assert sorted(kept) == sorted(in_order[-world_size * capacity :])


def test_a_dealt_episode_is_whole() -> None:
    (share,) = shares(1, of_rank(0, *WRAPPED), of_rank(1, 9, 3))
    replay = TrajectoryReplay(20)
    replay.load_state_dict(share)
    sample = replay.sample(20)
    number = sample.family.float()
    assert len(number) == 8
    time = 100.0 * torch.arange(T + 1).unsqueeze(1)
    assert torch.equal(sample.observation, (number + time).unsqueeze(-1).expand(-1, -1, S))
    assert torch.equal(sample.action, number.expand(T, -1).unsqueeze(-1).expand(-1, -1, A))
    assert torch.equal(sample.macro_action, -sample.action)
    assert torch.equal(sample.reward, number + time[:T])
