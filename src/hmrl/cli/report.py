"""The command ``hmrl report``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hmrl.results import curves, study
from hmrl.results.disagreements import disagreements
from hmrl.results.document import PRIMARY_MODE, Document
from hmrl.results.methods import group, of_protocol
from hmrl.results.reading import Run, read_run
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path

WINDOW = 200_000


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line of ``hmrl report``."""
    parser = argparse.ArgumentParser(
        prog="hmrl report",
        description="Tables and figures from runs, or from the summary.csv and curves.csv that an earlier "
        "report wrote of them. Runs of one label are seeds of one method.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN_DIR",
        help="with metrics.csv or test-*.json; the label is by default the directory's name without "
        "-seed<N>; or a folder with summary.csv or curves.csv, without a label",
    )
    folder = partial(local_path, name="--out")
    parser.add_argument("--out", type=folder, default="report", help="folder to write (default: report)")
    parser.add_argument("--protocol", help="report this protocol only (default: all that results are of)")
    parser.add_argument("--mode", default=PRIMARY_MODE, help=f"way of acting (default: {PRIMARY_MODE})")
    parser.add_argument(
        "--thresholds", nargs="+", type=float, default=[0.2, 0.3, 0.4, 0.5], help="success rates"
    )
    parser.add_argument(
        "--window",
        type=float,
        default=WINDOW,
        help=f"environment steps over which rollouts' success is averaged (default: {WINDOW:,})",
    )
    parser.add_argument(
        "--formats", nargs="+", choices=["png", "pdf"], default=["png", "pdf"], help="of figures"
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="compare with this method only (default: every pair)"
    )
    return parser.parse_args(args)


def read(given: str, mode: str) -> list[Run]:
    """The run of ``[LABEL=]RUN_DIR``, or all runs of a study's folder."""
    folder = Path(given).expanduser()
    return study.read(folder, mode) if study.is_study(folder) else [read_run(given, mode)]


def main(args: Sequence[str] | None = None) -> None:
    """Read runs, and write ``report.md``, figures and the tables of :mod:`hmrl.results.study`.

    Args:
        args: of the command line, without the command's name.

    Raises:
        UserError: for runs that cannot be read or compared.
    """
    given = list(sys.argv[2:] if args is None else args)
    options = parse(given)
    if not all(0 < threshold <= 1 for threshold in options.thresholds):
        raise UserError(f"--thresholds are success rates above 0, at most 1, but got {options.thresholds}")
    if options.window < 0:
        raise UserError(f"--window is {options.window:g}, but it must be a number of environment steps, or 0")
    studies = [Path(run).expanduser() for run in options.runs if study.is_study(Path(run).expanduser())]
    if any(options.out.resolve() == folder.resolve() for folder in studies):
        raise UserError(f"--out is {options.out}, a study that is read, whose tables it would replace")
    runs = [run for given_run in options.runs for run in read(given_run, options.mode)]
    methods = group(of_protocol(runs, options.protocol) if options.protocol else runs)
    curves.colours(methods)  # refuses too many before anything is written
    labels = [method.label for method in methods if not method.role]
    if options.baseline not in (None, *labels):
        raise UserError(f"--baseline is {options.baseline!r}, but the methods are {', '.join(labels)}")
    warnings = [
        f"{folder} holds thinned curves: its steps are accurate to a row of {study.CURVES}."
        for folder in studies
        if (folder / study.CURVES).is_file()
    ]
    warnings += disagreements(methods)
    for warning in warnings:
        print(f"hmrl: warning: {warning}")
    document = Document(
        methods=methods,
        out=options.out,
        mode=options.mode,
        thresholds=options.thresholds,
        window=options.window,
        formats=options.formats,
        baseline=options.baseline,
    )
    study.write((run for method in methods for run in method.runs), options.out)
    print(f"report: {document.write(shlex.join(['hmrl', 'report', *given]), warnings)}")
