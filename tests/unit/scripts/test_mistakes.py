"""What scripts say of a mistake of their user: one sentence and exit code 2, as ``hmrl`` does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from support.paths import ROOT

ARGUMENTS = {
    "average_beliefs": ["nothing.ckpt"],
    "compare": ["nothing.ckpt", "nothing.ckpt"],
    "join_families": ["nothing", "--out", "joined"],
    "knowledge": ["nothing.ckpt"],
    "known_goals": ["nothing.ckpt"],
    "offline_beliefs": ["nothing.ckpt"],
    "robustness": ["agent=nothing.ckpt"],
    "trials": ["nothing.ckpt"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_file_that_is_not_there_is_one_sentence_and_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *ARGUMENTS[name]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("hmrl: error: ")
    assert "nothing" in said
    assert not any(tmp_path.iterdir())


def test_every_script_is_here() -> None:
    """But those that take no file of the user."""
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert scripts - {"lowest", "soak"} == set(ARGUMENTS)
