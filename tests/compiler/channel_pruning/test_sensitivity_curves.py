"""Measured curves: what a level costs is what really cutting it costs, whatever the network looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.channel_pruning.ladder import Ladder, Limits
from onnxcomp.compiler.channel_pruning.problem import Scene, open_scene
from onnxcomp.compiler.channel_pruning.sensitivity_curves import (
    Curve,
    CurveSettings,
    measure_curves,
    measured_counts,
)
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.refit import Site, readers_ridge, refit_once
from onnxcomp.compiler.repair.sites import kept_positions
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.moments import Moments
from onnxcomp.runtime.session import Session
from tests.support.attention_graphs import AttentionPlan, attention, attention_plans
from tests.support.graphs import Plan, build, plans
from tests.support.pruning import context_for, noise
from tests.support.structures import EVERY_BLOCK
from tests.support.text import net

COUNT = 24


@dataclass(frozen=True)
class Measured:
    """A scene with its curves, and the statistics they were made with."""

    scene: Scene
    curves: list[Curve]
    moments: Mapping[str, Moments]
    feeds: Mapping[str, Array]
    reference: Reference


def measured(
    model: Model, limits: Limits | None = None, criterion: str = "l2", reference: Reference | None = None
) -> Measured:
    feeds = noise(model, COUNT, seed=5)
    context: Context = context_for(model, feeds)
    scene = open_scene(model, {}, limits or Limits(), criterion, context, PassLog())
    depths = {name: [len(x.order) for x in ladders] for name, ladders in scene.blank().items()}
    curves: list[Curve] = []
    moments: dict[str, Moments] = {}
    for ladders, stats in scene.ordered_waves(depths):
        found, reference = measure_curves(
            model, scene.groups, ladders, stats, reference, context, CurveSettings(scene.limits)
        )
        curves += found
        moments |= stats
    assert reference is not None
    return Measured(scene, curves, moments, feeds, reference)


def whole(model: Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    return Session(model, optimize=False, threads=1).run(dict(feeds))


def really_cut(found: Measured, ladder: Ladder, level: int) -> Model:
    """What is left when the units are cut out, with the readers refitted once from the same statistics."""
    model, groups = found.scene.model, found.scene.groups
    group = groups[ladder.group]
    keep = np.ones(group.units, bool)
    keep[list(ladder.order[:level])] = False
    left = model.clone()
    groups.take(left, {group.name: keep})
    sites = []
    for node in model.graph.nodes:
        linear = linear_node(node)
        stats = found.moments.get(node.name)
        if linear is None or stats is None or node.name not in group.consumers:
            continue
        if stats.sum_xx.shape[1] == linear.matrix().shape[2]:
            rows = kept_positions(groups, {group.name: keep}).get(
                (linear.node.inputs[linear.weight].name, linear.out_axis),
                np.arange(linear.weight_array().shape[linear.out_axis]),
            )
            sites.append((Site(node.name, rows), readers_ridge(linear, stats)))
    for site, strength in sites:
        refit_once(model, left, [site], kept_positions(groups, {group.name: keep}), found.moments, strength)
    return left


def check_levels(found: Measured) -> int:
    """Every level's damage is that of the really cut network, run whole; return how many were compared."""
    whole_model = whole(found.scene.model, found.feeds)
    truth = Reference([whole_model])
    compared = 0
    for curve in found.curves:
        assert (curve.counts[0], curve.damage[0]) == (0, 0.0)
        assert list(curve.counts[1:]) == measured_counts(curve.ladder, found.scene.limits)
        for level, damage in zip(curve.counts[1:], curve.damage[1:], strict=True):
            made = whole(really_cut(found, curve.ladder, level), found.feeds)
            assert damage == pytest.approx(truth.distance([made]), rel=2e-3, abs=1e-6)
            compared += 1
    return compared


