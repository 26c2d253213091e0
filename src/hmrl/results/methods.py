"""Runs grouped into methods (those of one label are seeds of one method), and what these amount to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hmrl.results.reading import ROLES, SPLITS, Result, Run, Series
from hmrl.results.statistics import (
    Array,
    Estimate,
    align,
    estimate,
    estimate_iqm,
    interval,
    steps_to_reach,
    trailing_mean,
)
from hmrl.system.errors import UserError

if TYPE_CHECKING:
    from hmrl.types import Split


@dataclass(frozen=True)
class Method:
    """The runs of one label, by seed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def role(self) -> str | None:
        """``ceiling`` or ``floor``, or None for a method proper."""
        return ROLES.get(self.runs[0].agent)

    @property
    def title(self) -> str:
        """The label, and the role if it has one."""
        return f"{self.label} ({self.role})" if self.role else self.label

    def results(self, protocol: str) -> list[Result]:
        """Of each seed that was tested so."""
        return [run.results[protocol] for run in self.runs if protocol in run.results]

    def series(self, metric: str) -> list[Series]:
        """Of each seed that logged it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]


def of_protocol(runs: Iterable[Run], protocol: str) -> list[Run]:
    """The runs with this protocol's results only, without those of which nothing is left.

    Raises:
        UserError: if no run has any.
    """
    runs = list(runs)
    if not any(protocol in run.results for run in runs):
        there = ", ".join(protocols_of(runs)) or "no results at all"
        raise UserError(f"no run has results of protocol {protocol}: there are {there}")
    kept = (replace(r, results={k: v for k, v in r.results.items() if k == protocol}) for r in runs)
    return [run for run in kept if run.results or run.metrics]


def protocols_of(runs: Iterable[Run]) -> list[str]:
    """Names of all protocols that results are of, in the order of the runs."""
    return list(dict.fromkeys(protocol for run in runs for protocol in run.results))


def group(runs: Iterable[Run]) -> list[Method]:
    """Methods in the order given, then ceilings, then floors.

    Raises:
        UserError: if two runs of one method have the same seed or different agents, or if runs know
            different families.
    """
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    for label, members in by_label.items():
        members.sort(key=lambda run: run.seed)
        for seed, same in groupby(members, key=lambda run: run.seed):
            if len(paths := [str(run.path) for run in same]) > 1:
                raise UserError(
                    f"runs of {label} have the same seed, {seed}: {', '.join(paths)}; "
                    "give them labels of their own, LABEL=RUN_DIR"
                )
        if len(agents := {run.agent for run in members}) > 1:
            raise UserError(f"runs of {label} are of different agents, {', '.join(sorted(agents))}")
    methods = [Method(label, tuple(members)) for label, members in by_label.items()]
    _check_families(methods)
    order = [None, *ROLES.values()]
    return sorted(methods, key=lambda method: order.index(method.role))


def _check_families(methods: Sequence[Method]) -> None:
    runs = [run for method in methods for run in method.runs]
    for split in SPLITS:
        known = [(run.path, run.families(split)) for run in runs]
        known += [(result.path, result.families(split)) for run in runs for result in run.results.values()]
        known = [(path, families) for path, families in known if families]
        for path, families in known[1:]:
            if set(families) != set(known[0][1]):
                raise UserError(
                    f"{split} families differ, so their means cannot be compared: {', '.join(known[0][1])} "
                    f"in {known[0][0]}, but {', '.join(families)} in {path}; report them separately"
                )


class Curve(NamedTuple):
    """A metric of a method against environment steps."""

    steps: Array  # [G]
    mean: Array  # [G], over seeds
    low: Array | None  # [G], its interval over seeds, or range of two; None for a single one
    high: Array | None  # [G]


def families_of(methods: Sequence[Method], split: Split) -> tuple[str, ...]:
    """The families of a split, which are the same for all runs that know them."""
    known = (run.families(split) for method in methods for run in method.runs)
    return next((families for families in known if families), ())


def common_families(results: Sequence[Result], split: Split) -> tuple[str, ...]:
    """The families of a split, in the first file's order; empty if some file does not know the split."""
    return results[0].families(split) if all(result.families(split) for result in results) else ()


def per_family(results: Sequence[Result], split: Split, families: Sequence[str]) -> Array:
    """Success rates ``[N, F]``: a row a seed, a column a family."""
    return np.array([[result.scores[split][family].success for family in families] for result in results])


def success(results: Sequence[Result], split: Split, family: str = "mean") -> Estimate | None:
    """Success over seeds in one family, or in the unweighted mean over families.

    The interval is over seeds; of a single seed it is the file's, over goals. None without such results.
    """
    families = common_families(results, split)
    if not families:
        return None
    values = per_family(results, split, families if family == "mean" else [family]).mean(1)
    score = results[0].scores[split][family]
    return estimate(values, goals=(score.low, score.high))


def success_iqm(results: Sequence[Result], split: Split) -> Estimate | None:
    """Interquartile mean over seeds of the mean over families; None of a single seed or without results."""
    families = common_families(results, split)
    if not families or len(results) < 2:
        return None
    return estimate_iqm(per_family(results, split, families).mean(1))


def official_success(results: Sequence[Result], split: Split) -> Estimate | None:
    """Meta-World's own number over seeds; None if no file has it."""
    values = [result.official[split] for result in results if split in result.official]
    return estimate(np.array(values)) if values else None


def curve(series: Sequence[Series], window: float = 0.0) -> Curve | None:
    """Mean over seeds of trailing means over ``window`` environment steps; None if there is none."""
    if not series:
        return None
    smooth = [(steps, trailing_mean(steps, values, window)) for steps, values in series]
    steps, values = align(smooth)
    if not len(steps):
        return None
    return Curve(steps, values.mean(0), *(interval(values) or (None, None)))


def reached(series: Sequence[Series], threshold: float, window: float = 0.0) -> tuple[Array, Array]:
    """Of each seed the environment steps to ``threshold`` (infinity: never) and those that it ran. ``[N]``"""
    found = [steps_to_reach(steps, values, threshold, window) for steps, values in series]
    return np.array(found), np.array([steps[-1] for steps, _ in series])
