"""Environment steps per second of training, by number of processes on this machine; runs alternate.

python benchmarks/scaling.py --devices 1 2 --repeats 3
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pandas as pd


def steps_per_second(run_dir: Path, devices: int, accelerator: str, iterations: int) -> float:
    """The median over iterations, without the first, which builds the simulators."""
    command = [sys.executable, "-m", "hmrl", "fit", "--config", "configs/ml10.yaml", "--overwrite", "true"]
    command += ["--run_dir", str(run_dir), "--budget.env_steps", str(iterations * 50_000)]
    command += ["--trainer.devices", str(devices), "--trainer.accelerator", accelerator]
    command += ["--trainer.check_val_every_n_epoch", str(iterations + 1)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return float(pd.read_csv(run_dir / "metrics.csv")["time/env_steps_per_second"][1:].median())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--iterations", type=int, default=4, help="of 50,000 environment steps")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    speeds: dict[int, list[float]] = {n: [] for n in arguments.devices}
    for repeat in range(arguments.repeats):
        for n, seen in speeds.items():
            seen.append(steps_per_second(arguments.run_dir, n, arguments.accelerator, arguments.iterations))
            print(f"repeat {repeat + 1}: {n} process(es): {seen[-1]:,.0f} steps a second", flush=True)
    base = median(speeds[arguments.devices[0]])
    for n, seen in speeds.items():
        rate = f"{median(seen):,.0f} a second, ratio {median(seen) / base:.2f}"
        print(f"{n} process(es), {os.cpu_count()} cores: {rate}")


if __name__ == "__main__":
    main()
