"""What makes the numbers of a report hard to compare."""

from __future__ import annotations

import pandas as pd

from hmrl.results.runs import AFTER_FINE_TUNING, KEYS, Runs
from hmrl.results.tables import plain, span


def disagreements(runs: Runs) -> list[str]:
    """A sentence for each thing that differs between runs and should not."""
    found = [
        f"The log of {method} lacks the beginning of training: no area, and no steps to success rates."
        for method in runs.proper
        if runs.begun_late(method)
    ]
    results = runs.results.assign(run=_names(runs.results))
    for protocol in results["protocol"].unique():
        same = results[results["protocol"] == protocol]
        proper = same[same["method"].isin(runs.proper)]
        if proper["steps"].nunique() > 1:
            steps = proper.groupby("method", sort=False)["steps"]
            listed = "; ".join(f"{method} {span(of)}" for method, of in steps)
            found.append(f"Results of {protocol} are after different numbers of environment steps: {listed}.")
        tuned = runs.runs["method"].isin(runs.fine_tuned) == protocol.endswith(AFTER_FINE_TUNING)
        every = _names(runs.runs[runs.runs["method"].isin(runs.proper) & tuned])
        if missing := [run for run in every if run not in set(same["run"])]:
            found.append(f"No results of {protocol}: {', '.join(missing)}.")
        for key in dict.fromkeys(key for parameters in same["parameters"] for key in parameters):
            values = [plain(parameters.get(key)) for parameters in same["parameters"]]
            found += _differ(f"{protocol}'s {key}", values, same)
    for row in results.explode("differs").dropna(subset="differs").itertuples():
        found.append(f"The evaluation of {row.run}, {row.protocol}, differs from training: {row.differs}.")
    trained = results.dropna(subset="critic")
    found += _differ("input of critics in training", list(trained["critic"]), trained)
    for package in sorted({package for packages in results["packages"] for package in packages}):
        versions = [packages.get(package) or "none" for packages in results["packages"]]
        found += _differ(f"version of {package}", versions, results)
    return found + _differ("git revision", list(results["revision"].fillna("unknown")), results)


def _differ(what: str, values: list[str], results: pd.DataFrame) -> list[str]:
    """A sentence if ``values``, one a result, are not all the same."""
    by_value = results["run"].groupby(values, sort=False).unique()
    if len(by_value) < 2:
        return []
    listed = "; ".join(f"{value} ({', '.join(runs)})" for value, runs in by_value.items())
    return [f"The {what} differs: {listed}."]


def _names(table: pd.DataFrame) -> list[str]:
    return [f"{method} seed {seed}" for method, seed in table[KEYS].itertuples(index=False)]
