"""What ranks must agree on. Functions marked collective: call them on every rank, in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from hmrl.system.errors import SharedError, UserError

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_of(count: int) -> int:
    """A rank's share of a number that is meant over all ranks, rounded up."""
    return -(-count // rank_and_world_size()[1])


def sum_over_ranks(x: Tensor) -> Tensor:
    """Collective. The sum of ``x`` over all ranks; ``x`` itself in a single process."""
    if rank_and_world_size()[1] > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def mean_over_ranks(x: Tensor) -> Tensor:
    """Collective. The mean of ``x`` over all ranks; gradients flow through it as through this rank's ``x``.

    Averaged over ranks, as DDP averages gradients, that is the gradient of the mean: what a loss needs
    that is not itself a mean over samples.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return x
    return x + (sum_over_ranks(x.detach()) / world_size - x.detach())


def exceeds(x: Tensor, limit: float) -> bool:
    """Collective. Whether the mean of ``x`` over ranks exceeds ``limit``.

    The same on every rank, to the last bit: a rank that went on alone would wait for the others for ever.
    """
    return float(sum_over_ranks(x) / rank_and_world_size()[1]) > limit


def gather(value: T) -> list[T]:
    """Collective. Every rank's ``value``, in the order of ranks."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return [value]
    values: list[T | None] = [None] * world_size
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


@contextmanager
def together() -> Iterator[None]:
    """Collective. What stops one rank inside the block stops all of them, with the same sentence.

    Raises:
        SharedError: on every rank, where any of them raised a UserError.
    """
    mine: UserError | None = None
    try:
        yield
    except UserError as error:
        mine = error
    said = [sentence for sentence in gather(str(mine) if mine else None) if sentence]
    if said:
        raise SharedError(said[0]) from mine
