"""What a network costs, against counts by hand and against onnxruntime's own shapes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.analysis.cost import model_cost, node_macs, weight_elements
from onnxcomp.analysis.cutcost import CutCost
from onnxcomp.ir.graph import Constant
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import random_keep
from tests.support.text import net


@pytest.mark.parametrize(
    ("node", "stored", "shape", "macs"),
    [
        ("y = Conv<pads=[1,1,1,1]>(x, w)", "float[5,4,3,3] w", "N,5,6,6", 36 * 5 * 4 * 9),
        ("y = Conv<strides=[2,2]>(x, w, q)", "float[5,4,2,2] w, float[5] q", "N,5,3,3", 9 * 5 * 4 * 4),
        ("y = Conv<group=2>(x, w)", "float[6,2,1,1] w", "N,6,6,6", 36 * 6 * 2),
        ("y = Conv<group=4, pads=[1,1,1,1]>(x, w)", "float[8,1,3,3] w", "N,8,6,6", 36 * 8 * 9),
        ("y = ConvTranspose<strides=[2,2]>(x, w)", "float[4,5,2,2] w", "N,5,12,12", 36 * 4 * 5 * 4),
        ("y = ConvTranspose<group=2, strides=[2,2]>(x, w)", "float[4,3,2,2] w", "N,6,12,12", 36 * 4 * 3 * 4),
        ("y = MatMul(x, w)", "float[6,7] w", "N,4,6,7", 4 * 6 * 6 * 7),
        ("y = MatMul(w, x)", "float[7,6] w", "N,4,7,6", 4 * 7 * 6 * 6),
        ("f = Flatten(x) y = Gemm(f, w)", "float[144,5] w", "N,5", 144 * 5),
        ("f = Flatten(x) y = Gemm<transB=1>(f, w)", "float[5,144] w", "N,5", 144 * 5),
        ("f = Flatten(x) t = Transpose(f) y = Gemm<transA=1>(t, w)", "float[144,5] w", "N,5", 144 * 5),
        ("y = Relu(x)", "float[1] unread", "N,4,6,6", 0),
    ],
)
def test_multiply_accumulates_of_one_sample_are_those_of_the_definition(
    node: str, stored: str, shape: str, macs: int
) -> None:
    model = parse_model(net(f"(float[N,4,6,6] x) => (float[{shape}] y)", stored, node))
    assert model_cost(model, default_shapes(model)).macs == macs


def test_recurrent_layers_count_their_input_and_their_state() -> None:
    text = net(
        "(float[5,1,3] x) => (float[5,1,1,4] a, float[5,2,1,4] b)",
        "float[1,16,3] w, float[1,16,4] r, float[2,12,3] v, float[2,12,4] s",
        'a = LSTM<hidden_size=4>(x, w, r) b = GRU<hidden_size=4, direction="bidirectional">(x, v, s)',
    )
    model = parse_model(text)
    one_way, both_ways = (node_macs(node, default_shapes(model)) for node in model.graph.nodes)
    assert one_way == 5 * (16 * 3 + 16 * 4)
    assert both_ways == 5 * 2 * (12 * 3 + 12 * 4)


def test_the_free_first_axis_counts_once_and_unknown_shapes_count_nothing() -> None:
    text = net("(float[N,6] x) => (float[N,5] y)", "float[6,5] w", "y = Gemm(x, w)")
    model = parse_model(text)
    assert model_cost(model, default_shapes(model)).macs == 30
    assert model_cost(model, {}).macs == 0
    assert model_cost(model, None).macs is None


def test_parameters_are_weights_and_not_the_shapes_that_lie_beside_them() -> None:
    text = net(
        "(float[N,6] x) => (float[N,5] y)",
        "float[6,5] w, float[5] q, int64[2] shape = {0,6}, bool flag = {1}",
        "r = Reshape(x, shape) y = Gemm(r, w, q)",
    )
    cost = model_cost(parse_model(text), None)
    assert (cost.nodes, cost.parameters, cost.bytes) == (2, 35, 4 * 35 + 8 * 2 + 1)


@pytest.mark.parametrize(
    ("dtype", "counts"),
    [
        ("float32", 3),
        ("float16", 3),
        ("int8", 3),
        ("uint8", 3),
        ("int32", 3),
        ("int64", 0),
        ("bool", 0),
        ("object", 0),
    ],
)
def test_quantized_tensors_are_weights_and_indices_are_not(dtype: str, counts: int) -> None:
    assert weight_elements(Constant("c", np.zeros(3, dtype))) == counts


@pytest.mark.parametrize("seed", range(4))
def test_what_a_cut_will_cost_is_foretold_exactly(seed: int) -> None:
    model = parse_model(
        net(
            "(float[N,3,8,8] x) => (float[N,5] y)",
            "float[8,3,3,3] a, float[8] p, float[8,1,1] s, float[12,4,3,3] b, float[6,12,1,1] c, float[384,7] d,"
            " float[1,7] q, float[7,5] e, float[5] z, int64[2] rest = {-1,384}",
            "h = Conv<pads=[1,1,1,1]>(x, a, p) r = PRelu(h, s) i = Conv<pads=[1,1,1,1], group=2>(r, b) j = Conv(i, c)"
            " f = Reshape(j, rest) k = Gemm(f, d, q) y = Gemm(k, e, z)",
        )
    )
    shapes = default_shapes(model)
    groups = channel_groups(model, shapes)
    keep = random_keep(groups, seed)
    assert set(keep) == {"h", "i", "j", "k"}
    foretold = CutCost(model, groups, shapes).count(keep)
    groups.take(model, keep)
    after = model_cost(model, default_shapes(model))
    assert foretold == (after.parameters, after.macs)
