"""Does memory stay flat? Trains the smoke config and compares resident sizes over ten iterations each.

python benchmarks/memory.py --run_dir runs/memory
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from math import nan
from pathlib import Path
from statistics import fmean

import pandas as pd

WINDOW = 10  # iterations, with one evaluation
ITERATION_STEPS = 10_000  # of configs/smoke.yaml: 10 families x 2 environments x 500 steps


def mib(field: str, pid: int | str = "self") -> float:
    """A process's memory now (``VmRSS``) or at its peak (``VmHWM``); nan on other systems than Linux.

    The peak of ``resource.getrusage`` is the parent's, where that had more.
    """
    if sys.platform != "linux":
        return nan
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"process {pid} has ended")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", type=Path, default=Path("runs/memory"))
    parser.add_argument("--first", type=int, default=20, help="iteration to compare with")
    parser.add_argument("--last", type=int, default=220)
    parser.add_argument("--most", type=float, default=0.05, help="growth that still counts as flat")
    arguments = parser.parse_args()

    command = [sys.executable, "-m", "hmrl", "fit"]
    command += ["--config", "configs/ml10.yaml", "--config", "configs/smoke.yaml", "--overwrite", "true"]
    command += ["--run_dir", str(arguments.run_dir), "--trainer.check_val_every_n_epoch", str(WINDOW)]
    command += ["--budget.env_steps", str((arguments.last + 1) * ITERATION_STEPS)]
    sizes: dict[int, list[float]] = defaultdict(list)  # by window of iterations, the last one's number
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        iteration = 0
        while process.poll() is None and iteration < arguments.last:
            time.sleep(0.2)
            window = iteration // WINDOW * WINDOW + WINDOW
            with suppress(OSError, KeyError, ValueError):  # it has just ended, or is writing its log
                sizes[window].append(mib("VmRSS", process.pid))
                now = int(pd.read_csv(arguments.run_dir / "metrics.csv")["ppo/approx_kl"].count())
                if now != iteration and now % WINDOW == 0:
                    mean, most = fmean(sizes[window]), max(sizes[window])
                    print(
                        f"iterations to {window}: {mean:.0f} MiB on average, at most {most:.0f}", flush=True
                    )
                iteration = now
        process.terminate()
    growth = fmean(sizes[arguments.last]) / fmean(sizes[arguments.first]) - 1
    print(f"growth of the mean from iteration {arguments.first} to {arguments.last}: {growth:+.1%}")
    return int(growth > arguments.most)


if __name__ == "__main__":
    sys.exit(main())
