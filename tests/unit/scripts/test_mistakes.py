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


def said_by(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *options: str,
) -> str:
    """The one line that a script ends with, in ``folder``, which it leaves as it is."""
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    monkeypatch.setattr("sys.argv", [f"{name}.py", *ARGUMENTS[name], *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 2
    assert sorted(folder.iterdir()) == before
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("hmrl: error: ")
    return said


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_file_that_is_not_there_is_one_sentence_and_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing" in said_by(name, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("name", sorted(ARGUMENTS.keys() - {"join_families", "robustness"}))
@pytest.mark.parametrize("content", [b"no checkpoint", b""], ids=["text", "empty"])
def test_a_file_that_is_no_checkpoint_is_one_sentence_and_code_2(
    name: str,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nothing.ckpt").write_bytes(content)
    assert said_by(name, tmp_path, monkeypatch, capsys).count("nothing.ckpt") == 1


@pytest.mark.parametrize("name", ["average_beliefs", "knowledge", "known_goals", "offline_beliefs", "trials"])
def test_a_folder_is_no_file_to_write(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = said_by(name, tmp_path, monkeypatch, capsys, "--out", ".")
    assert said == "hmrl: error: --out is ., which is a folder: name a file"


def test_every_script_is_here() -> None:
    """But those that take no file of the user."""
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert scripts - {"lowest", "soak"} == set(ARGUMENTS)
