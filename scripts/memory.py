"""Does memory stay flat? Trains the smoke config and compares resident sizes over ten iterations each.

python scripts/memory.py --run_dir runs/memory
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

WINDOW = 10  # iterations, with one evaluation
ITERATION_STEPS = 10_000  # of configs/smoke.yaml: 10 families x 2 environments x 500 steps


def iterations_logged(run_dir: Path) -> int:
    log = run_dir / "metrics.csv"
    if not log.is_file():
        return 0
    with log.open(newline="") as file:
        return sum(bool(row.get("ppo/approx_kl")) for row in csv.DictReader(file))


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


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
            with suppress(OSError):  # it has just ended
                sizes[window].append(resident_mib(process.pid))
            if (now := iterations_logged(arguments.run_dir)) != iteration:
                iteration = now
                if iteration % WINDOW == 0:
                    print(f"iterations to {window:4d}: {describe(sizes[window])}", flush=True)
        process.terminate()
    means = {i: sum(sizes[i]) / len(sizes[i]) for i in (arguments.first, arguments.last)}
    growth = means[arguments.last] / means[arguments.first] - 1
    print(f"growth of the mean from iteration {arguments.first} to {arguments.last}: {growth:+.1%}")
    return int(growth > arguments.most)


def describe(sizes: list[float]) -> str:
    return f"{sum(sizes) / len(sizes):5.0f} MiB resident on average, at most {max(sizes):5.0f}"


if __name__ == "__main__":
    sys.exit(main())
