"""The file in which ``hmrl test`` leaves its numbers.

Schema 1, JSON, one file a run and protocol:

- ``schema``: 1. ``agent``: "policy", "expert" or "random". ``seed``: of training; ``evaluation_seed``: of the
  evaluation's goals and actions. ``checkpoint``: path or null; ``weights``:
  its SHA-256 (:func:`digest`), by which it is known wherever it is, null if nothing learnt has acted.
- ``env_steps``: of training, simulator steps over all environments.
- ``protocol``: ``name`` and what it was run with: ``backend``, ``goals_per_family`` (different goals),
  ``episodes_per_family`` (scored, a mode), ``training_goals`` (true), if train families are tested on goals
  that training had too, and ``goals_shown`` and ``families_shown`` (true), if agents see
  them; for meta_world Meta-World's own parameters, and ``goals_per_family`` by split; ``perturbation``, if
  there was one: returns are then those that the agent saw; and ``age``, episodes of training that the
  world has gone through, if it changes over training.
- ``git``: ``revision`` and whether source or configurations were ``modified``, of what evaluated;
  ``training_git``: of what trained, null if the checkpoint does not say. Null outside a checkout.
- ``packages`` (versions), ``python``, ``platform``; ``started`` (UTC, ISO 8601) and ``wall_time_s``.
- ``model``, ``data``: the complete configuration.
- ``scores``: split -> mode -> family or "mean" -> ``episodes`` (equal ones count once), ``success`` (any
  step) with its 95 % interval ``low``, ``high`` (over episodes, which are goals where each has one; null
  where there is one goal a family and nothing is drawn), ``final_success`` (last step), ``episode_return``.
  Under meta_world they are those of the last adaptation episode.
- ``differs_from_training``: in words, how each mode acts that acts otherwise than in training, and, under
  "train families", which of these the agent was not trained on.
- ``episodes``: split -> mode -> family -> columns of equal length, an entry an episode: ``goal``, ``number``
  (of the episode on its goal), ``success``, ``final_success`` (0 or 1), ``return``, ``length`` (simulator
  steps), and under meta_world ``phase``, "adaptation" or "evaluation", within which ``number`` counts.
- ``official``: null, or under meta_world split -> mode -> ``success``, ``return``, ``families``: what
  ``metaworld.evaluation.metalearning_evaluation`` returned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from hmrl.envs.benchmarks import same_goals
from hmrl.envs.wrappers.perturb import Perturbation
from hmrl.system.errors import UserError
from hmrl.types import Outcomes

SCHEMA = 1


def results_path(results_dir: str | Path, protocol: str) -> Path:
    """Where the results of a protocol go."""
    return Path(results_dir) / f"test-{protocol}.json"


def digest(module: nn.Module) -> str:
    """Of parameters and buffers, bit by bit: the same for a checkpoint and its weights-only export."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
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
    path = results_path(results_dir, described["protocol"]["name"])
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


def episode_columns(parts: Iterable[Outcomes]) -> dict[str, dict[str, dict[str, dict[str, list[Any]]]]]:
    """Split -> mode -> family -> columns, in the order of goal and number.

    Args:
        parts: of all ranks, in any order.
    """
    rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for part in parts:
        by_family = rows.setdefault((part.split, part.mode), {family: [] for family in part.families})
        for i in range(len(part.family)):
            row: dict[str, Any] = {"phase": part.phase[i]} if part.phase else {}
            row |= {
                "goal": int(part.goal[i]),
                "number": int(part.number[i]),
                "success": int(part.success[i]),
                "final_success": int(part.final_success[i]),
                "return": float(part.episode_return[i]),
                "length": int(part.length[i]),
            }
            by_family[part.families[int(part.family[i])]].append(row)
    columns: dict[str, dict[str, dict[str, dict[str, list[Any]]]]] = {}
    for (split, mode), by_family in rows.items():
        families = columns.setdefault(split, {}).setdefault(mode, {})
        for family, episodes in by_family.items():
            episodes.sort(key=lambda row: (row.get("phase", ""), row["goal"], row["number"]))
            families[family] = (
                {name: [row[name] for row in episodes] for name in episodes[0]} if episodes else {}
            )
    return columns


def describe_protocol(data: Any, training_seed: int | None = None) -> dict[str, Any]:
    """The ``protocol`` entry, from the data module's settings.

    Args:
        training_seed: of the agent; None for the data module's.
    """
    config = data.test
    described: dict[str, Any] = {"name": config.protocol, "backend": config.backend or data.backend}
    perturbation = config.perturbation_within(data.perturbation)
    if perturbation != Perturbation():
        described["perturbation"] = asdict(perturbation)
        if perturbation.over_training():
            described["age"] = int(data.module.iteration) * data.episodes_per_trial
    described |= {key: True for key in ("goals_shown", "families_shown") if getattr(data, key)}
    trained_on, training = (data.backend, data.goals_per_family), 1
    goals = config.goals_of("train", data.seed, *trained_on, training=training, stream=0)
    # Meta-World has one set of goals for each seed, whatever they are for.
    own_stream = goals.stream != training and data.benchmark.fixed_goals(data.backend) is None
    fixed = data.goals_per_family is not None and training_seed in (None, data.seed)
    if fixed and same_goals(described["backend"], data.backend) and not own_stream:
        described["training_goals"] = True
    if config.protocol == "meta_world":
        trials = data.trials
        described |= {name: getattr(trials, name) for name in ("num_evals", "adaptation_episodes")}
        described |= {name: getattr(trials, name) for name in ("evaluation_episodes", "total_tasks_per_cls")}
        families = {split: len(data.benchmark.families(split)) for split in ("train", "test")}
        batches = {split: trials.batch(count) for split, count in families.items()}
        met = {split: trials.num_evals * batches[split] // count for split, count in families.items()}
        goals = {split: min(trials.total_tasks_per_cls, count) for split, count in met.items()}
        return described | {"meta_batch_size": batches, "goals_per_family": goals}
    return described | {"goals_per_family": goals.per_family, "episodes_per_family": config.goals}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as JSON has them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
