"""The file in which ``hmrl test`` leaves its numbers.

Schema 1, JSON, one file a run and protocol:

- ``schema``: 1. ``agent``: "policy", "expert" or "random". ``seed``: of training; ``evaluation_seed``: of the
  evaluation's goals and actions. ``checkpoint``: path or null.
- ``env_steps``: of training, simulator steps over all environments.
- ``protocol``: ``name`` and what it was run with: ``backend``, ``goals_per_family`` (different goals),
  ``episodes_per_family`` (scored, a mode); for meta_world Meta-World's own parameters; ``perturbation``, if
  there was one: returns are then those that the agent saw.
- ``git``: ``revision`` and whether files were ``modified``, of the source that ran; null outside a checkout.
- ``packages`` (versions), ``python``, ``platform``; ``started`` (UTC, ISO 8601) and ``wall_time_s``.
- ``model``, ``data``: the complete configuration.
- ``scores``: split -> mode -> family or "mean" -> ``episodes``, ``success`` (any step) with its 95 % interval
  over goals ``low``, ``high``, ``final_success`` (last step), ``episode_return``. Under meta_world they are
  those of the last adaptation episode.
- ``episodes``: split -> mode -> family -> columns of equal length, an entry an episode: ``goal``, ``number``
  (of the episode on its goal), ``success``, ``final_success`` (0 or 1), ``return``, ``length`` (simulator
  steps), and under meta_world ``phase``, "adaptation" or "evaluation", within which ``number`` counts.
- ``official``: null, or under meta_world split -> mode -> ``success``, ``return``, ``families``: what
  ``metaworld.evaluation.metalearning_evaluation`` returned.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hmrl.envs.perturb import Perturbation
from hmrl.types import Outcomes

SCHEMA = 1
_PACKAGES = (
    "hmrl",
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "metaworld",
    "mujoco",
    "gymnasium",
    "envpool",
    "numpy",
)


def results_path(results_dir: str | Path, protocol: str) -> Path:
    """Where the results of a protocol go."""
    return Path(results_dir) / f"test-{protocol}.json"


def provenance() -> dict[str, Any]:
    """Which code ran: ``git``, ``packages``, ``python``, ``platform``."""
    return {
        "git": _git(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Of the checkout that this file belongs to; an installed copy belongs to none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {
            "revision": git("rev-parse", "HEAD").strip(),
            "modified": bool(git("status", "--porcelain", "--", ".")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


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


def describe_protocol(data: Any) -> dict[str, Any]:
    """The ``protocol`` entry, from the data module's settings."""
    config = data.test
    described: dict[str, Any] = {"name": config.protocol, "backend": config.backend or data.backend}
    perturbation = config.perturbation_within(data.perturbation)
    if perturbation != Perturbation():
        described["perturbation"] = asdict(perturbation)
    if config.protocol == "meta_world":
        trials = data.trials
        described |= {name: getattr(trials, name) for name in ("num_evals", "adaptation_episodes")}
        described |= {name: getattr(trials, name) for name in ("evaluation_episodes", "total_tasks_per_cls")}
        batches = {split: trials.batch(len(data.benchmark.families(split))) for split in ("train", "test")}
        return described | {"meta_batch_size": batches}
    goals = config.goals_of("test", data.seed, data.goals_per_family, training=0, stream=0)
    return described | {"goals_per_family": goals.per_family, "episodes_per_family": config.goals}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as JSON has them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
