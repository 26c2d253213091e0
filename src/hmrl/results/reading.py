"""What a report reads: run directories with ``metrics.csv`` and ``test-*.json``."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hmrl.results.statistics import Array
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path

if TYPE_CHECKING:
    from hmrl.types import Split

SCHEMA = 1
SPLITS: tuple[Split, Split] = ("train", "test")
OFFICIAL = "official"
ROLES = {"expert": "ceiling", "random": "floor"}  # agents that are no method; anything else is one
_SEED = re.compile(r"(?:^|-)seed(\d+)$")
_CONFIGURED_SEED = re.compile(r"^seed_everything: (\d+)$", re.MULTILINE)
_EVALUATED = re.compile(r"success(?:_\w+)?/(train|test)/(.+)")


class Score(NamedTuple):
    """Success at any step, and its 95 % interval over goals, where there is one."""

    success: float
    low: float | None
    high: float | None
    episodes: int | None = None  # as many as were scored


Scores = Mapping[str, Mapping[str, Mapping[str, Score]]]  # mode -> split -> family, "mean" or "official"


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
        modes: scores of every way of acting, with Meta-World's own number as family ``official``.
        mode: the way of acting to report.
        differs: what was otherwise than in training, in words.
        checkpoint: what was evaluated, if anything was loaded.
        revision: of the source that evaluated, with a mark if it was modified; None if unknown.
        training_revision: likewise of what trained.
        packages: name -> version, None if not installed; Python among them.
        wall_time_s: of the evaluation; None if unknown.
    """

    path: Path
    agent: str
    seed: int
    evaluation_seed: int
    protocol: Mapping[str, Any]
    env_steps: int
    modes: Scores
    mode: str
    differs: tuple[str, ...]
    checkpoint: str | None
    revision: str | None
    training_revision: str | None
    packages: Mapping[str, str | None]
    wall_time_s: float | None

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        """Split -> family, or "mean" -> score, in the mode to report."""
        return {
            split: {family: score for family, score in scores.items() if family != OFFICIAL}
            for split, scores in self.modes[self.mode].items()
        }

    @property
    def official(self) -> dict[str, float]:
        """Split -> Meta-World's own success rate; empty unless the protocol is Meta-World's."""
        found = self.modes[self.mode]
        return {split: scores[OFFICIAL].success for split, scores in found.items() if OFFICIAL in scores}

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
        path: the directory as it was given, or the study's folder.
        seed: of training.
        metrics: name -> series; empty for what was not trained.
        results: protocol's name -> results.
        latents: pictures made of this run's agent.
        numbers: (split, name) -> what ``latents.json`` and ``forgetting.json`` say, a number each.
    """

    label: str
    path: Path
    seed: int
    metrics: Mapping[str, Series]
    results: Mapping[str, Result]
    latents: tuple[Path, ...]
    numbers: Mapping[tuple[str, str], float]

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
        UserError: for a path that is no directory or holds no run, and for files that cannot be read.
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
    numbers = _latent_numbers(path / "latents" / "latents.json") | _forgetting(path / "forgetting.json")
    return Run(label or default, path, _seed(path, results), metrics, results, latents, numbers)


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
        modes = _modes(content)
        return Result(
            path=path,
            agent=content["agent"],
            seed=content["seed"],
            evaluation_seed=content.get("evaluation_seed", content["seed"]),
            protocol={**content["protocol"], "horizon": content["data"]["horizon"]},
            env_steps=content["env_steps"],
            modes=modes,
            mode=mode_to_report(modes, mode, content["agent"], path),
            differs=tuple(
                f"{what}: {words}"
                for what, words in (content.get("differs_from_training") or {}).items()
                if what in (mode, "train families")
            ),
            checkpoint=content["checkpoint"],
            revision=_revision(content["git"]),
            training_revision=_revision(content.get("training_git")),
            packages={"python": content["python"], **content["packages"]},
            wall_time_s=content["wall_time_s"],
        )
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} is no results file of schema {SCHEMA}: it lacks {error}") from error
    except (AttributeError, TypeError) as error:  # a list where there should be a mapping, and the like
        raise UserError(f"{path} is no results file of schema {SCHEMA}: {error}") from error


def _revision(git: Mapping[str, Any] | None) -> str | None:
    return git["revision"] + (" (modified)" if git["modified"] else "") if git else None


def _modes(content: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Score]]]:
    found: dict[str, dict[str, dict[str, Score]]] = {}
    for split, modes in content["scores"].items():
        for mode, families in modes.items():
            found.setdefault(mode, {})[split] = {
                family: Score(score["success"], score["low"], score["high"], score.get("episodes"))
                for family, score in families.items()
            }
    for split, modes in (content["official"] or {}).items():
        for mode, score in modes.items():
            found[mode][split][OFFICIAL] = Score(score["success"], None, None)
    return found


def mode_to_report(modes: Scores, mode: str, agent: str, path: Path) -> str:
    """The mode itself; of an agent that is no policy and has one way of acting only, that one.

    Raises:
        UserError: if there is no such mode, or a split lacks it.
    """
    if mode not in modes and agent in ROLES and len(modes) == 1:
        mode = next(iter(modes))
    splits = {split for scores in modes.values() for split in scores}
    if mode not in modes or set(modes[mode]) != splits:
        raise UserError(f"{path} has no mode {mode!r}: use --mode with one of {', '.join(modes)}")
    return mode


def _latent_numbers(path: Path) -> dict[tuple[str, str], float]:
    """Means over families; ``pooled`` marks those whose correlation and agreement are pooled over them."""
    found: dict[tuple[str, str], float] = {}
    for split in SPLITS:
        if not (content := _read(path).get(split)):
            continue
        numbers = {f"probe/{name}": value for name, value in (content.get("probe") or {}).items()}
        for name in ("decoder_error", "decoder_error_without_z"):
            if name in content:
                each = [error for family, error in content[name].items() if family != "all"]
                numbers[name] = fmean(each)
        if "correlation" in content:
            numbers["correlation"] = fmean(content["correlation"])
            if "over_families" not in content:
                numbers["pooled"] = 1.0
        numbers |= {name: content[name] for name in ("agreement", "agreement_by_chance") if name in content}
        found |= {(split, name): value for name, value in numbers.items() if value is not None}
    return found


def _forgetting(path: Path) -> dict[tuple[str, str], float]:
    """Means over train families after the last block, under names ``forgetting/...``."""
    if not (blocks := _read(path).get("blocks")):
        return {}
    last = blocks[-1]
    numbers = {"blocks": float(len(blocks)), "success": fmean(last["success"]["train"].values())}
    numbers |= {k: fmean(v.values()) for k in ("forgetting", "backward_transfer") if (v := last[k])}
    return {("train", f"forgetting/{name}"): value for name, value in numbers.items()}


def _read(path: Path) -> dict[str, Any]:
    """Contents of a JSON file, or nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    return content
