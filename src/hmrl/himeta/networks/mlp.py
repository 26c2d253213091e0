"""Multi-layer perceptrons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import nn


def mlp(
    in_dim: int,
    hidden: Sequence[int],
    out_dim: int,
    activation: Callable[[], nn.Module],
    *,
    dropout: float = 0.0,
    out_gain: float = 1.0,
) -> nn.Sequential:
    """Linear layers with ``activation`` (and dropout) between them; orthogonal weights, zero biases.

    Args:
        out_gain: gain of the last layer; small values start a policy near its prior (0.01 in PPO practice).
    """
    layers: list[nn.Module] = []
    widths = [in_dim, *hidden]
    for a, b in itertools.pairwise(widths):
        layers += [_linear(a, b, math.sqrt(2)), activation()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    layers.append(_linear(widths[-1], out_dim, out_gain))
    return nn.Sequential(*layers)


def _linear(in_dim: int, out_dim: int, gain: float) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
