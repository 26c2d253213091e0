"""Learning from the same episodes in one process and in two; run as a script, it is one of two."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import hmrl.himeta.losses
import hmrl.rollouts.collector
import hmrl.training.module
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.himeta.losses import ppo_samples, questions
from hmrl.rollouts.collect import collect, seeded
from hmrl.system.distributed import rank_and_world_size
from hmrl.system.errors import UserError
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Rollout
from support.runs import fit
from support.toy import STEPS, ToyDataModule, ToyEnvs, tiny_module, toy_data

ENVS = 4  # a family, over all processes
ITERATIONS = 2  # in the first, the normaliser has seen nothing yet
EPOCHS = UPDATES = 3  # at most
# Adam makes a step of any gradient, however small: with steps, rounding would move weights apart. Without,
# every gradient is taken at the same weights, those of the beginning.
NO_STEP = {"lr": 1e-30, "max_grad_norm": 1e9}
EVERYTHING = 10_000  # replayed episodes


class FixedRollouts(ToyDataModule):
    """Every process acts in all environments and keeps the episodes of its own.

    So the episodes, and what was drawn when acting, are the same whatever the number of processes.
    """

    def make_envs(self, backend: Any, goals: Any, envs_per_family: int, **options: Any) -> Any:
        names = self.benchmark.families(goals.split)
        families = [family for family in names for _ in range(envs_per_family)]
        slots = [slot for _ in names for slot in range(envs_per_family)]
        return ToyEnvs(families, goals, slots, envs_per_family, self.horizon, record=self.episodes)


def of_its_own(envs: Any, agent: Any, *, episode: int, kl: tuple[float, ...], **options: Any) -> Rollout:
    """In the place of ``collect``: this process's episodes of a rollout that is the same in all.

    Args:
        kl: of each process, how far the log-probabilities that acted are moved from those that were.
    """
    rank, world_size = rank_and_world_size()
    with seeded(1, 0, episode):
        rollout = collect(envs, agent, episode=episode, **options)
        # As if the policy had moved since: ratios are not one, and some are clipped.
        log_prob = rollout.log_prob + 0.2 * torch.randn_like(rollout.log_prob) + kl[rank]
    slot = torch.arange(len(envs.families)) % ENVS
    return columns(replace(rollout, log_prob=log_prob), slot // (ENVS // world_size) == rank)


def columns(rollout: Rollout, chosen: Tensor) -> Rollout:
    """The episodes that ``chosen`` ``[B]`` marks."""
    values = {k: v for k, v in vars(rollout).items() if isinstance(v, Tensor)}
    of_trials = ("family", "hidden_goal", "final_success", "goal")
    picked = {k: v[chosen] if k in of_trials else v[:, chosen] for k, v in values.items()}
    share = rollout.env_steps * int(chosen.sum()) // len(chosen)
    return replace(rollout, **picked, env_steps=share)


def noise_of_the_sample(self: Normal, sample_shape: Any = ()) -> Tensor:
    """``Normal.rsample`` with noise that is a function of the mean.

    The real one is drawn in the order of a batch, which is not the same in one process and in two.
    """
    loc = self.loc.detach()
    return self.loc + self.scale * 2 * torch.sin(7 * loc + torch.arange(loc.shape[-1]))


def questions_alike(policy: Any, episodes: Any, beliefs: int, count: int) -> Any:
    """The same steps of every episode are asked about, for the same reason."""

    def spread(high: int, size: tuple[int, ...], device: Any) -> Tensor:
        return (5 * torch.arange(size[0], device=device) % high).unsqueeze(1).expand(size)

    with patch.object(torch, "randint", spread):
        return questions(policy, episodes, beliefs, count)


class Learning(pl.Callback):
    """The first gradient of each level in each iteration, and how many steps there were."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()
        self.gradients: list[dict[str, list[Tensor]]] = []
        self.states: list[dict[str, Tensor]] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.gradients.append({})

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        level = list(pl_module._settings)[trainer.optimizers.index(optimizer)]
        self.steps[level] += 1
        parameters = pl_module.policy.get_submodule(level).parameters()
        self.gradients[-1].setdefault(level, [p.grad.clone() for p in parameters])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items()})
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


class AsMoved:
    """In the place of ``Movement``: what the upper levels are said to have moved the policy by."""

    of_each: tuple[float, ...] = (0.0, 0.0)

    def __init__(self, policy: Any, rollout: Any, beliefs_stay: bool = False) -> None:
        self.kl = torch.tensor(self.of_each[rank_and_world_size()[0]])

    def measure(self) -> None: ...


