"""How fast is it? Ratios, each measured within one run; medians over repeats, also as JSON.

python scripts/bench.py                              # everything, three quarters of an hour on two cores
python scripts/bench.py --only simulators updates    # some parts; the file keeps the others
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hmrl.system.cores import keep_to, usable_cores
from hmrl.system.provenance import provenance

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command hmrl does, before PyTorch is imported

HORIZON = 500
Rates = dict[str, float]


# --- what is measured: environment steps a second, over all environments -----------------------------


def raw_envpool(benchmark: str = "ML10", each: int = 10, threads: int = 1, steps: int = HORIZON) -> float:
    """EnvPool alone, without this package: a pool a family, random actions, resets included."""
    import envpool
    from envpool.mujoco.metaworld.registration import metaworld_task_id

    from hmrl.envs.benchmarks import benchmark as find
    from hmrl.envs.benchmarks import metaworld_name

    names = [metaworld_name(family) for family in find(benchmark).train]
    pools = [
        envpool.make(
            metaworld_task_id(name),
            "gymnasium",
            num_envs=each,
            num_threads=min(threads, each),
            seed=i,
            max_episode_steps=steps,
        )
        for i, name in enumerate(names)
    ]
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (16, each, 4)).astype(np.float32)
    for pool in pools:
        pool.reset()
    started = time.perf_counter()
    for pool in pools:  # one reset an episode, as in training, and all pools at once
        pool.async_reset()
    for pool in pools:
        pool.recv()
    for step in range(steps):
        for pool in pools:
            pool.send(actions[step % 16])
        for pool in pools:
            pool.recv()
    rate = steps * each * len(names) / (time.perf_counter() - started)
    for pool in pools:
        pool.close()
    return rate


def raw_metaworld(strategy: str, steps: int = 100) -> float:
    """Meta-World's own vector environment of ML10's training families, random actions."""
    import gymnasium as gym
    import metaworld  # noqa: F401  (registers the environments)

    envs = gym.make_vec("Meta-World/ML10-train", vector_strategy=strategy, seed=1, meta_batch_size=20)
    envs.call("sample_tasks")
    envs.reset()
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(16)]
    for step in range(5):
        envs.step(actions[step])
    started = time.perf_counter()
    for step in range(steps):
        envs.step(actions[step % 16])
    rate = steps * envs.num_envs / (time.perf_counter() - started)
    envs.close()
    return rate


def data_of(benchmark: str = "ML10", each: int = 10, backend: str = "envpool") -> Any:
    """A data module with ``each`` environments a family."""
    from hmrl.training.datamodule import MetaWorldDataModule

    families = ["reach"] if benchmark == "ML1" else []
    return MetaWorldDataModule(benchmark, families, backend=backend, envs_per_family=each)  # type: ignore[arg-type]


def collecting(
    backend: str = "envpool", benchmark: str = "ML10", each: int = 10, k: int = 2, device: str = "cpu"
) -> float:
    """This package's ``collect`` with an untrained agent of the default configuration, resets included."""
    from unittest.mock import patch

    from hmrl.envs.benchmarks import Goals
    from hmrl.rollouts.collect import collect
    from hmrl.training.module import HierarchicalMetaRL

    data = data_of(benchmark, each, backend)
    model = HierarchicalMetaRL(
        data.families, data.observation_dim, data.action_dim, data.ego_indices, decision_interval=k
    ).to(device)
    envs = data.make_envs(backend, Goals("train", 1, None, 0), each)

    def episode(number: int) -> Any:
        with patch("hmrl.rollouts.collect._ENOUGH_FOR_A_GPU", 0):  # on a GPU, if that is asked for
            return collect(
                envs,
                model.policy,
                episode=number,
                acting=model.acting,
                families=data.families,
                split="train",
                mode="training",
            )

    episode(0)
    started = time.perf_counter()
    rollout = episode(1)
    rate = rollout.env_steps / (time.perf_counter() - started)
    envs.close()
    return rate


def training(
    k: int = 2, benchmark: str = "ML10", each: int = 10, iterations: int = 3, accelerator: str = "cpu"
) -> Rates:
    """Training of the default configuration without evaluations, and seconds an iteration of its parts.

    The first iteration, which builds the simulators, is left out.
    """
    from hmrl.training.module import HierarchicalMetaRL
    from hmrl.training.trainer import make_trainer

    gamma = {1: 0.9925, 2: 0.985}[k]  # the same discount a simulator step
    data = data_of(benchmark, each)
    model = HierarchicalMetaRL(
        data.families,
        data.observation_dim,
        data.action_dim,
        data.ego_indices,
        decision_interval=k,
        ppo={"gamma": gamma},  # type: ignore[arg-type]
    )
    watch = Stopwatch()
    watch.time(data._collector, "draw")
    for part in ("training_step", "_update_task_encoder", "_update_macro_vae", "_update_actor_critic"):
        watch.time(model, part)
    steps = len(data.families) * each * HORIZON
    with tempfile.TemporaryDirectory() as folder, silence():
        trainer = make_trainer(
            folder,
            env_steps=(iterations + 1) * steps,
            accelerator=accelerator,
            devices=1,
            check_val_every_n_epoch=10_000,
        )
        trainer.fit(model, data)
    parts = {name: sum(seconds[1:]) / iterations for name, seconds in watch.seconds.items()}
    parts["collecting"] = parts.pop("draw")
    begun = watch.begun["draw"]
    assert len(begun) == iterations + 1
    # From the second collection to the last: everything between is counted, logging and saving included.
    parts["rate"] = (iterations - 1) * steps / (begun[-1] - begun[1])
    return parts


