"""The only loop that steps environments: training, validation, test and experts all go through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from hmrl.system.errors import UserError
from hmrl.types import Acting, Agent, FloatArray, Rollout, Split, TaskEnvs, family_index


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run a block on a random stream of its own, a function of ``key``; the outer stream does not notice.

    This is what makes a resumed run bit-equal without saving any generator's state, and what keeps
    evaluation from touching training's randomness.
    """
    sequence = np.random.SeedSequence(key[0], spawn_key=key[1:])
    seed = int(sequence.generate_state(1, np.uint64)[0] >> 1)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def few_threads(environments: int) -> Iterator[None]:
    """Acting is small work: two threads do it; from 150 ``environments`` on, one for every 50."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, max(2, environments // 50)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# A decision takes a GPU 2 ms for 100 environments as for 500, and what is simulated is on the CPU anyway.
_ENOUGH_FOR_A_GPU = 300


def where_it_is_faster(agent: Agent, environments: int) -> tuple[Agent, torch.device]:
    """Who acts, and where: a network that learns on a GPU acts for few ``environments`` as a copy on the CPU.

    A rule, and no stopwatch, so that a run that is repeated or resumed acts on the same device.
    """
    cpu = torch.device("cpu")
    if not isinstance(agent, nn.Module):
        return agent, cpu
    device = next(agent.parameters()).device
    if device.type == "cpu" or environments >= _ENOUGH_FOR_A_GPU:
        return agent, device
    return deepcopy(agent).to(cpu), cpu


# What an agent says, lowest level last, so that the level named is where it began.
_SAID = {
    "task_belief": "task encoder's belief",
    "macro_action": "macro-action",
    "action": "actor's action",
}


# Everything is kept in float32, and moments and losses are made of squares.
_LARGEST = float(np.finfo(np.float32).max) ** 0.5


def require_finite(what: str, values: FloatArray, families: Sequence[str], where: str) -> None:
    """Refuse ``values`` ``[B, ...]`` of ``families`` ``[B]`` that are no numbers, or too large to learn from.

    Args:
        values: of any floating type, as they were before they are kept in float32.

    Raises:
        UserError: naming the families.
    """
    good = np.abs(values) <= _LARGEST  # false for what is no number
    if good.all():
        return
    bad = np.flatnonzero(~good.reshape(len(values), -1).all(1))
    names = ", ".join(dict.fromkeys(families[int(i)] for i in bad))
    odd = f"beyond {_LARGEST:.1e}, whose square float32 cannot hold,"
    fault = odd if np.isfinite(values).all() else "not finite"
    raise UserError(
        f"the {what} of family {names} is {fault} at {where}; nothing was learnt from it: continue from "
        "the last checkpoint, with another seed_everything if it happens again"
    )


@torch.no_grad()
def collect(
    envs: TaskEnvs,
    agent: Agent,
    *,
    episode: int,
    acting: Acting,
    families: Sequence[str],
    split: Split,
    mode: str,
    episodes: int = 1,
) -> Rollout:
    """One trial in every environment: whole episodes, from reset to the time limit. It stays on the CPU.

    The agent decides every ``agent.decision_interval`` simulator steps and its action is held in
    between; rewards of an interval are summed, success is any step's within it. Actions are clipped to
    [-1, 1] for the environment. At a reset within a trial the agent is given the first observation of the
    new episode and the reward of the last interval of the old one, as any other two (Duan et al. 2016).

    Args:
        envs: B environments.
        agent: memory is cleared at the start of the trial.
        episode: which trial: the environments start episodes ``episode * episodes`` and following.
        families: what ``Rollout.family`` indexes; must contain every family of ``envs``.
        split, mode: labels that the rollout carries.
        episodes: of the trial; the environments decide whether they share a goal.

    Raises:
        UserError: if an observation, a reward, a trial's sum of rewards or what the agent says is not finite,
            or too large for float32.
    """

    def check(what: str, values: FloatArray) -> None:
        where = f"simulator step {elapsed} of episode {number} ({mode}, {split} split)"
        require_finite(what, values, envs.families, where)

    k, batch = agent.decision_interval, len(envs.families)
    steps: list[dict[str, Tensor]] = []
    observations: list[Tensor] = []
    rewards: list[Tensor] = []
    successes: list[Tensor] = []
    final_success: list[Tensor] = []
    agent, device = where_it_is_faster(agent, batch)
    carry = agent.initial_carry(batch)
    reward = torch.zeros(batch)
    earned = np.zeros(batch)  # sizes of the trial's rewards, summed: no return of any part of it is larger
    with few_threads(batch):
        for number in range(episode * episodes, (episode + 1) * episodes):
            elapsed, success_now = 0, np.zeros(batch, dtype=np.bool_)
            raw = envs.reset(number)
            check("observation", raw)
            observation = torch.tensor(raw, dtype=torch.float32)
            while elapsed < envs.horizon:
                observations.append(observation)
                step, carry = agent.act(observation.to(device), reward.to(device), carry, acting)
                steps.append({name: value.cpu() for name, value in step._asdict().items()})
                for name, what in _SAID.items():
                    check(what, steps[-1][name].numpy())
                executed = steps[-1]["action"].clamp(-1, 1).numpy()
                total, succeeded = np.zeros(batch), np.zeros(batch, dtype=np.bool_)
                for _ in range(min(k, envs.horizon - elapsed)):
                    raw, step_reward, success_now = envs.step(executed)
                    total += step_reward
                    succeeded |= success_now
                    elapsed += 1
                    check("observation", raw)
                    check("reward", step_reward)
                earned += np.abs(total)
                check("sum of rewards", earned)
                observation = torch.tensor(raw, dtype=torch.float32)  # a copy: environments may reuse theirs
                reward = torch.from_numpy(total).float()
                rewards.append(reward)
                successes.append(torch.from_numpy(succeeded))
            final_success.append(torch.from_numpy(success_now.copy()))
        observations.append(observation)
        # One more step of the memory: the time limit bootstraps from V(s_T, y_T).
        bootstrap, _ = agent.act(observation.to(device), reward.to(device), carry, acting)
    return Rollout(
        observation=torch.stack(observations),
        action=torch.stack([s["action"] for s in steps]),
        log_prob=torch.stack([s["log_prob"] for s in steps]),
        task_belief=torch.stack([*(s["task_belief"] for s in steps), bootstrap.task_belief.cpu()]),
        macro_action=torch.stack([s["macro_action"] for s in steps]),
        reward=torch.stack(rewards),
        success=torch.stack(successes),
        final_success=torch.cat(final_success),
        family=family_index(envs.families, families),
        hidden_goal=torch.zeros(batch, 0),
        families=tuple(families),
        split=split,
        mode=mode,
        env_steps=elapsed * episodes * batch,
        episodes=episodes,
    )
