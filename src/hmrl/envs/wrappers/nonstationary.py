"""Worlds that change: the course of a number over an episode, or over training."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import numpy as np

from hmrl.system.errors import UserError
from hmrl.types import FloatArray

Kind = Literal["linear", "random_walk", "jump"]


@dataclass
class Change:
    """How a number leaves its value.

    Args:
        kind: ``linear``: steadily, to ``size`` at the end. ``random_walk``: by independent Gaussian steps,
            whose sum has the standard deviation ``size`` at the end. ``jump``: all at once, at a random
            moment.
        size: how far, in units of what changes; never 0.
        over_episodes: None: within each episode, with a draw of its own for every environment and episode. A
            number: over so many episodes of training, constant within each of them, on one course for all
            environments; afterwards nothing changes any more.
    """

    kind: Kind = "linear"
    size: float = 0.0
    over_episodes: int | None = None

    def check(self, key: str) -> None:
        """Refuse what could not be done.

        Args:
            key: where these settings stand, as "data.perturbation.action_gain".

        Raises:
            UserError: naming the setting.
        """
        if self.kind not in get_args(Kind):
            raise UserError(f"{key}.kind is {self.kind!r}: use one of {', '.join(get_args(Kind))}")
        if not 0 < abs(self.size) < inf:
            raise UserError(
                f"{key}.size is {self.size}, but it must be finite and not 0: set {key} to null for no change"
            )
        if self.over_episodes is not None and self.over_episodes < 1:
            raise UserError(
                f"{key}.over_episodes is {self.over_episodes}: use 1 or more episodes of training, or null "
                "for a change within each episode"
            )

    def course(self, length: int, width: int, rng: np.random.Generator) -> FloatArray:
        """How far ``width`` numbers are from their values at the moments 0 to ``length``.

        All start at 0. A single number goes where ``size`` points; several go up or down, each by a draw of
        its own, and jump together.

        Returns:
            ``[length + 1, width]``
        """
        sign = rng.choice((-1.0, 1.0), width) if width > 1 else np.ones(1)
        moment = np.arange(length + 1)[:, None]
        if self.kind == "linear":
            return self.size * sign * moment / length
        if self.kind == "jump":
            return self.size * sign * (moment >= rng.integers(1, max(length, 2)))
        steps = rng.standard_normal((length, width)) * self.size / np.sqrt(length)
        return np.concatenate([np.zeros((1, width)), np.cumsum(steps, axis=0)])
