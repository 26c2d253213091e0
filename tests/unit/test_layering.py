"""One direction of imports, read from the source: who may know whom."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hmrl

ROOT = Path(hmrl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Each package may know itself and those above it.
ORDER = (
    "system",
    "types",
    "himeta",
    "envs",
    "rollouts",
    "analysis",
    "results",
    "evaluation",
    "training",
    "cli",
    "__main__",
)
# Of the method's package: neither Lightning nor simulators.
FOREIGN = ("pytorch_lightning", "lightning_fabric", "envpool", "metaworld", "gymnasium", "mujoco")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def every_import(path: Path) -> set[str]:
    """What ``path`` imports, at its top or anywhere inside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES else str(node.module) for n in names}
    return found


GRAPH = {
    name: {other for other in every_import(path) if other.split(".")[0] == "hmrl"}
    for name, path in MODULES.items()
}


def package_of(module: str) -> str:
    return module.split(".")[1]


def test_imports_are_seen() -> None:
    assert {"hmrl.himeta.policy", "hmrl.himeta.losses"} <= GRAPH["hmrl.training.module"]
    assert "hmrl.training.checkpoint" in GRAPH["hmrl.cli.main"]  # from hmrl.training import checkpoint
    assert "torch" in every_import(MODULES["hmrl.himeta.losses"])


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"hmrl"}))
def test_a_module_knows_only_its_own_package_and_those_above(module: str) -> None:
    own = ORDER.index(package_of(module))
    for other in GRAPH[module] - {"hmrl"}:
        assert ORDER.index(package_of(other)) <= own, other


@pytest.mark.parametrize("module", [n for n in MODULES if n.startswith("hmrl.himeta")])
def test_the_method_knows_neither_lightning_nor_simulators(module: str) -> None:
    assert {name.split(".")[0] for name in every_import(MODULES[module])}.isdisjoint(FOREIGN)
    assert {package_of(other) for other in GRAPH[module]} <= {"himeta", "system", "types"}


def test_the_report_reads_files_of_whatever_version_and_knows_no_networks() -> None:
    for module in (n for n in MODULES if n.startswith("hmrl.results.")):
        assert {package_of(other) for other in GRAPH[module]} <= {"results", "system", "types"}, module


def test_module_and_datamodule_never_meet() -> None:
    """Not even through others: what both need stands above both."""

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


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.stem for path in FILES if path.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_seldom_longer_than_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