# --- the oracle ------------------------------------------------------------------------------------------------------
@given(plans(5, tuple(EVERY_BLOCK)), st.sampled_from([Limits(), Limits(align=2), Limits(max_ratio=0.5)]))
@settings(max_examples=24, deadline=None, derandomize=True, database=None)
def test_a_level_costs_what_the_cut_network_loses_with_its_readers_refitted(
    plan: Plan, limits: Limits
) -> None:
    check_levels(measured(build(plan, EVERY_BLOCK), limits))


@given(attention_plans())
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
def test_what_products_of_two_values_lose_is_measured_where_they_are_made(plan: AttentionPlan) -> None:
    """Queries and keys have no reader with weights: masks stand before their product."""
    check_levels(measured(attention(plan)))


def test_narrower_queries_cost_something() -> None:
    plan = AttentionPlan(2, 2, 4, 2, "separate", "expand", frozenset(), 2)
    found = measured(attention(plan))
    queries = next(c for c in found.curves if found.scene.groups[c.ladder.group].producers == ("q0", "k0"))
    assert queries.damage[-1] > 0.1


BLOCKS = {
    "a grouped and a depthwise reader": (("conv", 4, 1), ("grouped", 1, 1), ("depthwise", 1, 1)),
    "a stream that grows": (("residual", 5, 1), ("widen", 4, 1), ("conv", 3, 1)),
    "a concatenation with itself": (("conv", 4, 1), ("self-concat", 0, 1), ("conv", 3, 1)),
    "gates": (("conv", 4, 1), ("squeeze-excite", 1, 1), ("conv", 4, 1)),
}


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("tail", ["flatten", "left-matmul"])
def test_structures_of_all_kinds_are_measured(blocks: tuple[tuple[str, int, int], ...], tail: str) -> None:
    assert check_levels(measured(build(Plan((("conv", 5, 1), *blocks), tail, 1), EVERY_BLOCK))) >= 6


def test_a_stream_that_grows_has_a_curve_for_every_tier() -> None:
    model = build(Plan((("conv", 5, 1), ("residual", 5, 1), ("widen", 4, 1), ("conv", 3, 1)), "pool", 1))
    found = measured(model)
    tiers = [c.ladder.group for c in found.curves]
    assert max(tiers.count(name) for name in tiers) == 2


SEVERAL = net(
    "(float[N,3,4,4] x, float[N,5] z) => (float[N,4] early, float[N,3,4,4] image, float[N,6] late)",
    "float[8,3,1,1] a, float[8] p, float[8,4] e, float[7,8,3,3] b, float[3,7,1,1] c, float[12,6] d,"
    " float[5,9] f, float[9,5] g",
    "h = Conv(x, a, p) r = Relu(h) [pool] m = GlobalAveragePool(r) v = Flatten(m) early = MatMul(v, e)"
    " i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i) image = Conv(s, c) q = GlobalAveragePool(s) w = Flatten(q)"
    " k = MatMul(z, f) t = Sigmoid(k) u = MatMul(t, g) j = Concat<axis=1>(w, u) late = MatMul(j, d)",
)


def test_inputs_and_outputs_can_be_several_and_outputs_can_be_made_early() -> None:
    """What is cut behind an output that is ready does not change it; the distance is that of all outputs together."""
    found = measured(parse_model(SEVERAL))
    assert len(found.curves) == 4
    assert check_levels(found) >= 18
    assert all(curve.damage[-1] > 0.01 for curve in found.curves)


def test_readers_too_wide_for_statistics_are_only_zeroed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Plan((("conv", 5, 1), ("conv", 4, 1), ("activation", 0, 1)), "flatten", 1))
    refitted = measured(model)
    monkeypatch.setattr("onnxcomp.compiler.repair.refit.WIDEST", 100)
    bare = measured(model)
    (wide,) = [n for n in model.graph.nodes if n.is_op("Gemm")]
    assert linear_node(wide) is not None
    assert refitted.moments[wide.name].sum_xx.shape[1] > 100
    assert check_levels(bare) == check_levels(refitted)
    middle = next(
        n for n, c in enumerate(bare.curves) if wide.name in bare.scene.groups[c.ladder.group].consumers
    )
    levels = zip(bare.curves[middle].damage, refitted.curves[middle].damage, strict=True)
    assert all(zeroed > mended for zeroed, mended in list(levels)[1:])


