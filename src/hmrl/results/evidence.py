"""What runs say about the claims: a test's ``latents.json`` and a curriculum's ``forgetting.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from hmrl.results.methods import Method
from hmrl.results.reading import SPLITS
from hmrl.results.statistics import Estimate, estimate
from hmrl.results.tables import NOTHING, cell, markdown
from hmrl.system.errors import UserError

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
        found = [_read(run.path / "latents" / "latents.json") for run in method.runs]
        for split in SPLITS:
            numbers = [_numbers(content[split]) for content in found if split in content]
            if numbers:
                cells = [cell(_estimate(numbers, name)) for name in _LATENT_COLUMNS.values()]
                rows.append([method.title, split, str(len(numbers)), *cells])
    pooled = [m.title for m in methods if any(_is_pooled(run.path) for run in m.runs)]
    said = f"\nCorrelation and agreements are pooled over families, not means: {', '.join(pooled)}.\n"
    kept = [i for i in range(3 + len(_LATENT_COLUMNS)) if any(row[i] != NOTHING for row in rows)]
    header = ["method", "families", "seeds", *_LATENT_COLUMNS]
    table = markdown([header[i] for i in kept], [[row[i] for i in kept] for row in rows]) if rows else ""
    return table + (said if pooled else "")


def _is_pooled(run: Path) -> bool:
    """Whether a run's numbers on z are of before they were means over families."""
    found = _read(run / "latents" / "latents.json")
    return any("correlation" in found[s] and "over_families" not in found[s] for s in SPLITS if s in found)


def forgetting_table(methods: Sequence[Method]) -> str:
    """What was left after a curriculum's last block, a row a method; empty if no run has anything."""
    rows = []
    for method in methods:
        found = (_read(run.path / "forgetting.json").get("blocks") for run in method.runs)
        curricula = [blocks for blocks in found if blocks]
        numbers = [
            {
                "success": fmean(blocks[-1]["success"]["train"].values()),
                **{k: fmean(v.values()) for k in ("forgetting", "backward_transfer") if (v := blocks[-1][k])},
            }
            for blocks in curricula
        ]
        if numbers:
            lengths = "–".join(map(str, sorted({len(blocks) for blocks in curricula})))
            names = ("success", "backward_transfer", "forgetting")
            cells = [cell(_estimate(numbers, name)) for name in names]
            rows.append([method.title, str(len(numbers)), lengths, *cells])
    header = ["method", "seeds", "blocks", "success", "backward transfer", "forgetting"]
    return markdown(header, rows) if rows else ""


def _read(path: Path) -> dict[str, Any]:
    """Contents of a JSON file, or nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    return content


def _numbers(split: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one split of ``latents.json`` by the names of :data:`_LATENT_COLUMNS`."""
    numbers = {f"probe/{name}": value for name, value in (split.get("probe") or {}).items()}
    for name in ("decoder_error", "decoder_error_without_z"):
        if name in split:
            each = [error for family, error in split[name].items() if family != "all"]
            numbers[name] = fmean(each or split[name].values())  # "all" was pooled once
    if "correlation" in split:
        numbers["correlation"] = fmean(split["correlation"])
    numbers |= {name: split[name] for name in ("agreement", "agreement_by_chance") if name in split}
    return numbers


def _estimate(numbers: Sequence[Mapping[str, float]], name: str) -> Estimate | None:
    values = [found[name] for found in numbers if found.get(name) is not None]
    return estimate(np.array(values)) if values else None
