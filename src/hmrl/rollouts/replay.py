"""A first-in-first-out replay of whole rollouts, in fixed tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hmrl.system.errors import UserError
from hmrl.types import OF_TRIALS, TRAJECTORY_TENSORS, Rollout, Trajectories


class TrajectoryReplay:
    """The last rollouts that fit, raw: normalisation and value targets are made at use.

    A rollout's trials are sorted by family, so rollouts are forgotten as wholes: to overwrite the oldest
    trials one by one would leave some families with fewer than others, or with none.

    Args:
        capacity: most trials.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.episodes = 1  # of each trial
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._store: dict[str, Tensor] = {}  # name -> [capacity, ...], trials first
        self._rollout = torch.empty(0, dtype=torch.long)  # [capacity]: of each slot, ascending; -1: empty

    @property
    def size(self) -> int:
        """Trials that there are."""
        return len(self._filled())

    def _filled(self) -> Tensor:
        return (self._rollout >= 0).nonzero().flatten()

    def append(self, rollout: Rollout) -> None:
        """Remember every trial of ``rollout``, forgetting the oldest rollouts to make room.

        Raises:
            UserError: if its trials have another length or width than the ones there are, or do not fit.
        """
        trials = {name: _swapped(name, getattr(rollout, name)) for name in TRAJECTORY_TENSORS}
        check_capacity(self.capacity, count := len(rollout.family))
        if not self._store:
            self.episodes, self._store = rollout.episodes, self._reserved(trials)
            self._rollout = torch.full((self.capacity,), -1)
        for name, held, given in (
            ("episodes", [self.episodes], [rollout.episodes]),
            *((name, [*self._store[name].shape[1:]], [*v.shape[1:]]) for name, v in trials.items()),
        ):
            if held != given:
                raise UserError(
                    f"the replay holds trials of {name} {held}, now they have {given}: data.horizon, "
                    "data.episodes_per_trial and model.decision_interval must stay as they were when the "
                    "checkpoint was written"
                )
        newest = int(self._rollout.max())
        _forget(self._rollout, self.capacity - count)
        slots = (self._rollout < 0).nonzero().flatten()[:count]
        self._rollout[slots] = newest + 1
        for name, values in trials.items():
            self._store[name][slots] = values.to(self._store[name].device)

    def _reserved(self, trials: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Filled, not zeroed lazily: memory that is missing must be missed now, not hours later."""
        return {name: v.new_full((self.capacity, *v.shape[1:]), 0) for name, v in trials.items()}

    def sample(self, count: int) -> Trajectories:
        """``count`` different trials (all there are, if fewer), by torch's global generator."""
        filled = self._filled()
        chosen = filled[torch.randperm(len(filled))[:count]]
        batch = {name: _swapped(name, v[chosen]) for name, v in self._store.items()}
        return Trajectories(**batch, episodes=self.episodes)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Tensors and integers only: ``rollout`` of every slot, and the trials in the order of slots."""
        filled = self._filled()
        stored = {k: v[filled] for k, v in self._store.items()}
        return {"size": len(filled), "episodes": self.episodes, "rollout": self._rollout.clone(), **stored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; of a larger replay, the newest rollouts."""
        self.clear()
        self.episodes = state["episodes"]
        if not state["size"]:
            return
        rollout: Tensor = state["rollout"].clone()
        was_filled = rollout >= 0
        _forget(rollout, self.capacity)
        kept = (rollout >= 0)[was_filled]  # of the trials that the state holds
        if len(rollout) != self.capacity:  # where there are as many slots, a resumed run samples alike
            rollout = rollout[rollout >= 0]
            rollout = torch.cat([rollout, rollout.new_full((self.capacity - len(rollout),), -1)])
        self._rollout = rollout
        if missing := [name for name in TRAJECTORY_TENSORS if name not in state]:
            raise UserError(
                f"the checkpoint's replay lacks {', '.join(missing)}, as an earlier version wrote it: train "
                "on with that version, or begin another run"
            )
        self._store = self._reserved({name: state[name] for name in TRAJECTORY_TENSORS})
        for name, values in self._store.items():
            values[self._filled()] = state[name][kept]


def check_capacity(capacity: int, trials: int) -> None:
    """Refuse a replay that cannot hold a whole rollout, and so not all of its families alike.

    Raises:
        UserError: naming the setting.
    """
    if capacity < trials:
        raise UserError(
            f"data.replay_trajectories is {capacity}, but a rollout has {trials} trials, one an environment, "
            f"and the replay keeps whole rollouts, or it would lack families: use {trials} or more"
        )


def _swapped(name: str, values: Tensor) -> Tensor:
    """Trials before time steps, or the other way round."""
    return values if name in OF_TRIALS else values.transpose(0, 1)


def _forget(rollout: Tensor, size: int) -> None:
    """Empty the slots of the oldest of the rollouts ``[slots]`` until at most ``size`` are filled."""
    while len(filled := rollout[rollout >= 0]) > size:
        rollout[rollout == filled.min()] = -1


def deal(states: Sequence[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """One rank's share of the replays that another number of ranks has left: every trial goes to one.

    Ranks add a rollout each in every iteration, so the newest ones are equally old. Each iteration's trials
    are dealt out family by family, so that families remain as even as they were.

    Args:
        states: of each former rank, what :meth:`TrajectoryReplay.state_dict` gave.
        rank, world_size: whose share, of how many.
    """
    order: list[tuple[int, int, int, int]] = []  # age, family, former rank, trial
    for former, state in enumerate(states):
        if state["size"]:
            rollout: Tensor = state["rollout"]
            age = (rollout - rollout.max())[rollout >= 0].tolist()
            trials = range(state["size"])
            order += zip(age, state["family"].tolist(), [former] * len(age), trials, strict=True)
    mine = sorted(order)[rank::world_size]
    names = TRAJECTORY_TENSORS if mine else ()
    trials_of = {name: torch.stack([states[former][name][i] for *_, former, i in mine]) for name in names}
    rollout = torch.tensor([age for age, *_ in mine], dtype=torch.long)
    rollout = rollout - rollout.min() if mine else rollout
    return {"size": len(mine), "episodes": states[0]["episodes"], "rollout": rollout, **trials_of}
