"""On platforms that EnvPool has no wheel for, Meta-World's own simulator does everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from integration.conftest import TINY
from integration.runs import read_rows

_BLOCKED = """
import sys
sys.modules["envpool"] = None  # any import of it fails
import hmrl.cli
hmrl.cli.main(sys.argv[1:])
"""
_REACH = ["--data.benchmark", "ML1", "--data.train_families", "[reach]", "--data.envs_per_family", "4"]


def without_envpool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BLOCKED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_metaworld_trains_without_envpool(tmp_path: Path) -> None:
    run = tmp_path / "run"
    metaworld = ("--data.backend", "metaworld", "--budget.env_steps", "52")
    process = without_envpool("fit", *TINY, "--run_dir", str(run), *_REACH, *metaworld)
    assert process.returncode == 0, process.stderr
    assert [int(row["step"]) for row in read_rows(run) if "ppo/approx_kl" in row] == [52]
    # A test needs the simulator that it runs on, not that of the training it is about.
    last = ("--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--data.test.backend", "metaworld")
    process = without_envpool("test", *TINY, "--run_dir", str(run), *_REACH, *last)
    assert process.returncode == 0, process.stderr
    assert (run / "test-first_episode.json").is_file()


def test_envpool_is_refused_in_one_sentence_where_it_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for options, key in (((), "data.backend"), (("--data.backend", "metaworld"), "data.validation.backend")):
        other = ("--data.validation.backend", "envpool")
        process = without_envpool("fit", *TINY, "--run_dir", str(run), *_REACH, *options, *other)
        assert process.returncode == 2, process.stderr
        (sentence,) = [line for line in process.stderr.splitlines() if "Seed set" not in line]
        assert sentence.startswith(f"hmrl: error: {key} is envpool, which is not installed: use metaworld")
        assert not run.exists()
