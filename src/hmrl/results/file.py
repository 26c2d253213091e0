"""The file in which ``hmrl test`` leaves its numbers.

Schema 1, JSON, one file a run and protocol (:func:`protocol_label`):

- ``schema``: 1. ``agent``: "policy", "expert" or "random". ``seed``: of training; ``evaluation_seed``: of the
  evaluation's goals and actions. ``checkpoint``: path or null; ``weights``:
  its SHA-256 (:func:`digest`), by which it is known wherever it is, null if nothing learnt has acted.
- ``env_steps``: of training, simulator steps over all environments.
- ``protocol``: ``name`` and what it was run with: ``backend``, ``goals_per_family`` (different goals),
  ``episodes_per_family`` (scored, a mode), ``training_goals`` (true), if training families are tested on
  goals that training had too, and ``goals_shown`` and ``families_shown`` (true), if agents see them;
  for meta_world Meta-World's own parameters, ``goals_per_family`` by split, and ``adaptation``, "beliefs",
  if it was not by memory alone; ``perturbation``, if
  there was one: returns are then those that the agent saw; and ``age``, episodes of training that the
  world has gone through, if it changes over training.
- ``git``: ``revision`` and whether source or configurations were ``modified``, of what evaluated;
  ``training_git``: of what trained, null if the checkpoint does not say. Null outside a checkout.
- ``init_from``: null, or of a fine-tuned agent the weights that training began from: their ``path`` and
  SHA-256 (``weights``), ``env_steps``, ``seed``, ``families``, ``goals_shown`` and
  ``git`` of their training, and their own ``init_from``.
- ``packages`` (versions), ``python``, ``platform``; ``started`` (UTC, ISO 8601) and ``wall_time_s``.
- ``model``, ``data``: the complete configuration.
- ``scores``: split -> mode -> family or "mean" -> ``episodes`` (equal ones count once), ``success`` (any
  step) with its 95 % interval ``low``, ``high`` (over episodes, which are goals where each has one; null
  where there is one goal a family and nothing is drawn), ``final_success`` (last step), ``episode_return``.
  Under meta_world they are those of the last adaptation episode; with adaptation by beliefs, that is played
  on the belief that served best in those before.
- ``differs_from_training``: in words, how each mode acts that acts otherwise than in training, and, under
  "train families", which of these the agent was not trained on, and, under "test families", which of these
  it was trained on, at last or before fine-tuning.
- ``episodes``: split -> mode -> family -> columns of equal length, an entry an episode: ``goal``, ``number``
  (of the episode on its goal), ``success``, ``final_success`` (0 or 1), ``return``, ``length`` (simulator
  steps), and under meta_world ``phase``, "adaptation" or "evaluation", within which ``number`` counts.
- ``official``: null, or under meta_world split -> mode -> ``success``, ``return``, ``families``: what
  ``metaworld.evaluation.metalearning_evaluation`` returned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmrl.system.errors import UserError

if TYPE_CHECKING:  # a report reads this schema without PyTorch
    from torch import Tensor

    from hmrl.types import Outcomes

SCHEMA = 1
PRIMARY_MODE = "sampled"  # its metrics carry no suffix
# In a run directory where its log begins: ``env_steps`` of training before it, and the entry ``init_from``.
BEGINNING = "beginning.json"


def protocol_label(described: Mapping[str, Any]) -> str:
    """By what numbers are told apart, as ``meta_world`` or ``meta_world-beliefs``.

    Args:
        described: the entry ``protocol``.
    """
    return "-".join(described[key] for key in ("name", "adaptation") if key in described)


def results_path(results_dir: str | Path, protocol: str) -> Path:
    """Where the results of a protocol go, by its label."""
    return Path(results_dir) / f"test-{protocol}.json"


def digest(state: Mapping[str, Tensor]) -> str:
    """Of a module's ``state_dict``, bit by bit: the same for a checkpoint and its weights-only export."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(name.encode() + value.cpu().numpy().tobytes())
    return found.hexdigest()


def check_replaceable(
    results_dir: str | Path, described: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Refuse to replace results of another agent, checkpoint or way to evaluate.

    Args:
        results_dir: folder of the results file.
        described: its ``agent``, ``protocol`` and others, as they are going to be.
        settings: of its ``data``, likewise.

    Raises:
        UserError: naming what differs.
    """
    path = results_path(results_dir, protocol_label(described["protocol"]))
    if not path.is_file():
        return
    try:
        present = json.loads(path.read_text())
        differs = [key for key, value in described.items() if present[key] != value]
        differs += [key for key, value in settings.items() if present["data"][key] != value]
    except (json.JSONDecodeError, KeyError, TypeError):
        differs = ["content"]
    if differs:
        raise UserError(
            f"{path} holds other results, which would be lost (its {' and '.join(differs)} differs): choose "
            "another --run_dir for this test, or write over them with --overwrite true"
        )


def episode_columns(parts: Iterable[Outcomes]) -> dict[str, dict[str, dict[str, Any]]]:
    """Split -> mode -> family -> columns, in the order of goal and number.

    Args:
        parts: of all ranks, in any order.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for part in parts:
        by_family = found.setdefault(part.split, {}).setdefault(part.mode, {f: [] for f in part.families})
        columns: dict[str, Sequence[Any]] = {"phase": part.phase} if part.phase else {}
        columns |= {"goal": part.goal.tolist(), "number": part.number.tolist()}
        columns |= {
            "success": part.success.int().tolist(),
            "final_success": part.final_success.int().tolist(),
        }
        columns |= {"return": part.episode_return.tolist(), "length": part.length.tolist()}
        for family, *row in zip(part.family.tolist(), *columns.values(), strict=True):
            by_family[part.families[family]].append(dict(zip(columns, row, strict=True)))
    for modes in found.values():
        for mode, by_family in modes.items():
            for episodes in by_family.values():
                episodes.sort(key=lambda row: (row.get("phase", ""), row["goal"], row["number"]))
            modes[mode] = {
                family: {name: [row[name] for row in rows] for name in (rows or [{}])[0]}
                for family, rows in by_family.items()
            }
    return found
