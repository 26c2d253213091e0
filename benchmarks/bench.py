"""How fast is it? Ratios, each measured within one run; medians over repeats, also as JSON.

python benchmarks/bench.py                              # everything, three quarters of an hour on two cores
python benchmarks/bench.py --only simulators updates    # some parts; the file keeps the others
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from hmrl.system.cores import keep_to, usable_cores
from hmrl.system.provenance import provenance
from memory import mib

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command hmrl does, before PyTorch is imported

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


def data_and_model(
    benchmark: str = "ML10", each: int = 10, backend: str = "envpool", **settings: Any
) -> tuple[Any, Any]:
    """A data module with ``each`` environments a family, and an untrained agent."""
    from hmrl.training.datamodule import MetaWorldDataModule
    from hmrl.training.module import HierarchicalMetaRL

    families = ["reach"] if benchmark == "ML1" else []
    data = MetaWorldDataModule(benchmark, families, backend=backend, envs_per_family=each)  # type: ignore[arg-type]
    return data, HierarchicalMetaRL(**data.sizes, **settings)


def collecting(backend: str = "envpool", each: int = 10, k: int = 2, device: str = "cpu") -> float:
    """This package's ``collect`` on ML10, resets included."""
    from hmrl.envs.benchmarks import Goals
    from hmrl.rollouts.collect import collect

    data, model = data_and_model(each=each, backend=backend, decision_interval=k)
    model = model.to(device)
    envs = data.make_envs(backend, Goals("train", 1, None, 0), each)
    labels = {"families": data.families, "split": "train", "mode": "training"}
    with patch("hmrl.rollouts.collect._ENOUGH_FOR_A_GPU", 0):  # on a GPU, if that is asked for
        collect(envs, model.policy, episode=0, acting=model.acting, **labels)
        started = time.perf_counter()
        rollout = collect(envs, model.policy, episode=1, acting=model.acting, **labels)
    rate = rollout.env_steps / (time.perf_counter() - started)
    envs.close()
    return rate


def training(
    k: int = 2,
    benchmark: str = "ML10",
    each: int = 10,
    iterations: int = 3,
    accelerator: str = "cpu",
    processes: int = 1,
) -> Rates:
    """Training of the default configuration without evaluations, and seconds an iteration of its parts.

    The first iteration, which builds the simulators, is left out. The processes share the environments.
    """
    from hmrl.training.trainer import make_trainer

    gamma = {1: 0.9925, 2: 0.985}[k]  # the same discount a simulator step
    data, model = data_and_model(benchmark, each, decision_interval=k, ppo={"gamma": gamma})
    calls: dict[str, list[tuple[float, float]]] = {}
    watch(data._collector, "draw", calls)
    for part in ("training_step", "_update_task_encoder", "_update_macro_vae", "_update_actor_critic"):
        watch(model, part, calls)
    steps = len(data.families) * each * HORIZON
    options = {"accelerator": accelerator, "devices": processes, "check_val_every_n_epoch": 10_000}
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(folder, env_steps=(iterations + 1) * steps, **options).fit(model, data)
    parts = {name: sum(end - begun for begun, end in times[1:]) / iterations for name, times in calls.items()}
    parts["collecting"] = parts.pop("draw")
    begun = [begun for begun, _ in calls["draw"]]
    assert len(begun) == iterations + 1
    # From the second collection to the last: everything between is counted, logging and saving included.
    return parts | {"rate": (iterations - 1) * steps / (begun[-1] - begun[1])}


def watch(owner: Any, name: str, calls: dict[str, list[tuple[float, float]]]) -> None:
    """Note in ``calls`` when each call of ``owner``'s method ``name`` begins and ends."""
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        result = method(*args, **kwargs)
        calls.setdefault(name, []).append((begun, time.perf_counter()))
        return result

    setattr(owner, name, timed)


def apart(name: str, cores: int | None = None, **arguments: Any) -> tuple[Any, float]:
    """A measurement in a process of its own: what it returns, and the peak of its memory in MiB.

    Args:
        name: of the measurement, which is called with ``arguments``.
        cores: how many the process may use; None for all.
    """
    command = [sys.executable, __file__, "--measure", json.dumps([name, cores, arguments])]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the measurement {name} of {arguments} failed:\n{done.stderr}")
    value, peak = json.loads(done.stdout.splitlines()[-1])
    return value, peak


def trained(**arguments: Any) -> Rates:
    """:func:`training`, which prints as it trains, in a process of its own."""
    found: Rates = apart("training", **arguments)[0]
    return found


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
        "training, k = 2": trained(k=2)["rate"],
        "training, k = 1": trained(k=1)["rate"],
    }


def updates() -> Rates:
    """Seconds an iteration of 50,000 environment steps."""
    return {name.removeprefix("_"): value for name, value in trained().items() if name != "rate"}


