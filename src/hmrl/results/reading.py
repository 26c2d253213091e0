"""What a report reads: run directories with ``metrics.csv`` and ``test-*.json``."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hmrl.results.statistics import Array
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path

if TYPE_CHECKING:
    from hmrl.types import Split

SCHEMA = 1
SPLITS: tuple[Split, Split] = ("train", "test")
ROLES = {"expert": "ceiling", "random": "floor"}  # agents that are no method; anything else is one
_SEED = re.compile(r"(?:^|-)seed(\d+)$")
_CONFIGURED_SEED = re.compile(r"^seed_everything: (\d+)$", re.MULTILINE)
_EVALUATED = re.compile(r"success(?:_\w+)?/(train|test)/(.+)")


class Score(NamedTuple):
    """Success at any step, and its 95 % interval over goals, where there is one."""

    success: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Result:
    """One results file, for one way of acting.

    Args:
        path: the file.
        agent: ``policy``, ``expert`` or ``random``.
        seed: the file's own, of training.
        evaluation_seed: of the goals.
        protocol: its parameters; ``name`` is the one to quote.
        env_steps: of training.
        scores: split -> family, or "mean" -> score.
        official: split -> Meta-World's own success rate; empty unless the protocol is Meta-World's.
        differs: what was otherwise than in training, in words.
        checkpoint: what was evaluated, if anything was loaded.
        revision: of the source, with a mark if it was modified; None if unknown.
        packages: name -> version, None if not installed; Python among them.
        wall_time_s: of the evaluation.
    """

    path: Path
    agent: str
    seed: int
    evaluation_seed: int
    protocol: Mapping[str, Any]
    env_steps: int
    scores: Mapping[str, Mapping[str, Score]]
    official: Mapping[str, float]
    differs: tuple[str, ...]
    checkpoint: str | None
    revision: str | None
    packages: Mapping[str, str | None]
    wall_time_s: float

    def families(self, split: Split) -> tuple[str, ...]:
        """In the file's order."""
        return tuple(family for family in self.scores.get(split, {}) if family != "mean")


class Series(NamedTuple):
    """A column of ``metrics.csv`` without its empty cells."""

    steps: Array  # [N], environment steps, increasing
    values: Array  # [N]


@dataclass(frozen=True)
class Run:
    """One run directory: a seed of a method.

    Args:
        label: of its method.
        path: the directory as it was given.
        seed: of training.
        metrics: name -> series; empty for what was not trained.
        results: protocol's name -> results.
        latents: pictures made of this run's agent.
    """

    label: str
    path: Path
    seed: int
    metrics: Mapping[str, Series]
    results: Mapping[str, Result]
    latents: tuple[Path, ...]

    @property
    def agent(self) -> str:
        """Who acted: a policy, unless the results say otherwise."""
        return next((result.agent for result in self.results.values()), "policy")

    def families(self, split: Split) -> tuple[str, ...]:
        """In the order of the results, else of the columns; empty if neither knows the split."""
        for result in self.results.values():
            if result.families(split):
                return result.families(split)
        matches = (_EVALUATED.fullmatch(key) for key in self.metrics)
        names = [match[2] for match in matches if match and match[1] == split]
        if split == "train":
            rollout = "rollout/success/"
            names += [key.removeprefix(rollout) for key in self.metrics if key.startswith(rollout)]
        return tuple(name for name in dict.fromkeys(names) if name != "mean")


def read_run(argument: str, mode: str) -> Run:
    """Read ``[LABEL=]RUN_DIR``; the label is by default the directory's name without ``-seed<N>``.

    Raises:
        UserError: for a directory that is none or holds no run, and for files that cannot be read.
    """
    label, given = "", argument
    if not os.path.isdir(os.path.expanduser(argument)) and "=" in argument:  # a path may contain "=" itself
        label, _, given = argument.partition("=")
    path = local_path(given, "RUN_DIR", folder=False)
    if not path.is_dir():
        raise UserError(f"there is no run directory {path}: give [LABEL=]RUN_DIR")
    metrics = read_metrics(path / "metrics.csv") if (path / "metrics.csv").is_file() else {}
    results: dict[str, Result] = {}
    for file in sorted(path.glob("test-*.json")):
        result = read_result(file, mode)
        if (other := results.setdefault(result.protocol["name"], result)) is not result:
            raise UserError(
                f"{other.path} and {file.name} are both of protocol {result.protocol['name']}: "
                "keep one, or move the other to a directory of its own"
            )
    if not metrics and not results:
        raise UserError(f"nothing to report in {path}: it has neither rows in metrics.csv nor test-*.json")
    name = path.resolve().name
    default = _SEED.sub("", name) or path.resolve().parent.name
    latents = tuple(sorted((path / "latents").glob("*.png")))
    return Run(label or default, path, _seed(path, results), metrics, results, latents)