class Stopwatch:
    """Seconds of each call of some methods, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.begun: dict[str, list[float]] = {}

    def time(self, owner: Any, name: str) -> None:
        """Time each call of ``owner``'s method ``name``."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            self.begun.setdefault(name, []).append(begun)
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds.setdefault(name, []).append(time.perf_counter() - begun)

        setattr(owner, name, timed)


@contextmanager
def silence() -> Iterator[None]:
    """Lightning prints as it trains; the terminal is for the figures."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def apart(name: str, cores: int | None = None, **arguments: Any) -> dict[str, Any]:
    """A measurement in a process of its own: what it returns, and the peak of its memory in MiB.

    Args:
        name: of the measurement, which is called with ``arguments``.
        cores: how many the process may use; None for all.
    """
    command = [sys.executable, __file__, "--measure", json.dumps([name, cores, arguments])]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the measurement {name} of {arguments} failed:\n{done.stderr}")
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def peak_mib() -> float:
    """Of this process's memory. The system's ``ru_maxrss`` is the parent's, where that had more."""
    status = Path("/proc/self/status")
    if not status.exists():  # not on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# The command hmrl, ended where it would make the first training step.
_UNTIL_TRAINING = """
import os, sys
from hmrl.cli.main import main
from hmrl.training.module import HierarchicalMetaRL
HierarchicalMetaRL.training_step = lambda *_: os._exit(0)
main(sys.argv[1:])
sys.exit("there was no training step")
"""


