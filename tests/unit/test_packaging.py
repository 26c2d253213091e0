"""What an installed package has, which versions it allows, and on which platforms."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from hmrl.cli.shipped import CONFIGS, config_file

ROOT = Path(__file__).parents[2]
DEPENDENCIES = [
    Requirement(line)
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]
PINNED = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


def test_a_wheel_has_every_configuration_and_finds_it_by_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copytree(ROOT / "configs", source / "configs")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, timeout=180)
    (wheel,) = tmp_path.glob("hmrl-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    shipped = {p.relative_to(installed / "hmrl/configs") for p in installed.glob("hmrl/configs/**/*.yaml")}
    assert shipped == {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml")}
    code = "from hmrl.cli.shipped import config_file; print(config_file('baselines/flat'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(installed)},
    ).stdout
    assert Path(found.strip()) == installed / "hmrl/configs/baselines/flat.yaml"


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ml10", "ml10.yaml", "configs/ml10.yaml"):
        assert config_file(name) == str(CONFIGS / "ml10.yaml")
    assert config_file("{data: {horizon: 3}}") == "{data: {horizon: 3}}"
    for name in ("nothing", "../ml10", "/ml10"):
        assert config_file(name) == name
    Path("ml10").mkdir()
    assert config_file("ml10") == str(CONFIGS / "ml10.yaml")
    Path("ml10.yaml").touch()
    assert config_file("ml10.yaml") == "ml10.yaml"


# --- versions ------------------------------------------------------------------------------------


def test_tested_versions_are_allowed() -> None:
    for dependency in DEPENDENCIES:
        assert Version(PINNED[dependency.name.lower()]) in dependency.specifier


@pytest.mark.parametrize("name", ["pytorch-lightning", "jsonargparse", "envpool", "metaworld"])
def test_what_is_used_beyond_its_public_api_has_an_upper_bound(name: str) -> None:
    (dependency,) = (d for d in DEPENDENCIES if d.name == name)
    assert "<" in {specifier.operator for specifier in dependency.specifier}


def test_the_lowest_versions_are_those_that_are_allowed() -> None:
    script = ROOT / "scripts" / "lowest.py"
    lines = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True
    ).stdout.split()
    lowest = dict(line.split("==") for line in lines)
    assert lowest.pop("torch") == PINNED["torch"]
    assert lowest.keys() == {d.name for d in DEPENDENCIES if d.name != "torch"}
    for dependency in DEPENDENCIES:
        if dependency.name != "torch":
            assert f">={lowest[dependency.name]}" in str(dependency.specifier).split(",")


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("Linux", "x86_64", True),
        ("Linux", "aarch64", True),
        ("Darwin", "arm64", True),
        ("Windows", "AMD64", True),
        ("Darwin", "x86_64", False),
    ],
)
def test_envpool_is_asked_for_where_it_has_wheels(system: str, machine: str, wanted: bool) -> None:
    (envpool,) = (d for d in DEPENDENCIES if d.name == "envpool")
    assert envpool.marker is not None
    assert envpool.marker.evaluate({"platform_system": system, "platform_machine": machine}) is wanted


def test_nothing_imports_envpool_at_its_top() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"^(import|from) envpool\b", path.read_text(), re.MULTILINE), path