def test_a_group_that_no_linear_node_reads_is_measured_without_a_refit() -> None:
    model = parse_model(
        net(
            "(float[N,7,4] x) => (float[N,7,1,6] y)",
            "float[1,24,4] w, float[1,24,6] r, float[1,24,6] r2, float[1,24,6] w2",
            "[first] a, b, c = LSTM<hidden_size=6>(x, w, r) [flat] s = Squeeze(a, one)"
            " [second] d, e, f = LSTM<hidden_size=6>(s, w2, r2) y = Identity(d)",
        ).replace("float[1,24,6] w2", "float[1,24,6] w2, int64[1] one = {1}")
    )
    found = measured(model)
    assert found.curves
    assert not found.moments
    assert check_levels(found) >= 3


def test_a_later_round_is_judged_by_the_first_network_and_starts_at_nothing_all_the_same() -> None:
    model = parse_model(SEVERAL)
    first = measured(model)
    cut = really_cut(first, first.curves[0].ladder, 4)
    second = measured(cut, reference=first.reference)
    floor = Reference([whole(model, first.feeds)]).distance([whole(cut, first.feeds)])
    assert floor > 0.01
    curve = second.curves[-1]
    for level, damage in zip(curve.counts[1:], curve.damage[1:], strict=True):
        made = whole(really_cut(second, curve.ladder, level), first.feeds)
        expected = Reference([whole(model, first.feeds)]).distance([made]) - floor
        assert damage == pytest.approx(expected, rel=2e-3, abs=1e-6)


# --- levels and what lies between them -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("units", "depth", "limits", "counts"),
    [
        (64, 63, Limits(), [8, 16, 24, 32, 40, 48, 56, 63]),
        (4, 3, Limits(), [1, 2, 3]),
        (64, 20, Limits(), [8, 16, 20]),
        (64, 63, Limits(align=16), [16, 32, 48]),
        (64, 63, Limits(max_ratio=0.3), [8, 16, 19]),
        (8, 7, Limits(min_channels=8), []),
        (8, 0, Limits(), []),
    ],
)
def test_levels_are_eighths_as_far_as_the_limits_allow_and_the_deepest(
    units: int, depth: int, limits: Limits, counts: list[int]
) -> None:
    assert measured_counts(Ladder("g", units, tuple(range(depth))), limits) == counts


LADDER = Ladder("g", 64, tuple(range(63)))


@given(st.lists(st.floats(-1, 100), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_between_levels_damage_rises_monotonely_through_the_measured_points(damage: list[float]) -> None:
    counts = tuple(8 * number for number in range(len(damage) + 1))
    curve = Curve(LADDER, counts, (0.0, *damage))
    steps = curve.at(range(counts[-1] + 1))
    assert steps[0] == 0
    assert (np.diff(steps) >= -1e-9).all()
    highest = np.maximum.accumulate(np.maximum([0.0, *damage], 0))
    np.testing.assert_allclose(steps[list(counts)], highest, rtol=1e-9, atol=1e-12)


def test_a_curve_without_levels_is_nothing_at_nothing() -> None:
    assert Curve(LADDER, (0,), (0.0,)).at([0]).tolist() == [0.0]


@pytest.mark.parametrize("damage", [(0.0, 1.0, np.inf, np.inf), (0.0, 1.0, np.inf, 4.0)])
def test_a_level_that_overflows_is_dearer_than_any_that_does_not(damage: tuple[float, ...]) -> None:
    steps = Curve(LADDER, (0, 8, 16, 24), damage).at(range(25))
    assert np.isfinite(steps).all()
    assert steps[8] == pytest.approx(1)
    assert steps[16] > 1e6
    assert (np.diff(steps) >= 0).all()
