"""The rooms and their doors: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx as nx
import pytest

from tests.support.sources import Import, Source, imports, sources

CORE = sources("onnxcomp", "passes")

LEVELS = {
    "errors": 0,
    "ir": 1,
    "numerics": 1,
    "analysis": 2,
    "runtime": 2,
    "compiler": 3,
    "passes": 4,
    "presets": 4,
    "targets": 4,
    "cli": 5,
    "testing": 5,
    "api": 5,
    "face": 6,
}
"""A room imports rooms of lower levels and itself. The face is `onnxcomp/__init__.py`, which only points at others."""

DOORS = {"onnx": "ir", "onnx_graphsurgeon": "ir", "onnxruntime": "runtime"}
"""Packages that one room alone may import."""


def room(module: str) -> str:
    """Return the room of a module of onnxcomp."""
    parts = module.split(".")
    if len(parts) == 1:
        return "face"
    return "cli" if parts[1] == "__main__" else parts[1]


def ours(source: Source) -> list[Import]:
    """Return what `source` imports of onnxcomp; the version is free to everybody, and so is the bare package (its path)."""
    found = [i for i in imports(source) if i.module.split(".")[0] == "onnxcomp"]
    return [i for i in found if i.module != "onnxcomp" or i.names not in ((), ("__version__",))]


def all_pairs() -> list[tuple[Source, Import]]:
    return [(source, found) for source in CORE for found in ours(source)]


def test_every_module_belongs_to_a_room_that_has_a_level() -> None:
    assert {room(source.module) for source in CORE} <= set(LEVELS)
    assert {room(found.module) for _, found in all_pairs()} <= set(LEVELS)


def test_imports_go_down_the_levels_only() -> None:
    upward = [
        f"{source.path}:{found.line} imports {found.module}"
        for source, found in all_pairs()
        if room(source.module) != room(found.module)
        and LEVELS[room(found.module)] >= LEVELS[room(source.module)]
    ]
    assert not upward


def test_nobody_takes_more_from_the_face_than_the_version() -> None:
    through = [f"{source.path}:{f.line}" for source, f in all_pairs() if f.module == "onnxcomp" and f.names]
    assert through == []


def test_the_face_imports_nothing_until_it_is_asked() -> None:
    face = next(source for source in CORE if source.module == "onnxcomp")
    eager = {found.module for found in imports(face) if not found.late and not found.typing}
    assert eager == {"__future__", "importlib", "typing"}


def test_passes_do_not_import_each_other() -> None:
    entangled = [
        f"{source.path}:{found.line} imports {found.module}"
        for source, found in all_pairs()
        if room(source.module) == room(found.module) == "passes"
    ]
    assert not entangled


@pytest.mark.parametrize("package", DOORS)
def test_a_foreign_package_has_one_door(package: str) -> None:
    users = {room(s.module) for s in CORE for i in imports(s) if i.module.split(".")[0] == package}
    assert users == {DOORS[package]}


def test_the_core_imports_neither_tools_nor_tests_nor_the_training_scripts() -> None:
    outside = {"tools", "tests", "models", "passes", "torch", "sklearn", "pytest", "hypothesis"}
    found = [
        f"{source.path}:{i.line} imports {i.module}"
        for source in CORE
        for i in imports(source)
        if i.module.split(".")[0] in outside
    ]
    assert not found


def test_tools_do_not_import_tests_and_nobody_says_passes_for_onnxcomp_passes() -> None:
    for source in sources("tools"):
        assert not [i.line for i in imports(source) if i.module.split(".")[0] == "tests"], source.path
    for source in sources():
        assert not [i.line for i in imports(source) if i.module.split(".")[0] == "passes"], source.path


def test_modules_do_not_import_each_other_in_circles() -> None:
    known = {source.module: source for source in sources()}
    graph = nx.DiGraph()
    for source in known.values():
        for found in imports(source):
            if found.late or found.typing:
                continue
            inner = [f"{found.module}.{name}" for name in found.names]
            graph.add_edges_from((source.module, m) for m in (found.module, *inner) if m in known)
    circles = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    assert not circles
    assert not list(nx.selfloop_edges(graph))


def test_an_import_is_seen_wherever_it_stands() -> None:
    code = """
if TYPE_CHECKING:
    from onnxcomp.cli.main import cli
def late():
    import onnxcomp.api
class Inner:
    from ..ir import graph
"""
    source = Source(Path("onnxcomp/analysis/x.py"), "onnxcomp.analysis.x", ast.parse(code))
    found = [(i.module, i.names, i.late, i.typing) for i in imports(source)]
    assert found == [
        ("onnxcomp.cli.main", ("cli",), False, True),
        ("onnxcomp.api", (), True, False),
        ("onnxcomp.ir", ("graph",), False, False),
    ]
