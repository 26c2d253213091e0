"""Run directories as ``hmrl fit`` and ``hmrl test`` leave them, with numbers that a test can know."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAIN, TEST = ("reach", "push"), ("drawer-open",)
FAMILIES = {"train": TRAIN, "test": TEST}
Rates = Mapping[str, Sequence[float]]  # split -> success of each family


def score(success: float) -> dict[str, float]:
    return {
        "episodes": 50,
        "success": success,
        "low": max(0.0, success - 0.05),
        "high": min(1.0, success + 0.05),
        "final_success": success,
        "episode_return": 1000 * success,
    }


def result(
    rates: Rates, *, mode: str = "sampled", protocol: str = "first_episode", **changes: Any
) -> dict[str, Any]:
    """Contents of a results file; ``changes`` replace or add top-level keys."""
    scores = {}
    for split, values in rates.items():
        named = dict(zip(FAMILIES[split], values, strict=True)) | {"mean": sum(values) / len(values)}
        scores[split] = {mode: {family: score(value) for family, value in named.items()}}
    content = {
        "schema": 1,
        "agent": "policy",
        "protocol": {"name": protocol, "backend": "metaworld", "episodes": 50, "goals_per_family": 50},
        "env_steps": 2_000_000,
        "seed": 1,
        "checkpoint": "checkpoints/best.ckpt",
        "git": {"revision": "abc123", "modified": False},
        "packages": {"torch": "2.13.0"},
        "python": "3.11.2",
        "platform": "somewhere",
        "started": "2026-01-01T00:00:00+00:00",
        "wall_time_s": 512.3,
        "model": {},
        "data": {"horizon": 500},
        "scores": scores,
        "episodes": {},
        "official": None,
    }
    return content | changes


def write_result(run: Path, content: Mapping[str, Any], name: str | None = None) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    path = run / f"test-{name or content['protocol']['name']}.json"
    path.write_text(json.dumps(content))
    return path


def write_metrics(run: Path, columns: Mapping[str, Mapping[float, float]]) -> Path:
    """``metrics.csv`` from metric -> step -> value; each metric in rows of its own, as evaluations are."""
    run.mkdir(parents=True, exist_ok=True)
    rows = sorted(
        (step, metric, value) for metric, values in columns.items() for step, value in values.items()
    )
    path = run / "metrics.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["step", *columns], restval="")
        writer.writeheader()
        writer.writerows({"step": float(step), metric: value} for step, metric, value in rows)
    return path


def write_seed(run: Path, seed: int) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(f"# a comment\nseed_everything: {seed}\ntrainer:\n  accelerator: cpu\n")
    return run


def rising(last: float, *, rows: int = 20, every: float = 100_000) -> dict[float, float]:
    """A success rate that rises evenly to ``last`` at the last of ``rows`` iterations."""
    return {every * (i + 1): last * (i + 1) / rows for i in range(rows)}


# Method -> seed -> success in reach, push (train) and drawer-open (test).
SUCCESS = {
    "three levels": {1: (0.5, 0.9, 0.4), 2: (0.6, 0.6, 0.2), 3: (0.3, 0.7, 0.3)},
    "flat": {1: (0.4, 0.4, 0.4), 2: (0.6, 0.2, 0.6), 3: (0.1, 0.3, 0.5)},
    "belief|less": {1: (0.2, 0.2, 0.1), 2: (0.2, 0.4, 0.0), 3: (0.0, 0.0, 0.2)},
}


def rates(reach: float, push: float, test: float) -> dict[str, list[float]]:
    return {"train": [reach, push], "test": [test]}


def metrics(reach: float, push: float, test: float, rows: int) -> dict[str, dict[float, float]]:
    mean = (reach + push) / 2
    return {
        "rollout/success/reach": rising(reach, rows=rows),
        "rollout/success/push": rising(push, rows=rows),
        "rollout/success/mean": rising(mean, rows=rows),
        "success/train/mean": {500_000.0: mean / 2, 1_000_000.0: mean},
        "success/test/mean": {500_000.0: test / 2, 1_000_000.0: test},
        "success/test/drawer-open": {500_000.0: test / 2, 1_000_000.0: test},
        "vae/agreement": rising(0.7, rows=rows),
        "vae/decoder_error": rising(0.5, rows=rows),
        "vae/decoder_error_without_z": rising(0.6, rows=rows),
        "latents/probe/z": {500_000.0: 0.2, 1_000_000.0: 0.3},
        "latents/decoder_error/test": {500_000.0: 0.9, 1_000_000.0: 0.8},
        "latents/decoder_error/train": {500_000.0: 0.7, 1_000_000.0: 0.6},
    }


def write_methods(folder: Path) -> list[str]:
    """Three methods of three seeds, an expert and a random agent, as arguments of ``hmrl report``."""
    arguments = []
    for label, seeds in SUCCESS.items():
        for seed, success in seeds.items():
            run = write_seed(folder / f"{label[:4]}-seed{seed}", seed)
            write_result(run, result(rates(*success)))
            write_metrics(run, metrics(*success, rows=20))
            arguments.append(f"{label}={run}")
    for label, agent, value in (("script", "expert", 0.95), ("chance", "random", 0.05)):
        content = result(rates(value, value, value), agent=agent, checkpoint=None, env_steps=0)
        write_result(folder / label, content)
        arguments.append(str(folder / label))
    return arguments
