"""Where a report's numbers come from, and what makes them hard to compare."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from hmrl.results.methods import Method, protocols_of
from hmrl.results.reading import Result, Run
from hmrl.results.tables import NOTHING, markdown, span, tested


def runs_table(methods: Sequence[Method]) -> str:
    """One row a results file, and one a run that has none."""
    rows = []
    for method in methods:
        for run in method.runs:
            results: list[Result | None] = [*run.results.values()] or [None]
            rows += [[f"`{run.path}`", method.title, str(run.seed), *_row(run, result)] for result in results]
    header = ["run", "method", "seed", "configuration", "protocol", "checkpoint", "environment steps"]
    return markdown([*header, "git revision", "wall time of the test"], rows)


def _row(run: Run, result: Result | None) -> list[str]:
    config = "`config.yaml`" if (run.path / "config.yaml").is_file() else NOTHING
    if result is None:
        trained = max(series.steps[-1] for series in run.metrics.values())
        return [config, "training only", NOTHING, f"{trained:,.0f}", NOTHING, NOTHING]
    return [
        config,
        result.protocol["name"],
        f"`{result.checkpoint}`" if result.checkpoint else NOTHING,
        f"{result.env_steps:,}",
        result.revision or "unknown",
        NOTHING if result.wall_time_s is None else f"{result.wall_time_s:,.0f} s",
    ]


def protocol_text(methods: Sequence[Method], protocol: str) -> str:
    """The protocol's parameters, as the first results file has them."""
    parameters = tested(methods, protocol)[0][1][0].protocol
    return ", ".join(f"{key}: {_plain(value)}" for key, value in parameters.items() if key != "name")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def disagreements(methods: Sequence[Method]) -> list[str]:
    """A sentence for each thing that differs between runs and should not."""
    found = []
    everything = [
        (run, result) for method in methods for run in method.runs for result in run.results.values()
    ]
    for protocol in protocols_of(run for method in methods for run in method.runs):
        columns = [(method, results) for method, results in tested(methods, protocol) if not method.role]
        steps = {method.label: span(result.env_steps for result in results) for method, results in columns}
        if len({result.env_steps for _, results in columns for result in results}) > 1:
            listed = "; ".join(f"{label} {n}" for label, n in steps.items())
            found.append(f"Results of {protocol} are after different numbers of environment steps: {listed}.")
        missing = [run for m in methods if not m.role for run in m.runs if protocol not in run.results]
        if missing:
            found.append(f"No results of {protocol}: {', '.join(_name(run) for run in missing)}.")
        same = [(run, result) for run, result in everything if result.protocol["name"] == protocol]
        for key in dict.fromkeys(key for _, result in same for key in result.protocol):
            found += _differ(
                f"{protocol}'s {key}", ((_plain(result.protocol.get(key)), run) for run, result in same)
            )
    for run, result in everything:
        name = f"{_name(run)}, {result.protocol['name']}"
        found += [f"The evaluation of {name}, differs from training: {words}." for words in result.differs]
    for package in sorted({package for _, result in everything for package in result.packages}):
        versions = ((result.packages.get(package) or "none", run) for run, result in everything)
        found += _differ(f"version of {package}", versions)
    found += _differ("git revision", ((result.revision or "unknown", run) for run, result in everything))
    return found


def _differ(what: str, values: Iterable[tuple[str, Run]]) -> list[str]:
    by_value: dict[str, dict[str, None]] = {}
    for value, run in values:
        by_value.setdefault(value, {})[_name(run)] = None
    if len(by_value) < 2:
        return []
    listed = "; ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())
    return [f"The {what} differs: {listed}."]


def _name(run: Run) -> str:
    return f"{run.label} seed {run.seed}"
