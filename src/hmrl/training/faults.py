"""What went wrong, in words: which family, which level, which step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hmrl.himeta.losses import LossFunction, Minibatch
from hmrl.system.distributed import gather
from hmrl.system.errors import SharedError
from hmrl.types import Trajectories


def not_finite(level: str, families: Sequence[str], where: str, what: str) -> SharedError:
    """The error that ends a run before a step that would have ruined it."""
    return SharedError(
        f"the loss or gradient of level {level} is not finite {where} "
        f"(family: {', '.join(families) or 'no single one'}; {what}); nothing was changed by it: "
        "continue from the last checkpoint with a lower learning rate or gradient clip"
    )


def families_at_fault(
    loss_function: LossFunction,
    batch: Minibatch,
    parameters: Iterable[nn.Parameter],
    families: Sequence[str],
) -> list[str]:
    """Collective. The families whose own samples give a loss or a gradient that is not finite.

    Args:
        batch: the samples of all families that gave one together.
        parameters: of the level that learns.
        families: what the batch's ``family`` indexes.
    """
    wanted = list(parameters)
    found: list[str] = []
    for index, name in enumerate(families):
        chosen = _family(batch) == index
        present = bool(chosen.any())
        # Losses may be collective: each rank evaluates one a family, whether it has samples of it or not.
        loss, _ = loss_function(_select(batch, chosen) if present else batch)
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        finite = all(bool(torch.isfinite(x).all()) for x in (loss, *gradients) if x is not None)
        if present and not finite:
            found.append(name)
    everywhere = {name for names in gather(found) for name in names}
    return [name for name in families if name in everywhere]


def _family(batch: Minibatch) -> Tensor:
    return batch.family if isinstance(batch, Trajectories) else batch["family"]


def _select(batch: Minibatch, chosen: Tensor) -> Minibatch:
    if isinstance(batch, Trajectories):
        return batch.select(chosen)
    return {k: v[chosen] for k, v in batch.items()}
