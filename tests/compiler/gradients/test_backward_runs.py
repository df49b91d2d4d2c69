"""Runs back through a network: what stops them is named, with what is not known for it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.compiler.gradients.backward_runs import (
    GradientError,
    RunSettings,
    note_stops,
    open_runs,
    own_size,
    size_between,
)
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from tests.support.pruning import context_for, noise
from tests.support.text import net

SETTINGS = RunSettings(own_size, lambda held: 24, 2**20)

CONVOLUTIONS = net(
    "(float[N,2,6,6] x) => (float[N,2,6,6] y)",
    "float[2,2,1,1] a, float[2,2,1,1] b, float[2,2,1,1] c",
    "h = Conv(x, a) i = Conv(h, b) s = Sin(i) y = Conv(s, c)",
)


def blocked(text: str, wanted: list[str]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...], list[str]]:
    """Return what blocks the values `wanted`, which of them are known, and the notes about it."""
    model = parse_model(text)
    runs = open_runs(model, wanted, default_shapes(model), context_for(model, noise(model, 24)), SETTINGS)
    log = PassLog()
    note_stops(runs.back, "they count alike", log)
    return dict(runs.back.blocked), runs.values, log.notes


def test_an_operator_without_a_rule_is_named_with_the_layers_that_lose_their_weighting() -> None:
    stops, known, (note,) = blocked(CONVOLUTIONS, ["h", "i", "y"])
    (sin,) = {stop for found in stops.values() for stop in found}
    assert set(stops) == {"h", "i"} and known == ("y",)
    assert sin.startswith("Sin")
    assert sin in note and "no gradient rule" in note and "they count alike" in note
    assert "'h', 'i'" in note and "'y'" not in note


def test_a_value_with_another_path_to_the_outputs_is_known_along_that_path_alone() -> None:
    text = net(
        "(float[N,4] x) => (float[N,4] y)", "float[4,4] a", "h = MatMul(x, a) s = Sin(h) y = Add(s, h)"
    )
    stops, known, (note,) = blocked(text, ["h"])
    assert set(stops) == {"h"} and known == ("h",)
    assert "only along other paths for 'h'" in note and "unknown" not in note


def test_where_every_operator_has_a_rule_nothing_is_noted() -> None:
    text = net("(float[N,4] x) => (float[N,4] y)", "float[4,4] a", "h = MatMul(x, a) y = Relu(h)")
    assert blocked(text, ["x", "h"]) == ({}, ("x", "h"), [])


def test_sizes_that_are_read_of_a_value_stop_no_gradient() -> None:
    text = net(
        "(float[N,4] x) => (float[N,4] y)",
        "float[4,4] a",
        "h = MatMul(x, a) s = Shape(h) z = ConstantOfShape(s) t = Sin(z) y = Add(h, t)",
    )
    assert blocked(text, ["h"]) == ({}, ("h",), [])


def refused(text: str, count: int = 24) -> str:
    model = parse_model(text)
    with pytest.raises(GradientError) as caught:
        open_runs(model, [], default_shapes(model), context_for(model, noise(model, count)), SETTINGS)
    return str(caught.value)


def test_too_few_samples_and_outputs_without_floats_are_reasons() -> None:
    assert "samples" in refused(CONVOLUTIONS, 5)
    whole = net(
        "(float[N,10] x) => (int64[N,1] y)", "float[10,8] a", "h = MatMul(x, a) y = ArgMax<axis=1>(h)"
    )
    assert "floats" in refused(whole)


def gradients(model: Model, batch: int) -> np.ndarray:
    """Return the derivatives by `h` of all samples, run `batch` at a time."""
    settings = RunSettings(size_between, lambda held: 24, 2**20, batch=batch)
    context = context_for(model, noise(model, 30))
    runs = open_runs(model, ["h"], default_shapes(model), context, settings)
    parts = list(runs.run(lambda found: found.gradient(0)))
    assert sum(count for count, _ in parts) == 24
    return np.concatenate([part for _, part in parts])


def test_a_sample_has_the_same_direction_in_whichever_batch() -> None:
    model = parse_model(
        net(
            "(float[N,4] x) => (float[N,3] y)",
            "float[4,4] a, float[4,3] b",
            "h = MatMul(x, a) y = MatMul(h, b)",
        )
    )
    np.testing.assert_allclose(gradients(model, 24), gradients(model, 5), rtol=1e-5, atol=1e-7)
