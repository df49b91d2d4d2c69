"""Alternatives: what is found, what each costs, that errors are drawn where they are, and what is not worth considering."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.compiler.factorization.candidates import (
    Alternative,
    Curve,
    CurveSearch,
    Place,
    curves_of,
    find_places,
    with_metrics,
)
from onnxcomp.compiler.factorization.chain import Chain
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.forms import Form
from tests.support.pruning import context_for, noise
from tests.support.replacing import conv, macs, of_rank
from tests.support.text import net

FORMS = ("channel", "first", "vertical", "horizontal", "tucker", "cp", "depthwise", "pointwise")


def places(model: Model, left_alone: Any = lambda name: None) -> tuple[list[Place], PassLog]:
    log = PassLog()
    ops = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return find_places(model, ops, left_alone, default_shapes(model), log), log


def only(model: Model) -> Place:
    (place,) = places(model)[0]
    return place


def plain(place: Place, form: Form) -> Any:
    return "plain"


def by_macs(place: Place, alternative: Alternative) -> float:
    return alternative.macs / place.macs


def curve(
    place: Place, forms: Any = FORMS, align: int = 1, rank: int | None = None, saving: float = 0.1
) -> Curve:
    log = PassLog()
    context = context_for(conv())
    found = curves_of([place], CurveSearch(forms, by_macs, plain, saving, align, rank), context, log)
    assert len(found) == 1, log.skips
    return found[0]


def test_layers_are_found_in_order_and_what_stays_is_named() -> None:
    model = parse_model(
        net(
            "(float[N,8,9,9] x) => (float[N,5] y)",
            "float[12,8,3,3] a, float[12,12,3,3] b, float[12,5] c",
            "h = Conv(x, a) i = Conv(h, b) g = GlobalAveragePool(i) f = Flatten(g) y = MatMul(f, c)",
        )
    )
    found, log = places(model, lambda name: "it is excluded" if name == "i" else None)
    assert [p.name for p in found] == ["h", "y"]
    assert [(s.where, s.reason) for s in log.skips] == [("i", "it is excluded")]
    assert sum(p.macs for p in places(model)[0]) == macs(model)
    assert [p.parameters for p in found] == [12 * 8 * 9, 60]
    assert found[0].bytes == 4 * found[0].parameters


@pytest.mark.parametrize("attrs", ["pads=[1,1,1,1]", "strides=[2,2]", "dilations=[2,2]", "group=2"])
@pytest.mark.parametrize("form", FORMS)
def test_what_an_alternative_costs_is_what_its_chain_costs(form: str, attrs: str) -> None:
    grouped = "group" in attrs
    model = conv(attrs, shape="12,4,3,3" if grouped else "12,8,3,3")
    place = only(model)
    ranks = (3, 2) if form == "tucker" else (2,)
    made = place.form(form, ranks)
    layouts: list[Any] = ["plain"]
    if form in ("depthwise", "pointwise"):
        layouts += ["sum"] if grouped or form == "pointwise" else ["sum", "concat"]
    for layout in layouts:
        alternative = place.alternative(made, layout, 0.5)
        changed = model.clone()
        chain = Chain.build(changed, place.node, made, layout, place.start(made), place.spatial)
        assert macs(changed) == macs(model) - place.macs + alternative.macs
        weights = [node.constant(1) for node in chain.nodes]
        assert sum(w.size for w in weights if w is not None) == alternative.parameters
        assert alternative.bytes > 4 * alternative.parameters
        assert str(alternative) == f"{form} {'x'.join(map(str, ranks))}"


def test_a_matrix_product_of_many_rows_costs_its_rows() -> None:
    model = parse_model(net("(float[N,7,20] x) => (float[N,7,30] y)", "float[20,30] w", "y = MatMul(x, w)"))
    place = only(model)
    per_row = place.macs // (20 * 30)
    assert place.macs == per_row * 600
    assert place.alternative(place.form("channel", (4,)), "plain", 0.0).macs == per_row * 4 * 50


def measured(model: Model, count: int = 64) -> Place:
    context = context_for(model, noise(model, count))
    (wave,) = with_metrics(model, places(model)[0], {}, context, default_shapes(model))
    (place,) = wave
    return place


def test_metrics_are_covariances_and_means_of_what_a_layer_reads() -> None:
    model = parse_model(
        net("(float[N,6] x) => (float[N,5] y)", "float[6,5] w, float[5] b", "y = Gemm(x, w, b)")
    )
    place = measured(model)
    x = noise(model, 64)["x"].astype(np.float64)
    assert place.means is not None
    np.testing.assert_allclose(place.means, [x.mean(0)], atol=1e-6)
    wanted = np.cov(x.T, bias=True)
    found = place.metrics[0].inputs
    np.testing.assert_allclose(found - wanted, np.diag(np.diag(found - wanted)), atol=1e-5)
    ridge = np.diag(found - wanted)
    assert 0 < ridge.min() <= ridge.max() < 0.01, "a little is added, so that nothing is singular"


def test_the_bias_keeps_the_mean_of_outputs() -> None:
    model = parse_model(
        net("(float[N,6] x) => (float[N,5] y)", "float[6,5] w, float[5] b", "y = Gemm(x, w, b)")
    )
    place = measured(model)
    form = place.form("channel", (1,))
    blocks, _ = place.fitted(form, 30)
    bias = place.shifted_bias(form, blocks)
    assert bias is not None
    assert place.means is not None
    was = place.weight[0] @ place.means[0] + place.node.bias()
    np.testing.assert_allclose(form.expand(blocks[0]) @ place.means[0] + bias, was, atol=1e-9)
    assert replace(place, means=None).shifted_bias(form, blocks) is None


def test_curves_fall_in_cost_and_rise_in_error_and_save_enough() -> None:
    found = curve(measured(conv()))
    prices = [by_macs(found.place, a) for a in found.alternatives]
    errors = [a.error for a in found.alternatives]
    assert prices == sorted(prices, reverse=True)
    assert errors == sorted(errors)
    assert all(a < b for a, b in pairwise(errors)), "what another beats in both is not kept"
    assert max(prices) <= 0.9
    assert min(prices) < 0.04, "down to the least rank"
    assert all(0 < e < 1 for e in errors)
    strict = curve(found.place, saving=0.5)
    assert max(by_macs(strict.place, a) for a in strict.alternatives) <= 0.5


@pytest.mark.parametrize("form", ["channel", "horizontal", "tucker", "depthwise"])
def test_drawn_errors_are_near_those_of_fits(form: str) -> None:
    found = curve(measured(conv()), (form,))
    for alternative in found.alternatives[:: max(1, len(found.alternatives) // 4)]:
        price = by_macs(found.place, alternative)
        _, error = found.place.fitted(alternative.form, 150)
        if price > 0.14:
            assert alternative.error == pytest.approx(error, rel=0.35, abs=0.01)
        else:
            assert alternative.error >= 0.95 * error, "below the least fit an error is never told too small"


def test_ranks_are_multiples_where_layers_are_wide_enough_and_one_rank_is_kept_to() -> None:
    place = measured(conv())
    assert {
        r % 4 for a in curve(place, ("channel", "tucker"), align=4).alternatives for r in a.form.ranks
    } == {0}
    narrow = curve(place, ("channel",), align=64).alternatives
    assert {r % 4 for a in narrow for r in a.form.ranks} == {0}, "12 ranks hold two steps of 4 and none of 64"
    found = curve(place, FORMS, rank=3)
    assert {max(a.form.ranks) for a in found.alternatives} == {3}
    assert len({a.form.name for a in found.alternatives}) > 1


@pytest.mark.parametrize(
    ("shape", "forms", "rank", "reason"),
    [
        ("12,8,1,1", ("vertical",), None, "its kernel of one tap leaves vertical nothing to split"),
        ("12,8,3,3", ("channel",), 13, "rank 13 is more than it has; 12 is all"),
        (
            "12,8,3,3",
            ("channel",),
            12,
            "nothing saves 10%: the cheapest, channel 12, takes 1.17 of what it has",
        ),
        (
            "12,8,3,1",
            ("vertical", "horizontal"),
            None,
            "its kernel has no two axes that vertical could split",
        ),
    ],
)
def test_what_has_no_alternative_says_why(shape: str, forms: Any, rank: int | None, reason: str) -> None:
    place = only(conv("pads=[1,1,1,1]", shape=shape))
    log = PassLog()
    assert (
        curves_of([place], CurveSearch(forms, by_macs, plain, 0.1, 1, rank), context_for(conv()), log) == []
    )
    (skip,) = log.skips
    assert skip.where == "h"
    assert skip.reason.startswith(reason)


def test_the_form_that_suits_a_kernel_is_found() -> None:
    for form, ranks in (("vertical", (3,)), ("depthwise", (1,)), ("channel", (3,)), ("first", (2,))):
        place = measured(conv(weight=of_rank(form, 12, 8, (3, 3), ranks)))
        best = min(curve(place).alternatives, key=lambda a: (a.error > 1e-5, a.macs))
        assert best.error <= 1e-5
        assert best.form.name == form
