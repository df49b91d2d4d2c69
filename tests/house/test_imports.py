"""The rooms and their doors: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx as nx
import pytest

from tests.support.sources import ROOT, Import, Source, imports, sources

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

ROOT_ROOM = "root"

TECHNIQUE = {"root", "cost", "evaluation", "repair"}
"""What every technique of compression may lean on."""

INTEGERS = {"root", "target", "gradients", "integer_rewrites", "repair", "evaluation"}
"""What everything about integers may lean on."""

INNER = {
    "target": set[str](),
    ROOT_ROOM: {"target"},
    "cost": {"root"},
    "evaluation": {"root"},
    "gradients": {"root"},
    "integer_rewrites": {"root", "target"},
    "repair": {"root", "cost", "evaluation"},
    "channel_pruning": TECHNIQUE,
    "weight_pruning": TECHNIQUE,
    "factorization": TECHNIQUE | {"gradients"},
    "quantization": INTEGERS,
    "coding": {"root", "repair", "evaluation"},
    "run": {"root", "target", "cost", "gradients"},
    "equalization": INTEGERS | {"quantization"},
    "mixed_precision": INTEGERS | {"quantization"},
    "finetuning": INTEGERS | {"quantization"},
    "search": {"root", "run", "evaluation"},
    "commands": {"root", "run", "evaluation", "target", "search", "coding"},
}
"""The rooms inside `compiler/` and what each may import of the others, late imports included. The root is the contract of a
pass: the files that stand in no folder. Rooms that are still to come are listed, so that their doors are known."""

TO_COME = {"weight_pruning", "coding", "finetuning", "search"}

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


def inner_room(module: str) -> str | None:
    """Return the room inside `compiler/` of a module, None for one of another place."""
    parts = module.split(".")
    if parts[:2] != ["onnxcomp", "compiler"]:
        return None
    return parts[2] if len(parts) > 3 or (len(parts) > 2 and (ROOT / Path(*parts)).is_dir()) else ROOT_ROOM


def through_wrong_doors(pairs: list[tuple[Source, Import]]) -> list[str]:
    """Return the imports between rooms of the compiler that the inner table does not allow."""
    wrong = []
    for source, found in pairs:
        mine = inner_room(source.module)
        modules = (
            [f"{found.module}.{name}" for name in found.names] if found.module == "onnxcomp.compiler" else []
        )
        for theirs in {inner_room(module) for module in modules or [found.module]}:
            if mine and theirs and mine != theirs and theirs not in INNER[mine]:
                wrong.append(f"{source.path}:{found.line} {mine} imports {theirs}")
    return wrong


def test_every_room_of_the_compiler_is_in_the_inner_table() -> None:
    there = {inner_room(source.module) for source in CORE} - {None}
    assert there == set(INNER) - TO_COME


def test_rooms_of_the_compiler_import_each_other_as_the_inner_table_says_late_imports_included() -> None:
    assert through_wrong_doors(all_pairs()) == []


def test_the_inner_table_has_no_circles() -> None:
    assert nx.is_directed_acyclic_graph(nx.DiGraph([(a, b) for a, allowed in INNER.items() for b in allowed]))


def test_a_wrong_door_would_be_noticed() -> None:
    code = """
from onnxcomp.compiler.quantization.formats import Formats
def late():
    from onnxcomp.compiler import factorization
"""
    source = Source(Path("x.py"), "onnxcomp.compiler.repair.x", ast.parse(code))
    assert through_wrong_doors([(source, found) for found in ours(source)]) == [
        "x.py:2 repair imports quantization",
        "x.py:4 repair imports factorization",
    ]


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
