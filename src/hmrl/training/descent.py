"""One gradient step of one level, or of several at once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import nn
from torch.nn.utils import clip_grad_norm_

from hmrl.himeta.config import MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.himeta.losses import LossFunction, Minibatch
from hmrl.system.distributed import sum_over_ranks
from hmrl.training.faults import families_at_fault, not_finite
from hmrl.types import Metrics


class Step(NamedTuple):
    """What learns, by what, and to which norm its gradient is scaled down."""

    level: nn.Module
    optimizer: LightningOptimizer
    max_grad_norm: float


def rates_of(
    ppo: PPOConfig, encoder: TaskEncoderConfig | None, vae: MacroVAEConfig | None
) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each level that is present, in the order of the optimizers."""
    rates = {"actor": (ppo.actor_lr, ppo.weight_decay), "critic": (ppo.critic_lr, ppo.weight_decay)}
    upper = {"task_encoder": encoder, "macro_vae": vae}
    return rates | {name: (level.lr, level.weight_decay) for name, level in upper.items() if level}


def adamw(level: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """The optimizer of one level; on a GPU a step of it is one kernel instead of a dozen."""
    parameters = list(level.parameters())
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=parameters[0].is_cuda)


def descend(
    module: pl.LightningModule,
    steps: Mapping[str, Step],
    loss_function: LossFunction,
    batch: Minibatch,
    where: str,
) -> Metrics:
    """Collective. Zero, backward, clip, step; a single level learns with every other parameter constant.

    Args:
        module: with ``families``, for manual optimization.
        steps: by name of the level.
        where: for the error's sentence.

    Raises:
        SharedError: before the step, if a loss or a gradient is not finite.
    """
    for step in steps.values():
        step.level.train()
    optimizers = [step.optimizer for step in steps.values()]
    with module.toggled_optimizer(optimizers[0]) if len(steps) == 1 else nullcontext():
        loss, metrics = loss_function(batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        module.manual_backward(loss)
        norms = {n: clip_grad_norm_(s.level.parameters(), s.max_grad_norm) for n, s in steps.items()}
        finite = torch.isfinite(torch.stack([loss.detach(), *norms.values()])).all()
        if sum_over_ranks((~finite).float()) > 0:
            said = ", ".join(f"{float(norm):.3g}" for norm in norms.values())
            learning = [p for step in steps.values() for p in step.level.parameters()]
            blamed = families_at_fault(loss_function, batch, learning, module.families)  # type: ignore[arg-type]
            raise not_finite(
                " and ".join(steps), blamed, where, f"loss {float(loss):.3g}, gradient norm {said}"
            )
        for optimizer in optimizers:
            optimizer.step()
    return metrics | {f"grad_norm/{name}": norm.detach() for name, norm in norms.items()}