def module_for(
    data: Any, categorical: Any, target_kl: float | None, upper_target_kl: float | None
) -> HierarchicalMetaRL:
    """All losses; small networks, and beliefs that differ between contexts, as fresh ones do not."""
    torch.manual_seed(5)
    updates = 1 if upper_target_kl is None else UPDATES
    upper = {"updates": updates, "target_kl": upper_target_kl, "trajectories": EVERYTHING, **NO_STEP}
    module = tiny_module(
        data,
        task_encoder=TaskEncoderConfig(
            categories=3,
            variables=2,
            hidden=8,
            embedding_hidden=(8, 4, 4),
            head_hidden=(8,),
            categorical=categorical,
            categorical_coef=0.3,
            context_reward="change",
            goal_coef=0.0,  # rollouts are handed to the ranks, and have no goals
            steps=None,
            reward_coef=1.0,
            **upper,
        ),
        macro_vae=MacroVAEConfig((8,), (8,), n=2, **upper),
        actor_critic=ActorCriticConfig((8,), (8,), critic_input="belief"),
        ppo=PPOConfig(
            epochs=EPOCHS,
            minibatches=1,
            target_kl=target_kl,
            actor_lr=1e-30,
            critic_lr=1e-30,
            max_grad_norm=1e9,
        ),
    )
    policy = module.policy
    assert policy.task_encoder is not None
    assert policy.macro_vae is not None
    for part in (policy.task_encoder.head, policy.macro_vae.encoder, policy.actor, policy.critic):
        last = [m for m in part.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.normal_(last.weight, std=0.5)
    return module


def learn(
    folder: Path,
    devices: int,
    categorical: str = "information",
    target_kl: float | None = None,
    kl: tuple[float, ...] = (0.0, 0.0),
    upper_target_kl: float | None = None,
) -> dict[str, Any]:
    """A real fit, and what each level learnt from; ``kl`` is by which levels have moved the policy."""
    data = toy_data(
        FixedRollouts,
        envs_per_family=ENVS,
        replay_trajectories=EVERYTHING,
        validation=EvaluationConfig(2, 2),  # not used, but it must divide
    )
    acted = partial(of_its_own, kl=kl if upper_target_kl is None else (0.0, 0.0))
    advantages: list[Tensor] = []

    def recorded(policy: Any, rollout: Any, *arguments: Any) -> Any:
        samples, metrics = ppo_samples(policy, rollout, *arguments)
        advantages.append(samples["advantage"].reshape(rollout.reward.shape))
        return samples, metrics

    seen = Learning()
    with ExitStack() as patches:
        patches.enter_context(patch.object(hmrl.rollouts.collector, "collect", acted))
        patches.enter_context(patch.object(hmrl.training.module, "ppo_samples", recorded))
        patches.enter_context(patch.object(Normal, "rsample", noise_of_the_sample))
        patches.enter_context(patch.object(hmrl.himeta.losses, "questions", questions_alike))
        if upper_target_kl is not None:
            patches.enter_context(patch.object(AsMoved, "of_each", kl))
            patches.enter_context(patch.object(hmrl.training.module, "Movement", AsMoved))
        run = fit(
            folder,
            ITERATIONS * STEPS * 2,
            data=data,
            module=module_for(data, categorical, target_kl, upper_target_kl),
            callbacks=[seen],
            devices=devices,
            limit_val_batches=0,
        )
    assert len(seen.states) == ITERATIONS
    return {
        "gradients": seen.gradients,
        "steps": dict(seen.steps),
        "states": seen.states,
        "metrics": seen.metrics,
        "advantages": advantages,
        "average_beliefs": run.module.average_beliefs.state_dict(),
        "rewards": [rollout.reward for rollout in run.recorder.rollouts],
    }


# Log-probabilities moved by c give a KL of e^-c - 1 + c to the one process, 0.37 here, and to the mean half.
APART = {"kl": (0.0, 1.0)}
KL_ALONE, KL_BOTH = 0.3, 0.1
RUNS: dict[str, dict[str, Any]] = {
    "information": {},
    "marginal": {"categorical": "marginal"},
    "conditional": {"categorical": "conditional"},
    "one would stop": {"target_kl": KL_ALONE, **APART},
    "one would not": {"target_kl": KL_BOTH, **APART},
    # As it is said to have moved, by 0 and 1.
    "upper levels, one would stop": {"upper_target_kl": 0.7, **APART},
    "upper levels, one would not": {"upper_target_kl": 0.3, **APART},
}


def fail(folder: Path, unlucky: int) -> tuple[str, str]:
    """A fit in which one rank makes a mistake in the second iteration; what is raised here."""
    data = toy_data(validation=EvaluationConfig(2, 2))

    def roll_away() -> None:
        if rank_and_world_size()[0] == unlucky and data.module.iteration == 1:
            raise UserError(f"the goal of rank {unlucky} has rolled away")

    data.on_training_step = roll_away
    try:
        fit(folder, ITERATIONS * STEPS, data=data, devices=2, limit_val_batches=0)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "nothing was raised"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {name: learn(folder / name, 2, **options) for name, options in RUNS.items()}
    results["failures"] = [fail(folder / f"rank {unlucky} fails", unlucky) for unlucky in (0, 1)]
    torch.save(results, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
