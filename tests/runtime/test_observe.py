"""Concrete shapes of values: inferred where that is possible, observed where not."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime import observe
from onnxcomp.runtime.observe import observe_shapes

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net '
OPEN = (
    HEAD + "(float[N, 4] x) => (float[M, 4] y) { z = NonZero (x)  t = Transpose (z)  y = Cast <to = 1> (t) }"
)


def test_inference_at_concrete_sizes_needs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "Session", None)
    model = parse_model(
        HEAD + "(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { h = Relu (x) y = MatMul (h, w) }"
    )
    shapes = observe_shapes(model, {"x": np.ones((5, 4), np.float32)})
    assert shapes == {"x": (5, 4), "h": (5, 4), "y": (5, 3), "w": (4, 3)}
    assert observe_shapes(model, {}, sizes={"x": (2, 4)})["y"] == (2, 3)


def test_what_inference_leaves_open_is_seen_by_running() -> None:
    shapes = observe_shapes(parse_model(OPEN), {"x": np.eye(4, dtype=np.float32)})
    assert shapes["z"] == (2, 4)
    assert shapes["t"] == shapes["y"] == (4, 2)


def test_more_open_values_than_fit_into_one_run_are_all_seen() -> None:
    chain = " ".join(f"v{i + 1} = Abs (v{i})" for i in range(40))
    text = (
        f"(float[N, 4] x) => (float[M] y) {{ z = NonZero (x) v0 = Cast <to = 1> (z) {chain} y = Abs (v40) }}"
    )
    shapes = observe_shapes(parse_model(HEAD + text), {"x": np.eye(4, dtype=np.float32)})
    assert {shapes[f"v{i}"] for i in range(41)} == {(2, 4)}


def test_only_what_is_wanted_makes_a_run_necessary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "Session", None)
    shapes = observe_shapes(parse_model(OPEN), {"x": np.eye(4, dtype=np.float32)}, wanted={"x"})
    assert "z" not in shapes


def test_a_model_that_does_not_run_leaves_open_what_inference_does() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "my.own" : 1]> net '
    text += "(float[N, 4] x) => (float[N, 4] y) { a = my.own.Magic (x)  y = Relu (a) }"
    assert observe_shapes(parse_model(text), {"x": np.ones((2, 4), np.float32)}).keys() == {"x"}
