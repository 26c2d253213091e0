"""The document of a report: its sections, with the figures that they show."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from hmrl.results import curves, tables
from hmrl.results.file import PRIMARY_MODE
from hmrl.results.runs import Runs


@dataclass(frozen=True)
class Document:
    """What to write of which runs, and where."""

    runs: Runs
    out: Path  # folder of the document; figures go into figures/, pictures of agents into latents/
    mode: str  # way of acting of the results
    thresholds: Sequence[float]  # success rates to which steps are counted
    window: float  # environment steps of the trailing mean over training rollouts
    formats: Sequence[str]  # of figures, png or pdf
    baseline: str | None = None  # the method that others are compared with; None: all pairs are compared

    def write(self, command: str, warnings: Sequence[str]) -> Path:
        """Write ``report.md`` with its figures; returns its path.

        Args:
            command: that makes this document.
            warnings: sentences to begin with.
        """
        evaluation = "success" if self.mode == PRIMARY_MODE else f"success_{self.mode}"
        latents, forgetting = tables.latents_table(self.runs), tables.forgetting_table(self.runs)
        sections = [
            f"# Report\n\nMade by `{command}`.\n\nSuccess: share of episodes that are solved at any step. "
            f"Way of acting: {self.mode}.\n",
            _section("## Warnings", "".join(f"- {warning}\n" for warning in warnings)),
            *(self.success(protocol) for protocol in self.runs.results["protocol"].unique()),
            self.trials(),
            self.fine_tuning(),
            self.rollouts(),
            self.steps(evaluation),
            self.curves(evaluation),
            _section("## Belief and macro-action", latents, after=f"{tables.LATENTS} {tables.OVER_SEEDS}\n"),
            _section("## Forgetting", forgetting, after=f"{tables.FORGETTING} {tables.OVER_SEEDS}\n"),
            _section("## Runs", tables.runs_table(self.runs)),
            _section("## Latent variables", *self.pictures()),
        ]
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "report.md"
        path.write_text("\n".join(filter(None, sections)), encoding="utf-8")
        return path

    def success(self, protocol: str) -> str:
        """Results of one protocol: over families, per family, and of pairs of methods."""
        name, lines = f"success-{_file_name(protocol)}", "Lines: the brackets in the table."
        means = curves.success_means(self.runs, protocol)
        bars = curves.success_bars(self.runs, protocol)
        improvement = tables.improvement_table(self.runs, protocol, self.baseline)
        return _section(
            f"## Success, protocol {protocol}",
            f"{tables.protocol_text(self.runs, protocol)}.\n",
            tables.success_table(self.runs, protocol),
            f"{tables.INTERVALS} {tables.IQM}\n",
            self.figure(means, f"{name}-mean", f"Mean over families. {lines}"),
            f"### Per family, {protocol}\n",
            tables.family_table(self.runs, protocol),
            f"{tables.INTERVALS}\n",
            self.figure(bars, name, f"Success per family, protocol {protocol}. {lines}"),
            _section(
                f"### Probability of improvement, {protocol}", improvement, after=f"{tables.IMPROVEMENT}\n"
            ),
        )

    def trials(self) -> str:
        """Success by episode of a trial; empty if nothing is of trials."""
        over = (
            f"Rollouts: trailing mean over {self.window:,.0f} environment steps, at the end of a method's "
            "shortest run."
        )
        note = "Lines: means over seeds; bands as in the table's brackets, but for one seed none."
        return _section(
            "## Adaptation within a trial",
            tables.trials_table(self.runs, self.mode, self.window),
            self.figure(curves.trials(self.runs, self.mode, self.window), "trials", note),
            after=f"{tables.TRIALS} {over} {tables.OVER_SEEDS}\n",
        )

    def fine_tuning(self) -> str:
        """How soon families are learnt from another run's weights; empty if no run began so."""
        table = tables.fine_tuning_table(self.runs, self.window, self.baseline)
        over = f"Steps: of a trailing mean over {self.window:,.0f}. The figure of learning curves draws them."
        return _section(
            "## Fine-tuning", table, after=f"{tables.FINE_TUNING} {over} {tables.STEPS} {tables.OVER_SEEDS}\n"
        )

    def rollouts(self) -> str:
        """Success in training rollouts at the end of training; empty if nothing was logged in training."""
        over = (
            f"Trailing mean over {self.window:,.0f} environment steps at the end of a method's shortest run."
        )
        return _section(
            "## Training rollouts, at the end of training",
            tables.rollouts_table(self.runs, self.window, self.baseline),
            after=f"{tables.ROLLOUTS} {over} {tables.OVER_SEEDS}\n",
        )

    def steps(self, evaluation: str) -> str:
        """Environment steps to given success rates; empty if nothing was logged in training."""
        window = f"trailing mean over {self.window:,.0f} environment steps, from the first whole window on"
        parts = [
            _section(f"{what} `{metric}`", tables.steps_table(self.runs, metric, self.thresholds, over))
            for metric, over, what in (
                ("rollout/success/mean", self.window, f"Training families, training rollouts: {window}."),
                (f"{evaluation}/test/mean", 0, "Held-out families, evaluations in training: not smoothed."),
            )
        ]
        return _section("## Environment steps to a success rate", *parts, after=f"{tables.STEPS}\n")

    def curves(self, evaluation: str) -> str:
        """Learning curves and diagnostics; empty if nothing was logged in training."""
        smooth = (
            f"Rollouts: trailing mean over {self.window:,.0f} environment steps; evaluations as they are."
        )
        captions = {
            "learning": f"Mean over families. {smooth}",
            "families": f"Each family. {smooth}",
            "diagnostics": "Use of macro-action and belief.",
        }
        note = (
            "Lines: means over seeds, as far as a method's shortest run; bands: 95 % intervals of these "
            "(Student's t), of two seeds the range of two seeds, of one seed none."
        )
        figures = curves.learning(self.runs, evaluation, self.window)
        shown = (self.figure(figure, name, f"{captions[name]} {note}") for name, figure in figures.items())
        return _section("## Learning curves", *shown)

    def pictures(self) -> list[str]:
        """Pictures that lie in the runs' folders ``latents/``, copied."""
        parts = []
        runs = self.runs.runs[self.runs.runs["pictures"].astype(bool)]
        for number, run in enumerate(runs.itertuples(), 1):
            parts.append(f"### {run.method}, seed {run.seed}\n")
            folder = Path("latents") / f"{number}-{_file_name(run.method)}-seed{run.seed}"
            (self.out / folder).mkdir(parents=True, exist_ok=True)
            for picture in run.pictures:
                shutil.copyfile(picture, self.out / folder / picture.name)
                parts.append(f"![{picture.stem}]({(folder / picture.name).as_posix()})\n")
        return parts

    def figure(self, figure: Figure | None, name: str, caption: str) -> str:
        """Save a figure and return what shows it, or links to it where Markdown cannot show the format."""
        if figure is None:
            return ""
        curves.save(figure, self.out / "figures" / name, self.formats)
        shown = "png" if "png" in self.formats else self.formats[0]
        return f"{'!' if shown == 'png' else ''}[{name}](figures/{name}.{shown})\n\n{caption}\n"


def _section(title: str, *parts: str, after: str = "") -> str:
    """A section, empty without any of its parts; ``after`` is what explains them."""
    return "\n".join([f"{title}\n", *filter(None, (*parts, after))]) if any(parts) else ""


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)
