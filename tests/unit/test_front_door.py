"""What ``hmrl`` says before any command is run, and what ``import hmrl`` offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hmrl
from support.reported import result, write_result

COMMANDS = ("fit", "validate", "test", "report", "sweep")
_RUN = """
import runpy, sys
try:
    runpy.run_module("hmrl", run_name="__main__", alter_sys=True)
finally:
    heavy = {"torch", "lightning_fabric", "pytorch_lightning"} & sys.modules.keys()
    print("imported:", *sorted(heavy), file=sys.stderr)
"""


def hmrl_says(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str, str]:
    """Exit code, output, errors, and which of PyTorch and Lightning was imported."""
    command = [sys.executable, "-c", _RUN, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
    errors, _, imported = process.stderr.rpartition("imported:")
    return process.returncode, process.stdout, errors, imported.strip()


def test_help_names_every_command_and_where_configurations_are() -> None:
    code, out, errors, imported = hmrl_says("--help")
    assert (code, errors, imported) == (0, "", "")
    assert out.startswith("usage: hmrl ")
    assert "Lightning" not in out
    for name in COMMANDS:
        assert f"\n    {name} " in out, name
    assert "--config ml10" in out


def test_version_is_printed() -> None:
    assert hmrl_says("--version") == (0, f"hmrl {hmrl.__version__}\n", "", "")


@pytest.mark.parametrize("command", ["report", "sweep"])
def test_help_of_what_reads_files_needs_no_pytorch(command: str) -> None:
    code, out, errors, imported = hmrl_says(command, "--help")
    assert (code, errors, imported) == (0, "", "")
    assert out.startswith(f"usage: hmrl {command} ")


def test_a_report_needs_no_pytorch(tmp_path: Path) -> None:
    write_result(tmp_path / "flat-seed1", result({"train": (0.5, 0.3), "test": (0.1,)}))
    code, out, errors, imported = hmrl_says("report", "flat-seed1", "--formats", "png", cwd=tmp_path)
    assert (code, errors, imported) == (0, "", "")
    assert "report: " in out
    assert (tmp_path / "report" / "report.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("", COMMANDS),
        ("fitt", ("invalid choice: 'fitt'", *COMMANDS)),
        ("predict", ("invalid choice: 'predict'", *COMMANDS)),
        ("--overwrite true", COMMANDS),
        ("--config X fit --run_dir Y", COMMANDS),
        ("report nowhere", ("there is no run directory nowhere",)),
    ],
)
def test_a_mistake_is_one_sentence(arguments: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    code, out, errors, imported = hmrl_says(*arguments.split(), cwd=tmp_path)
    assert (code, out, imported) == (2, "", "")
    (sentence,) = errors.splitlines()
    assert sentence.startswith("hmrl: error: ")
    for part in parts:
        assert part in sentence
    assert not list(tmp_path.iterdir())


# --- the public API ------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    for name in hmrl.__all__:
        assert getattr(hmrl, name) is not None
        assert name in dir(hmrl)
    from hmrl.training.module import HierarchicalMetaRL

    assert hmrl.HierarchicalMetaRL is HierarchicalMetaRL
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hmrl.nothing


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(hmrl.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert {*seen, "__version__"} == set(hmrl.__all__)
    assert seen == {name: f"hmrl.{module}" for module, names in hmrl._HOMES.items() for name in names}


def test_the_package_itself_imports_neither_pytorch_nor_lightning() -> None:
    code = "import sys, hmrl, hmrl.system.errors; print({'torch', 'pytorch_lightning'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"
