"""The command ``hmrl``, and ``python -m hmrl``."""

from __future__ import annotations

import signal


def command() -> None:
    """Ctrl-C while PyTorch is imported, or while Python shuts down, ends the process without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hmrl.cli import main

    main()


if __name__ == "__main__":
    command()
