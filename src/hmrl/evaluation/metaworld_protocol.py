"""The protocol ``meta_world``: our agents in Meta-World's own evaluation of meta-learners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hmrl.envs import Benchmark
from hmrl.envs.benchmarks import ACTION_DIM, GOAL_INDICES, OBSERVATION_DIM, metaworld_name
from hmrl.envs.workers import workers
from hmrl.evaluation.belief_search import BeliefSearch, Candidates, Mask
from hmrl.evaluation.protocols import MetaWorldConfig
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.rollouts.collect import few_threads, require_finite, where_it_is_faster
from hmrl.types import Acting, ActorStep, Agent, Carry, FloatArray, Outcomes, Split

_REWARD = OBSERVATION_DIM + ACTION_DIM  # where Meta-World's recurrent observations hold the last reward


class TrialAgent:
    """An agent as ``metaworld.evaluation.MetaLearningAgent`` that adapts by its memory alone.

    Environments may be in the middle of a decision interval or at the start of an episode, each for
    itself. Only :meth:`init` clears memory: Meta-World calls ``reset`` after every episode. At an episode's
    end the agent is given the last reward in adaptation, and not in evaluation, where Meta-World keeps it.
    Errors name the ``families``, of each environment.
    """

    def __init__(self, agent: Agent, acting: Acting, families: Sequence[str]) -> None:
        self._agent, self._device = where_it_is_faster(agent, len(families))
        self._acting, self._count = acting, len(families)
        where = "a trial of the meta_world protocol"
        self._check = partial(require_finite, families=families, where=where)

    def init(self) -> None:
        """A new trial: forget everything."""
        count = self._count
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
        self._carry = replace(self._carry, age=age.masked_fill(mask, 0))

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
            observation = observations[:, :OBSERVATION_DIM]
            self._check("observation", observation)
            self._check("reward", self._reward)
            seen = torch.tensor(observation, dtype=torch.float32, device=self._device)
            reward = torch.tensor(self._reward, dtype=torch.float32, device=self._device)
            step, carry = self._decide(seen, reward, due)
            self._carry = _choose(torch.from_numpy(due), carry, self._carry)
            action = step.action.clamp(-1, 1).cpu().numpy()
            self._check("actor's action", action)
            self._action[due] = action[due]
            self._reward[due] = 0
            self._wait[due] = self._agent.decision_interval
        self._wait -= 1
        return self._action.copy()

    def _decide(self, seen: Tensor, reward: Tensor, due: Mask) -> tuple[ActorStep, Carry]:
        """What the agent does, of which that of the environments ``due`` ``[B]`` counts."""
        return self._agent.act(seen, reward, self._carry, self._acting)


class SearchingTrialAgent(TrialAgent):
    """A policy that searches, beside its memory, for the belief to act on (:class:`BeliefSearch`).

    It is told rewards, and when episodes end, but neither families nor success. The last transition of an
    episode explains nothing, for what it led to is not observed.

    Args:
        policy: with a task encoder that has a decoder of rewards.
        acting, families: as for :class:`TrialAgent`.
        averages: beliefs of training families, by decision of an episode. ``[F, T, belief_dim]``
        episodes: of adaptation, in a trial.
    """

    def __init__(
        self,
        policy: HierarchicalPolicy,
        acting: Acting,
        families: Sequence[str],
        averages: Tensor,
        episodes: int,
    ) -> None:
        super().__init__(policy, acting, families)
        assert isinstance(self._agent, HierarchicalPolicy)  # perhaps a copy, on another device
        self._policy = self._agent
        self._candidates, self._episodes = Candidates(self._policy, averages), episodes
        self._width = averages.shape[-1]

    def init(self) -> None:
        """A new trial: forget everything."""
        super().init()
        self.search = BeliefSearch(self._candidates.others, self._count, self._episodes)
        self._adapts = True
        self._decision = np.zeros(self._count, dtype=int)  # of the episode, the next one's number
        self._return = np.zeros(self._count)
        self._acted = torch.zeros(self._count, self._width, device=self._device)  # at the last decisions

    def reset(self, env_mask: Any) -> None:
        """An episode begins where ``env_mask`` ``[B]`` says."""
        super().reset(env_mask)
        self._decision[np.asarray(env_mask, dtype=np.bool_)] = 0

    def step(self, timestep: Any) -> None:
        """What an adaptation step brought; after an episode, the belief to act on in the next one."""
        super().step(timestep)
        self._return += timestep.reward
        ended = np.logical_or(timestep.terminated, timestep.truncated)
        self.search.record(ended, self._return)
        self._return[ended] = 0

    def adapt(self) -> None:
        """Adaptation is over: the belief that served best has been chosen."""
        self._adapts = False

    def _decide(self, seen: Tensor, reward: Tensor, due: Mask) -> tuple[ActorStep, Carry]:
        decision = np.where(due, self._decision, 0)  # of others it may be beyond the last one
        imposed = self._candidates.imposed(self.search.chosen, decision)
        step, carry = self._policy.act(seen, reward, self._carry, self._acting, imposed)
        within = decision > 0
        if self._adapts and within.any():
            last = (decision - 1).clip(0)
            errors = self._candidates.errors(self._acted, self._carry, carry, reward, last)
            self.search.explain(errors, within)
        rows = torch.from_numpy(due).to(self._acted.device)[:, None]
        self._acted = torch.where(rows, step.task_belief, self._acted)
        self._decision[due] += 1
        return step, carry


def _choose(due: Tensor, new: Carry, old: Carry) -> Carry:
    """The new memory of the environments that are ``due`` ``[B]``, the old one of the others."""
    mask = due[:, None].to(new.age.device)
    hidden = tuple(torch.where(mask, *pair) for pair in zip(new.hidden, old.hidden, strict=True))
    names = ("observation", "action", "reward", "macro_action", "age")
    return Carry(hidden, *(torch.where(mask, getattr(new, name), getattr(old, name)) for name in names))


class RecordedEnvs(gym.vector.VectorWrapper):
    """Notes every episode that ends; changes nothing, save that experts can be shown the goal.

    Args:
        families: of each environment, those of one family next to each other and equally many.
        goal_visible: write the goal into the observation.
    """

    env: Any

    def __init__(self, envs: Any, families: Sequence[str], goal_visible: bool = False) -> None:
        super().__init__(envs)
        self.families, self._goal_visible = tuple(families), goal_visible
        self._each = len(families) // len(set(families))
        self._notes: list[FloatArray] = []  # [8, N] of N episodes that ended at once
        self._trial, self._evaluates = -1, False
        self._number = np.zeros(self.num_envs, dtype=int)
        self._ever = np.zeros(self.num_envs, dtype=np.bool_)

    def get_attr(self, name: str) -> Any:
        """Attribute ``name`` of every environment."""
        return self.env.get_attr(name)

    def call(self, name: str, *args: Any) -> Any:
        """Call ``name`` on every environment; Meta-World's evaluation thereby says what it is about to do."""
        if name == "sample_tasks":
            self._trial += 1
        if name == "toggle_terminate_on_success":  # on in the evaluation's episodes alone
            self._evaluates = bool(args[0])
        return self.env.call(name, *args)

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
        if len(env := np.flatnonzero(ended)):
            last = info["final_info"]
            final = last["success"][env] > 0.5
            family, own = np.divmod(env, self._each)
            goal, ever = self._trial * self._each + own, self._ever[env] | final
            total, length = last["episode"]["r"][env], last["episode"]["l"][env]
            evaluates = np.full(len(env), self._evaluates)
            note = (family, goal, self._number[env], ever, final, total, length, evaluates)
            self._notes.append(np.stack(note).astype(float))
        self._number[ended] += 1
        self._ever[ended] = False
        return self._show(observation), reward, terminated, truncated, info

    def _show(self, observation: Any) -> Any:
        if self._goal_visible:
            observation[:, list(GOAL_INDICES)] = np.stack(self.env.call("_get_pos_goal"))
        return observation

    def outcomes(self, split: Split, mode: str, adapted: int | None = None) -> Outcomes:
        """The episodes that ended, or only those of adaptation that have number ``adapted``."""
        notes = torch.from_numpy(np.concatenate(self._notes, axis=1))
        if adapted is not None:
            notes = notes[:, (notes[2] == adapted) & (notes[-1] == 0)]
        family, goal, number, success, final, total, length, evaluates = notes
        return Outcomes(
            family.long(),
            goal.long(),
            number.long(),
            success.bool(),
            final.bool(),
            total.float(),
            length.long(),
            families=tuple(dict.fromkeys(self.families)),
            split=split,
            mode=mode,
            phase=tuple("evaluation" if x else "adaptation" for x in evaluates.tolist()),
        )


