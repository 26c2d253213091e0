"""The protocol ``meta_world``: our agents in Meta-World's own evaluation of meta-learners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hmrl.envs import Benchmark
from hmrl.envs.benchmarks import ACTION_DIM, GOAL_INDICES, OBSERVATION_DIM, metaworld_name, short_name
from hmrl.envs.workers import workers
from hmrl.evaluation.baselines import AgentName, choose_agent
from hmrl.evaluation.protocols import TrialConfig
from hmrl.rollouts.collect import few_threads, require_finite, where_it_is_faster
from hmrl.types import Acting, Agent, Carry, FloatArray, Outcomes, Split

Phase = Literal["adaptation", "evaluation"]
_REWARD = OBSERVATION_DIM + ACTION_DIM  # where Meta-World's recurrent observations hold the last reward


class TrialAgent:
    """An agent as ``metaworld.evaluation.MetaLearningAgent``: memory is all the adaptation there is.

    Environments may be in the middle of a decision interval or at the start of an episode, each for
    itself. Only :meth:`init` clears memory: Meta-World calls ``reset`` after every episode. At an episode's
    end the agent is given the last reward in adaptation, and not in evaluation, where Meta-World keeps it.

    Args:
        agent: who decides.
        acting: how.
        families: of each environment, to name them in errors.
    """

    def __init__(self, agent: Agent, acting: Acting, families: Sequence[str]) -> None:
        self._agent, self._device = where_it_is_faster(agent, len(families))
        self._acting, self._families = acting, families

    def init(self) -> None:
        """A new trial: forget everything."""
        count = len(self._families)
        self._carry = self._agent.initial_carry(count)
        self._reward = np.zeros(count)  # since each environment's last decision
        self._wait = np.zeros(count, dtype=int)  # simulator steps until its next one
        self._action = np.zeros((count, ACTION_DIM), dtype=np.float32)

    def reset(self, env_mask: Any) -> None:
        """An episode begins where ``env_mask`` ``[B]`` says: decide anew, with memory kept."""
        begins = np.asarray(env_mask, dtype=np.bool_)
        self._wait[begins] = 0
        age = self._carry.age  # a macro-action that is held is not held on into another episode
        mask = torch.from_numpy(begins).to(age.device)[:, None]
        self._carry = replace(self._carry, age=torch.where(mask, torch.zeros_like(age), age))

    def adapt_action(self, observations: FloatArray) -> tuple[FloatArray, dict[str, Any]]:
        """Actions ``[B, 4]`` in the adaptation phase, from recurrent observations ``[B, 45]``."""
        return self._act(observations), {}

    def step(self, timestep: Any) -> None:
        """What an adaptation step brought."""
        self._reward += timestep.reward
        self.reset(np.logical_or(timestep.terminated, timestep.truncated))

    def adapt(self) -> None:
        """Nothing: what was seen is remembered already."""

    def eval_action(self, observations: FloatArray) -> FloatArray:
        """Actions ``[B, 4]`` in the evaluation phase, from recurrent observations ``[B, 45]``."""
        self._reward += observations[:, _REWARD]
        return self._act(observations)

    def _act(self, observations: FloatArray) -> FloatArray:
        due = self._wait == 0
        if due.any():
            self._check("observation", observations[:, :OBSERVATION_DIM])
            self._check("reward", self._reward)
            seen = torch.tensor(observations[:, :OBSERVATION_DIM], dtype=torch.float32, device=self._device)
            reward = torch.tensor(self._reward, dtype=torch.float32, device=self._device)
            step, carry = self._agent.act(seen, reward, self._carry, self._acting)
            self._carry = _choose(torch.from_numpy(due), carry, self._carry)
            action = step.action.clamp(-1, 1).cpu().numpy()
            self._check("actor's action", action)
            self._action[due] = action[due]
            self._reward[due] = 0
            self._wait[due] = self._agent.decision_interval
        self._wait -= 1
        return self._action.copy()

    def _check(self, what: str, values: FloatArray) -> None:
        require_finite(what, values, self._families, "a trial of the meta_world protocol")


def _choose(due: Tensor, new: Carry, old: Carry) -> Carry:
    """The new memory of the environments that are ``due`` ``[B]``, the old one of the others."""
    due = due.to(new.age.device)
    pairs = zip(new.hidden, old.hidden, strict=True)
    hidden = tuple(torch.where(due[None, :, None], a, b) for a, b in pairs)
    rest = {f.name: (getattr(new, f.name), getattr(old, f.name)) for f in fields(Carry) if f.name != "hidden"}
    return Carry(hidden, **{name: torch.where(due[:, None], a, b) for name, (a, b) in rest.items()})


@dataclass
class Trials:
    """What an evaluation by Meta-World's protocol brought.

    Args:
        recorded: all episodes that ended, adaptation's and evaluation's.
        official: what Meta-World's evaluation returned: mean ``success`` and ``return``, success by family.
        adapted: number of the last adaptation episode, which is scored: every environment has one on every
            goal, where Meta-World counts a family's first evaluation episodes to end.
    """

    recorded: Outcomes
    official: dict[str, Any]
    adapted: int

    def to(self, device: torch.device) -> Trials:
        """Itself: there is nothing to compute with."""
        return self

    def outcomes(self) -> Outcomes:
        """The episodes to be scored: the last ones of adaptation."""
        phase = self.recorded.phase
        assert phase is not None
        last = [
            p == "adaptation" and n == self.adapted
            for p, n in zip(phase, self.recorded.number.tolist(), strict=True)
        ]
        chosen = torch.tensor(last)
        values: dict[str, Any] = {f.name: getattr(self.recorded, f.name) for f in fields(Outcomes)}
        kept = {name: value[chosen] for name, value in values.items() if isinstance(value, Tensor)}
        return Outcomes(**values | kept | {"phase": ("adaptation",) * int(chosen.sum())})


@torch.no_grad()
def evaluate_trials(
    policy: Agent,
    name: AgentName,
    trials: TrialConfig,
    bench: Benchmark,
    *,
    asynchronous: bool,
    seed: int,
    horizon: int,
    acting: Acting,
    split: Split,
    mode: str,
) -> Trials:
    """Meta-World's ``metalearning_evaluation`` on one split.

    Args:
        policy: the trained agent.
        name: who acts, it or one that it is compared with.
        asynchronous: a process an environment.
        seed: of the benchmark's goals.
        horizon: simulator steps of an episode.
        mode: label.
    """
    from metaworld.evaluation import metalearning_evaluation

    families = bench.families(split)
    envs = make_trial_envs(
        bench,
        split,
        seed=seed,
        batch=trials.batch(len(families)),
        tasks_per_family=trials.total_tasks_per_cls,
        horizon=horizon,
        asynchronous=asynchronous,
        goal_visible=name == "expert",
    )
    agent = choose_agent(name, policy, envs.families, bench.world)
    try:
        with few_threads(len(envs.families)):
            success, mean_return, by_family = metalearning_evaluation(
                TrialAgent(agent, acting, envs.families),
                envs,
                num_evals=trials.num_evals,
                adaptation_episodes=trials.adaptation_episodes,
                evaluation_episodes=trials.evaluation_episodes,
            )
    finally:
        envs.close()
    official = {
        "success": float(success),
        "return": float(mean_return),
        "families": {f: float(by_family[metaworld_name(f)]) for f in families},
    }
    return Trials(_outcomes(envs, families, split, mode), official, trials.adaptation_episodes - 1)


def _outcomes(envs: RecordedEnvs, families: Sequence[str], split: Split, mode: str) -> Outcomes:
    seen, each = envs.episodes, envs.num_envs // len(families)
    return Outcomes(
        family=torch.tensor([families.index(envs.families[e.env]) for e in seen]),
        goal=torch.tensor([e.trial * each + e.env % each for e in seen]),
        number=torch.tensor([e.number for e in seen]),
        success=torch.tensor([e.success for e in seen]),
        final_success=torch.tensor([e.final_success for e in seen]),
        episode_return=torch.tensor([e.episode_return for e in seen]),
        length=torch.tensor([e.length for e in seen]),
        families=tuple(families),
        split=split,
        mode=mode,
        phase=tuple(e.phase for e in seen),
    )


# --- its environments, which take notes ----------------------------------------------------------


@dataclass(frozen=True)
class Episode:
    """One finished episode.

    Args:
        env: number of the environment.
        trial: of the environment, each on a goal of its own.
        phase, number: of the episode, within the trial's adaptation or evaluation.
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
