"""A product in integers and one operator behind it: OpenVINO gives for the written file what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.shape_inference import infer_shapes

from onnxcomp.compiler.target.files import load_target
from onnxcomp.compiler.target.lint import check_target
from onnxcomp.ir.parse import parse_model
from onnxcomp.ir.proto import from_proto, to_proto
from onnxcomp.runtime.session import Session
from tests.support.quantizing import quantized
from tests.support.text import net

openvino: Any = pytest.importorskip("openvino", reason="OpenVINO is not installed")

PRODUCTS = {
    "MatMul": ("float[N,12,32] x", "float[32,32] w", "f = MatMul(x, w)", (12, 32)),
    "Conv": ("float[N,16,6,6] x", "float[32,16,1,1] w", "f = Conv(x, w)", (16, 6, 6)),
}
# ReduceL1 and ReduceLogSumExp go wrong in OpenVINO 2026.4 in networks of floats, too.
REDUCED = [f"Reduce{kind}" for kind in ("Max", "Mean", "Min", "L2", "SumSquare", "Prod")]
BEHIND = {
    **{op: f"p = {op} <axes=[1], keepdims=0> (f)" for op in REDUCED},
    "ReduceMax of the last axis": "p = ReduceMax <axes=[-1], keepdims=0> (f)",
    "ReduceSum": "p = ReduceSum <keepdims=0> (f, one)",
    **{
        op: f"p = {op}(f)"
        for op in (
            "Sigmoid",
            "Tanh",
            "LeakyRelu",
            "Relu",
            "Softmax",
            "Abs",
            "Neg",
            "Exp",
            "Erf",
            "Floor",
            "Flatten",
            "HardSwish",
            "Softplus",
            "Elu",
        )
    },
    "Transpose": "p = Transpose(f)",
    "Concat of one": "c = Concat <axis=1> (f) r = Relu(c) p = Concat <axis=1> (r, f)",
    "Concat of itself": "p = Concat <axis=1> (f, f)",
    "Slice": "p = Slice(f, zero, two, one)",
    "Split": "p, q = Split <axis=1> (f)",
    "Add": "p = Add(f, f)",
    "Mul": "p = Mul(f, f)",
    "Sub": "p = Sub(f, s)",
    "Clip": "p = Clip(f, low, high)",
    "ArgMax": "a = ArgMax <axis=1> (f) p = Cast <to=1> (a)",
    "CumSum": "p = CumSum(f, axis)",
    "Gather": "p = Gather <axis=1> (f, two)",
}
ALSO = ", int64[1] one = {1}, int64[1] zero = {0}, int64[1] two = {2}, int64 axis = {1}, float s = {0.5}, float low = {-1.0}, float high = {1.0}"
FEW = {
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "ReduceMax of the last axis",
    "Concat of one",
    "Add",
    "Softmax",
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    "behind", [b if b in FEW else pytest.param(b, marks=pytest.mark.slow) for b in BEHIND]
)
def test_openvino_gives_what_onnxruntime_gives(product: str, behind: str) -> None:
    given, weight, made, sizes = PRODUCTS[product]
    rng = np.random.default_rng(0)
    shape = (32, 32) if product == "MatMul" else (32, 16, 1, 1)
    uneven = np.exp(rng.standard_normal((1, 32) if product == "MatMul" else (32, 1, 1, 1)))
    weights = {"w": (rng.standard_normal(shape) * 0.2 * uneven).astype(np.float32)}
    model = parse_model(net(f"({given}) => (float p)", weight + ALSO, f"{made} {BEHIND[behind]}"), weights)
    # The sizes behind each operator are what inference says.
    proto = to_proto(model)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto = infer_shapes(proto)
    del proto.graph.value_info[:]
    model = from_proto(proto)
    feeds = {"x": rng.standard_normal((32, *sizes)).astype(np.float32)}
    found = quantized(model, feeds, "openvino", observer="minmax", rounding="nearest").model
    assert not [f for f in check_target(found, load_target("openvino")) if f.hard]
    core = openvino.Core()
    data = to_proto(found).SerializeToString()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    few = {"x": feeds["x"][:4]}
    (theirs,) = core.compile_model(core.read_model(data), "CPU", options)(few).values()
    ours = Session(found, optimize=False, threads=1).run(few)["p"].astype(np.float64)
    gap = ours - theirs
    assert np.square(gap).sum() <= 1e-4 * np.square(ours).sum(), [(n.op, n.name) for n in found.graph.nodes]
