"""What a report reads, run directories or the tables of an earlier report, and these tables.

- ``summary.csv``: a row a run, protocol, split, family (or ``mean``, or ``official``: Meta-World's own
  number) and mode. ``low`` and ``high`` are the results file's interval, over goals; empty where there is
  none. ``revision`` is of the code that evaluated. ``conditions`` (JSON) holds what makes the evaluation
  a special one, as a perturbation. The protocol of an agent that began from another run's weights ends with
  ``after fine-tuning``, so that its numbers are in no column with those of other agents.
- ``curves.csv``: a row a run and interval of environment steps: means of what was logged in it, and as
  ``steps`` the last that anything was logged at.
- ``diagnostics.csv``: of each run what ``latents.json`` and ``forgetting.json`` say, a number a row;
  ``fine_tuned`` 1, if the run is; ``log_begins``, environment steps of training before the log; and success
  by episode of a trial (:func:`hmrl.results.runs.trial_name`).
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hmrl.results.file import BEGINNING, SCHEMA, protocol_label
from hmrl.results.runs import (
    AFTER_FINE_TUNING,
    FINE_TUNED,
    KEYS,
    LOG_BEGINS,
    OFFICIAL,
    RESULT,
    ROLES,
    SPLITS,
    Families,
    Runs,
    trial_name,
    trial_of,
)
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path

if TYPE_CHECKING:
    from hmrl.types import Split

SUMMARY, CURVES, DIAGNOSTICS = "summary.csv", "curves.csv", "diagnostics.csv"
POINTS = 50  # rows of a run's curves, at most
_SUMMARY = [*KEYS, "split", "family", "protocol", "mode", "success", "low", "high", "episodes", "steps"]
_SUMMARY += ["revision", "training_revision", "agent", "backend", "conditions"]
# Of scores, and beside the columns of summary.csv what else is known of a results file.
_TYPES = {"seed": int, "success": float, "low": float, "high": float, "episodes": "Int64", "steps": int}
_TYPES |= {"evaluation_seed": int, "wall_time_s": float}
_SCORES = [*_SUMMARY[:-1], "file", "evaluation_seed", "parameters", "differs", "critic"]
_SCORES += ["checkpoint", "packages", "wall_time_s"]
_NUMBERS = [*KEYS, "split", "name", "value"]
_SEED = re.compile(r"(?:^|-)seed(\d+)$")
_CONFIGURED_SEED = re.compile(r"^seed_everything: (\d+)$", re.MULTILINE)
_CONFIGURED_ORIGIN = re.compile(r"^init_from: (?!null$).", re.MULTILINE)
_EVALUATED = re.compile(r"success(?:_\w+)?/(train|test)/(.+)")
# Parameters of protocols that are as the protocol says, or columns of their own.
_USUAL = {"name", "backend", "horizon", "goals_per_family", "episodes_per_family", "num_evals"}
_USUAL |= {"adaptation_episodes", "evaluation_episodes", "total_tasks_per_cls", "meta_batch_size", "episodes"}
_KEPT = re.compile(
    r"rollout/success/.+|rollout/success_in_episode_\d+/mean|rollout/return/mean"
    r"|success(_\w+)?/(train|test)/mean|return/(train|test)/mean"
    r"|latents/.+|vae/(agreement|decoder_error|decoder_error_without_z|policy_kl)"
    r"|encoder/(family_information|goal_error|marginal_entropy|policy_kl)|ppo/(approx_kl|action_std)"
    r"|time/(env_steps_per_second|learning_seconds)"
)


_Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]  # as Runs has them, not yet in order


def read(arguments: Sequence[str], mode: str, protocol: str | None = None) -> Runs:
    """Read run directories ``[LABEL=]RUN_DIR`` and folders with the tables of earlier reports.

    Args:
        mode: the way of acting to report; an agent that is no policy and has one way only is taken as it is.
        protocol: leave out results of any other; None for all.

    Raises:
        UserError: for what cannot be read, or be compared.
    """
    parts = [
        _read_tables(p, mode) if is_study(p := Path(a).expanduser()) else _read_run(a, mode)
        for a in arguments
    ]
    runs, scores, metrics, numbers = (
        pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
        for tables in map(list, zip(*parts, strict=True))
    )
    if protocol:
        there = ", ".join(scores["protocol"].unique()) or "no results at all"
        scores = scores[scores["protocol"] == protocol]
        if scores.empty:
            raise UserError(f"no run has results of protocol {protocol}: there are {there}")
        trials = numbers["name"].map(trial_of)
        numbers = numbers[trials.isna() | trials.str[0].eq(protocol)]
    runs = runs.merge(pd.concat([scores[KEYS], metrics[KEYS]]).drop_duplicates(), on=KEYS)
    for (method, seed), paths in runs.groupby(KEYS, sort=False)["path"]:
        if len(paths) > 1:
            raise UserError(
                f"runs of {method} have the same seed, {seed}: {', '.join(map(str, paths))}; "
                "give them labels of their own, LABEL=RUN_DIR"
            )
    runs = runs.merge(scores.drop_duplicates(KEYS)[[*KEYS, "agent"]], on=KEYS, how="left")
    runs["agent"] = runs["agent"].fillna("policy")
    tuned = numbers.loc[numbers["name"] == FINE_TUNED, KEYS].drop_duplicates()
    for method, count in tuned["method"].value_counts().items():
        if count < runs["method"].eq(method).sum():
            raise UserError(
                f"some runs of {method} began from another run's weights, and some from scratch: give them "
                "labels of their own, LABEL=RUN_DIR"
            )
    for method, agents in runs.groupby("method", sort=False)["agent"]:
        if agents.nunique() > 1:
            raise UserError(f"runs of {method} are of different agents, {', '.join(sorted(set(agents)))}")
    # Methods as they were given, then ceilings, then floors; seeds in order.
    first = {method: i for i, method in enumerate(runs["method"].unique())}
    role = runs["agent"].map({agent: i for i, agent in enumerate(ROLES, 1)}).fillna(0)
    runs = runs.assign(role=role, first=runs["method"].map(first)).sort_values(["role", "first", "seed"])
    scores, metrics, numbers = (runs[KEYS].merge(table, on=KEYS) for table in (scores, metrics, numbers))
    scores["reported"] = False
    for _, rows in scores.groupby(RESULT, sort=False):
        scores.loc[rows.index, "reported"] = _is_reported(rows, mode)
    return Runs(runs, scores, metrics, numbers, _families(runs, scores[scores["reported"]], metrics))


def _is_reported(rows: pd.DataFrame, mode: str) -> pd.Series:
    """Which rows of a results file are of the mode to report."""
    modes = rows["mode"].unique()
    if mode not in modes and len(modes) == 1 and rows["agent"].iloc[0] in ROLES:
        mode = modes[0]
    found = rows["mode"] == mode
    if set(rows.loc[found, "split"]) != set(rows["split"]):
        raise UserError(
            f"{rows['file'].iloc[0]} has no mode {mode!r}: use --mode with one of {', '.join(modes)}"
        )
    return found


def _families(runs: pd.DataFrame, scores: pd.DataFrame, metrics: pd.DataFrame) -> Families:
    """Of each split, in the order of the first results, else of the columns; refuses different ones.

    Results are compared with results, and logs with logs: what was trained need not be what is tested.
    """
    scores = scores[~scores["family"].isin(["mean", OFFICIAL])]
    first: Families = {}
    for split in SPLITS:
        tested, logged = [], []
        for path, method, seed in runs[["path", *KEYS]].itertuples(index=False):
            run = f"{path} ({method} seed {seed})"
            own = scores[scores[KEYS].eq([method, seed]).all(axis=1) & (scores["split"] == split)]
            found = [tuple(families) for _, families in own.groupby("protocol", sort=False)["family"]]
            tested += [(run, families) for families in found]
            if families := _logged_families(metrics[metrics[KEYS].eq([method, seed]).all(axis=1)], split):
                logged.append((run, families, bool(found)))
        _check_same(f"{split} families", tested, "report them separately")
        # A log that nothing was tested of stands for its run.
        untested = [(run, families) for run, families, found in logged if not found]
        _check_same(f"{split} families", [*tested[:1], *untested], "report them separately")
        _check_same(
            f"the {split} families of training",
            [(run, families) for run, families, _ in logged],
            "report them separately, or test into other directories (--run_dir), which have no curves",
        )
        if known := [*tested, *untested]:
            first[split] = known[0][1]
    return first


def _check_same(what: str, known: Sequence[tuple[str, tuple[str, ...]]], instead: str) -> None:
    for run, families in known:
        if set(families) != set(known[0][1]):
            raise UserError(
                f"{what} differ, so their means cannot be compared: {', '.join(known[0][1])} in "
                f"{known[0][0]}, but {', '.join(families)} in {run}; {instead}"
            )


def _logged_families(metrics: pd.DataFrame, split: Split) -> tuple[str, ...]:
    """None under a curriculum, whose rollouts have no mean over families: it may not have met all."""
    columns = sorted(metrics.dropna(axis=1, how="all"))
    if any(column.startswith("rollout/success") for column in columns) and (
        "rollout/success/mean" not in columns
    ):
        return ()
    names = [match[2] for column in columns if (match := _EVALUATED.fullmatch(column)) and match[1] == split]
    if split == "train":
        rollout = "rollout/success/"
        names += [column.removeprefix(rollout) for column in columns if column.startswith(rollout)]
    return tuple(name for name in dict.fromkeys(names) if name != "mean")


def _read_run(argument: str, mode: str) -> _Tables:
    """Of ``[LABEL=]RUN_DIR``; the label is by default the directory's name without ``-seed<N>``."""
    label, given = "", argument
    if not os.path.isdir(os.path.expanduser(argument)) and "=" in argument:  # a path may contain "=" itself
        label, _, given = argument.partition("=")
    path = local_path(given, "RUN_DIR", folder=False)
    if not path.is_dir():
        raise UserError(f"there is no run directory {path}: give [LABEL=]RUN_DIR")
    metrics = read_metrics(path / "metrics.csv")
    scores: list[dict[str, Any]] = []
    found = _numbers(path)
    for file in sorted(path.glob("test-*.json")):
        content = read_json(file)
        if not (rows := read_result(content, file, mode)):
            continue
        for other in scores:
            if other["protocol"] == rows[0]["protocol"]:
                raise UserError(
                    f"{other['file']} and {file.name} are both of protocol {other['protocol']}: "
                    "keep one, or move the other to a directory of its own"
                )
        scores += rows
        found |= _trials(content, file, rows[0]["protocol"])
    if metrics.empty and not scores:
        raise UserError(f"nothing to report in {path}: it has neither rows in metrics.csv nor test-*.json")
    name = path.resolve().name
    config = (path / "config.yaml").read_text() if (path / "config.yaml").is_file() else ""
    if match := _CONFIGURED_SEED.search(config) or _SEED.search(name):
        seed = int(match[1])
    elif scores:
        seed = scores[0]["seed"]
    else:
        raise UserError(f"cannot tell the seed of {path}: name the directory ...-seed<N>")
    run = {"method": label or _SEED.sub("", name) or path.resolve().parent.name, "seed": seed}
    pictures = tuple(sorted((path / "latents").glob("*.png")))
    # What was trained from Python has no configuration, and what is older no beginning.
    beginning = read_json(path / BEGINNING)
    if "env_steps" in beginning:
        found["train", LOG_BEGINS] = float(beginning["env_steps"])
    began = beginning.get("init_from") or _CONFIGURED_ORIGIN.search(config)
    if began or any(of["protocol"].endswith(AFTER_FINE_TUNING) for of in scores):
        found["train", FINE_TUNED] = 1.0
    numbers = [
        {**run, "split": split, "name": name, "value": value} for (split, name), value in found.items()
    ]
    return (
        pd.DataFrame([{**run, "path": path, "pictures": pictures}]),
        pd.DataFrame([row | run for row in scores], columns=_SCORES).astype(_TYPES),
        metrics.assign(**run),
        pd.DataFrame(numbers, columns=_NUMBERS).astype({"seed": int}),
    )


