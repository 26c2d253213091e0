"""The document of a report: its sections, with the figures that they show."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hmrl.results import curves, tables
from hmrl.results.disagreements import protocol_text, runs_table
from hmrl.results.methods import Method, protocols_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRIMARY_MODE = "sampled"  # its metrics carry no suffix


@dataclass(frozen=True)
class Document:
    """What to write of which methods, and where.

    Args:
        methods: in the order of tables and legends.
        out: folder of the document; figures go into ``figures/``, pictures of agents into ``latents/``.
        mode: way of acting of the results.
        thresholds: success rates to which steps are counted.
        window: environment steps of the trailing mean over training rollouts.
        formats: of figures, ``png`` or ``pdf``.
        baseline: label of the method that others are compared with; None: all pairs are compared.
    """

    methods: Sequence[Method]
    out: Path
    mode: str
    thresholds: Sequence[float]
    window: float
    formats: Sequence[str]
    baseline: str | None = None

    @property
    def evaluation(self) -> str:
        """The metric of evaluations in this mode."""
        return "success" if self.mode == PRIMARY_MODE else f"success_{self.mode}"

    def write(self, command: str, warnings: Sequence[str]) -> Path:
        """Write ``report.md`` with its figures; returns its path.

        Args:
            command: that makes this document.
            warnings: sentences to begin with.
        """
        listed = "".join(f"- {warning}\n" for warning in warnings)
        sections = [
            f"# Report\n\nMade by `{command}`.\n\nSuccess: share of episodes that are solved at any step. "
            f"Way of acting: {self.mode}.\n",
            f"## Warnings\n\n{listed}" if warnings else "",
            *(self.success(p) for p in protocols_of(run for method in self.methods for run in method.runs)),
            self.steps(),
            self.curves(),
            self.evidence(),
            f"## Runs\n\n{runs_table(self.methods)}",
            self.latents(),
        ]
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "report.md"
        path.write_text("\n".join(section for section in sections if section), encoding="utf-8")
        return path

    def success(self, protocol: str) -> str:
        """Results of one protocol: over families, per family, and of pairs of methods."""
        means = curves.success_means(self.methods, protocol)
        bars = curves.success_bars(self.methods, protocol)
        name = f"success-{_file_name(protocol)}"
        parts = [
            f"## Success, protocol {protocol}\n",
            f"{protocol_text(self.methods, protocol)}.\n",
            tables.success_table(self.methods, protocol),
            f"{tables.INTERVALS} {tables.IQM}\n",
            self.figure(means, f"{name}-mean", "Mean over families. Lines: the brackets in the table."),
            f"### Per family, {protocol}\n",
            tables.family_table(self.methods, protocol),
            f"{tables.INTERVALS}\n",
            self.figure(
                bars, name, f"Success per family, protocol {protocol}. Lines: the brackets in the table."
            ),
        ]
        if improvement := tables.improvement_table(self.methods, protocol, self.baseline):
            parts += [f"### Probability of improvement, {protocol}\n", improvement, f"{tables.IMPROVEMENT}\n"]
        return "\n".join(part for part in parts if part)

    def steps(self) -> str:
        """Environment steps to given success rates; empty if nothing was logged in training."""
        window = f"trailing mean over {self.window:,.0f} environment steps, from the first whole window on"
        parts = []
        for metric, what in (
            ("rollout/success/mean", f"Train families, training rollouts: {window}."),
            (f"{self.evaluation}/test/mean", "Test families, evaluations while training: not smoothed."),
        ):
            if table := tables.steps_table(
                self.methods, metric, self.thresholds, self.window if "roll" in metric else 0
            ):
                parts += [f"{what} `{metric}`\n", table]
        if not parts:
            return ""
        return "\n".join(["## Environment steps to a success rate\n", *parts, f"{tables.STEPS}\n"])

    def curves(self) -> str:
        """Learning curves and diagnostics; empty if nothing was logged in training."""
        note = (
            "Lines: means over seeds, as far as a method's shortest run; bands: 95 % intervals of these "
            "(Student's t), of two seeds the range of two seeds, of one seed none."
        )
        smooth = (
            f"Rollouts: trailing mean over {self.window:,.0f} environment steps; evaluations as they are."
        )
        shown = [
            self.figure(
                curves.learning_curves(self.methods, self.evaluation, self.window),
                "learning",
                f"Mean over families. {smooth} {note}",
            ),
            self.figure(
                curves.family_curves(self.methods, self.evaluation, self.window),
                "families",
                f"Each family. {smooth} {note}",
            ),
            self.figure(
                curves.diagnostics(self.methods), "diagnostics", f"Use of macro-action and belief. {note}"
            ),
        ]
        return "\n".join(["## Learning curves\n", *filter(None, shown)]) if any(shown) else ""

    def evidence(self) -> str:
        """Numbers about belief, macro-action and forgetting; empty without any."""
        parts = []
        for title, table, note in (
            ("Belief and macro-action", tables.latents_table(self.methods), tables.LATENTS),
            ("Forgetting", tables.forgetting_table(self.methods), tables.FORGETTING),
        ):
            if table:
                parts += [f"## {title}\n", table, f"{note} {tables.OVER_SEEDS}\n"]
        return "\n".join(parts)

    def latents(self) -> str:
        """Pictures that lie in the runs' folders ``latents/``, copied; empty without any."""
        parts = []
        runs = [run for method in self.methods for run in method.runs if run.latents]
        for number, run in enumerate(runs, 1):
            parts.append(f"### {run.label}, seed {run.seed}\n")
            folder = Path("latents") / f"{number}-{_file_name(run.label)}-seed{run.seed}"
            (self.out / folder).mkdir(parents=True, exist_ok=True)
            for picture in run.latents:
                shutil.copyfile(picture, self.out / folder / picture.name)
                parts.append(f"![{picture.stem}]({(folder / picture.name).as_posix()})\n")
        return "\n".join(["## Latent variables\n", *parts]) if parts else ""

    def figure(self, figure: Figure | None, name: str, caption: str) -> str:
        """Save a figure and return what shows it, or links to it where Markdown cannot show the format."""
        if figure is None:
            return ""
        curves.save(figure, self.out / "figures" / name, self.formats)
        shown = "png" if "png" in self.formats else self.formats[0]
        return f"{'!' if shown == 'png' else ''}[{name}](figures/{name}.{shown})\n\n{caption}\n"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)
