"""Sums over ranks. Every function here is collective: call it on every rank, in the same order."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """Collective. The sum of ``x`` over all ranks; ``x`` itself in a single process."""
    if rank_and_world_size()[1] > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x