def read_metrics(path: Path) -> pd.DataFrame:
    """Columns of ``metrics.csv`` with ``step``; cells that are empty or no finite number are NaN.

    Raises:
        UserError: without a column ``step``, if steps go backwards, or if a cell is no number.
    """
    rows: list[list[str]] = []
    if path.is_file():
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    if len(rows) < 2:
        return pd.DataFrame(columns=["step"])
    header, *body = rows
    if "step" not in header:
        raise UserError(f"{path} has no column step: is it the log of hmrl fit?")
    # A run that is still writing, or was killed, may have cut the last row.
    table = pd.DataFrame([row for row in body if len(row) == len(header)], columns=header)
    for name in header:
        try:
            table[name] = table[name].replace("", "nan").astype(float)
        except ValueError as error:
            raise UserError(f"column {name} of {path} holds what is no number: {error}") from error
    table = table.set_index("step").replace([np.inf, -np.inf], np.nan)
    if any((np.diff(column.dropna().index) <= 0).any() for _, column in table.items()):
        raise UserError(f"environment steps go backwards or stand still in {path}: it must hold one run")
    return table.dropna(axis=1, how="all").dropna(how="all").reset_index()


def _told(content: dict[str, Any]) -> str | None:
    """What the agent's critic was given in training beside the state, and whether its encoder was told goals.

    None where nothing was trained.
    """
    if content["agent"] != "policy":
        return None
    networks = (content.get("model") or {}).get("actor_critic") or {}
    told = str(networks.get("critic_input", "belief"))  # older files do not say, for no critic was told
    encoder = (content.get("model") or {}).get("task_encoder") or {}
    return f"{told}, and goals for the encoder" if encoder.get("goal_coef") else told


