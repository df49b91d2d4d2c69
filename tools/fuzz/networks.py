"""The networks that are mutated: the smallest of `models/`, and graphs of operators that trained networks seldom have."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from onnx import ModelProto

from onnxcomp.numerics.arrays import Array

__all__ = ["networks"]

MODELS = Path(__file__).resolve().parents[2] / "models"

SHIPPED = ("digits_mlp", "digits_resnet", "digits_lstm", "digits_vit")

Made: TypeAlias = Callable[[], tuple[ModelProto, dict[str, Array]]]

ODD = {
    "selection": """
        <ir_version: 9, opset_import: ["": 18]>
        net (float[N, 8] x) => (float[M, 8] y, int64[N] best) <float[8, 8] w> {
            h = MatMul(x, w)  s = ReduceSum<keepdims = 0>(h, last)  zero = Constant<value_float = 0.0>()
            c = Greater(s, zero)  y = Compress<axis = 0>(h, c)  best = ArgMax<axis = 1, keepdims = 0>(h)
        }""",
    "branches": """
        <ir_version: 9, opset_import: ["": 18]>
        net (float[N, 8] x) => (float[N, 8] y) <float[8, 8] w> {
            h = MatMul(x, w)  r = Relu(h)  s = ReduceSum<keepdims = 0>(x)  zero = Constant<value_float = 0.0>()
            c = Greater(s, zero)
            y = If (c) <then_branch = a () => (float[N, 8] p) { p = MatMul(r, w) },
                        else_branch = b () => (float[N, 8] q) { q = Neg(r) }>
        }""",
    "sizes": """
        <ir_version: 9, opset_import: ["": 20]>
        net (float[N, 2, 4] x) => (float[A, B] y) <float[8, 8] w, int64[1] first = {0}, int64[1] wide = {8}> {
            d = Shape(x)  n = Gather(d, first)  to = Concat<axis = 0>(n, wide)  f = Reshape(x, to)
            h = MatMul(f, w)  g = Gelu(h)  two = Expand(g, to)  y = Softmax(two)
        }""",
}


@cache
def networks() -> tuple[Made, ...]:
    """Return makers of a network and of samples for it, by input name; every call makes them anew."""
    shipped = [partial(_shipped, name) for name in SHIPPED if (MODELS / f"{name}.onnx").exists()]
    return (*shipped, *(partial(_odd, name) for name in ODD))


def _shipped(name: str) -> tuple[ModelProto, dict[str, Array]]:
    with np.load(MODELS / "digits_calibration.npz") as file:
        arrays = {key: file[key][:16] if file[key].ndim else file[key] for key in file.files}
    arrays.pop("labels", None)
    model = onnx.load(MODELS / f"{name}.onnx")
    wanted = {v.name for v in model.graph.input} | {"preprocess"}
    return model, {key: array for key, array in arrays.items() if key in wanted} or arrays


def _odd(name: str) -> tuple[ModelProto, dict[str, Array]]:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(ODD[name])
    made = {output for node in model.graph.node for output in node.output}
    for info in [v for v in model.graph.value_info if v.name not in made]:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, info.name))
        model.graph.value_info.remove(info)
    if name == "selection":
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "last"))
    return model, {"x": rng.normal(size=(16, 2, 4) if name == "sizes" else (16, 8)).astype(np.float32)}