def make_trial_envs(
    bench: Benchmark,
    split: Split,
    config: MetaWorldConfig,
    *,
    seed: int,
    horizon: int,
    asynchronous: bool = False,
    goal_visible: bool = False,
) -> RecordedEnvs:
    """Meta-World's vector environments of one split, an equal number a family.

    Observations end with the last action, the last reward (raw) and whether the episode has just ended:
    ``metaworld.evaluation`` gives agents no reward otherwise. Tasks are drawn without repetition.

    Args:
        seed: of the benchmark's goals.
        asynchronous: a process an environment.
    """
    import metaworld

    families = bench.families(split)
    batch = config.batch(len(families))
    options: dict[str, Any] = {
        "seed": seed,
        "split": split,
        "meta_batch_size": batch,
        "total_tasks_per_cls": config.total_tasks_per_cls,
        "task_select": "pseudorandom",
        "terminate_on_success": split == "test",
        "vector_strategy": "async" if asynchronous else "sync",
        "max_episode_steps": horizon,
        "recurrent_info_in_obs": True,
        "normalize_reward_in_recurrent_info": False,
    }
    with workers():
        if bench.name == "custom":
            train, test = ([metaworld_name(f) for f in part] for part in (bench.train, bench.test))
            envs = gym.make_vec("Meta-World/custom-ml-envs", train_envs=train, test_envs=test, **options)
        else:
            name = metaworld_name(bench.train[0]) if bench.name == "ML1" else bench.name
            envs = metaworld.make_ml_envs(name, **options)
    each = batch // len(families)
    return RecordedEnvs(envs, [family for family in families for _ in range(each)], goal_visible)


