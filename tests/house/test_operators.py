"""Operators are named in tables of ir/ops.py: a list of them written elsewhere is a rule that nobody finds."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import onnx.defs
import pytest

from tests.support.sources import sources

OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas()}
HOME = "onnxcomp/ir/ops.py"
FEW = 3
"""This many names in a row are a list."""


def lists_of_operators(tree: ast.Module) -> Iterator[tuple[int, list[str]]]:
    """Yield line and names of every set, tuple, list, call or text that names nothing but operators.

    A mapping from operators to functions is no list: it is where the rules of a room stand.
    """
    for node in ast.walk(tree):
        names: list[object] = []
        if isinstance(node, ast.Set | ast.Tuple | ast.List):
            names = [_constant(element) for element in node.elts]
        elif isinstance(node, ast.Call):
            names = [_constant(argument) for argument in node.args]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = list(node.value.split())
        if len(names) >= FEW and all(name in OPERATORS for name in names):
            yield getattr(node, "lineno", 0), [str(name) for name in names]


def _constant(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def test_lists_of_operators_stand_in_one_file() -> None:
    found = [
        f"{source.path}:{line}: {' '.join(names)}"
        for source in sources("onnxcomp", "passes")
        if str(source.path) != HOME
        for line, names in lists_of_operators(source.tree)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        '{"Relu", "Clip", "Elu"}',
        'node.is_op("Relu", "Clip", "Elu")',
        '("Relu", "Clip", "Elu")',
        '"Relu Clip Elu".split()',
    ],
)
def test_a_list_of_operators_is_noticed(code: str) -> None:
    assert [names for _, names in lists_of_operators(ast.parse(code))] == [["Relu", "Clip", "Elu"]]


@pytest.mark.parametrize(
    "code", ['{"Relu": f, "Clip": f, "Elu": f}', 'is_op("Relu", "Clip")', '["x", "Relu", "Elu"]']
)
def test_rules_by_operator_and_short_questions_are_free(code: str) -> None:
    assert list(lists_of_operators(ast.parse(code))) == []
