"""The command ``hmrl``, and ``python -m hmrl``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from hmrl import __version__
from hmrl.system.terminal import outlive_output

_COMMANDS = {
    "fit": "train an agent, or continue training",
    "validate": "evaluate a checkpoint as training does",
    "test": "evaluate a checkpoint and leave a results file",
    "report": "make tables and figures of runs",
    "sweep": "train and test several configurations over seeds, and report",
}


def _help() -> argparse.ArgumentParser:
    """The help of ``hmrl`` itself; the commands parse their own options."""
    width = max(map(len, _COMMANDS))
    parser = argparse.ArgumentParser(
        prog="hmrl",
        usage="hmrl [--help | --version] COMMAND [OPTIONS]",
        description="Hierarchical meta-reinforcement learning with discovered macro-actions.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {what}" for name, what in _COMMANDS.items())
        + "\n\nhmrl COMMAND --help lists a command's options. A configuration is a file, or the name of one\n"
        "that the package brings along: hmrl fit --config ml10 --config baselines/flat",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="show this and end")
    options.add_argument("--version", action="version", version=f"hmrl {__version__}")
    return parser


def _mistake(arguments: Sequence[str]) -> str:
    """What is wrong with arguments that do not begin with a command."""
    if not arguments:
        return f"no command is given: use one of {', '.join(_COMMANDS)}"
    first = arguments[0]
    if later := [name for name in arguments if name in _COMMANDS]:
        right = " ".join([later[0], *(word for word in arguments if word != later[0])])
        return f"{first} comes before the command, but the command comes first: hmrl {right}"
    close = get_close_matches(first, _COMMANDS)
    kind = "option of hmrl itself" if first.startswith("-") else "command"
    hint = f"did you mean {close[0]}?" if close else f"the command comes first, one of {', '.join(_COMMANDS)}"
    return f"there is no {kind} {first}: {hint}"


def command() -> None:
    """Ctrl-C while PyTorch is imported, or while Python shuts down, ends the process without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    outlive_output()
    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if name in ("-h", "--help", "--version"):
        _help().parse_args([name])
    if name in ("fit", "validate", "test"):
        from hmrl.cli.main import main

        main()
        return
    from hmrl.cli.messages import one_sentence
    from hmrl.system.errors import UserError

    with one_sentence():
        if name == "report":
            from hmrl.cli.report import main as report

            report(arguments)
        elif name == "sweep":
            from hmrl.cli.sweep import main as sweep

            sweep(arguments)
        else:
            raise UserError(_mistake(sys.argv[1:]))


if __name__ == "__main__":
    command()
