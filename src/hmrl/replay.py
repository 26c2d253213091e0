"""A first-in-first-out replay of whole trajectories, in fixed tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hmrl.types import TRAJECTORY_TENSORS, Rollout, Trajectories, UserError


class TrajectoryReplay:
    """The last ``capacity`` episodes, raw: normalisation and value targets are made at use.

    Args:
        capacity: number of trajectories.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.next = 0
        self.episodes = 1  # of each trial
        self._store: dict[str, Tensor] = {}  # name -> [capacity, ...], episodes first

    def append(self, rollout: Rollout) -> None:
        """Remember every episode of ``rollout``, forgetting the oldest ones.

        Raises:
            UserError: if its episodes have another length or width than the ones there are.
        """
        episodes = {
            name: getattr(rollout, name).movedim(0 if name == "family" else 1, 0)
            for name in TRAJECTORY_TENSORS
        }
        if self._store and rollout.episodes != self.episodes:
            raise UserError(
                f"the replay holds trials of {self.episodes} episode(s), now they have {rollout.episodes}: "
                "data.episodes_per_trial must stay as it was when the checkpoint was written"
            )
        self.episodes = rollout.episodes
        count = min(len(episodes["family"]), self.capacity)
        if not self._store:
            # Filled, not zeroed lazily: memory that is missing must be missed now, not hours later.
            self._store = {k: v.new_full((self.capacity, *v.shape[1:]), 0) for k, v in episodes.items()}
        for name, values in episodes.items():
            if (stored := self._store[name].shape[1:]) != values.shape[1:]:
                raise UserError(
                    f"the replay holds episodes whose {name} has shape {list(stored)}, now it is "
                    f"{list(values.shape[1:])}: data.horizon and model.decision_interval must stay as they "
                    "were when the checkpoint was written"
                )
        slots = (self.next + torch.arange(count)) % self.capacity
        for name, values in episodes.items():
            self._store[name][slots] = values[-count:].to(self._store[name].device)
        self.next = int((self.next + count) % self.capacity)
        self.size = min(self.size + count, self.capacity)

    def sample(self, count: int) -> Trajectories:
        """``count`` different trajectories (all there are, if fewer), by torch's global generator."""
        chosen = torch.randperm(self.size)[:count]
        batch = {k: v[chosen].movedim(0, 0 if k == "family" else 1) for k, v in self._store.items()}
        return Trajectories(**batch, episodes=self.episodes)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Tensors and integers only, oldest slot order kept."""
        stored = {k: v[: self.size].clone() for k, v in self._store.items()}
        return {"size": self.size, "next": self.next, "episodes": self.episodes, **stored}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Restore what :meth:`state_dict` gave; of a larger replay, the newest episodes."""
        size, start = int(state["size"]), int(state["next"])
        slots = torch.arange(size)  # as they were, so that a resumed run samples alike
        if size > self.capacity or start < size < self.capacity:  # full at another capacity: oldest first
            slots = slots.roll(-start)[-self.capacity :]
            start = len(slots)
        self.size, self.next = len(slots), start % self.capacity
        self.episodes = int(state.get("episodes", 1))
        self._store = {}
        for name in TRAJECTORY_TENSORS:
            values = state.get(name)
            if isinstance(values, Tensor):
                self._store[name] = values.new_full((self.capacity, *values.shape[1:]), 0)
                self._store[name][: self.size] = values[slots]


def deal(states: Sequence[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """One rank's share of the replays that another number of ranks has left: every episode goes to one.

    Args:
        states: of each former rank, what :meth:`TrajectoryReplay.state_dict` gave.
        rank, world_size: whose share, of how many.
    """
    filled = [(former, state) for former, state in enumerate(states) if state["size"]]
    # Oldest first, for those are the ones that are forgotten; what is equally old alternates over ranks.
    order = sorted(
        (age - state["size"], former, (state["next"] + age) % state["size"])
        for former, state in filled
        for age in range(state["size"])
    )
    mine = order[rank::world_size]
    names = TRAJECTORY_TENSORS if mine else ()
    episodes = {name: torch.stack([states[former][name][slot] for _, former, slot in mine]) for name in names}
    kept = {"size": len(mine), "next": len(mine), "episodes": states[0].get("episodes", 1)}
    return {**kept, **episodes}
