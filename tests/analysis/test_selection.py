"""Which values lie behind a selection of rows by the data, and which only look like it."""

from __future__ import annotations

import pytest

from onnxcomp.analysis.selection import behind_selection, selected_values
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.inputs import noise
from onnxcomp.runtime.observe import observe_shapes
from tests.support.text import net


def selected(signature: str, weights: str, body: str, **sizes: tuple[int, ...]) -> frozenset[str]:
    model = parse_model(net(signature, weights, body))
    return selected_values(model, lambda m: observe_shapes(m, noise(m, sizes, 0)))


ROWS = "(float[N,4] x) => (float[R,3] y)"
CASES = {
    "Compress": (
        ROWS,
        "float[4,3] w",
        "best = ReduceMax <axes=[1], keepdims=0> (x) c = Greater(best, w0) s = Compress <axis=0> (x, c) y = MatMul(s, w)",
    ),
    "NonZero": (
        ROWS,
        "float[4,3] w",
        "best = ReduceMax <axes=[1], keepdims=0> (x) c = Greater(best, w0) n = NonZero(c) t = Transpose(n) s = GatherND(x, t) y = MatMul(s, w)",
    ),
    "TopK over the batch": (
        ROWS,
        "float[4,3] w",
        "best = ReduceMax <axes=[1], keepdims=0> (x) v, i = TopK <axis=0> (best, k) s = Gather <axis=0> (x, i) y = MatMul(s, w)",
    ),
    "a size that was counted": (
        ROWS,
        "float[4,3] w",
        "f = Greater(x, w0) g = Cast <to=7> (f) n = ReduceSum <keepdims=1> (g) m = Clip(n, one) s = Slice(x, zero, m, zero) y = MatMul(s, w)",
    ),
}
STORED = ", float w0 = {0.0}, int64[1] k = {1}, int64 one = {1}, int64[1] zero = {0}"


@pytest.mark.parametrize("name", CASES)
def test_what_follows_from_a_selection_is_behind_it_and_what_comes_before_is_not(name: str) -> None:
    signature, weights, body = CASES[name]
    body = body.replace("m = Clip(n, one)", "q = Identity(one) u = Reshape(n, zero1) m = Max(u, k)")
    found = selected(signature, weights + STORED + ", int64[1] zero1 = {-1}", body, x=(2, 4))
    assert {"s", "y"} <= found
    assert found.isdisjoint({"x", "best", "c", "f", "g", "w"})


PER_SAMPLE = {
    "TopK in each sample": "y, i = TopK <axis=1> (x, k)",
    "a size of a size": "h = Shape(x) r = Reshape(x, h) y = MatMul(r, w)",
    "NonZero of sizes": "h = Shape(x) o = ConstantOfShape(h) n = NonZero(o) z = Cast <to=1> (n) q = ReduceSum <keepdims=0> (z) y = Add(x, q)",
    "a scatter into all rows": "f = Greater(x, w0) n = NonZero(f) t = Transpose(n) v = GatherND(x, t) y = ScatterND(x, t, v)",
}


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_what_has_the_same_rows_whatever_the_data_say_is_not_behind_a_selection(name: str) -> None:
    found = selected("(float[N,4] x) => (float[N,C] y)", "float[4,4] w" + STORED, PER_SAMPLE[name], x=(2, 4))
    assert "y" not in found


def test_a_node_that_reads_or_makes_such_a_value_is_behind_it() -> None:
    model = parse_model(net("(float[N,4] x) => (float[N,4] y)", "", "h = Relu(x) y = Neg(h)"))
    first, second = model.graph.nodes
    assert behind_selection(first, frozenset({"h"})) and behind_selection(second, frozenset({"h"}))
    assert not behind_selection(first, frozenset({"y"}))


def test_models_without_such_an_operator_are_not_observed() -> None:
    model = parse_model(net("(float[N,4] x) => (float[N,4] y)", "", "y = Relu(x)"))

    def never(_: object) -> dict[str, tuple[int, ...]]:
        raise AssertionError

    assert selected_values(model, never) == frozenset()