def read_result(content: Any, path: Path, mode: str) -> list[dict[str, Any]]:
    """Scores in a results file's ``content``, a row a mode, split and family, with what is known of the file.

    ``parameters`` are the protocol's; ``differs`` says in words what in ``mode`` was otherwise than in
    training; ``critic`` is what critic and encoder were told in training; revisions have a mark if the
    source was modified; ``packages`` is name -> version.

    Raises:
        UserError: for another schema, or a file that is broken.
    """
    try:
        if content.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has schema {content.get('schema')}, but this report reads schema {SCHEMA}: "
                "write it anew with hmrl test"
            )
        differs = content.get("differs_from_training") or {}
        said = (mode, "train families", "test families")
        known = {
            "protocol": protocol_label(content["protocol"])
            + (AFTER_FINE_TUNING if content.get("init_from") else ""),
            "steps": content["env_steps"],
            "revision": _revision(content["git"]),
            "training_revision": _revision(content.get("training_git")),
            "agent": content["agent"],
            "backend": content["protocol"].get("backend"),
            "file": path,
            "seed": content["seed"],
            "evaluation_seed": content.get("evaluation_seed", content["seed"]),
            "parameters": {**content["protocol"], "horizon": content["data"]["horizon"]},
            "differs": [f"{k}: {words}" for k, words in differs.items() if k in said],
            "critic": _told(content),
            "checkpoint": content["checkpoint"],
            "packages": {"python": content["python"], **content["packages"]},
            "wall_time_s": content["wall_time_s"],
        }
        rows = []
        for name in dict.fromkeys(name for modes in content["scores"].values() for name in modes):
            for split, modes in content["scores"].items():
                own = (content["official"] or {}).get(split, {}).get(name)
                official = {OFFICIAL: {"success": own["success"], "low": None, "high": None}} if own else {}
                rows += [
                    {"split": split, "family": family, "mode": name, "episodes": score.get("episodes")}
                    | {key: score[key] for key in ("success", "low", "high")}
                    | known
                    for family, score in (modes.get(name, {}) | official).items()
                ]
        return rows
    except KeyError as error:
        raise UserError(f"{path} is no results file of schema {SCHEMA}: it lacks {error}") from error
    except (AttributeError, TypeError) as error:  # a list where there should be a mapping, and the like
        raise UserError(f"{path} is no results file of schema {SCHEMA}: {error}") from error


