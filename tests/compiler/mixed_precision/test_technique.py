"""Sensitivity to integers: each node computed in them alone, as it would be in the quantized network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcomp
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.commands.sensitivity import Sensitivity
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model
from onnxcomp.numerics.affine import Grid, channel_affine
from onnxcomp.numerics.rounding import fit_limits
from onnxcomp.runtime.session import Session
from tests.support.harmful import BAD, READER, planted
from tests.support.pruning import ZOO, zoo_context

COUNT = 64


def measured(model: Model, **options: Any) -> Sensitivity:
    settings: dict[str, Any] = {"passes": "remove-dead", "samples": COUNT, "threads": 1, "cache": "none"}
    return onnxcomp.sensitivity(
        model, str(ZOO / "digits_calibration.npz"), technique="quantize", **{**settings, **options}
    )


def test_every_node_that_computes_in_integers_is_measured_once_in_order() -> None:
    model = planted(1.0)
    found = measured(model)
    names = [effect.site for effect in found.effects]
    computing = [node.name for node in model.graph.nodes if node.is_op("Conv", "Gemm")]
    assert names == computing
    for effect in found.effects:
        node = next(node for node in model.graph.nodes if node.name == effect.site)
        linear = linear_node(node)
        assert linear is not None
        assert (effect.removed, effect.units, effect.level) == (24, 32, 0.75)
        assert effect.parameters == linear.weight_array().size
        assert effect.agreement is not None
    assert found.techniques == {"insert-qdq": {"target": "ort-cpu"}}


def test_the_distance_is_that_of_a_network_with_the_node_alone_in_integers() -> None:
    """The last layer by hand: its input on 256 levels within the range chosen, its weight on 255 per channel."""
    model = planted(1.0)
    (effect,) = (e for e in measured(model).effects if e.site == "/logits/Gemm")
    samples = zoo_context(model, COUNT).calibration
    assert samples is not None
    (feed,) = samples.batches(COUNT)
    node = next(node for node in model.graph.nodes if node.name == "/logits/Gemm")
    linear = linear_node(node)
    assert linear is not None
    weight = linear.matrix()[0]
    affine = channel_affine(fit_limits(weight, np.ones(weight.shape), 127), Grid("int8", True, True))
    rounded = model.clone()
    twin = linear_node(next(n for n in rounded.graph.nodes if n.name == node.name))
    assert twin is not None
    twin.install(rounded, affine.round_trip(weight, 0)[None].astype(np.float64), None, "hand")
    reference = Reference([Session(model, threads=1).run(feed)])
    weight_alone = reference.distance([Session(rounded, threads=1).run(feed)])
    assert effect.distance is not None
    # Storing the input comes on top, with an error that does not depend on the weight's.
    assert weight_alone < effect.distance < 20 * weight_alone


def test_a_planted_layer_stands_out() -> None:
    found = measured(planted(), target="ort-cpu")
    assert {effect.site for effect in found.ranking()[:1]} == {READER}
    assert BAD in {effect.site for effect in found.effects}


def test_what_is_excluded_is_left_alone_with_the_reason() -> None:
    found = measured(planted(1.0), exclude=[BAD])
    assert BAD not in {effect.site for effect in found.effects}
    assert any(skip.where == BAD and "excluded" in skip.reason for skip in found.blocked)


def test_a_target_decides_on_integers() -> None:
    with pytest.raises(UsageError, match="ncnn has its own quantizer; name one that reads pairs"):
        measured(planted(1.0), target="ncnn")
    assert measured(planted(1.0), target="tensorrt").techniques["insert-qdq"]["target"] == "tensorrt"


def test_what_is_quantized_already_is_said_to_be() -> None:
    twice = onnxcomp.optimize(
        planted(1.0), "insert-qdq", calibration=str(ZOO / "digits_calibration.npz"), threads=1
    )
    found = measured(twice.model)
    assert not found.effects and not found.blocked
    assert any("quantized already" in note and "measure the float model" in note for note in found.notes)


def test_an_unknown_technique_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown technique 'quantise'; did you mean 'quantize'"):
        onnxcomp.sensitivity(planted(1.0), str(ZOO / "digits_calibration.npz"), technique="quantise")
