"""How the optimizer of each level steps."""

from __future__ import annotations

from typing import NamedTuple

from hmrl.himeta.config import MacroVAEConfig, PPOConfig, TaskEncoderConfig

_UPPER_WEIGHT_DECAY = 0.01  # of task encoder and macro-VAE


class Descent(NamedTuple):
    """How a level's optimizer steps."""

    lr: float
    weight_decay: float
    max_grad_norm: float


def descents(
    encoder: TaskEncoderConfig | None, vae: MacroVAEConfig | None, ppo: PPOConfig
) -> dict[str, Descent]:
    """Of actor and critic, and of the upper levels that there are, in the order of the optimizers."""
    low = {"actor": ppo.actor_lr, "critic": ppo.critic_lr}
    found = {level: Descent(lr, ppo.weight_decay, ppo.max_grad_norm) for level, lr in low.items()}
    for level, config in (("task_encoder", encoder), ("macro_vae", vae)):
        if config:
            found[level] = Descent(config.lr, _UPPER_WEIGHT_DECAY, config.max_grad_norm)
    return found
