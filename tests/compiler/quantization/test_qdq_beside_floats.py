"""What is made in float and read in integers is stored for those readers alone."""

from __future__ import annotations

import numpy as np

from onnxcomp.compiler.quantization.qdq import quantize_values
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.affine import Grid, range_affine
from onnxcomp.runtime.session import Session
from tests.support.text import net

GRID = Grid("uint8", symmetric=False)
"""The grid of the values here, whose largest error is half a step of 2 / 255."""

X = np.random.default_rng(1).uniform(-1, 1, (3, 4)).astype(np.float32)


def stored(integers: set[str], body: str, outputs: str = "float[N,4] y", *, pairs: bool = False) -> Model:
    model = parse_model(net(f"(float[N,4] x) => ({outputs})", "float[4,4] w", body))
    model.graph.constants["w"].values = np.eye(4, dtype=np.float32)
    for node in model.graph.nodes:
        node.name = node.op
    quantize_values(model, {"h": range_affine(-1.0, 1.0, GRID)}, integers, outputs=pairs)
    return model


def reads(model: Model, op: str, index: int) -> str | None:
    node = next(node for node in model.graph.nodes if node.op == op)
    maker = node.inputs[index].producer
    return None if maker is None else maker.op


def test_a_residual_stream_of_floats_is_not_rounded_for_the_product_beside_it() -> None:
    model = stored({"MatMul"}, "h = Tanh(x)  p = MatMul(h, w)  y = Add(p, h)")
    assert reads(model, "MatMul", 0) == "DequantizeLinear"
    assert reads(model, "Add", 1) == "Tanh"
    (y,) = Session(model).run({"x": X}).values()
    exact = 2 * np.tanh(X)
    assert 0 < np.abs(y - exact).max() <= 1 / 255 + 1e-6


def test_all_readers_read_integers_where_the_maker_computes_in_them() -> None:
    model = stored({"Tanh", "MatMul"}, "h = Tanh(x)  p = MatMul(h, w)  y = Add(p, h)")
    assert reads(model, "Add", 1) == "DequantizeLinear"


def test_an_output_of_the_graph_is_rounded_only_where_the_target_wants_that() -> None:
    for wanted, maker in ((False, "Tanh"), (True, "DequantizeLinear")):
        both = "float[N,4] y, float[N,4] h"
        model = stored({"MatMul"}, "h = Tanh(x)  y = MatMul(h, w)", both, pairs=wanted)
        output = next(v for v in model.graph.outputs if v.name == "h")
        assert output.producer is not None and output.producer.op == maker
        assert [v.name for v in model.graph.outputs] == ["y", "h"]


def test_the_body_of_an_if_reads_the_float_value_for_onnxruntime_dies_of_a_dequantized_one() -> None:
    body = (
        "h = Relu(x)  p = MatMul(h, w)  s = ReduceSum<keepdims = 0>(x)  c = Cast<to = 9>(s)  "
        "z = If (c) <then_branch = g () => (float[N, 4] a) { a = Neg(h) }, else_branch = k () => (float[N, 4] b) "
        "{ b = Abs(h) }>  y = Add(p, z)"
    )
    model = stored({"Relu", "MatMul"}, body)
    assert reads(model, "MatMul", 0) == "DequantizeLinear"
    assert model.graph.values()["h"].producer.op == "Relu"  # type: ignore[union-attr]
    x = np.abs(X)
    (y,) = Session(model).run({"x": x}).values()
    assert np.abs(y - (x - x)).max() <= 1 / 255 + 1e-6