def load() -> Rates:
    """Training beside another program that keeps one core busy; by threads, and by a process a core."""
    cores = len(usable_cores())
    ways = {"training": 1, "a process a core": cores}
    found = {f"{way}, alone": trained(processes=n)["rate"] for way, n in ways.items()}
    other = f"import os\nos.sched_setaffinity(0, {{{usable_cores()[0]}}})\nwhile True: pass"
    busy = subprocess.Popen([sys.executable, "-c", other])
    try:
        found |= {f"{way}, a core busy": trained(processes=n)["rate"] for way, n in ways.items()}
    finally:
        busy.kill()
    return found


def sizes() -> Rates:
    """By number of environments and of families; seconds outside the simulator per 50,000 steps; MiB."""
    found: Rates = {}
    for benchmark, each in SIZES:
        parts, peak = apart("training", benchmark=benchmark, each=each, iterations=2)
        environments = each * FAMILIES[benchmark]
        name = f"{benchmark}, {environments} environments"
        found[f"{name}: steps a second"] = parts["rate"]
        for label, part in ((_LEARNING, "training_step"), (_LOW_LEVEL, "_update_actor_critic")):
            found[f"{name}: {label}"] = parts[part] * 50_000 / (environments * HORIZON)
        found[f"{name}: peak MiB"] = peak
    return found


def threads() -> Rates:
    """By the cores, and so the threads, that a process may use: 1, 2, 4 and so on up to all there are."""
    found: Rates = {}
    total = len(usable_cores())
    for count in sorted({2**i for i in range(total.bit_length())} | {total}):
        simulators = -(-count // 10)
        found[f"raw_envpool, {count} core(s)"] = apart("raw_envpool", count, threads=simulators)[0]
        found[f"collecting, {count} core(s)"] = apart("collecting", count)[0]
        found[f"training, {count} core(s)"] = apart("training", count)[0]["rate"]
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
            parts = trained(each=each, accelerator=device)
            found[f"{name}, training, learning on {device}"] = parts["rate"]
            found[f"{name}, learning on {device}, s an iteration"] = parts["training_step"]
            found[f"{name}, learning on {device}, iteration, s"] = 10 * each * HORIZON / parts["rate"]
    return found


# Benchmarks, and environments of each family.
SIZES = (("ML10", 1), ("ML10", 5), ("ML10", 9), ("ML10", 10), ("ML10", 20), ("ML45", 2), ("ML1", 50))
FAMILIES = {"ML1": 1, "ML10": 10, "ML45": 45}
GPU_SIZES = (10, 30, 100)  # environments of each family
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
        ("training / Meta-World's stepping, k = 2", "training, k = 2", "Meta-World, sync", "at least 3.0"),
        ("training / Meta-World's stepping, k = 1", "training, k = 1", "Meta-World, sync", "at least 1.9"),
    ],
    "load": [
        ("training with a core busy / alone", "training, a core busy", "training, alone", "at least 0.45"),
        ("a process a core, busy / alone", "a process a core, a core busy", "a process a core, alone", None),
        ("a process a core / one process, alone", "a process a core, alone", "training, alone", None),
        (
            "a process a core / one process, a core busy",
            "a process a core, a core busy",
            "training, a core busy",
            None,
        ),
    ],
    "sizes": [
        (name, f"{over} environments: {what}", f"{under} environments: {what}", "at most 1.1")
        for name, over, under, what in (
            ("learning per step, 200 / 50 environments", "ML10, 200", "ML10, 50", _LEARNING),
            ("actor and critic per step, 200 / 50 environments", "ML10, 200", "ML10, 50", _LOW_LEVEL),
            # of as many environments, as the upper levels take so many gradient steps an iteration
            ("learning per step, ML45 / ML10", "ML45, 90", "ML10, 90", _LEARNING),
        )
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
PARTS = {f.__name__: f for f in (simulators, end_to_end, updates, load, sizes, threads, starting, gpu)}
MEASUREMENTS = {f.__name__: f for f in (training, collecting, raw_envpool)}


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
        if os.environ.get("LOCAL_RANK", "0") == "0":  # Lightning starts this command once a process
            print(json.dumps([value, mib("VmHWM")]))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.only:
        runs = []
        for repeat in range(arguments.repeats):
            runs.append(PARTS[part]())
            print(f"{part}, repeat {repeat + 1} of {arguments.repeats}", flush=True)
        frame = pd.DataFrame(runs)
        middle, ratios = frame.median().to_dict(), {}
        for name, over, under, target in RATIOS.get(part, []) if middle else []:
            each = frame[over] / frame[under]
            ratios[name] = {
                "median": each.median(),
                "least": each.min(),
                "most": each.max(),
                "target": target,
            }
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
