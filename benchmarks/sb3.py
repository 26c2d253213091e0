# ruff: noqa: D102  (the methods are VecEnv's)
"""A peer: Stable-Baselines3's PPO on Meta-World's own vector environment, families mixed, goals hidden.

pip install -r benchmarks/requirements.txt
python benchmarks/sb3.py --seed 1 --env_steps 1000000 --run_dir runs/sb3-seed1

RUN_DIR/metrics.csv has the columns that `python benchmarks/time_to_success.py` reads of a run of `hmrl fit`:
the success of training episodes (at any step, sampled actions), and environment steps a second.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import metaworld  # noqa: F401  (registers the environments)
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

ENVS, HORIZON = 20, 500
ITERATION = 50_000  # environment steps of a row: those of an iteration of hmrl's default


class MetaWorldVecEnv(VecEnv):
    """Gymnasium's vector environment in the form that Stable-Baselines3 takes.

    Episodes end by the time limit alone, and all at once; the next one has another goal.
    """

    def __init__(self, seed: int, strategy: str) -> None:
        self.envs = gym.make_vec(
            "Meta-World/ML10-train", vector_strategy=strategy, seed=seed, meta_batch_size=ENVS
        )
        self.envs.call("sample_tasks")
        super().__init__(ENVS, self.envs.single_observation_space, self.envs.single_action_space)
        self.success = np.zeros(ENVS, dtype=bool)
        self.finished: list[float] = []  # success of each finished episode

    def reset(self) -> Any:
        observation, _ = self.envs.reset()
        return observation.astype(np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observation, reward, terminated, truncated, info = self.envs.step(self.actions)
        done = terminated | truncated
        # Where an episode ends, the next one has begun: what its last step gave is put aside.
        last = info["final_info"] if done.any() else info
        self.success |= np.asarray(last["success"]) > 0
        infos: list[dict[str, Any]] = [{} for _ in range(ENVS)]
        for i in np.flatnonzero(done):
            final = info["final_obs"][i].astype(np.float32)
            infos[i] = {"terminal_observation": final, "TimeLimit.truncated": True}
            self.finished.append(float(self.success[i]))
            self.success[i] = False
        return observation.astype(np.float32), reward.astype(np.float32), done, infos

    def close(self) -> None:
        self.envs.close()

    def seed(self, seed: int | None = None) -> Any:
        return [None] * ENVS

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        return [None] * ENVS

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        return [False] * ENVS


class Log(BaseCallback):
    """A row for every 50,000 environment steps."""

    def __init__(self, envs: MetaWorldVecEnv, file: Path) -> None:
        super().__init__()
        self.envs, self.file = envs, file
        self.begun, self.logged = time.perf_counter(), 0

    def _on_step(self) -> bool:
        if self.num_timesteps - self.logged >= ITERATION and self.envs.finished:
            now = time.perf_counter()
            row = {
                "step": self.num_timesteps,
                "rollout/success/mean": np.mean(self.envs.finished),
                "time/env_steps_per_second": (self.num_timesteps - self.logged) / (now - self.begun),
            }
            new = not self.file.exists()
            with self.file.open("a", newline="") as handle:
                writer = csv.DictWriter(handle, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)
            self.begun, self.logged = now, self.num_timesteps
            self.envs.finished.clear()
        return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--env_steps", type=int, default=1_000_000)
    parser.add_argument("--run_dir", type=Path, required=True)
    parser.add_argument("--vector_strategy", choices=["sync", "async"], default="sync")
    options = parser.parse_args()
    options.run_dir.mkdir(parents=True)
    envs = MetaWorldVecEnv(options.seed, options.vector_strategy)
    model = PPO(
        "MlpPolicy",
        VecNormalize(envs, gamma=0.99),
        n_steps=HORIZON,
        batch_size=500,
        n_epochs=10,
        gamma=0.99,
        ent_coef=0.002,
        policy_kwargs={"net_arch": [256, 256]},
        seed=options.seed,
        device="cpu",
    )
    model.learn(options.env_steps, callback=Log(envs, options.run_dir / "metrics.csv"))


if __name__ == "__main__":
    main()
