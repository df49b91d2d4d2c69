"""Repair of replaced layers: what is visited, what is fitted to what, and that sweeps are kept where they help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.compiler.evaluation import hold_out
from onnxcomp.compiler.factorization.candidates import Alternative, Place, find_places, with_metrics
from onnxcomp.compiler.factorization.install import Repair, carry_out, install
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.compiler.repair.mode import NO_REPAIR, repair_mode
from onnxcomp.compiler.repair.walk import Walk
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.testing import assert_valid, fingerprint
from tests.support.pruning import context_for, noise
from tests.support.replacing import assert_same, distance, of_rank
from tests.support.text import net

Mode = Literal["sequential", "one-shot", "none"]


def network(weights: dict[str, Any] | None = None) -> Model:
    """Four layers, the third reads the first past the second, and the last is read by nothing but the output."""
    return parse_model(
        net(
            "(float[N,4,8,8] x) => (float[N,6] y)",
            "float[12,4,3,3] a, float[12] p, float[12,12,3,3] b, float[12] q, float[12,12,1,1] c, float[12,6] d",
            "h = Conv<pads=[1,1,1,1]>(x, a, p) k = Relu(h) i = Conv<pads=[1,1,1,1]>(k, b, q) l = Relu(i)"
            " j = Conv(k, c) m = Add(l, j) g = GlobalAveragePool(m) f = Flatten(g) y = MatMul(f, d)",
        ),
        weights,
    )


def plan_for(model: Model, ranks: dict[str, int]) -> tuple[dict[str, Alternative], dict[str, Place]]:
    shapes = default_shapes(model)
    found = find_places(model, ("Conv", "MatMul"), lambda name: None, shapes, PassLog())
    places = {place.name: place for place in found}
    return {
        name: places[name].alternative(places[name].form("channel", (rank,)), "plain", 0.1)
        for name, rank in ranks.items()
    }, places


def repaired(
    model: Model,
    ranks: dict[str, int],
    mode: Mode,
    *,
    sweeps: int = 1,
    left_alone: Callable[[str], str | None] = lambda name: None,
    samples: int = 256,
) -> tuple[Model, dict[str, float], PassLog]:
    plan, places = plan_for(model, ranks)
    log, context = PassLog(), context_for(model, noise(model, samples))
    before = fingerprint(model)
    made, errors = carry_out(
        model,
        plan,
        places,
        Repair(repair_mode(mode), sweeps, {}, left_alone),
        context,
        default_shapes(model),
        log,
    )
    assert_valid(made, like=model)
    assert fingerprint(model) == before, "the model given is not edited"
    return made, errors, log


def weight(model: Model, name: str) -> Any:
    return {n.name: n for n in model.graph.nodes}[name].constant(1)


def test_chains_take_the_name_of_the_node_and_nothing_of_it_is_left_behind() -> None:
    model = network()
    plan, places = plan_for(model, {"i": 3})
    made, chains = install(model, plan, places)
    assert set(chains) == {"i"}
    assert chains["i"].node.name == "i"
    assert "b" in model.graph.constants
    assert "b" not in made.graph.constants
    assert len(made.graph.nodes) == len(model.graph.nodes) + 1
    assert_valid(made, like=model)


@pytest.mark.parametrize("mode", ["sequential", "one-shot", "none"])
def test_what_has_the_rank_is_repaired_to_what_it_was(mode: Mode) -> None:
    weights = {"a": of_rank("channel", 12, 4, (3, 3), (3,)), "b": of_rank("channel", 12, 12, (3, 3), (3,), 1)}
    model = network(weights)
    made, errors, _ = repaired(model, {"h": 3, "i": 3}, mode)
    assert {"h", "i"} <= set(errors)
    assert max(errors.values()) < 1e-5
    assert_same(model, made)


def test_what_follows_is_refitted_in_order_and_what_does_not_is_left() -> None:
    model = network()
    made, errors, _ = repaired(model, {"i": 2}, "sequential")
    assert set(errors) == {"i", "y"}, "the chain, and the layer that reads what has changed"
    for stays in ("h", "j"):
        np.testing.assert_array_equal(weight(model, stays), weight(made, stays))
    assert not np.array_equal(weight(model, "y"), weight(made, "y"))
    _, errors, _ = repaired(model, {"h": 2}, "sequential")
    assert set(errors) == {"h", "i", "j", "y"}
    _, errors, _ = repaired(model, {"h": 2}, "one-shot")
    assert set(errors) == {"h"}


def test_excluded_layers_behind_a_chain_keep_their_weights_and_are_told() -> None:
    model = network()
    made, errors, log = repaired(
        model, {"h": 2}, "sequential", left_alone=lambda name: "it is excluded" if name == "y" else None
    )
    assert "y" not in errors
    np.testing.assert_array_equal(weight(model, "y"), weight(made, "y"))
    assert [(s.where, s.reason) for s in log.skips] == [("y", "not refitted: it is excluded")]


def test_in_order_is_better_than_at_once_and_that_better_than_blind() -> None:
    model = network()
    fresh = noise(model, 100, seed=5)
    lost = [
        distance(model, repaired(model, {"h": 4, "i": 4}, m)[0], fresh)
        for m in ("none", "one-shot", "sequential")
    ]
    assert lost[2] < 0.7 * lost[1]
    assert lost[2] < 0.7 * lost[0]


def test_blind_fits_say_so_and_use_no_samples() -> None:
    model = network()
    plan, places = plan_for(model, {"i": 3})
    log = PassLog()
    context = replace(context_for(model), calibration=None)
    made, errors = carry_out(
        model, plan, places, Repair(NO_REPAIR, 1, {}, lambda name: None), context, default_shapes(model), log
    )
    assert 0 < errors["i"] < 1
    assert log.notes[0].startswith("no repair: weights were split by singular values alone")
    values = np.linalg.svd(np.asarray(weight(model, "i"), np.float64).reshape(12, -1), compute_uv=False)
    assert errors["i"] == pytest.approx(1 - (values[:3] ** 2).sum() / (values**2).sum(), rel=1e-4)
    assert_valid(made, like=model)


def test_errors_are_what_is_missed_of_the_outputs_on_the_samples() -> None:
    model = parse_model(
        net("(float[N,20] x) => (float[N,12] y)", "float[20,12] w, float[12] b", "y = Gemm(x, w, b)")
    )
    shapes = default_shapes(model)
    found = find_places(model, ("Gemm",), lambda name: None, shapes, PassLog())
    feeds = noise(model, 512)
    context = context_for(model, feeds)
    ((place,),) = with_metrics(model, found, {}, context, shapes)
    plan = {"y": place.alternative(place.form("channel", (4,)), "plain", 0.0)}
    for mode in ("one-shot", "sequential"):
        how = Repair(repair_mode(mode), 1, {}, lambda name: None)
        made, errors = carry_out(model, plan, {"y": found[0]}, how, context, shapes, PassLog())
        assert errors["y"] == pytest.approx(distance(model, made, feeds), rel=0.02)


@pytest.mark.parametrize(
    ("distances", "kept", "reported"),
    [
        ([3.0, 2.0, 1.0], 3, [("3 -> 2", "applied"), ("2 -> 1", "applied")]),
        ([3.0, 2.0, 2.5], 2, [("3 -> 2", "applied"), ("2 -> 2.5", "reverted")]),
        ([3.0, 3.0], 1, [("3 -> 3", "reverted")]),
        ([3.0, float("nan")], 1, [("3 -> nan", "reverted")]),
        ([float("nan")], 0, [("nan", "reverted")]),
    ],
)
def test_a_sweep_is_kept_where_held_back_samples_gain_by_it(
    distances: list[float],
    kept: int,
    reported: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[str] = []

    def judge(model: Model, *_: Any) -> float:
        judged.append(fingerprint(model))
        return distances[len(judged) - 1]

    monkeypatch.setattr(hold_out, "judge", judge)
    made, errors, log = repaired(network(), {"h": 3, "i": 3}, "sequential", sweeps=3, samples=32)
    assert len(judged) == len(distances), "a sweep that did not help is the last"
    assert len(set(judged)) == len(judged), "every sweep changes something"
    assert fingerprint(made) == judged[kept - 1] if kept else errors == {}
    notes = [n for n in log.notes if n.startswith("sweep")]
    assert [tuple(n.partition(" samples ")[2].split("; ")) for n in notes] == reported


def test_held_back_samples_are_not_among_those_that_are_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    visit = Walk.visit

    def watched(self: Walk, *given: Any) -> Any:
        seen["fitted"] = len(self.context.samples)
        return visit(self, *given)

    def judge(model: Model, reference: Any, samples: Any, context: Any) -> float:
        seen["held"] = len(samples)
        return 1.0

    monkeypatch.setattr(Walk, "visit", watched)
    monkeypatch.setattr(hold_out, "judge", judge)
    repaired(network(), {"i": 3}, "sequential", sweeps=2, samples=32)
    assert seen == {"fitted": 28, "held": 4}


def test_few_samples_are_said_to_be_few() -> None:
    _, _, log = repaired(network(), {"i": 3}, "sequential", samples=16)
    assert any(n.startswith("16 calibration samples are few") for n in log.notes)
    _, _, log = repaired(network(), {"i": 3}, "sequential", samples=64)
    assert not any("are few" in n for n in log.notes)
