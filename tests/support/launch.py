"""Commands of several processes: started together, awaited for so long, and gone afterwards."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM

from support.paths import TESTS, environment

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@dataclass
class Ended:
    """What is left of a command."""

    code: int
    out: str
    err: str


def run_together(commands: Sequence[Sequence[str]], timeout: float, **variables: str) -> list[Ended]:
    """Start ``commands`` and wait for all that they started; what takes longer is killed and raises."""
    started = time.monotonic()
    running = [
        subprocess.Popen(
            list(command),
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that all of it can be killed
        )
        for command in commands
    ]
    try:
        ended = []
        for process in running:
            out, err = process.communicate(timeout=max(started + timeout - time.monotonic(), 1))
            ended.append(Ended(process.returncode, out, err))
        return ended
    except BaseException:
        for signum in (SIGTERM, SIGKILL):  # torchrun ends its processes on the first one
            for process in running:
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, signum)
                    process.wait(timeout=10)
        raise


def run_script(name: str, *arguments: str, timeout: float = 300, **variables: str) -> Ended:
    """The program ``tests/NAME``, which must succeed."""
    (ended,) = run_together([[sys.executable, str(TESTS / name), *arguments]], timeout, **variables)
    assert ended.code == 0, ended.err[-4000:]
    return ended


def still_running(folder: Path) -> list[str]:
    """Processes whose command names ``folder``."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = file.read_text().replace("\0", " ")
            if str(folder) in command and int(file.parent.name) != os.getpid():
                found.append(command)
    return found


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])
