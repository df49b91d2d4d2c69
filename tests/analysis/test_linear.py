"""Linear nodes as matrices: `y = W x + b` on columns is what onnxruntime computes, and weights go in as they came out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.session import Session
from onnxcomp.testing import assert_equal_outputs, assert_valid, fingerprint
from tests.support.text import net

Array = NDArray[Any]

NODES = {
    "conv": ("N,4,6,6", "Conv<pads=[1,1,1,1]>(x, w, q)", "float[5,4,3,3] w, float[5] q"),
    "conv-no-bias": ("N,4,6,6", "Conv(x, w)", "float[5,4,3,3] w"),
    "conv-strided": (
        "N,4,7,5",
        "Conv<strides=[2,1], dilations=[1,2], pads=[0,2,1,1]>(x, w, q)",
        "float[3,4,2,3] w, float[3] q",
    ),
    "conv-same-upper": ("N,4,6,5", 'Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', "float[5,4,3,2] w"),
    "conv-same-lower": ("N,4,6,5", 'Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', "float[5,4,3,2] w"),
    "conv-valid": ("N,4,6,6", 'Conv<auto_pad="VALID">(x, w)', "float[5,4,3,3] w"),
    "conv-grouped": ("N,4,6,6", "Conv<group=2>(x, w, q)", "float[6,2,3,3] w, float[6] q"),
    "conv-depthwise": ("N,4,6,6", "Conv<group=4, pads=[1,1,1,1]>(x, w, q)", "float[8,1,3,3] w, float[8] q"),
    "conv-1d": ("N,4,9", "Conv<strides=[2]>(x, w, q)", "float[5,4,3] w, float[5] q"),
    "conv-3d": ("N,2,4,5,3", "Conv<pads=[1,0,0,0,1,1]>(x, w, q)", "float[5,2,2,3,2] w, float[5] q"),
    "spread": ("N,4,5,5", "ConvTranspose(x, w, q)", "float[4,5,3,3] w, float[5] q"),
    "spread-strided": (
        "N,4,5,4",
        "ConvTranspose<strides=[2,3], pads=[1,0,1,2], output_padding=[1,2]>(x, w, q)",
        "float[4,5,3,4] w, float[5] q",
    ),
    "spread-dilated": (
        "N,4,5,4",
        "ConvTranspose<strides=[2,1], dilations=[1,2]>(x, w)",
        "float[4,3,2,3] w",
    ),
    "spread-same-upper": (
        "N,4,5,4",
        'ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(x, w, q)',
        "float[4,5,3,3] w, float[5] q",
    ),
    "spread-same-lower": (
        "N,4,5,4",
        'ConvTranspose<strides=[2,2], auto_pad="SAME_LOWER">(x, w, q)',
        "float[4,5,3,3] w, float[5] q",
    ),
    "spread-to-shape": (
        "N,4,5,4",
        "ConvTranspose<strides=[2,2], output_shape=[10,8]>(x, w, q)",
        "float[4,5,3,3] w, float[5] q",
    ),
    "spread-1d": ("N,4,6", "ConvTranspose<strides=[2]>(x, w, q)", "float[4,5,4] w, float[5] q"),
    "gemm": ("N,6", "Gemm(x, w, q)", "float[6,5] w, float[5] q"),
    "gemm-transposed": ("N,6", "Gemm<transB=1>(x, w, q)", "float[5,6] w, float[1,5] q"),
    "gemm-scaled": ("N,6", "Gemm<alpha=0.5, beta=3.0>(x, w, q)", "float[6,5] w, float[5] q"),
    "gemm-scaled-transposed": (
        "N,6",
        "Gemm<alpha=-2.0, beta=0.25, transB=1>(x, w, q)",
        "float[5,6] w, float[5] q",
    ),
    "gemm-scalar-bias": ("N,6", "Gemm<beta=2.0>(x, w, q)", "float[6,5] w, float[1] q"),
    "gemm-no-bias": ("N,6", "Gemm<alpha=2.0>(x, w)", "float[6,5] w"),
    "matmul": ("N,6", "MatMul(x, w)", "float[6,5] w"),
    "matmul-sequence": ("N,3,6", "MatMul(x, w)", "float[6,5] w"),
    "matmul-heads": ("N,2,3,6", "MatMul(x, w)", "float[6,5] w"),
    "matmul-left": ("N,6,7", "MatMul(w, x)", "float[5,6] w"),
    "matmul-left-deep": ("N,2,6,7", "MatMul(w, x)", "float[5,6] w"),
}
BIASED = [name for name in NODES if not name.startswith("matmul")]


def single(name: str) -> tuple[Model, LinearNode]:
    shape, call, stored = NODES[name]
    out = ",".join(f"d{axis}" for axis in range(len(shape.split(","))))
    model = parse_model(net(f"(float[{shape}] x) => (float[{out}] y)", stored, f"y = {call}"))
    linear = linear_node(model.graph.nodes[0])
    assert linear is not None
    return model, linear


def values(model: Model, batch: int = 3) -> tuple[Array, Array]:
    shape = [s if isinstance(s, int) else batch for s in model.graph.inputs[0].shape]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return x, Session(model, optimize=False, threads=1).run({"x": x})["y"]


def computed(linear: LinearNode, columns: Array) -> Array:
    """`W x + b` in columns `[g, o, n]`."""
    matrix = linear.matrix()
    product: Array = matrix @ columns + linear.bias().reshape(*matrix.shape[:2], 1)
    return product


@pytest.mark.parametrize("name", NODES)
def test_weight_and_bias_on_columns_are_what_the_node_computes(name: str) -> None:
    model, linear = single(name)
    x, y = values(model)
    columns = linear.columns_in(x, None)
    total = linear.positions(x)
    assert columns.shape[2] == len(x) * total
    np.testing.assert_allclose(computed(linear, columns), linear.columns_out(y, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NODES)
def test_sampled_columns_of_input_and_output_belong_together(name: str) -> None:
    model, linear = single(name)
    x, y = values(model)
    total = linear.positions(x)
    some = np.unique(np.random.default_rng(2).integers(0, total, 4))
    found, wanted = linear.columns_in(x, some), linear.columns_out(y, some)
    assert found.shape[2] == wanted.shape[2] == (len(x) * len(some))
    np.testing.assert_allclose(computed(linear, found), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NODES)
def test_what_comes_out_goes_in_again_and_nothing_changes(name: str) -> None:
    model, linear = single(name)
    other = model.clone()
    target = linear_node(other.graph.nodes[0])
    assert target is not None
    target.install(other, linear.matrix(), linear.bias() if linear.has_bias else None, "test")
    assert_valid(other, like=model)
    assert_equal_outputs(model, other, tolerance=1e-6)
    again = linear_node(other.graph.nodes[0])
    assert again is not None
    np.testing.assert_allclose(again.matrix(), linear.matrix(), rtol=1e-6)
    np.testing.assert_allclose(again.bias(), linear.bias(), rtol=1e-6)


@pytest.mark.parametrize("name", NODES)
def test_new_weights_and_a_new_bias_are_what_the_node_then_computes(name: str) -> None:
    model, linear = single(name)
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal(linear.matrix().shape)
    bias = rng.standard_normal(linear.bias().shape) if linear.has_bias else None
    mark = fingerprint(model)
    edited = model.clone()
    target = linear_node(edited.graph.nodes[0])
    assert target is not None
    target.install(edited, matrix, bias, "test")
    assert fingerprint(model) == mark, "clones share arrays, so none may be written into"
    x, y = values(edited)
    made = matrix @ linear.columns_in(x, None)
    if bias is not None:
        made += bias.reshape(*matrix.shape[:2], 1)
    np.testing.assert_allclose(made, linear.columns_out(y, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BIASED)
def test_weights_alone_leave_the_bias_as_it_is(name: str) -> None:
    model, linear = single(name)
    wanted = linear.bias()
    linear.install(model, linear.matrix(), None, "test")
    again = linear_node(model.graph.nodes[0])
    assert again is not None
    np.testing.assert_allclose(again.bias(), wanted, rtol=1e-6)


@pytest.mark.parametrize("name", NODES)
def test_picked_outputs_are_the_rows_of_the_weight(name: str) -> None:
    model, linear = single(name)
    x, y = values(model)
    count = len(linear.bias())
    rows = np.array([0, count - 1])
    picked = linear.pick_out(y, rows)
    whole = linear.columns_out(y, None).reshape(count, -1)
    axis = {"conv": 1, "spread": 1, "gemm": 1, "right": y.ndim - 1, "left": y.ndim - 2}[linear.layout]
    assert picked.shape == tuple(2 if a == axis else s for a, s in enumerate(y.shape))
    flat = computed(linear, linear.columns_in(x, None)).reshape(count, -1)
    np.testing.assert_allclose(flat[rows], whole[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.moveaxis(picked, axis, 0), np.moveaxis(y, axis, 0)[rows])


@pytest.mark.parametrize("name", NODES)
def test_the_axes_of_the_weight_are_those_of_inputs_and_outputs(name: str) -> None:
    _, linear = single(name)
    weight, (groups, out, _) = linear.weight_array(), linear.matrix().shape
    assert weight.shape[linear.out_axis] == groups * out
    kernel = weight.shape[2:]
    assert linear.matrix().shape[2] == weight.shape[linear.in_axis] * int(np.prod(kernel, dtype=int))


@pytest.mark.parametrize(
    ("product", "shape"), [("MatMul(x, w)", "6,5"), ("MatMul(w, x)", "5,6")], ids=["right", "left"]
)
def test_a_vector_is_one_column(product: str, shape: str) -> None:
    model = parse_model(net("(float[6] x) => (float[5] y)", f"float[{shape}] w", f"y = {product}"))
    linear = linear_node(model.graph.nodes[0])
    assert linear is not None
    x, y = values(model)
    assert (linear.positions(x), linear.columns_in(x, None).shape) == (1, (1, 6, 1))
    np.testing.assert_allclose(
        computed(linear, linear.columns_in(x, None)), linear.columns_out(y, None), rtol=1e-4
    )
    np.testing.assert_array_equal(linear.pick_out(y, np.array([0, 4])), y[[0, 4]])


def test_columns_of_channels_are_the_positions_of_the_input_itself() -> None:
    model, linear = single("conv-grouped")
    x, _ = values(model)
    whole = linear.channels_in(x, 4, np.random.default_rng(0))
    assert whole.shape == (2, 2, 3 * 36)
    np.testing.assert_array_equal(whole[1, 0, :36], x[0, 2].reshape(-1))
    some = np.sort(np.random.default_rng(0).choice(36, 2, replace=False))
    np.testing.assert_array_equal(
        linear.channels_in(x, 4, np.random.default_rng(0), 2)[0, 1],
        x[:, 1].reshape(3, -1)[:, some].reshape(-1),
    )


def test_a_shared_weight_is_left_to_its_other_reader() -> None:
    model = parse_model(
        net(
            "(float[N,4] x) => (float[N,4] y)",
            "float[4,4] w",
            "a = MatMul(x, w) r = Relu(a) y = MatMul(r, w)",
        )
    )
    before = model.graph.constants["w"].values.copy()
    linear = linear_node(model.graph.nodes[2])
    assert linear is not None
    linear.install(model, np.zeros((1, 4, 4)), None, "test")
    np.testing.assert_array_equal(model.graph.nodes[0].constant(1), before)
    np.testing.assert_array_equal(model.graph.nodes[2].constant(1), np.zeros((4, 4)))
    assert_valid(model)


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_new_weights_take_the_dtype_of_the_old(dtype: str) -> None:
    model = parse_model(net(f"({dtype}[N,4] x) => ({dtype}[N,3] y)", f"{dtype}[4,3] w", "y = Gemm(x, w)"))
    linear = linear_node(model.graph.nodes[0])
    assert linear is not None
    linear.install(model, np.ones((1, 3, 4)), np.ones(3), "test")
    assert_valid(model)
    assert {c.values.dtype for c in model.graph.constants.values()} == {linear.weight_array().dtype}


@pytest.mark.parametrize(
    ("signature", "stored", "body"),
    [
        ("(float[N,4] x) => (float[N,4] y)", "float[4] w", "y = Mul(x, w)"),
        ("(float[N,4] x, float[4,4] v) => (float[N,4] y)", "float[1] w", "y = MatMul(x, v)"),
        ("(float[N,4] x, float[4,4] v) => (float[N,4] y)", "float[1] w", "y = Gemm(x, v)"),
        ("(float[4,N] x) => (float[N,3] y)", "float[4,3] w", "y = Gemm<transA=1>(x, w)"),
        ("(float[N,4] x, float[3] v) => (float[N,3] y)", "float[4,3] w", "y = Gemm(x, w, v)"),
        ("(float[2,4] x) => (float[2,3] y)", "float[4,3] w, float[2,3] q", "y = Gemm(x, w, q)"),
        ("(float[2,3,4] x) => (float[2,3,5] y)", "float[2,4,5] w", "y = MatMul(x, w)"),
        ("(float[N,4] x) => (float[N] y)", "float[4] w", "y = MatMul(x, w)"),
        ("(float[N,2,4] x, float[3,2,1] v) => (float[N,3,4] y)", "float[1] w", "y = Conv(x, v)"),
        ("(float[N,2,4] x, float[3] v) => (float[N,3,4] y)", "float[3,2,1] w", "y = Conv(x, w, v)"),
        ("(int64[N,4] x) => (int64[N,1] y)", "float[1] q, int64[4,1] w = {1,2,3,4}", "y = MatMul(x, w)"),
    ],
)
def test_what_has_no_one_stored_float_matrix_is_no_linear_node(
    signature: str, stored: str, body: str
) -> None:
    model = parse_model(net(signature, stored, body))
    assert linear_node(model.graph.nodes[0]) is None


def test_a_node_of_another_domain_is_no_linear_node() -> None:
    model, linear = single("gemm")
    linear.node.domain = "com.example"
    assert linear_node(model.graph.nodes[0]) is None
