"""insert-qdq with channels equalized or split: when it happens by itself, what it brings, and that it is said."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.compiler.passbase import PassResult
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.insert_qdq import InsertQdq
from tests.support.pruning import context_for, noise, outputs
from tests.support.text import net


def uneven(factors: np.ndarray) -> Model:
    """Return a network whose inner channels are made `factors` times too large and read as much too small."""
    text = net(
        "(float[N,6,5,5] x) => (float[N,5,5,5] y)",
        "float[8,6,3,3] w, float[8] b, float[5,8,1,1] p",
        "c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  y = Conv(r, p)",
    )
    model = parse_model(text)
    first, _, second = model.graph.nodes
    scale = factors.astype(np.float32)
    model.graph.set_constant(first, 1, first.inputs[1].values * scale[:, None, None, None])
    model.graph.set_constant(first, 2, first.inputs[2].values * scale)
    model.graph.set_constant(second, 1, second.inputs[1].values / scale[None, :, None, None])
    return model


UNEVEN = uneven(np.geomspace(0.02, 5, 8))
EVEN = uneven(np.ones(8))


def quantized(model: Model, step: InsertQdq) -> tuple[PassResult, float]:
    """Return what the pass makes of a copy of `model`, and how close it comes on other samples, in dB."""
    result = step.run(model.clone(), context_for(model, noise(model, 64)))
    held = noise(model, 32, seed=1)
    wanted, got = outputs(model, held), outputs(result.model, held)
    return result, float(10 * np.log10(np.square(wanted).sum() / np.square(got - wanted).sum()))


def equalized(result: PassResult) -> bool:
    return any("channels equalized with" in change.what for change in result.changes)


def test_uneven_channels_are_equalized_by_themselves_where_a_weight_has_one_scale() -> None:
    plain, before = quantized(UNEVEN, InsertQdq(granularity="per-tensor", equalize="false"))
    better, after = quantized(UNEVEN, InsertQdq(granularity="per-tensor"))
    assert equalized(better) and not equalized(plain)
    assert after > before + 6
    assert any(note.startswith("channels are equalized: on held-back samples") for note in better.notes)


def test_channels_that_are_even_stay_and_the_trial_is_told() -> None:
    result, _ = quantized(EVEN, InsertQdq(granularity="per-tensor", observer="minmax", rounding="nearest"))
    told = [note for note in result.notes if note.startswith("channels are")]
    assert len(told) == 1
    assert equalized(result) == told[0].startswith("channels are equalized")


def test_a_scale_for_each_channel_needs_no_equalization_unless_it_is_asked_for() -> None:
    result, _ = quantized(UNEVEN, InsertQdq())
    assert not equalized(result) and not any("equalized" in note for note in result.notes)
    assert equalized(quantized(UNEVEN, InsertQdq(equalize="true"))[0])


BLOCKED = net(
    "(float[N,6,5,5] x) => (float[N,5,5,5] y)",
    "float[8,6,1,1] a, float[8,8,1,1] b, float[5,8,1,1] c",
    "h = Conv(x, a)  r = Relu(h)  i = Conv(r, b)  s = Sin(i)  y = Conv(s, c)",
)


def test_equalization_without_output_sensitivity_says_what_stops_the_gradients_and_what_decides_instead() -> (
    None
):
    result, _ = quantized(parse_model(BLOCKED), InsertQdq(equalize="true"))
    assert equalized(result)
    (note,) = (note for note in result.notes if "balance of weights" in note)
    assert "Sin" in note and "'h'" in note and "gradient" in note


def test_ranges_without_output_sensitivity_name_the_operator_and_the_values() -> None:
    result, _ = quantized(parse_model(BLOCKED), InsertQdq())
    (note,) = (note for note in result.notes if "gradients stop" in note)
    assert "Sin" in note and "'r'" in note and "least error of the values" in note


def test_equalization_on_outputs_that_are_not_floats_says_that_weights_decide() -> None:
    text = net(
        "(float[N,6,5,5] x) => (int64[N,1,5,5] y)",
        "float[8,6,1,1] a, float[5,8,1,1] b",
        "h = Conv(x, a)  r = Relu(h)  i = Conv(r, b)  y = ArgMax<axis=1>(i)",
    )
    model = parse_model(text)
    result = InsertQdq(equalize="true").run(model, context_for(model, noise(model, 32)))
    assert equalized(result)
    assert any("no output consists of floats" in n and "balance of weights" in n for n in result.notes)


def test_where_nothing_can_be_equalized_or_split_a_note_says_so() -> None:
    text = net("(float[N,6,5,5] x) => (float[N,8,5,5] y)", "float[8,6,1,1] w", "y = Conv(x, w)")
    result, _ = quantized(parse_model(text), InsertQdq(equalize="true", split_outliers=0.1))
    assert [note.split(":")[0] for note in result.notes[:2]] == [
        "no channels are equalized",
        "no channels are split",
    ]


def test_split_outliers_grow_the_network_by_their_share_and_bring_it_closer() -> None:
    model = uneven(np.array([1, 1, 1, 1 / 64, 1, 1, 1, 1]))
    none = InsertQdq(granularity="per-tensor", equalize="false", rounding="nearest")
    plain, before = quantized(model, none)
    grown, after = quantized(
        model, InsertQdq(granularity="per-tensor", equalize="false", rounding="nearest", split_outliers=0.25)
    )
    assert after > before + 1.5

    def stored(result: PassResult) -> int:
        return sum(c.values.size for c in result.model.graph.constants.values() if c.values.dtype == np.int8)

    assert stored(grown) - stored(plain) == 2 * (6 * 9 + 5)
    assert any("2 outliers of 8 channels" in change.what for change in grown.changes)


def test_excluded_nodes_keep_their_channels() -> None:
    model = UNEVEN.clone()
    name = model.graph.nodes[0].name
    context = context_for(model, noise(model, 16), excluded=frozenset({name}))
    result = InsertQdq(granularity="per-tensor", equalize="true", split_outliers=0.5).run(model, context)
    assert not equalized(result)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="split-outliers"):
        InsertQdq(split_outliers=share).check()
