"""The context of a pass: shapes observed once, samples or a refusal, settings for every session."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from onnxcomp.compiler import context as module
from onnxcomp.compiler.context import Context
from onnxcomp.errors import PreconditionError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime import observe

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4] x) => (float[N, A] y) <float[2, 4] w, int64[2] to = {2, 2}> {
    h = Gemm <transB = 1> (x, w)
    y = Reshape (h, to)
}
"""


def test_shapes_are_observed_once_until_something_that_shapes_depend_on_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Model] = []
    real = observe.observe_shapes

    def counted(model: Model, *given: Any, **how: Any) -> dict[str, tuple[int, ...]]:
        seen.append(model)
        return real(model, *given, **how)

    monkeypatch.setattr(observe, "observe_shapes", counted)
    model = parse_model(TEXT)
    context = Context(model, input_shapes={"x": (2, 4)}, threads=1)
    assert context.shapes(model)["h"] == (2, 2)
    assert context.shapes(model.clone())["y"] == (2, 2)
    assert len(seen) == 1
    edited = model.clone()
    node = next(n for n in edited.graph.nodes if n.op == "Reshape")
    edited.graph.set_constant(node, 1, np.array([1, 4]))
    assert context.shapes(edited)["y"] == (1, 4)
    assert replace(context, input_shapes={"x": (1, 4)}).shapes(model)["h"] == (1, 2)
    assert len(seen) == 3
    for width in range(module.REMEMBERED + 3):
        replace(context, input_shapes={"x": (width + 4, 4)}).shapes(model)
    assert len(context._shapes) == module.REMEMBERED, "a bound on what is remembered"


def test_what_is_returned_may_be_edited_without_harm_to_the_next_asker() -> None:
    model = parse_model(TEXT)
    context = Context(model, input_shapes={"x": (2, 4)}, threads=1)
    context.shapes(model).clear()
    assert context.shapes(model)


def test_samples_that_are_not_there_are_asked_for() -> None:
    with pytest.raises(PreconditionError, match="calibration samples"):
        _ = Context(parse_model(TEXT)).samples


def test_a_context_is_not_edited() -> None:
    context = Context(parse_model(TEXT))
    with pytest.raises(FrozenInstanceError):
        context.damaged = True  # type: ignore[misc]


def test_a_session_has_the_settings_of_the_run() -> None:
    model = parse_model(TEXT.replace("float[2, 4] w", "float[2, 4] w = {1, 1, 1, 1, 2, 2, 2, 2}"))
    context = Context(model, threads=1)
    assert context.runtime == {"threads": 1, "custom_op_libs": ()}
    found = context.session(model).run({"x": np.ones((2, 4), np.float32)})
    assert found["y"].tolist() == [[4, 8], [4, 8]]