@dataclass
class Trials:
    """What an evaluation by Meta-World's protocol brought.

    Scored are the last episodes of adaptation: every environment has one on every goal, where Meta-World
    counts a family's first evaluation episodes to end.
    """

    recorded: Outcomes  # all episodes that ended, adaptation's and evaluation's
    scored: Outcomes
    official: dict[str, Any]  # what Meta-World's returned: mean "success" and "return", success of "families"

    def to(self, device: torch.device) -> Trials:
        """Itself: there is nothing to compute with."""
        return self

    def outcomes(self) -> Outcomes:
        """The episodes to be scored."""
        return self.scored


@torch.no_grad()
def evaluate_trials(
    agent: Agent,
    envs: RecordedEnvs,
    config: MetaWorldConfig,
    acting: Acting,
    split: Split,
    mode: str,
    averages: Tensor | None = None,
) -> Trials:
    """Meta-World's ``metalearning_evaluation`` of ``agent``; ``split`` and ``mode`` are labels.

    Args:
        averages: beliefs of training families, of which one may be acted on where ``config.adaptation`` says
            so; see :class:`SearchingTrialAgent`.
    """
    from metaworld.evaluation import metalearning_evaluation

    trial_agent = TrialAgent(agent, acting, envs.families)
    if config.adaptation == "beliefs":
        assert isinstance(agent, HierarchicalPolicy)
        assert averages is not None
        episodes = config.adaptation_episodes
        trial_agent = SearchingTrialAgent(agent, acting, envs.families, averages, episodes)
    with few_threads(envs.num_envs):
        success, mean_return, by_family = metalearning_evaluation(
            trial_agent,
            envs,
            num_evals=config.num_evals,
            adaptation_episodes=config.adaptation_episodes,
            evaluation_episodes=config.evaluation_episodes,
        )
    scored = envs.outcomes(split, mode, adapted=config.adaptation_episodes - 1)
    families = {f: float(by_family[metaworld_name(f)]) for f in scored.families}
    official = {"success": float(success), "return": float(mean_return), "families": families}
    return Trials(envs.outcomes(split, mode), scored, official)
