"""Meta-World's own vector environments, as its meta-learning evaluation wants them, taking notes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from hmrl.envs.benchmarks import GOAL_INDICES, Benchmark, metaworld_name, short_name
from hmrl.envs.workers import workers
from hmrl.types import Split

Phase = Literal["adaptation", "evaluation"]


@dataclass(frozen=True)
class Episode:
    """One finished episode.

    Args:
        env: number of the environment.
        trial: of the environment, each on a goal of its own.
        phase, number: the how-many-th episode of the trial's adaptation or evaluation.
        success: at any step.
        final_success: at the last step.
        episode_return: undiscounted.
        length: simulator steps.
    """

    env: int
    trial: int
    phase: Phase
    number: int
    success: bool
    final_success: bool
    episode_return: float
    length: int


class RecordedEnvs(gym.vector.VectorWrapper):
    """Notes every episode that ends; changes nothing, save that experts can be shown the goal.

    Args:
        envs: of :func:`make_trial_envs`.
        goal_visible: write the goal into the observation.
    """

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any], goal_visible: bool = False) -> None:
        super().__init__(envs)
        self.episodes: list[Episode] = []
        self.families = tuple(short_name(name) for name in _task_names(envs))
        self._goal_visible = goal_visible
        self._trial, self._phase = -1, "adaptation"
        self._number = np.zeros(self.num_envs, dtype=int)
        self._ever = np.zeros(self.num_envs, dtype=np.bool_)

    def get_attr(self, name: str) -> Any:
        """Attribute ``name`` of every environment."""
        return self.env.get_attr(name)  # type: ignore[attr-defined]

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call ``name`` on every environment; Meta-World's evaluation thereby says what it is about to do."""
        if name == "sample_tasks":
            self._trial += 1
        if name == "toggle_terminate_on_success":  # on in the evaluation's episodes alone
            self._phase = "evaluation" if args[0] else "adaptation"
        return self.env.call(name, *args, **kwargs)  # type: ignore[attr-defined]

    def reset(self, **kwargs: Any) -> Any:
        """Start episodes everywhere."""
        self._number[:] = 0
        self._ever[:] = False
        observation, info = self.env.reset(**kwargs)
        return self._show(observation), info

    def step(self, actions: Any) -> Any:
        """One simulator step; an episode that ends is followed by another within the same step."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ended = np.logical_or(terminated, truncated)
        if not ended.all():  # else there is nothing but last steps
            self._ever |= ~ended & (np.asarray(info["success"], dtype=float) > 0.5)
        for i in np.flatnonzero(ended):
            last = info["final_info"]
            final = bool(last["success"][i] > 0.5)
            self.episodes.append(
                Episode(
                    env=int(i),
                    trial=self._trial,
                    phase=self._phase,  # type: ignore[arg-type]
                    number=int(self._number[i]),
                    success=bool(self._ever[i]) or final,
                    final_success=final,
                    episode_return=float(last["episode"]["r"][i]),
                    length=int(last["episode"]["l"][i]),
                )
            )
        self._number[ended] += 1
        self._ever[ended] = False
        return self._show(observation), reward, terminated, truncated, info

    def _show(self, observation: Any) -> Any:
        if self._goal_visible:
            goals = np.stack(self.env.call("_get_pos_goal"))  # type: ignore[attr-defined]
            observation[:, list(GOAL_INDICES)] = goals
        return observation


def _task_names(envs: Any) -> list[str]:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    names = {cls.__name__: name for name, cls in ALL_V3_ENVIRONMENTS.items()}
    return [names[name] for name in envs.get_attr("task_name")]


def make_trial_envs(
    bench: Benchmark,
    split: Split,
    *,
    seed: int,
    batch: int,
    tasks_per_family: int,
    horizon: int,
    asynchronous: bool = False,
    goal_visible: bool = False,
) -> RecordedEnvs:
    """Meta-World's vector environments of one split, an equal number a family.

    Observations end with the last action, the last reward (raw) and whether the episode has just ended:
    ``metaworld.evaluation`` gives agents no reward otherwise. Tasks are drawn without repetition.

    Args:
        seed: of the benchmark's goals.
        batch: environments.
        tasks_per_family: goals a family, shared out over its environments.
        horizon: simulator steps of an episode.
        asynchronous: a process an environment.
        goal_visible: for scripted experts.
    """
    import metaworld

    options: dict[str, Any] = {
        "seed": seed,
        "meta_batch_size": batch,
        "total_tasks_per_cls": tasks_per_family,
        "vector_strategy": "async" if asynchronous else "sync",
        "max_episode_steps": horizon,
        "recurrent_info_in_obs": True,
        "normalize_reward_in_recurrent_info": False,
    }
    if bench.name == "custom":
        options |= {"split": split, "task_select": "pseudorandom", "terminate_on_success": split == "test"}
        options["train_envs"] = [metaworld_name(f) for f in bench.train]
        options["test_envs"] = [metaworld_name(f) for f in bench.test]
        make = partial(gym.make_vec, "Meta-World/custom-ml-envs", **options)
    else:
        name = metaworld_name(bench.train[0]) if bench.name == "ML1" else bench.name
        of_split = metaworld.make_ml_envs_train if split == "train" else metaworld.make_ml_envs_test
        make = partial(of_split, name, **options)
    with workers():
        return RecordedEnvs(make(), goal_visible)