def starting() -> Rates:
    """Seconds from the start of ``hmrl fit`` to the first training step, its rollout included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _UNTIL_TRAINING, "fit", "--config", "configs/ml10.yaml"]
        started = time.perf_counter()
        subprocess.run([*command, "--run_dir", folder], check=True, capture_output=True)
        return {"start to first training step, s (at most 20)": time.perf_counter() - started}


# --- parts of the benchmark ---------------------------------------------------------------------------


def simulators() -> Rates:
    """Simulators alone, and this package's collection on them."""
    threads = -(-len(usable_cores()) // 10)
    return {
        "EnvPool, raw": raw_envpool(threads=threads),
        "collect, k = 1": collecting(k=1),
        "collect, k = 2": collecting(k=2),
        "Meta-World, sync": raw_metaworld("sync"),
        "Meta-World, async": raw_metaworld("async"),
        "collect on Meta-World, k = 2": collecting(backend="metaworld", each=2),
    }


def end_to_end() -> Rates:
    """Training, learning included, beside Meta-World's vector environment without any agent."""
    return {
        "Meta-World, sync": raw_metaworld("sync"),
        "training, k = 2": training(2)["rate"],
        "training, k = 1": training(1)["rate"],
    }


def updates() -> Rates:
    """Seconds an iteration of 50,000 environment steps."""
    found = training(2)
    return {name.removeprefix("_"): value for name, value in found.items() if name != "rate"}


def sizes() -> Rates:
    """By number of environments and of families; seconds outside the simulator per 50,000 steps; MiB."""
    found: Rates = {}
    for benchmark, each in SIZES:
        result = apart("training", benchmark=benchmark, each=each, iterations=2)
        families = len(data_of(benchmark, each).families)
        name = f"{benchmark}, {families * each} environments"
        found[f"{name}: steps a second"] = result["value"]["rate"]
        for label, part in ((_LEARNING, "training_step"), (_LOW_LEVEL, "_update_actor_critic")):
            found[f"{name}: {label}"] = result["value"][part] * 50_000 / (families * each * HORIZON)
        found[f"{name}: peak MiB"] = result["peak_mib"]
    return found


def threads() -> Rates:
    """By the cores, and so the threads, that a process may use: 1, 2, 4 and so on up to all there are."""
    found: Rates = {}
    count, total = 1, len(usable_cores())
    while count <= total:
        for name, options in (
            ("raw_envpool", {"threads": -(-count // 10)}),
            ("collecting", {}),
            ("training", {}),
        ):
            value = apart(name, cores=count, **options)["value"]
            found[f"{name}, {count} core(s)"] = value["rate"] if isinstance(value, dict) else value
        count = total if count < total < 2 * count else 2 * count
    return found


def gpu() -> Rates:
    """Where to act and where to learn, by number of environments; nothing without a GPU."""
    import torch

    if not torch.cuda.is_available():
        print("gpu: PyTorch finds no GPU on this machine")
        return {}
    found: Rates = {}
    for each in GPU_SIZES:
        name = f"{10 * each} environments"
        for device in ("cpu", "cuda"):
            found[f"{name}, collect, acting on {device}"] = collecting(each=each, device=device)
        for device in ("cpu", "cuda"):
            parts = training(each=each, accelerator=device)
            found[f"{name}, training, learning on {device}"] = parts["rate"]
            found[f"{name}, learning on {device}, s an iteration"] = parts["training_step"]
            found[f"{name}, learning on {device}, iteration, s"] = 10 * each * HORIZON / parts["rate"]
    return found


# Benchmarks, and environments of each family.
SIZES = (("ML10", 1), ("ML10", 5), ("ML10", 9), ("ML10", 10), ("ML10", 20), ("ML45", 2), ("ML1", 50))
GPU_SIZES = (10, 20, 30, 50)  # environments of each family
_LEARNING = "learning, s per 50,000 steps"
_LOW_LEVEL = "actor and critic, s per 50,000 steps"  # the others take so many gradient steps an iteration
RATIOS = {  # name: of what, over what, and what it shall be
    "simulators": [
        ("collect / raw simulator, k = 1", "collect, k = 1", "EnvPool, raw", "at least 0.70"),
        ("collect / raw simulator, k = 2", "collect, k = 2", "EnvPool, raw", "at least 0.80"),
        ("EnvPool / Meta-World's sync", "EnvPool, raw", "Meta-World, sync", None),
        ("async / sync of Meta-World", "Meta-World, async", "Meta-World, sync", None),
        ("collect on Meta-World / its own sync", "collect on Meta-World, k = 2", "Meta-World, sync", None),
    ],
    "end_to_end": [
        ("training / Meta-World's stepping, k = 2", "training, k = 2", "Meta-World, sync", "at least 2.0"),
        ("training / Meta-World's stepping, k = 1", "training, k = 1", "Meta-World, sync", "at least 1.3"),
    ],
    "sizes": [
        (
            "learning per step, 200 / 50 environments",
            f"ML10, 200 environments: {_LEARNING}",
            f"ML10, 50 environments: {_LEARNING}",
            "at most 1.1",
        ),
        (
            "actor and critic per step, 200 / 50 environments",
            f"ML10, 200 environments: {_LOW_LEVEL}",
            f"ML10, 50 environments: {_LOW_LEVEL}",
            "at most 1.1",
        ),
        (
            "learning per step, ML45 / ML10",  # as many environments, for the reason above
            f"ML45, 90 environments: {_LEARNING}",
            f"ML10, 90 environments: {_LEARNING}",
            "at most 1.1",
        ),
    ],
    "gpu": [
        (
            f"learning's share on the GPU, {10 * each} environments",
            f"{10 * each} environments, learning on cuda, s an iteration",
            f"{10 * each} environments, learning on cuda, iteration, s",
            "at most 0.25",
        )
        for each in GPU_SIZES
    ],
}
PARTS = {
    "simulators": simulators,
    "end_to_end": end_to_end,
    "updates": updates,
    "sizes": sizes,
    "threads": threads,
    "starting": starting,
    "gpu": gpu,
}
MEASUREMENTS = {"training": training, "collecting": collecting, "raw_envpool": raw_envpool}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, cores, options = json.loads(arguments.measure)
        if cores:  # before anything starts threads
            keep_to(usable_cores()[:cores])
        value = MEASUREMENTS[name](**options)
        print(json.dumps({"value": value, "peak_mib": peak_mib()}))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.only:
        runs = []
        for repeat in range(arguments.repeats):
            runs.append(PARTS[part]())
            print(f"{part}, repeat {repeat + 1} of {arguments.repeats}", flush=True)
        middle = {name: median(run[name] for run in runs) for name in runs[0]}
        ratios = {}
        for name, over, under, target in RATIOS.get(part, []) if middle else []:
            each = [run[over] / run[under] for run in runs]
            ratios[name] = {"median": median(each), "least": min(each), "most": max(each), "target": target}
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        code = {"cores": os.cpu_count(), "finished": finished, **provenance()}
        found[part] = {"median": middle, "ratios": ratios, "repeats": runs, "code": code}
        for name, value in middle.items():
            print(f"  {name:<50}{value:>12,.{0 if value > 100 else 2}f}")
        for name, ratio in ratios.items():
            wanted = f"   ({ratio['target']})" if ratio["target"] else ""
            spread = f"[{ratio['least']:.2f}, {ratio['most']:.2f}]"
            print(f"  {name:<50}{ratio['median']:>12.2f} {spread}{wanted}")
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")  # a later part may fail
    print(f"results: {arguments.out}")


if __name__ == "__main__":
    main()
