"""On platforms that EnvPool has no wheel for, Meta-World's own simulator does everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hmrl import EvaluationConfig, MetaWorldDataModule, UserError
from hmrl.cli.main import main
from support.paths import TINY
from support.runs import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.simulator]

_BLOCKED = """
import json, sys
sys.modules["envpool"] = None  # any import of it fails
from hmrl.cli.main import main
for arguments in json.loads(sys.argv.pop()):
    main(arguments)
"""
_REACH = ["--data.benchmark", "ML1", "--data.train_families", "[reach]", "--data.envs_per_family", "4"]


def test_metaworld_trains_without_envpool(tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = [*TINY, "--run_dir", str(run), *_REACH]
    metaworld = ["--data.backend", "metaworld", "--budget.env_steps", "52"]
    # A test needs the simulator that it runs on, not that of the training it is about.
    last = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--data.test.backend", "metaworld"]
    commands = json.dumps([["fit", *given, *metaworld], ["test", *given, *last]])
    process = subprocess.run(
        [sys.executable, "-c", _BLOCKED, commands], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert [int(row["step"]) for row in read_rows(run) if "ppo/approx_kl" in row] == [52]
    assert (run / "test-first_episode.json").is_file()


def test_envpool_is_refused_in_one_sentence_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(SystemExit) as end:
        main(["fit", *TINY, "--run_dir", str(tmp_path / "run"), *_REACH])
    assert end.value.code == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("hmrl: error: data.backend is envpool, which is not installed: use metaworld")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "key"), [("fit", "validation"), ("validate", "validation"), ("test", "test")]
)
def test_each_command_needs_the_simulators_that_it_runs(
    stage: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    wanted, other = EvaluationConfig(backend="envpool"), EvaluationConfig(backend="metaworld")
    configs = {"validation": other, "test": other}
    backend = "metaworld" if stage == "fit" else "envpool"
    MetaWorldDataModule(backend=backend, **configs).check(stage, 1)
    with pytest.raises(UserError, match=rf"^data\.{key}\.backend is envpool, which is not installed"):
        MetaWorldDataModule(backend=backend, **(configs | {key: wanted})).check(stage, 1)
