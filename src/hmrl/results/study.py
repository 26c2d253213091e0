"""What stays of runs when their directories are gone: three tables, which can be reported again.

- ``summary.csv``: a row a run, protocol, split, family (or ``mean``, or ``official``: Meta-World's own
  number) and mode. ``low`` and ``high`` are the results file's interval, over goals; empty where there is
  none. ``revision`` is of the code that evaluated. ``conditions`` (JSON) holds what makes the evaluation
  a special one, as a perturbation.
- ``curves.csv``: a row a run and interval of environment steps: means of what was logged in it, and as
  ``steps`` the last that anything was logged at.
- ``diagnostics.csv``: of each run what ``latents.json`` and ``forgetting.json`` say, a number a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hmrl.results.reading import ROLES, Result, Run, Score, Series, mode_to_report
from hmrl.system.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SUMMARY, CURVES, DIAGNOSTICS = "summary.csv", "curves.csv", "diagnostics.csv"
POINTS = 50  # rows of a run's curves, at most
_DIGITS = "%.4g"
# Parameters of protocols that are as the protocol says, or columns of their own.
_USUAL = {"name", "backend", "horizon", "goals_per_family", "episodes_per_family", "num_evals"}
_USUAL |= {"adaptation_episodes", "evaluation_episodes", "total_tasks_per_cls", "meta_batch_size", "episodes"}
_TEXT = ("method", "revision", "training_revision", "conditions")
_KEPT = re.compile(
    r"rollout/success/.+|rollout/return/mean|success(_\w+)?/(train|test)/mean|return/(train|test)/mean"
    r"|latents/.+|vae/(agreement|decoder_error|decoder_error_without_z|policy_kl)"
    r"|encoder/(family_information|marginal_entropy|policy_kl)|ppo/(approx_kl|action_std)"
    r"|time/(env_steps_per_second|learning_seconds)"
)


def write(runs: Iterable[Run], folder: Path) -> None:
    """Write the tables of ``runs``; those without rows are left out."""
    runs = list(runs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in ((SUMMARY, summary(runs)), (CURVES, curves(runs)), (DIAGNOSTICS, diagnostics(runs))):
        (folder / name).unlink(missing_ok=True)  # of an earlier report
        if len(table):
            digits = _DIGITS if name == CURVES else "%.6g"
            table.to_csv(folder / name, index=False, float_format=digits)


def summary(runs: Iterable[Run]) -> pd.DataFrame:
    """``summary.csv`` as a frame."""
    import pandas as pd

    rows = []
    for run in runs:
        for result in run.results.values():
            conditions = {k: v for k, v in result.protocol.items() if k not in _USUAL}
            if result.evaluation_seed != run.seed:
                conditions["evaluation_seed"] = result.evaluation_seed
            for mode, splits in result.modes.items():
                for split, scores in splits.items():
                    rows += [
                        {
                            "method": run.label,
                            "seed": run.seed,
                            "split": split,
                            "family": family,
                            "protocol": result.protocol["name"],
                            "mode": mode,
                            "success": score.success,
                            "low": score.low,
                            "high": score.high,
                            "episodes": score.episodes,
                            "steps": result.env_steps,
                            "revision": _short(result.revision),
                            "training_revision": _short(result.training_revision),
                            "agent": result.agent,
                            "backend": result.protocol.get("backend"),
                            "conditions": json.dumps(conditions) if conditions else None,
                        }
                        for family, score in scores.items()
                    ]
    frame = pd.DataFrame(rows)
    return frame.astype({"episodes": "Int64"}) if rows else frame


def _short(revision: str | None) -> str | None:
    return revision and re.sub(r"^(\w{12})\w+", r"\1", revision)


def curves(runs: Iterable[Run]) -> pd.DataFrame:
    """``curves.csv`` as a frame: at most :data:`POINTS` rows a run, columns without any value left out."""
    import pandas as pd

    parts = []
    for run in runs:
        kept = {name: series for name, series in run.metrics.items() if _KEPT.fullmatch(name)}
        if not kept:
            continue
        log = pd.DataFrame(
            {name: pd.Series(s.values, index=s.steps) for name, s in kept.items()}
        ).sort_index()
        width = bin_width(float(log.index[-1]))
        # A step that rounding has put just above an edge belongs below it.
        bins = np.ceil(log.index.to_numpy() / width - 1e-9)
        thinned = log.groupby(bins).mean()
        thinned.insert(0, "method", run.label)
        thinned.insert(1, "seed", run.seed)
        thinned.insert(2, "steps", log.index.to_series().groupby(bins).last().astype("int64"))
        parts.append(thinned)
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    keys = ["method", "seed", "steps"]
    return table[[*keys, *sorted(table.columns.drop(keys))]]


def bin_width(steps: float) -> float:
    """The least of 1, 2.5 and 5 times a power of ten that covers ``steps`` with :data:`POINTS` bins."""
    least = steps / POINTS
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(n * power for n in (1, 2.5, 5, 10) if n * power >= least - 1e-9))


def diagnostics(runs: Iterable[Run]) -> pd.DataFrame:
    """``diagnostics.csv`` as a frame."""
    import pandas as pd

    rows = [
        {"method": run.label, "seed": run.seed, "split": split, "name": name, "value": value}
        for run in runs
        for (split, name), value in run.numbers.items()
    ]
    return pd.DataFrame(rows)


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study's tables and is no run directory itself."""
    run = (folder / "metrics.csv").is_file() or any(folder.glob("test-*.json"))
    return not run and any((folder / name).is_file() for name in (SUMMARY, CURVES))


