"""Weights of output errors: what they say is what errors really do to the outputs, to the first order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.compiler.factorization.candidates import find_places
from onnxcomp.compiler.gradients.output_curvature import ALIKE, output_weights
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from tests.support.pruning import context_for, noise
from tests.support.text import net

SAMPLES = 64


def weights(model: Model, count: int = SAMPLES, **given: Any) -> dict[str, Any]:
    shapes = default_shapes(model)
    ops = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    found = find_places(model, ops, lambda name: None, shapes, PassLog())
    context = context_for(model, noise(model, count), **given)
    return output_weights(model, [place.node for place in found], context, shapes, PassLog())


def chain(c: Any = None) -> Model:
    return parse_model(
        net(
            "(float[N,10] x) => (float[N,5] y)",
            "float[10,8] a, float[8] p, float[8,5] c",
            "h = Gemm(x, a, p) y = MatMul(h, c)",
        ),
        None if c is None else {"c": c},
    )


def even(matrix: Any) -> Any:
    """A matrix of mean diagonal 1, mixed with the identity as the weights are."""
    scaled = matrix / np.trace(matrix) * len(matrix)
    return (scaled + ALIKE * np.eye(len(matrix))) / (1 + ALIKE)


def test_of_a_linear_end_the_weight_is_its_own_square() -> None:
    rng = np.random.default_rng(0)
    last = rng.standard_normal((8, 5)).astype(np.float32)
    found = weights(chain(last), 64)
    assert set(found) == {"h", "y"}
    assert found["h"].shape == (1, 8, 8)
    # The mean of g g' with g = C v, over few random directions v: near C C', and of its rank and its columns.
    wanted = even(last.astype(np.float64) @ last.T)
    assert np.abs(found["h"][0] - wanted).max() < 0.35 * np.abs(wanted).max()
    blind = np.linalg.svd(last.T)[2][5:]
    np.testing.assert_allclose(blind @ found["h"][0] @ blind.T, ALIKE / (1 + ALIKE) * np.eye(3), atol=1e-5)


def test_weights_are_symmetric_positive_and_of_mean_one() -> None:
    model = parse_model(
        net(
            "(float[N,3,8,8] x) => (float[N,5] y)",
            "float[12,3,3,3] a, float[8,6,3,3] b, float[8] q, float[8,5] c",
            "h = Conv(x, a) k = Relu(h) i = Conv<group=2>(k, b, q) l = Relu(i) g = GlobalAveragePool(l) f = Flatten(g)"
            " y = MatMul(f, c)",
        )
    )
    found = weights(model)
    assert {name: w.shape for name, w in found.items()} == {"h": (1, 12, 12), "i": (2, 4, 4), "y": (1, 5, 5)}
    for weight in found.values():
        np.testing.assert_allclose(weight, weight.transpose(0, 2, 1), atol=1e-9)
        assert np.linalg.eigvalsh(weight).min() > 0.9 * ALIKE / (1 + ALIKE)
        assert np.einsum("goo->", weight) / (weight.shape[0] * weight.shape[1]) == pytest.approx(1.0)


def test_channels_that_nothing_reads_weigh_least() -> None:
    rng = np.random.default_rng(0)
    last = rng.standard_normal((8, 5)).astype(np.float32)
    last[3] = 0
    last[6] *= 5
    diagonal = np.diag(weights(chain(last))["h"][0])
    assert diagonal[3] == pytest.approx(ALIKE / (1 + ALIKE), abs=1e-6)
    assert diagonal.argmax() == 6
    assert diagonal[6] > 2


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (weights(chain(), seed=seed)["h"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_what_nothing_is_known_of_is_absent() -> None:
    assert weights(chain(), 1) == {}, "one sample says nothing"
    context = replace(context_for(chain()), calibration=None)
    assert output_weights(chain(), [], context, default_shapes(chain()), PassLog()) == {}
    behind = parse_model(
        net(
            "(float[N,10] x) => (float[N,5] y, float[N,8] z)",
            "float[10,8] a, float[8,5] c",
            "h = MatMul(x, a) y = MatMul(h, c) z = Relu(h)",
        )
    )
    assert set(weights(behind)) == {"h", "y"}
    whole = parse_model(
        net(
            "(float[N,10] x) => (int64[N,1] y)",
            "float[10,8] a",
            "h = MatMul(x, a) y = ArgMax<axis=1>(h)",
        )
    )
    assert weights(whole) == {}, "whole numbers have no slope"


def test_layers_in_front_of_an_operator_without_a_rule_are_named_with_it() -> None:
    model = parse_model(
        net(
            "(float[N,10] x) => (float[N,5] y)",
            "float[10,8] a, float[8,5] c",
            "h = MatMul(x, a) s = Sin(h) y = MatMul(s, c)",
        )
    )
    log = PassLog()
    places = find_places(model, ("MatMul",), lambda name: None, default_shapes(model), log)
    context = context_for(model, noise(model, SAMPLES))
    found = output_weights(model, [p.node for p in places], context, default_shapes(model), log)
    first, last = (p.name for p in places)
    assert set(found) == {last}
    (note,) = log.notes
    assert "Sin" in note and repr(first) in note and repr(last) not in note


def test_too_few_samples_for_the_curvature_are_noted() -> None:
    model, log = chain(), PassLog()
    output_weights(model, [], context_for(model, noise(model, 3)), default_shapes(model), log)
    assert any(
        "output curvature is unknown" in note and "3 calibration samples" in note for note in log.notes
    )
