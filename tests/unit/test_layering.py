"""One direction of imports, read from the source: who may know whom."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hmrl

ROOT = Path(hmrl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of this package that ``path`` imports, at its top or anywhere inside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES else str(node.module) for n in names}
    return {name for name in found if name.split(".")[0] == "hmrl"}


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def test_imports_are_seen() -> None:
    assert {"hmrl.himeta.build", "hmrl.himeta.losses"} <= GRAPH["hmrl.training.module"]
    assert "hmrl.training.checkpoint" in GRAPH["hmrl.cli.main"]  # from hmrl.training import checkpoint


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("hmrl.types", set()),
        ("hmrl.system.terminal", set()),
        ("hmrl.system.distributed", {"hmrl.system.terminal", "hmrl.types"}),
        ("hmrl.himeta.formulas", {"hmrl.system.distributed"}),
        ("hmrl.himeta.normalizer", {"hmrl.system.distributed", "hmrl.himeta.formulas"}),
        (
            "hmrl.himeta.config",
            {"hmrl.himeta.formulas", "hmrl.himeta.normalizer", "hmrl.himeta.rules", "hmrl.types"},
        ),
        ("hmrl.rollouts.replay", {"hmrl.types"}),
        ("hmrl.rollouts.collect", {"hmrl.types"}),
        ("hmrl.evaluation.metrics", {"hmrl.himeta.formulas", "hmrl.types"}),
    ],
)
def test_what_stands_below_knows_little(module: str, allowed: set[str]) -> None:
    assert GRAPH[module] <= allowed


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("networks", {"hmrl.himeta.formulas", "hmrl.types"}),
        ("envs", {"hmrl.system.cores", "hmrl.system.terminal", "hmrl.types"}),
    ],
)
def test_packages_know_themselves_and_the_vocabulary(package: str, allowed: set[str]) -> None:
    members = {n for n in MODULES if n.startswith(f"hmrl.{package}")}
    assert len(members) > 3
    for member in members:
        assert GRAPH[member] - members <= allowed, member


def test_the_report_knows_itself_and_the_vocabulary() -> None:
    """It reads files, of whatever version."""
    for member in {n for n in MODULES if n.startswith("hmrl.report")}:
        assert all(n == "hmrl.types" or n.startswith("hmrl.report") for n in GRAPH[member]), member


def test_module_and_datamodule_never_meet() -> None:
    """Not even through others: what both need stands below both."""

    def reachable(name: str) -> set[str]:
        seen, todo = set(), [name]
        while todo:
            for n in GRAPH.get(todo.pop(), set()) - seen:
                seen.add(n)
                todo.append(n)
        return seen

    assert "hmrl.training.datamodule" not in reachable("hmrl.training.module")
    assert "hmrl.training.module" not in reachable("hmrl.training.datamodule")


def test_no_cycles() -> None:
    tuple(TopologicalSorter(GRAPH).static_order())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_longer_than_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