def _revision(git: Mapping[str, Any] | None) -> str | None:
    return git["revision"] + (" (modified)" if git["modified"] else "") if git else None


def _numbers(folder: Path) -> dict[tuple[str, str], float]:
    """Split and name -> mean over families; ``pooled`` marks correlation and agreement that are pooled."""
    found: dict[tuple[str, str], float] = {}
    content = read_json(folder / "latents" / "latents.json")
    for split in SPLITS:
        own = content.get(split) or {}
        numbers = {f"probe/{name}": value for name, value in (own.get("probe") or {}).items()}
        for name in ("decoder_error", "decoder_error_without_z"):
            if name in own:
                numbers[name] = fmean(error for family, error in own[name].items() if family != "all")
        if "correlation" in own:
            numbers["correlation"] = fmean(own["correlation"])
            numbers["pooled"] = None if "over_families" in own else 1.0
        numbers |= {name: own[name] for name in ("agreement", "agreement_by_chance") if name in own}
        found |= {(split, name): value for name, value in numbers.items() if value is not None}
    if blocks := read_json(folder / "forgetting.json").get("blocks"):  # of a curriculum; the last one counts
        found["train", "forgetting/blocks"] = float(len(blocks))
        last = blocks[-1] | {"success": blocks[-1]["success"]["train"]}
        for name in ("success", "forgetting", "backward_transfer"):
            if last[name]:
                found["train", f"forgetting/{name}"] = fmean(last[name].values())
    return found


