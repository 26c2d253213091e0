"""The command ``hmrl``, and ``python -m hmrl``."""

from __future__ import annotations

import signal
import sys


def command() -> None:
    """Ctrl-C while PyTorch is imported, or while Python shuts down, ends the process without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hmrl.mistakes import one_sentence

    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if name not in ("report", "sweep"):
        from hmrl.cli import main

        main()
        return
    with one_sentence():
        if name == "report":
            from hmrl.report.command import main as report

            report(arguments)
        else:
            from hmrl.sweep import main as sweep

            sweep(arguments)


if __name__ == "__main__":
    command()
