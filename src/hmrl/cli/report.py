"""The command ``hmrl report``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hmrl.results.file import PRIMARY_MODE
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path

WINDOW = 200_000


def main(args: Sequence[str] | None = None) -> None:
    """Read runs, and write ``report.md``, figures and the tables of :mod:`hmrl.results.reading`.

    Args:
        args: of the command line, without the command's name.

    Raises:
        UserError: for runs that cannot be read or compared.
    """
    given = list(sys.argv[2:] if args is None else args)
    parser = argparse.ArgumentParser(
        prog="hmrl report",
        description="Tables and figures from runs, or from the summary.csv and curves.csv that an earlier "
        "report wrote of them. Runs of one label are seeds of one method.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="[LABEL=]RUN_DIR",
        help="with metrics.csv or test-*.json; the label is by default the directory's name without "
        "-seed<N>; or a folder with summary.csv or curves.csv, without a label",
    )
    folder = partial(local_path, name="--out")
    add("--out", type=folder, default="report", help="folder to write (default: report)")
    add("--protocol", help="report this protocol only (default: all that results are of)")
    add("--mode", default=PRIMARY_MODE, help=f"way of acting (default: {PRIMARY_MODE})")
    add("--thresholds", nargs="+", type=float, default=[0.2, 0.3, 0.4, 0.5], help="success rates")
    window = f"environment steps over which rollouts' success is averaged (default: {WINDOW:,})"
    add("--window", type=float, default=WINDOW, help=window)
    add("--formats", nargs="+", choices=["png", "pdf"], default=["png", "pdf"], help="of figures")
    add("--baseline", metavar="LABEL", help="compare with this method only (default: every pair)")
    options = parser.parse_args(given)
    # pandas and matplotlib, which --help does without
    from hmrl.results import curves, reading
    from hmrl.results.disagreements import disagreements
    from hmrl.results.document import Document

    if not all(0 < threshold <= 1 for threshold in options.thresholds):
        raise UserError(f"--thresholds are success rates above 0, at most 1, but got {options.thresholds}")
    if options.window < 0:
        raise UserError(f"--window is {options.window:g}, but it must be a number of environment steps, or 0")
    studies = [path for run in options.runs if reading.is_study(path := Path(run).expanduser())]
    if any(options.out.resolve() == folder.resolve() for folder in studies):
        raise UserError(f"--out is {options.out}, a study that is read, whose tables it would replace")
    runs = reading.read(options.runs, options.mode, options.protocol)
    curves.colours(runs)  # refuses too many before anything is written
    if options.baseline not in (None, *runs.proper):
        raise UserError(f"--baseline is {options.baseline!r}, but the methods are {', '.join(runs.proper)}")
    warnings = [
        f"{folder} holds thinned curves: its steps are accurate to a row of {reading.CURVES}."
        for folder in studies
        if (folder / reading.CURVES).is_file()
    ]
    warnings += disagreements(runs)
    for warning in warnings:
        print(f"hmrl: warning: {warning}")
    reading.write(runs, options.out)
    settings = {key: value for key, value in vars(options).items() if key not in ("runs", "protocol")}
    written = Document(runs, **settings).write(shlex.join(["hmrl", "report", *given]), warnings)
    print(f"report: {written}")
