"""What agents are not shown: the goal, and the family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hmrl.types import EnvStep, FloatArray, TaskEnvs


class HiddenGoals:
    """Environments that show their goals, which are kept here and, for agents, set to zero.

    Args:
        envs: B environments with visible goals.
        indices: where in an observation the goal stands; none if it stands nowhere.
        shown: leave it there: an upper bound.
    """

    goal: npt.NDArray[np.float32]  # [B, G], of the present episode

    def __init__(self, envs: TaskEnvs, indices: Sequence[int], shown: bool) -> None:
        self.families, self.horizon = envs.families, envs.horizon
        self._envs, self._indices, self._shown = envs, list(indices), shown

    def reset(self, episode: int) -> FloatArray:
        """Start episode number ``episode`` everywhere; returns observations ``[B, S]``."""
        observation = self._envs.reset(episode)
        self.goal = observation[:, self._indices].astype(np.float32)
        return self._hidden(observation)

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, A]`` in [-1, 1]."""
        taken = self._envs.step(action)
        return EnvStep(self._hidden(taken.observation), taken.reward, taken.success)

    def close(self) -> None:
        """Free the simulators."""
        self._envs.close()

    def _hidden(self, observation: FloatArray) -> FloatArray:
        if self._indices and not self._shown:
            observation = observation.copy()  # environments may hand out what they go on with
            observation[:, self._indices] = 0
        return observation


class ShownFamilies:
    """Environments whose observations end with their family, one-hot; zeros for a family not in the list.

    Args:
        envs: B environments.
        families: F families, in the order of their places.
    """

    def __init__(self, envs: TaskEnvs, families: Sequence[str]) -> None:
        self.families, self.horizon = envs.families, envs.horizon
        self._envs = envs
        self._shown = np.array([[own == family for family in families] for own in envs.families])

    def reset(self, episode: int) -> FloatArray:
        """Start episode number ``episode`` everywhere; returns observations ``[B, S + F]``."""
        return self._with_family(self._envs.reset(episode))

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, A]`` in [-1, 1]."""
        taken = self._envs.step(action)
        return EnvStep(self._with_family(taken.observation), taken.reward, taken.success)

    def close(self) -> None:
        """Free the simulators."""
        self._envs.close()

    def _with_family(self, observation: FloatArray) -> FloatArray:
        return np.concatenate([observation, self._shown.astype(observation.dtype)], axis=1)