def _trials(content: Any, path: Path, protocol: str) -> dict[tuple[str, str], float]:
    """Split and name -> success in each adaptation episode of a results file, mean over families."""
    found: dict[tuple[str, str], float] = {}
    try:
        for split, modes in (content.get("episodes") or {}).items():
            for mode, families in modes.items():
                tables = [pd.DataFrame(columns) for columns in families.values() if "phase" in columns]
                adapted = [of[of["phase"] == "adaptation"] for of in tables]
                if adapted:
                    means = pd.concat([of.groupby("number")["success"].mean() for of in adapted], axis=1)
                    named = {trial_name(protocol, mode, n): x for n, x in means.mean(axis=1).items()}
                    found |= {(split, name): value for name, value in named.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the episodes of {path} are not those of schema {SCHEMA}: {error}") from error
    return found


def read_json(path: Path) -> Any:
    """Contents of a JSON file, or nothing where there is none."""
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def is_study(folder: Path) -> bool:
    """Whether a folder holds a report's tables and is no run directory itself."""
    run = (folder / "metrics.csv").is_file() or any(folder.glob("test-*.json"))
    return not run and any((folder / name).is_file() for name in (SUMMARY, CURVES))


def _read_tables(folder: Path, mode: str) -> _Tables:
    """Of a folder with ``summary.csv`` or ``curves.csv``; results without the mode are left out."""

    def table(name: str, columns: Sequence[str]) -> pd.DataFrame:
        text = dict.fromkeys(("method", "revision", "training_revision", "conditions"), str)
        if not (folder / name).is_file():
            return pd.DataFrame(columns=columns).astype({"seed": int})
        # A method may be called None.
        found = pd.read_csv(folder / name, dtype=text, keep_default_na=False, na_values=[""])
        if missing := [column for column in columns if column not in found]:
            raise ValueError(f"{name} lacks {', '.join(missing)}")
        return found

    try:
        scores = table(SUMMARY, _SUMMARY)
        metrics = table(CURVES, [*KEYS, "steps"]).rename(columns={"steps": "step"})
        numbers = table(DIAGNOSTICS, _NUMBERS)
        plain = scores.astype(object).where(scores.notna(), None)
        special = [json.loads(text or "{}") for text in plain["conditions"]]
        seeds = [of.pop("evaluation_seed", seed) for of, seed in zip(special, scores["seed"], strict=True)]
        named = zip(plain["protocol"], plain["backend"], special, strict=True)
        scores = scores.assign(
            file=folder / SUMMARY,
            evaluation_seed=seeds,
            parameters=[{"name": name, "backend": backend, **of} for name, backend, of in named],
            packages=[{}] * len(scores),
        )
        scores = scores.reindex(columns=_SCORES).astype(_TYPES)
    except ValueError as error:
        raise UserError(f"the tables of {folder} are not those of hmrl report: {error}") from error
    if len(scores) and mode not in set(scores["mode"]):
        modes = ", ".join(sorted(set(scores["mode"])))
        raise UserError(f"{folder / SUMMARY} has no mode {mode!r}: use --mode with one of {modes}")
    has_mode = scores["mode"].eq(mode).groupby([scores[key] for key in RESULT]).transform("any")
    scores = scores[has_mode | scores["agent"].isin(ROLES)]
    metrics = metrics.dropna(how="all", subset=metrics.columns.drop([*KEYS, "step"]))
    tuned = scores.loc[scores["protocol"].str.endswith(AFTER_FINE_TUNING), KEYS]
    marks = tuned.assign(split="train", name=FINE_TUNED, value=1.0)
    numbers = pd.concat([numbers, marks]).drop_duplicates([*KEYS, "split", "name"])
    runs = pd.concat([scores[KEYS], metrics[KEYS]]).drop_duplicates()
    return runs.assign(path=folder, pictures=[()] * len(runs)), scores, metrics, numbers


def write(runs: Runs, folder: Path) -> None:
    """Write the tables of ``runs``; those without rows are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {SUMMARY: _summary(runs.scores), CURVES: _curves(runs.metrics), DIAGNOSTICS: runs.numbers}
    for name, table in tables.items():
        (folder / name).unlink(missing_ok=True)  # of an earlier report
        if len(table):
            table.to_csv(folder / name, index=False, float_format="%.4g" if name == CURVES else "%.6g")


def _summary(scores: pd.DataFrame) -> pd.DataFrame:
    conditions = [
        {key: value for key, value in row.parameters.items() if key not in _USUAL}
        | ({} if row.evaluation_seed == row.seed else {"evaluation_seed": row.evaluation_seed})
        for row in scores.itertuples()
    ]
    short = scores[["revision", "training_revision"]].replace(r"^(\w{12})\w+", r"\1", regex=True)
    written = [json.dumps(special) if special else None for special in conditions]
    return scores.assign(**short, conditions=written)[_SUMMARY]


def _curves(metrics: pd.DataFrame) -> pd.DataFrame:
    """At most :data:`POINTS` rows a run, columns without any value left out."""
    kept = sorted(filter(_KEPT.fullmatch, metrics.columns))
    parts = []
    for _, log in metrics.dropna(how="all", subset=kept).groupby(KEYS, sort=False):
        # A step that rounding has put just above an edge belongs below it.
        bins = np.ceil(log["step"] / bin_width(log["step"].max()) - 1e-9)
        thinned = log.sort_values("step", kind="stable").groupby(bins)
        steps = thinned["step"].last().astype(int).rename("steps")
        parts.append(pd.concat([thinned[KEYS].first(), steps, thinned[kept].mean()], axis=1))
    return pd.concat(parts).dropna(axis=1, how="all") if parts else metrics[:0]


def bin_width(steps: float) -> float:
    """The least of 1, 2.5 and 5 times a power of ten that covers ``steps`` with :data:`POINTS` bins."""
    least = steps / POINTS
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(n * power for n in (1, 2.5, 5, 10) if n * power >= least - 1e-9))
