"""What is computed from constants is no value to store, and weights that stay float are told of."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.compiler.integer_rewrites.float_reasons import stored_floats
from onnxcomp.compiler.quantization.placement import Placement, place
from onnxcomp.compiler.target.files import load_target
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.observe import observe_shapes
from tests.support.text import net

CPU = load_target("ort-cpu")


def model_of(body: str, weights: str = "float[32,64] w, float[64] s") -> Model:
    model = parse_model(net("(float[N,32] x, bool b) => (float[N,M] y)", weights, body))
    for node in model.graph.nodes:
        node.name = node.output.name
    return model


def placed(model: Model) -> Placement:
    feeds = {"x": np.zeros((1, 32), np.float32), "b": np.array(True)}
    return place(model, CPU, observe_shapes(model, feeds), lambda node: None)


def test_a_weight_computed_from_constants_is_not_stored_at_run_time() -> None:
    found = placed(model_of("v = Mul(w, s) y = MatMul(x, v)"))
    assert not found.nodes
    assert not found.values
    assert found.reasons == {"y": "'v' is computed from constants alone; run fold-constants first"}


def test_a_product_of_two_values_is_still_placed() -> None:
    found = placed(model_of("h = MatMul(x, w) t = Transpose(h) y = MatMul(h, t)"))
    assert "h" in found.nodes
    assert "constants" not in found.reasons.get("y", "")


LSTM = "int64[1] zero = {0}, float[1,128,32] w, float[1,128,32] r"

BRANCH = "{0} => (float[N,64] {1}) {{ {1} = MatMul(x, w) }}"
IF = f"y = If(b) <then_branch = {BRANCH.format('a ()', 'p')}, else_branch = {BRANCH.format('c ()', 'q')}>"


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        (
            "u = Unsqueeze(x, zero) y = LSTM<hidden_size = 32>(u, w, r)",
            LSTM,
            "ort-cpu computes LSTM in float, with the weights 'w', 'r'",
        ),
        (
            IF,
            "float[32,64] w",
            "its 2,048 weights are in branches (2 MatMul), and only the main graph is quantized",
        ),
        ("y = Mul(x, w)", "float[40,32] w", "the constant 'w' would lose digits"),
        ("y = Max(x, w)", "float[40,32] w", "ort-cpu computes Max in float, with the weights 'w'"),
    ],
)
def test_a_node_with_weights_that_stay_float_is_told_of(body: str, weights: str, reason: str) -> None:
    model = model_of(body, weights)
    assert [*stored_floats(model, CPU, {}, ()).values()] == [reason]
    (name,) = stored_floats(model, CPU, {}, ())
    assert stored_floats(model, CPU, {name: "it is excluded"}, ()) == {name: "it is excluded"}
    assert not stored_floats(model, CPU, {}, {name})


def test_small_constants_are_not_worth_a_word() -> None:
    assert not stored_floats(model_of("y = Mul(x, w)", "float[4,32] w"), CPU, {}, ())
    assert not stored_floats(model_of("y = Mul(x, w)", "float[1,2048] w"), CPU, {}, ())
