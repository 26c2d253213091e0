"""The toy world in the hands of Meta-World's own evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from hmrl.envs.benchmarks import ACTION_DIM, Goals
from support.toy import HORIZON, ToyEnvs

FAMILIES = ("reach", "push")
TASKS = {"reach": "SawyerReachEnvV3", "push": "SawyerPushEnvV3"}
REPEATS = 3


def toy_envs(solved: int | None = None) -> ToyEnvs:
    goals = Goals("train", 1, None, 0, repeats=REPEATS)
    return ToyEnvs(FAMILIES, goals, [0, 0], 1, HORIZON, solved=solved)


class TrialEnvs(VectorEnv):
    """The toy world as ``metaworld.evaluation`` wants it: same-step autoreset, recurrent observations."""

    num_envs = len(FAMILIES)

    def __init__(self, envs: ToyEnvs) -> None:
        self.envs, self.trial, self.terminate = envs, -1, False
        self.seen: list[np.ndarray] = []

    def get_attr(self, name: str) -> Any:
        assert name in ("task_name", "terminate_on_success")
        return [TASKS[f] for f in FAMILIES] if name == "task_name" else [self.terminate] * 2

    def call(self, name: str, *args: Any) -> Any:
        if name == "sample_tasks":
            self.trial += 1
        if name == "toggle_terminate_on_success":
            self.terminate = args[0]

    def reset(self) -> Any:
        self.number = self.elapsed = 0
        self.returns = np.zeros(2)
        observation = self.envs.reset(self.trial * REPEATS)
        return self._recurrent(observation, np.zeros((2, ACTION_DIM)), np.zeros(2), 0.0), {}

    def step(self, actions: Any) -> Any:
        taken = self.envs.step(np.asarray(actions))
        self.elapsed += 1
        self.returns += taken.reward
        success = np.asarray(taken.success)
        info: dict[str, Any] = {"success": success.astype(float)}
        done = (self.terminate and success.any()) or self.elapsed == HORIZON  # all at once, as all are alike
        ended = np.full(2, done)
        observation, reward = taken.observation, taken.reward
        if done:
            episode = {"r": self.returns.copy(), "l": np.full(2, self.elapsed)}
            info = {"final_info": {"success": success.astype(float), "episode": episode}}
            self.number += 1
            self.elapsed = 0
            self.returns = np.zeros(2)
            observation = self.envs.reset(self.trial * REPEATS + self.number % REPEATS)
        return (
            self._recurrent(observation, actions * (not done), reward * (not done), float(done)),
            reward,
            ended & self.terminate & success,
            ended & ~(self.terminate & success),
            info,
        )

    @staticmethod
    def _recurrent(observation: Any, action: Any, reward: Any, ended: float) -> np.ndarray:
        return np.concatenate([observation, action, reward[:, None], np.full((2, 1), ended)], axis=1)