def _seed(path: Path, results: Mapping[str, Result]) -> int:
    """Of training: what the run's configuration says, then its name, then its results."""
    config = path / "config.yaml"
    if config.is_file() and (match := _CONFIGURED_SEED.search(config.read_text())):
        return int(match[1])
    if match := _SEED.search(path.resolve().name):
        return int(match[1])
    for result in results.values():
        return result.seed
    raise UserError(f"cannot tell the seed of {path}: name the directory ...-seed<N>")


def read_metrics(path: Path) -> dict[str, Series]:
    """Name -> series; cells that are empty or no finite number are left out, and so are empty columns.

    Raises:
        UserError: without a column ``step``, if steps go backwards, or if a cell is no number.
    """
    with path.open(newline="") as file:
        # A run that is still writing, or was killed, may have cut the last row.
        rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    if not rows:
        return {}
    if "step" not in rows[0]:
        raise UserError(f"{path} has no column step: is it the log of hmrl fit?")
    series = {}
    for key in rows[0].keys() - {"step"}:
        try:
            pairs = np.array([(float(r["step"]), float(r[key])) for r in rows if r[key]]).reshape(-1, 2)
        except ValueError as error:
            raise UserError(f"{path} holds what is no number in column {key}: {error}") from error
        steps, values = pairs[np.isfinite(pairs).all(1)].T
        if (np.diff(steps) <= 0).any():
            raise UserError(f"environment steps go backwards or stand still in {path}: it must hold one run")
        if len(steps):
            series[key] = Series(steps, values)
    return dict(sorted(series.items()))


def read_result(path: Path, mode: str) -> Result:
    """Read a results file of schema 1.

    Args:
        path: the file.
        mode: the way of acting to report; an agent that is no policy and has one way only is taken as it is.

    Raises:
        UserError: for another schema, a mode that the file lacks, or a file that is broken.
    """
    try:
        content = json.loads(path.read_text())
        if content.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has schema {content.get('schema')}, but this report reads schema {SCHEMA}: "
                "write it anew with hmrl test"
            )
        git, copies = content["git"], _are_copies(content, mode)
        return Result(
            path=path,
            agent=content["agent"],
            seed=content["seed"],
            evaluation_seed=content.get("evaluation_seed", content["seed"]),
            protocol={**content["protocol"], "horizon": content["data"]["horizon"]},
            env_steps=content["env_steps"],
            scores={
                split: {
                    family: Score(
                        score["success"], *(None, None) if copies else (score["low"], score["high"])
                    )
                    for family, score in _of_mode(modes, mode, content["agent"], path).items()
                }
                for split, modes in content["scores"].items()
            },
            official={
                split: _of_mode(modes, mode, content["agent"], path)["success"]
                for split, modes in (content["official"] or {}).items()
            },
            differs=tuple(
                f"{what}: {words}"
                for what, words in (content.get("differs_from_training") or {}).items()
                if what in (mode, "train families")
            ),
            checkpoint=content["checkpoint"],
            revision=git and git["revision"] + (" (modified)" if git["modified"] else ""),
            packages={"python": content["python"], **content["packages"]},
            wall_time_s=content["wall_time_s"],
        )
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} is no results file of schema {SCHEMA}: it lacks {error}") from error
    except (AttributeError, TypeError) as error:  # a list where there should be a mapping, and the like
        raise UserError(f"{path} is no results file of schema {SCHEMA}: {error}") from error


def _are_copies(content: Mapping[str, Any], mode: str) -> bool:
    """Whether each family's episodes are one and its copies: files of before gave these an interval, too."""
    if content["protocol"].get("goals_per_family") != 1:
        return False
    episodes = [modes.get(mode) for modes in (content.get("episodes") or {}).values()]
    returns = [columns["return"] for families in episodes if families for columns in families.values()]
    return bool(returns) and all(np.allclose(each, each[0], rtol=1e-6) for each in returns)


def _of_mode(modes: Mapping[str, Any], mode: str, agent: str, path: Path) -> dict[str, Any]:
    if mode not in modes and agent in ROLES and len(modes) == 1:
        mode = next(iter(modes))
    if mode not in modes:
        raise UserError(f"{path} has no mode {mode!r}: use --mode with one of {', '.join(modes)}")
    found: dict[str, Any] = modes[mode]
    return found
