"""The command ``hmrl``, and ``python -m hmrl``."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import NoReturn

from hmrl import __version__
from hmrl.system.terminal import outlive_output


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without a page of usage."""
        self.exit(2, f"hmrl: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    """Of ``hmrl`` itself; the commands parse their own options."""
    parser = _Parser(
        prog="hmrl",
        description="Hierarchical meta-reinforcement learning with discovered macro-actions.",
        epilog="hmrl COMMAND --help lists a command's options. A configuration is a file, or the name of one "
        "that the package brings along: hmrl fit --config ml10 --config baselines/flat",
    )
    parser.add_argument("--version", action="version", version=f"hmrl {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    commands.add_parser("fit", add_help=False, help="train an agent, or continue training")
    commands.add_parser("validate", add_help=False, help="evaluate a checkpoint as training does")
    commands.add_parser("test", add_help=False, help="evaluate a checkpoint and leave a results file")
    commands.add_parser("report", add_help=False, help="make tables and figures of runs")
    commands.add_parser("sweep", add_help=False, help="train and test configurations over seeds, and report")
    return parser


def command() -> None:
    """Ctrl-C while PyTorch is imported, or while Python shuts down, ends the process without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    outlive_output()
    _parser().parse_args(sys.argv[1:2])
    name, arguments = sys.argv[1], sys.argv[2:]
    if name not in ("report", "sweep"):
        from hmrl.cli.main import main

        main()
        return
    from hmrl.cli.messages import one_sentence

    with one_sentence():
        if name == "report":
            from hmrl.cli.report import main as report

            report(arguments)
        else:
            from hmrl.cli.sweep import main as sweep

            sweep(arguments)


if __name__ == "__main__":
    command()
