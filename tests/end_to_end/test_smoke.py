"""`make smoke` and `hmrl test`: real ML10 through fit, evaluation, checkpoints and the results file."""

import csv
import json
from pathlib import Path

import pytest
import torch

from hmrl.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.simulator]

ROOT = Path(__file__).parents[2]


def test_smoke_config_trains_evaluates_and_is_tested(tmp_path: Path, capsys) -> None:
    run = tmp_path / "smoke"
    files = ROOT / "configs/ml10.yaml", ROOT / "configs/smoke.yaml"
    configs = [*(f"--config={file}" for file in files), f"--run_dir={run}"]
    main(["fit", *configs, "--budget.env_steps=20000"])  # half of it: to the first evaluation
    out = capsys.readouterr().out
    assert "success after 20,000 environment steps" in out
    assert str(run) in out
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert float(rows[-1]["step"]) == 20_000
    evaluated = [row for row in rows if row["success/test/drawer-open"]]
    assert [float(row["step"]) for row in evaluated] == [20_000]
    for row in rows:
        if row["ppo/approx_kl"]:
            assert 0 <= float(row["ppo/approx_kl"]) < 0.2
            assert 0 <= float(row["encoder/family_information"]) <= torch.tensor(5.0).log() + 1e-5

    best = run / "checkpoints/best.weights.ckpt"
    assert best.stat().st_size < 5e6
    main(["test", *configs, f"--ckpt_path={best}", "--data.test.backend=envpool"])
    result = json.loads((run / "test-first_episode.json").read_text())
    assert set(result["scores"]["train"]["sampled"]) == {*result["model"]["families"], "mean"}
    assert result["scores"]["test"]["mean_action"]["mean"]["episodes"] == 5 * 2
    families = {k: v["success"] for k, v in result["scores"]["train"]["sampled"].items()}
    mean = families.pop("mean")
    assert abs(mean - sum(families.values()) / 10) < 1e-9
