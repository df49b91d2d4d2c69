"""Sizes for inputs that declare none, and noise of these sizes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime import inputs
from onnxcomp.runtime.inputs import FREE_SIZES, candidate_shapes, noise, runnable_shapes
from onnxcomp.runtime.session import Session
from tests.support.text import net

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net '
FREE = parse_model(HEAD + "(float[N, 3, H, W] x, int64[N] n) => (float[N, 3, H, W] y) { y = Relu (x) }")


def test_a_free_first_axis_is_one_and_other_free_axes_are_tried_in_turn() -> None:
    shapes = list(candidate_shapes(FREE, {}))
    assert [s["x"] for s in shapes] == [(1, 3, size, size) for size in FREE_SIZES]
    assert {s["n"] for s in shapes} == {(1,)}


def test_known_sizes_give_one_candidate() -> None:
    model = parse_model(HEAD + "(float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }")
    assert list(candidate_shapes(model, {})) == [{"x": (2, 3)}]


def test_what_is_known_to_run_comes_first_unless_it_contradicts() -> None:
    first = {"x": (1, 3, 7, 9), "n": (1,)}
    assert next(candidate_shapes(FREE, first)) == first
    assert next(candidate_shapes(FREE, {"x": (1, 4, 7, 9), "n": (1,)})) != first
    assert next(candidate_shapes(FREE, {"x": (1, 3, 7, 9)}))["x"] == (1, 3, 64, 64)


def test_noise_is_normal_for_floats_zero_or_one_for_the_rest_and_the_same_for_a_seed() -> None:
    shapes = {"x": (1, 3, 40, 40), "n": (50,)}
    one, same, other = (noise(FREE, shapes, seed) for seed in (1, 1, 2))
    assert one["x"].dtype == np.float32
    assert abs(float(one["x"].mean())) < 0.1
    assert abs(float(one["x"].std()) - 1) < 0.1
    assert set(one["n"].tolist()) == {0, 1}
    np.testing.assert_array_equal(one["x"], same["x"])
    assert not np.array_equal(one["x"], other["x"])


def test_sizes_that_would_fill_the_memory_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse_model(HEAD + "(float[2, 300] x) => (float[2, 300] y) { y = Relu (x) }")
    session = Session(model)
    assert runnable_shapes(model, session, {}, 0) == {"x": (2, 300)}
    monkeypatch.setattr(inputs, "_FEED_LIMIT", 500)
    assert runnable_shapes(model, session, {}, 0) is None


def test_a_scalar_that_the_graph_compares_with_a_number_is_that_number() -> None:
    text = "(float[N,4] x, int64 rate) => (float[N,4] y)"
    body = "same = Equal(rate, wanted) z = Neg(x) y = Where(same, x, z)"
    model = parse_model(net(text, "int64 wanted = {16000}", body))
    assert noise(model, {"x": (1, 4), "rate": ()}, 0)["rate"] == 16000
