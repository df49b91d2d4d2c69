"""The nodes that a user wants left alone."""

from __future__ import annotations

import pytest

from onnxcomp.compiler.node_patterns import check_pattern, excluded_nodes
from onnxcomp.errors import UsageError
from onnxcomp.ir.parse import parse_model

MODEL = parse_model(
    """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    net (float[N, 4] x) => (float[N, 4] y) {
        a = Relu (x)
        b = Sigmoid (a)
        c = Relu (b)
        d = com.microsoft.Gelu (c)
        y = Softmax (d)
    }"""
)
for node, name in zip(
    MODEL.graph.nodes, ("layer1/conv", "layer1/conv1", "layer2/block[1]", "d", "head"), strict=True
):
    node.name = name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("head", {"head"}),
        ("layer1/*", {"layer1/conv", "layer1/conv1"}),
        ("layer?/conv", {"layer1/conv"}),
        ("layer[12]/conv", {"layer1/conv"}),
        ("layer2/block[1]", {"layer2/block[1]"}),
        ("d", {"d"}),
        ("re:conv", {"layer1/conv", "layer1/conv1"}),
        ("re:conv$", {"layer1/conv"}),
        ("op:Relu", {"layer1/conv", "layer2/block[1]"}),
        ("op:com.microsoft.Gelu", {"d"}),
        ("op:Gelu", {"d"}),
    ],
)
def test_a_pattern_matches_names_globs_expressions_and_operators(pattern: str, names: set[str]) -> None:
    assert excluded_nodes(MODEL, [pattern]) == names


def test_several_patterns_add_up_and_none_exclude_nothing() -> None:
    assert excluded_nodes(MODEL, ["head", "op:Sigmoid"]) == {"head", "layer1/conv1"}
    assert excluded_nodes(MODEL, []) == frozenset()


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("heat", "head"),
        ("Layer1/conv", "layer1/conv, layer1/conv1"),
        ("layer9/*", "layer1/conv, layer1/conv1, layer2/block[1]"),
        ("op:Rellu", "op:Relu"),
        ("re:^zzz", "layer1/conv, layer1/conv1, layer2/block[1]"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_what_is_near(pattern: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        excluded_nodes(MODEL, ["head", pattern])
    assert str(caught.value).startswith(f"--exclude '{pattern}' matches no node; near: {near}")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("", "is empty"), ("re:", "is empty"), ("op:", "is empty"), ("re:(", "no regular expression")],
)
def test_a_malformed_pattern_is_refused_before_any_model_is_read(pattern: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check_pattern(pattern)
