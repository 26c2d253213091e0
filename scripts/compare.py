"""Whether two checkpoints hold the same bits: weights, normaliser, optimizers, replay and counts.

    python scripts/compare.py runs/one/checkpoints/last.ckpt runs/other/checkpoints/last.ckpt

Prints what differs and ends with exit code 1, or says that nothing does. Which source wrote a checkpoint, and
where it lies, is not compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmrl.cli.messages import one_sentence
from hmrl.training import checkpoint

# Not the callbacks, which hold paths.
LEARNT = ("state_dict", "optimizer_states", "MetaWorldDataModule", "hyper_parameters")


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Names of the entries that are not equal to the last bit."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}, key=str):
            inside = f"{where}.{key}" if where else str(key)
            if key in one and key in other:
                yield from differences(one[key], other[key], inside)
            else:
                yield f"{inside} (in one alone)"
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        if not (same and torch.equal(one, other)):
            yield where
    elif isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        if len(one) != len(other):
            yield f"{where} (length)"
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{where}[{i}]")
    elif one != other:
        yield where


def learnt(path: str | Path) -> dict[str, Any]:
    """What training left in a checkpoint."""
    content = checkpoint.load(path)
    return {key: content[key] for key in LEARNT if key in content}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    options = parser.parse_args()
    one, other = learnt(options.one), learnt(options.other)
    found = list(differences(one, other))
    steps = int(one["state_dict"]["env_steps"])
    tensors = sum(isinstance(x, Tensor) for x in one["state_dict"].values())
    if found:
        raise SystemExit("different: " + ", ".join(found[:10]) + (" ..." if len(found) > 10 else ""))
    print(
        f"equal to the last bit: {', '.join(one)} ({tensors} tensors of weights and moments, {steps:,} steps)"
    )


if __name__ == "__main__":
    with one_sentence():
        main()
