"""What runs say about the claims: a test's ``latents.json`` and a curriculum's ``forgetting.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hmrl.results.methods import Method
from hmrl.results.reading import SPLITS, Run
from hmrl.results.statistics import Estimate, estimate
from hmrl.results.tables import NOTHING, cell, markdown

LATENTS = (
    "Of the agents that were tested, ten episodes a family, sampled actions; means over families. Decoder "
    "error: relative to predicting no motion, with z and with its average instead; the nearer the two, the "
    "less z says. It is comparable between methods only where decoders predict the same. Correlation: of z "
    "with where the hand went, mean over axes. Agreement: of the signs of z and of the action, and of "
    "independent ones with the same shares of signs. Probe: balanced accuracy of a linear classifier that "
    "tells the family from z, y, or the ego-state."
)
FORGETTING = (
    "Success in training families after the last block. Backward transfer: success after the last block "
    "minus success after the block that trained the family. Forgetting: best success after any earlier "
    "block minus success after the last one; the best of several noisy evaluations is too high, so it is "
    "biased upward, and more so with few goals or many blocks. Means over families."
)
_LATENT_COLUMNS = {
    "decoder error": "decoder_error",
    "without z": "decoder_error_without_z",
    "correlation": "correlation",
    "agreement": "agreement",
    "by chance": "agreement_by_chance",
    "probe of z": "probe/z",
    "probe of y": "probe/y",
    "probe of ego-state": "probe/ego_state",
    "probe by chance": "probe/chance",
}


def latents_table(methods: Sequence[Method]) -> str:
    """Belief and macro-action, a row a method and split; empty if no run has anything."""
    rows = []
    for method in methods:
        for split in SPLITS:
            found = [_of_split(run, split) for run in method.runs]
            numbers = [each for each in found if each.keys() & {*_LATENT_COLUMNS.values()}]
            if numbers:
                cells = [cell(_estimate(numbers, name)) for name in _LATENT_COLUMNS.values()]
                rows.append([method.title, split, str(len(numbers)), *cells])
    pooled = [m.title for m in methods if any((s, "pooled") in run.numbers for run in m.runs for s in SPLITS)]
    said = f"\nCorrelation and agreements are pooled over families, not means: {', '.join(pooled)}.\n"
    kept = [i for i in range(3 + len(_LATENT_COLUMNS)) if any(row[i] != NOTHING for row in rows)]
    header = ["method", "families", "seeds", *_LATENT_COLUMNS]
    table = markdown([header[i] for i in kept], [[row[i] for i in kept] for row in rows]) if rows else ""
    return table + (said if pooled else "")


def forgetting_table(methods: Sequence[Method]) -> str:
    """What was left after a curriculum's last block, a row a method; empty if no run has anything."""
    rows = []
    names = [f"forgetting/{name}" for name in ("success", "backward_transfer", "forgetting")]
    for method in methods:
        found = [_of_split(run, "train") for run in method.runs]
        numbers = [each for each in found if "forgetting/blocks" in each]
        if numbers:
            lengths = "–".join(f"{n:g}" for n in sorted({each["forgetting/blocks"] for each in numbers}))
            cells = [cell(_estimate(numbers, name)) for name in names]
            rows.append([method.title, str(len(numbers)), lengths, *cells])
    header = ["method", "seeds", "blocks", "success", "backward transfer", "forgetting"]
    return markdown(header, rows) if rows else ""


def _of_split(run: Run, split: str) -> dict[str, float]:
    return {name: value for (of, name), value in run.numbers.items() if of == split}


def _estimate(numbers: Sequence[Mapping[str, float]], name: str) -> Estimate | None:
    values = [found[name] for found in numbers if name in found]
    return estimate(np.array(values)) if values else None
