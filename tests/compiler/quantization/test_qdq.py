"""Pairs of QuantizeLinear and DequantizeLinear in a graph: names, inputs and outputs, parameters that are stored once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from onnxcomp.compiler.quantization.qdq import Stored, quantize_values, store_constant
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.affine import Affine, Grid, channel_affine, range_affine
from onnxcomp.testing import assert_valid
from tests.support.pruning import noise, outputs
from tests.support.text import net

GRID = Grid("uint8")
WIDE = range_affine(-6, 6, GRID)


def model() -> Model:
    found = parse_model(
        net(
            "(float[N,4] x) => (float[N,3] y)",
            "float[4,5] a, float[5,3] b",
            "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)",
        )
    )
    rng = np.random.default_rng(0)
    for node in found.graph.nodes:
        old = node.constant(1) if len(node.inputs) > 1 else None
        if old is not None:
            found.graph.set_constant(node, 1, rng.standard_normal(old.shape).astype(np.float32))
    return found


def ops(found: Model) -> Counter[str]:
    return Counter(node.op for node in found.graph.nodes)


def test_every_reader_of_an_input_reads_what_came_back_from_storage() -> None:
    found = model()
    quantize_values(found, {"x": WIDE})
    assert_valid(found, like=model())
    assert [v.name for v in found.graph.inputs] == ["x"]
    assert [node.op for node in found.graph.nodes[:3]] == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    assert found.graph.nodes[0].inputs[0].name == "x"


def test_an_output_keeps_its_name_and_gives_what_came_back_from_storage() -> None:
    before, found = model(), model()
    quantize_values(found, {"y": WIDE})
    assert_valid(found, like=before)
    assert [v.name for v in found.graph.outputs] == ["y"]
    assert found.graph.outputs[0].producer is not None
    assert found.graph.outputs[0].producer.op == "DequantizeLinear"
    feeds = noise(before)
    np.testing.assert_array_equal(outputs(found, feeds), WIDE.round_trip(outputs(before, feeds)))


def test_inner_values_keep_their_names_for_their_readers() -> None:
    found = model()
    quantize_values(found, {"h": WIDE})
    relu = next(node for node in found.graph.nodes if node.op == "Relu")
    assert relu.inputs[0].name == "h"
    assert [v.name for v in found.graph.nodes[0].outputs] == ["h__float"]


def test_names_that_are_taken_are_not_used_again() -> None:
    found = parse_model(
        net(
            "(float[N,4] x) => (float[N,4] y, float[N,4] z)",
            "",
            "h__q = Relu(x) h = Neg(h__q) h__float = Abs(h) y = Exp(h) z = Exp(h__float)",
        )
    )
    quantize_values(found, {"h": WIDE, "x": WIDE})
    assert_valid(found)
    names = [v.name for node in found.graph.nodes for v in node.outputs]
    assert len(names) == len(set(names))


def test_values_with_equal_parameters_share_the_stored_tensors() -> None:
    found = model()
    quantize_values(found, {"x": WIDE, "h": WIDE, "y": range_affine(-3, 6, GRID)})
    added = {name for name in found.graph.constants if name not in model().graph.constants}
    assert len(added) == 4
    assert ops(found)["QuantizeLinear"] == ops(found)["DequantizeLinear"] == 3


def test_a_scale_or_zero_point_of_another_type_is_another_tensor() -> None:
    found = model()
    zero = [Affine(np.float32(0.5), np.array(0, kind), Grid(kind)) for kind in ("uint8", "int8")]  # type: ignore[arg-type]
    quantize_values(found, {"x": zero[0], "h": zero[1]})
    assert_valid(found)
    kinds = {str(c.values.dtype) for name, c in found.graph.constants.items() if "zero" in name}
    assert kinds == {"uint8", "int8"}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_stored_weight_leaves_no_float_copy_and_means_what_it_stores(axis: int) -> None:
    before, found = model(), model()
    node = found.graph.nodes[0]
    weight: Any = node.constant(1)
    affine = channel_affine(np.abs(weight).max(1 - axis), Grid("int8", True, True))
    stored = Stored(affine.quantize(weight, axis), affine, axis)
    store_constant(found, node, 1, stored)
    assert_valid(found, like=before)
    assert [c.values.dtype for c in found.graph.constants.values() if c.values.shape == (4, 5)] == [np.int8]
    dequantize = next(n for n in found.graph.nodes if n.op == "DequantizeLinear")
    assert dequantize.attrs == {"axis": axis}
    twin = model()
    twin.graph.set_constant(twin.graph.nodes[0], 1, stored.real())
    feeds = noise(before)
    np.testing.assert_allclose(outputs(found, feeds), outputs(twin, feeds), rtol=1e-6, atol=1e-6)


def test_a_constant_with_another_reader_stays_for_it() -> None:
    found = parse_model(
        net(
            "(float[N,4] x) => (float[N,4] y, float[N,4] z)",
            "float[4,4] a",
            "y = MatMul(x, a) z = MatMul(x, a)",
        )
    )
    affine = range_affine(-1, 1, Grid("int8", True))
    weight: Any = found.graph.nodes[0].constant(1)
    store_constant(found, found.graph.nodes[0], 1, Stored(affine.quantize(weight), affine))
    assert_valid(found)
    assert "a" in found.graph.constants
    assert next(n for n in found.graph.nodes if n.outputs[0].name == "z").inputs[1].name == "a"


def test_a_convolution_whose_zero_point_is_left_out_stores_none() -> None:
    found = parse_model(net("(float[N,3,8,8] x) => (float[N,4,8,8] y)", "float[4,3,1,1] w", "y = Conv(x, w)"))
    node = found.graph.nodes[0]
    weight: Any = node.constant(1)
    affine = channel_affine(np.abs(weight).max((1, 2, 3)), Grid("int8", True, True))
    store_constant(found, node, 1, Stored(affine.quantize(weight, 0), affine, 0))
    assert_valid(found)
    read = {v.name for n in found.graph.nodes for v in n.inputs}
    assert set(found.graph.constants) <= read
