"""The runs of a report as tidy tables, and what they amount to; runs of one label are seeds of one method."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hmrl.results.statistics import Array, Estimate, at_the_end, estimate, estimate_iqm

if TYPE_CHECKING:
    from hmrl.types import Split

Families = dict["Split", tuple[str, ...]]  # of each split that is known
SPLITS: tuple[Split, Split] = ("train", "test")
ROLES = {"expert": "ceiling", "random": "floor"}  # agents that are no method; anything else is one
OFFICIAL = "official"
LOG_BEGINS = "log_begins"  # in ``numbers``: environment steps of training before the log
FINE_TUNED = "fine_tuned"  # in ``numbers``: 1 for a run that began from another run's weights
AFTER_FINE_TUNING = " after fine-tuning"  # what the protocol of such a run's results ends with
ROLLOUTS = "training rollouts"  # in the place of a protocol
_TRIAL = re.compile(r"trial/([^/]+)/(.+)/(\d+)")
_IN_EPISODE = re.compile(r"rollout/success_in_episode_(\d+)/mean")
KEYS = ["method", "seed"]  # of a run
RESULT = [*KEYS, "protocol"]  # of a results file


def trial_name(protocol: str, mode: str, episode: int) -> str:
    """Name of the success in adaptation episode ``episode``, which counts from 0, among ``numbers``."""
    return f"trial/{protocol}/{mode}/{episode + 1}"


def trial_of(name: str) -> tuple[str, str, int] | None:
    """Protocol, mode and episode, from 1 on, of a name; None of another one."""
    match = _TRIAL.fullmatch(name)
    return (match[1], match[2], int(match[3])) if match else None


@dataclass(frozen=True)
class Runs:
    """What was read, methods in the order of tables and legends, and seeds in theirs.

    Args:
        runs: a row a run: ``method``, ``seed``, ``path``, ``agent``, ``pictures`` (of its latents, paths).
        scores: a row a run, protocol, split, family (or ``mean``, or ``official``: Meta-World's own number)
            and mode, with its success and what is known of its results file; ``reported`` marks the mode to
            report. See :func:`hmrl.results.reading.read_result`.
        metrics: a row a run and logged ``step``, with the columns of ``metrics.csv``.
        numbers: a row a run, ``split`` and ``name``: what ``latents.json`` and ``forgetting.json`` say,
            which runs are fine-tuned, where their logs begin, and success by episode of a trial
            (:func:`trial_name`).
        families: the same for all runs that know the split.
    """

    runs: pd.DataFrame
    scores: pd.DataFrame
    metrics: pd.DataFrame
    numbers: pd.DataFrame
    families: Families

    @cached_property
    def roles(self) -> dict[str, str | None]:
        """Method -> ``ceiling`` or ``floor``, or None for a method proper."""
        return {row.method: ROLES.get(row.agent) for row in self.runs.itertuples()}

    @property
    def proper(self) -> list[str]:
        """The methods that are neither ceiling nor floor."""
        return [method for method, role in self.roles.items() if not role]

    @cached_property
    def fine_tuned(self) -> set[str]:
        """The methods whose runs began from another run's weights."""
        return set(self.numbers.loc[self.numbers["name"] == FINE_TUNED, "method"])

    @cached_property
    def titles(self) -> dict[str, str]:
        """Method -> its label, and the role if it has one, or that it is fine-tuned."""
        marks = dict.fromkeys(self.fine_tuned, "fine-tuned")
        marks |= {label: role for label, role in self.roles.items() if role}
        return {label: f"{label} ({marks[label]})" if label in marks else label for label in self.roles}

    @property
    def learnt(self) -> list[str]:
        """The families of training rollouts, those that were tested first; tests may be on others."""
        start = "rollout/success/"
        logged = {name.removeprefix(start) for name in self.metrics if name.startswith(start)} - {"mean"}
        tested = self.families.get("train", ())
        return [*(f for f in tested if f in logged), *sorted(logged.difference(tested))]

    @cached_property
    def results(self) -> pd.DataFrame:
        """A row a results file."""
        return self.scores.drop_duplicates(RESULT)

    def of_protocol(self, protocol: str) -> pd.DataFrame:
        """A row a results file of this protocol."""
        return self.results[self.results["protocol"] == protocol]

    def tested(self, protocol: str) -> list[str]:
        """The methods that have results of this protocol."""
        return list(self.of_protocol(protocol)["method"].unique())

    def series(self, method: str, metric: str) -> list[tuple[Array, Array]]:
        """Of each seed that logged a metric its environment steps ``[N]``, increasing, and its values.

        None of fine-tuned methods on held-out families, where there are others: they may have learnt them.
        """
        apart = method in self.fine_tuned and set(self.proper) - self.fine_tuned
        if metric not in self.metrics or (apart and re.search("/test(/|$)", metric)):
            return []
        found = self.metrics[self.metrics["method"] == method].dropna(subset=[metric])
        return [(rows["step"].to_numpy(), rows[metric].to_numpy()) for _, rows in found.groupby("seed")]

    def seeds(self, method: str, metric: str) -> list[int]:
        """The seeds of :meth:`series`."""
        if metric not in self.metrics:
            return []
        logged = self.metrics.dropna(subset=[metric])
        return sorted(logged.loc[logged["method"] == method, "seed"].unique())

    def begun_late(self, method: str) -> bool:
        """Whether a run of it lacks the beginning of its log, as one that went on in a new directory.

        Older runs do not say so. Of these, rollouts are as long as the distance between the first two, and in
        tables of reports no longer.
        """
        numbers = self.numbers[(self.numbers["method"] == method) & (self.numbers["name"] == LOG_BEGINS)]
        said = dict(zip(numbers["seed"], numbers["value"], strict=True))
        metric = "rollout/success/mean"
        curves = zip(self.seeds(method, metric), self.series(method, metric), strict=True)
        return any(
            said[seed] > 0 if seed in said else len(steps) > 1 and steps[0] > 1.5 * (steps[1] - steps[0])
            for seed, (steps, _) in curves
        )

    def trials(self, mode: str, window: float) -> dict[tuple[str, str, str], pd.DataFrame]:
        """Method, protocol and split -> success, a row a seed, a column an adaptation episode, from 1 on.

        As far as the shortest trial, and none unless there are trials of each seed that was tested. An agent
        that is no policy and has one way of acting is taken as it is. What was trained on trials has those
        of its training rollouts, too, in whatever way it acted there.

        Args:
            mode: of acting in tests.
            window: environment steps at the end of training, over which rollouts are averaged.
        """
        named = self.numbers["name"].map(trial_of).dropna()
        parts = pd.DataFrame([*named], named.index, ["protocol", "mode", "episode"])
        own = self.numbers.join(parts, how="inner")
        ways = own.groupby("method")["mode"].transform("nunique")
        own = own[(own["mode"] == mode) | (own["method"].map(self.roles).notna() & (ways == 1))]
        tables = {
            key: rows.pivot(index="seed", columns="episode", values="value").dropna(axis=1)
            for key, rows in own.groupby(["method", "protocol", "split"])
            if rows["seed"].nunique() == self.of_protocol(key[1])["method"].eq(key[0]).sum()
        }
        tables |= self._of_rollouts(window)
        order = [*self.roles]
        return dict(sorted(tables.items(), key=lambda x: (order.index(x[0][0]), x[0][1], x[0][2] == "test")))

    def _of_rollouts(self, window: float) -> dict[tuple[str, str, str], pd.DataFrame]:
        """As :meth:`trials`, of training rollouts, where each seed of a method was trained on trials.

        At the end of the method's shortest run, as far as its learning curve goes.
        """
        names = {int(match[1]): name for name in self.metrics if (match := _IN_EPISODE.fullmatch(name))}
        tables = {}
        for method, seeds in self.metrics.groupby("method")["seed"].nunique().items():
            logs = {n: self.series(method, names[n]) for n in sorted(names)}
            end = min((steps[-1] for of in logs.values() for steps, _ in of), default=0)
            ends = {
                n: [at_the_end(steps, values, end, window) for steps, values in of]
                for n, of in logs.items()
                if len(of) == seeds and max(steps[0] for steps, _ in of) <= end
            }
            if ends:
                tables[method, ROLLOUTS, "train"] = pd.DataFrame(ends)
        return tables

    @cached_property
    def _tables(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        """Method, protocol and split -> a row a seed, columns of success, low and high by family."""
        reported = self.scores[self.scores["reported"]].groupby(["method", "protocol", "split"])
        values = ["success", "low", "high"]
        return {key: rows.pivot(index="seed", columns="family", values=values) for key, rows in reported}

    def per_family(self, method: str, protocol: str, split: Split) -> Array:
        """Success rates ``[N, F]``, a row a seed; N is 0 unless each seed was tested on the split."""
        table = self._tables.get((method, protocol, split))
        if table is None or len(table) < self.of_protocol(protocol)["method"].eq(method).sum():
            return np.empty((0, 0))
        return np.ascontiguousarray(table["success"][list(self.families[split])])

    def success(self, method: str, protocol: str, split: Split, family: str = "mean") -> Estimate | None:
        """Success over seeds in one family, or in the unweighted mean over families.

        The interval is over seeds; of a single seed it is the file's, over goals. None without results.
        """
        values = self.per_family(method, protocol, split)
        if not len(values):
            return None
        if family != "mean":
            values = values[:, [self.families[split].index(family)]]
        first = self._tables[method, protocol, split].iloc[0]
        return estimate(values.mean(1), goals=(first["low", family], first["high", family]))

    def success_iqm(self, method: str, protocol: str, split: Split) -> Estimate | None:
        """Interquartile mean over seeds of the mean over families; None of fewer than two."""
        values = self.per_family(method, protocol, split)
        return estimate_iqm(values.mean(1)) if len(values) > 1 else None

    def official(self, method: str, protocol: str, split: Split) -> Estimate | None:
        """Meta-World's own number over seeds; None if no file has it."""
        table = self._tables.get((method, protocol, split))
        if table is None or OFFICIAL not in table["success"]:
            return None
        return estimate(table["success", OFFICIAL].dropna().to_numpy())