def read(folder: Path, mode: str) -> list[Run]:
    """The runs of a study.

    Args:
        folder: with ``summary.csv`` or ``curves.csv``.
        mode: the way of acting to report; results without it are left out.

    Raises:
        UserError: if no result has the mode, or if the tables lack columns.
    """
    keys: dict[tuple[str, int], None] = {}
    results: dict[tuple[str, int], dict[str, Result]] = {}
    acted: set[str] = set()
    metrics: dict[tuple[str, int], dict[str, Series]] = {}
    numbers: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    try:
        for run, rows in _runs(folder / SUMMARY):
            keys[run] = None
            acted |= set(rows["mode"])
            results[run] = {
                str(name): _result(of_protocol, folder / SUMMARY, mode)
                for name, of_protocol in rows.groupby("protocol", sort=False)
                if mode in set(of_protocol["mode"]) or of_protocol["agent"].iloc[0] in ROLES
            }
        for run, rows in _runs(folder / CURVES):
            keys[run] = None
            metrics[run] = {
                name: Series(column.index.to_numpy(float), column.to_numpy(float))
                for name in rows.columns.drop(["method", "seed", "steps"])
                if len(column := rows.set_index("steps")[name].dropna())
            }
        for run, rows in _runs(folder / DIAGNOSTICS):
            numbers[run] = dict(
                zip(zip(rows["split"], rows["name"], strict=True), rows["value"], strict=True)
            )
    except (KeyError, ValueError) as error:
        raise UserError(f"the tables of {folder} are not those of hmrl report: {error}") from error
    if acted and mode not in acted:
        modes = ", ".join(sorted(acted))
        raise UserError(f"{folder / SUMMARY} has no mode {mode!r}: use --mode with one of {modes}")
    return [
        Run(run[0], folder, run[1], metrics.get(run, {}), results.get(run, {}), (), numbers.get(run, {}))
        for run in keys
        if metrics.get(run) or results.get(run)
    ]


def _runs(path: Path) -> Iterable[tuple[tuple[str, int], pd.DataFrame]]:
    import pandas as pd

    if not path.is_file():
        return
    table = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str))
    for key, rows in table.groupby(["method", "seed"], sort=False):
        yield (str(key[0]), int(key[1])), rows


def _result(rows: pd.DataFrame, path: Path, mode: str) -> Result:
    """One results file of a run, from its rows of ``summary.csv``."""
    first: Mapping[str, Any] = rows.iloc[0].where(rows.iloc[0].notna(), None).to_dict()
    conditions = json.loads(first["conditions"] or "{}")
    modes: dict[str, dict[str, dict[str, Score]]] = {}
    for row in rows.itertuples():
        low, high = (None if np.isnan(end) else float(end) for end in (row.low, row.high))
        score = Score(float(row.success), low, high, None if np.isnan(row.episodes) else int(row.episodes))
        modes.setdefault(row.mode, {}).setdefault(row.split, {})[row.family] = score
    seed = int(first["seed"])
    return Result(
        path=path,
        agent=first["agent"],
        seed=seed,
        evaluation_seed=conditions.pop("evaluation_seed", seed),
        protocol={"name": first["protocol"], "backend": first["backend"], **conditions},
        env_steps=int(first["steps"]),
        modes=modes,
        mode=mode_to_report(modes, mode, first["agent"], path),
        differs=(),
        checkpoint=None,
        revision=first["revision"],
        training_revision=first["training_revision"],
        packages={},
        wall_time_s=None,
    )
