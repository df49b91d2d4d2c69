"""Weights that are stored in integers behind Cast and Mul are taken as weights."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.integer_rewrites.stored_weights import fold_stored
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.session import Session
from tests.support.text import net

STORED = "int8[2,3] q = {1, -2, 3, 127, 0, -128}, float[3] s, int8[2,3] z = {1, 1, 1, 1, 1, 1}, float[2] r"
X = np.random.default_rng(5).normal(size=(4, 2)).astype(np.float32)


def model_of(body: str) -> Model:
    model = parse_model(net("(float[N,2] x) => (float[N,O] y)", STORED, body))
    for node in model.graph.nodes:
        node.name = node.output.name
    return model


@pytest.mark.parametrize(
    "body",
    [
        "c = Cast<to = 1>(q) w = Mul(c, s) y = MatMul(x, w)",
        "c = Cast<to = 1>(q) d = Cast<to = 1>(z) e = Sub(c, d) w = Mul(e, s) y = MatMul(x, w)",
        "c = Cast<to = 1>(q) w = Mul(c, s) t = Transpose(w) y = Gemm<transB = 1>(x, t)",
    ],
)
def test_a_weight_computed_from_integers_becomes_one_that_products_take(body: str) -> None:
    model = model_of(body)
    before = Session(model).run({"x": X})["y"]
    log = PassLog()
    fold_stored(model, (), log)
    (product,) = model.graph.nodes
    assert linear_node(product) is not None
    assert np.array_equal(Session(model).run({"x": X})["y"], before)
    assert "q" not in model.graph.constants
    assert [change.where for change in log.changes] == ["y"]


def test_what_hangs_on_an_input_or_is_left_alone_stays() -> None:
    hanging = "c = Cast<to = 1>(q) h = MatMul(x, c) t = Transpose(h) w = Mul(t, t) y = MatMul(w, h)"
    model = model_of(hanging)
    fold_stored(model, {"h"}, PassLog())
    assert [node.op for node in model.graph.nodes] == ["Cast", "MatMul", "Transpose", "Mul", "MatMul"]


def test_floats_that_are_computed_from_floats_are_left_to_constant_folding() -> None:
    model = model_of("c = Mul(r, r) y = MatMul(x, c)")
    fold_stored(model, (), PassLog())
    assert len(model.graph.nodes) == 2


def test_integers_that_another_node_reads_stay_for_it() -> None:
    model = model_of("c = Cast<to = 1>(q) w = Mul(c, s) m = MatMul(x, w) y = Add(m, s) k = Relu(w)")
    fold_stored(model, (), PassLog())
    assert "q" in model.graph.constants
