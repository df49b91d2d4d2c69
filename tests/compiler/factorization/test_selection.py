"""Choosing forms: budgets are held at the least damage, staying is always a choice, and rules are kept to."""

from __future__ import annotations

from itertools import product
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
from onnxcomp.compiler.factorization.selection import (
    LEAST,
    LargestError,
    by_budget,
    by_rule,
    divergences,
    trial_of,
)
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from tests.support.pruning import context_for, noise
from tests.support.replacing import distance
from tests.support.text import net


def network() -> Model:
    return parse_model(
        net(
            "(float[N,24] x) => (float[N,6] y)",
            "float[24,32] a, float[32] p, float[32,32] b, float[32] q, float[32,6] c",
            "h = Gemm(x, a, p) k = Relu(h) i = Gemm(k, b, q) l = Relu(i) y = MatMul(l, c)",
        )
    )


def price(place: Place, alternative: Alternative) -> float:
    return alternative.macs / place.macs


def cost(place: Place, alternative: Alternative | None) -> float:
    return place.macs if alternative is None else alternative.macs


def curves(model: Model) -> list[Curve]:
    shapes, log, context = default_shapes(model), PassLog(), context_for(model, noise(model, 128))
    places = find_places(model, ("Gemm", "MatMul"), lambda name: None, shapes, log)
    (wave,) = with_metrics(model, places, {}, context, shapes)
    return curves_of(wave, CurveSearch(("channel",), price, lambda place, form: "plain", 0.1), context, log)


def damage_of(curves: list[Curve], scales: dict[str, float], plan: dict[str, Alternative]) -> float:
    return sum(scales[name] * a.error for name, a in plan.items())


def test_a_plan_within_the_budget_is_the_one_of_least_damage() -> None:
    found = [Curve(c.place, c.alternatives[::4]) for c in curves(network())]
    scales = {c.place.name: s for c, s in zip(found, (1.0, 5.0, 0.3), strict=True)}
    whole = sum(c.place.macs for c in found)
    for share in (0.9, 0.7, 0.5, 0.3):
        plan, reached = by_budget(found, scales, cost, share * whole)
        assert reached
        assert sum(cost(c.place, plan.get(c.place.name)) for c in found) <= share * whole
        every: list[dict[str, Alternative]] = []
        for options in product(*[(None, *c.alternatives) for c in found]):
            if sum(cost(c.place, o) for c, o in zip(found, options, strict=True)) <= share * whole:
                every.append({c.place.name: o for c, o in zip(found, options, strict=True) if o is not None})
        best = min(damage_of(found, scales, each) for each in every)
        assert damage_of(found, scales, plan) == pytest.approx(best, rel=0.02)


def test_a_layer_that_matters_stays() -> None:
    found = curves(network())
    whole = sum(c.place.macs for c in found)
    for dear in found:
        scales = {c.place.name: 1000.0 if c is dear else 1.0 for c in found}
        plan, reached = by_budget(found, scales, cost, 0.75 * whole)
        assert reached
        assert plan
        assert dear.place.name not in plan
    plan, reached = by_budget(found, {c.place.name: 1.0 for c in found}, cost, whole)
    assert reached
    assert plan == {}, "where nothing has to go everything stays"


def test_beyond_reach_is_the_cheapest_of_all() -> None:
    found = curves(network())
    plan, reached = by_budget(found, {c.place.name: 1.0 for c in found}, cost, 1.0)
    assert not reached
    assert {c.place.name: plan[c.place.name].macs for c in found} == {
        c.place.name: min(a.macs for a in c.alternatives) for c in found
    }


@pytest.mark.parametrize("most", [0.5, 0.2, 0.05])
def test_a_bound_on_the_error_holds_when_fitted_and_is_not_wasted(most: float) -> None:
    found = curves(network())
    plan, stays = by_rule(found, LargestError(most), price)
    assert set(plan) | set(stays) == {c.place.name for c in found}
    for each in found:
        chosen = plan.get(each.place.name)
        if chosen is None:
            assert "of the output" in stays[each.place.name]
            assert each.place.fitted(each.alternatives[0].form, 150)[1] > most
            continue
        assert each.place.fitted(chosen.form, 150)[1] <= most
        fewer = each.place.form("channel", (max(1, chosen.form.ranks[0] - 4),))
        assert chosen.form.ranks[0] <= 4 or each.place.fitted(fewer, 150)[1] > most
    energy, _ = by_rule(found, LargestError(most), price)
    assert {n: a.form for n, a in energy.items()} == {n: a.form for n, a in plan.items()}


def test_trials_replace_one_layer_and_their_damage_is_that_of_the_outputs() -> None:
    model = network()
    context = context_for(model, noise(model, 128))
    trials = [trial_of(model, curve, 0.5, price) for curve in curves(model)]
    assert [
        abs(price(c.place, t.alternative) - 0.5) < 0.05 for c, t in zip(curves(model), trials, strict=True)
    ]
    scales, measured = divergences(model, trials, context)
    feeds = noise(model, 128)
    truth = []
    for trial, (name, what, damage) in zip(trials, measured, strict=True):
        assert (trial.name, str(trial.alternative)) == (name, what)
        assert scales[name] == pytest.approx(max(damage, LEAST) / trial.alternative.error)
        made = trial.trial.build()
        assert len(made.graph.nodes) == len(model.graph.nodes) + 1
        truth.append(distance(model, made, feeds))
    order = np.argsort([damage for _, _, damage in measured])
    assert list(order) == list(np.argsort(truth))


def test_a_trial_leaves_the_model_as_it_was() -> None:
    model = network()
    before: dict[str, Any] = {n: c.values.copy() for n, c in model.graph.constants.items()}
    for curve in curves(model):
        trial_of(model, curve, 0.5, price).trial.build()
    assert {n: c.values.tolist() for n, c in model.graph.constants.items()} == {
        n: v.tolist() for n, v in before.items()
    }
