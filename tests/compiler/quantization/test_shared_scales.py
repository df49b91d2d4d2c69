"""Streams of additions on one scale: the addition rounds nothing, and no stream is tied that loses by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxcomp.compiler.passbase import PassLog
from onnxcomp.compiler.quantization.formats import formats
from onnxcomp.compiler.quantization.plan import QuantizationPlan, Settings
from onnxcomp.compiler.quantization.qdq import quantize_values
from onnxcomp.compiler.quantization.quantizer import plan
from onnxcomp.compiler.quantization.ranges import Chosen
from onnxcomp.compiler.quantization.shared_scales import tie_additions
from onnxcomp.compiler.target.files import load_target
from onnxcomp.ir.model import Model
from onnxcomp.ir.segment import with_outputs
from onnxcomp.numerics.affine import Affine, range_affine
from onnxcomp.runtime.session import Session
from tests.support.pruning import context_for, noise
from tests.support.quantizing import filled
from tests.support.text import net

BLOCKS = net(
    "(float[N,4,8,8] x) => (float[N,3] y)",
    "float[8,4,3,3] a, float[8] p, float[8,8,3,3] b, float[8] q, float[8,8,3,3] c, float[8] r, float[512,3] d, float[3] e",
    "h0 = Conv<pads=[1,1,1,1]>(x, a, p) s0 = Relu(h0) h1 = Conv<pads=[1,1,1,1]>(s0, b, q) t1 = Add(h1, s0) s1 = Relu(t1)"
    " h2 = Conv<pads=[1,1,1,1]>(s1, c, r) t2 = Add(h2, s1) s2 = Relu(t2) f = Flatten(s2) y = Gemm(f, d, e)",
)
STREAM = ("s0", "h1", "s1", "h2", "s2")


def planned(model: Model, *, tied: bool) -> QuantizationPlan:
    context = context_for(model, noise(model, 64), target=load_target("ort-cpu"))
    found = plan(
        model.clone(), formats(context.target, {}), Settings(edges="integers", tied=tied), context, PassLog()
    )
    assert found is not None
    return found


def tied_by_hand(found: QuantizationPlan) -> Chosen:
    return tie_additions(
        found.model,
        found.placement,
        found.formats,
        found.observed.sensitivity,
        found.chosen,
        load_target("ort-cpu"),
    )


def test_values_of_a_tied_stream_share_one_scale_and_the_rest_keeps_its_own() -> None:
    loose = planned(filled(BLOCKS), tied=False)
    found = tied_by_hand(loose)
    assert found.tied == 1
    assert len({float(found.affines[name].scale) for name in STREAM}) == 1
    assert found.affines["x"] == loose.chosen.affines["x"]
    assert sum(found.costs.values()) < sum(loose.chosen.costs.values())


def test_a_tied_addition_rounds_nothing() -> None:
    model = filled(BLOCKS)
    found = tied_by_hand(planned(model, tied=False))
    stored = planned(model, tied=False).model
    quantize_values(stored, {name: found.affines[name] for name in ("x", *STREAM)})
    feeds = noise(model, 16, seed=3)
    values = Session(with_outputs(stored, ["s1__float", "s1"]), optimize=False).run(feeds)
    low, high = found.affines["s1"].bounds()
    inside = (values["s1__float"] >= low) & (values["s1__float"] <= high)
    assert inside.mean() > 0.9
    np.testing.assert_allclose(values["s1"][inside], values["s1__float"][inside], atol=1e-5)


def test_without_a_tie_the_same_addition_rounds() -> None:
    model = filled(BLOCKS)
    loose = planned(model, tied=False)
    stored = loose.model.clone()
    quantize_values(stored, {name: loose.chosen.affines[name] for name in ("x", *STREAM)})
    values = Session(with_outputs(stored, ["s1__float", "s1"]), optimize=False).run(noise(model, 16, seed=3))
    gap = np.abs(values["s1"] - values["s1__float"])
    assert np.median(gap) > float(loose.chosen.affines["s1"].scale) / 10


def test_a_stream_that_loses_by_one_scale_is_left_alone() -> None:
    loose = planned(filled(BLOCKS), tied=False)
    # The outputs hang on the last digit of one branch, which is small beside the stream.
    delicate = replace(loose.observed.sensitivity["h1"], sums=loose.observed.sensitivity["h1"].sums * 1e3)
    delicate = replace(delicate, squares=delicate.squares * 1e6)
    sensitivity = {**loose.observed.sensitivity, "h1": delicate}
    affine = range_affine(-0.5, 0.5, loose.chosen.affines["h1"].grid)
    chosen = Chosen(
        {**loose.chosen.affines, "h1": affine}, {**loose.chosen.costs, "h1": delicate.rounded(affine)}
    )
    found = tie_additions(
        loose.model, loose.placement, loose.formats, sensitivity, chosen, load_target("ort-cpu")
    )
    assert found.tied == 0 and found.affines == chosen.affines


@pytest.mark.parametrize("kind", ["unknown", "pow2"])
def test_nothing_is_tied_where_effects_are_unknown_or_scales_are_powers_of_two(kind: str) -> None:
    loose = planned(filled(BLOCKS), tied=False)
    sensitivity = {} if kind == "unknown" else loose.observed.sensitivity
    wanted = loose.formats if kind == "unknown" else formats(load_target("pow2"), {})
    found = tie_additions(
        loose.model, loose.placement, wanted, sensitivity, loose.chosen, load_target("ort-cpu")
    )
    assert found.tied == 0 and found.affines == loose.chosen.affines


def test_a_stream_of_different_types_is_left_alone() -> None:
    loose = planned(filled(BLOCKS), tied=False)
    affines: dict[str, Affine] = dict(loose.chosen.affines)
    grid = affines["s1"].grid
    affines["s1"] = range_affine(0, 4, type(grid)("uint16"))
    chosen = Chosen(affines, loose.chosen.costs)
    found = tie_additions(
        loose.model,
        loose.placement,
        loose.formats,
        loose.observed.sensitivity,
        chosen,
        load_target("ort-cpu"),
    )
    assert found.tied == 0
