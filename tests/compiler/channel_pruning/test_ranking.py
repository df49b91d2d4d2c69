"""The order in which channels go, by each criterion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.channels import ChannelGroup, channel_groups, default_shapes
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.channel_pruning import ranking as module
from onnxcomp.compiler.channel_pruning.ladder import Ladder, tiers
from onnxcomp.compiler.channel_pruning.ranking import blank_ladders, obs_ladders, ranked_ladders
from onnxcomp.compiler.repair.walk import collect_moments
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.importance import Reader, eliminate
from onnxcomp.numerics.moments import Moments
from tests.support.pruning import context_for, zoo, zoo_context
from tests.support.text import net

PLAIN = net(
    "(float[N,3,8,8] x) => (float[N,5,6,6] y)",
    "float[8,3,3,3] a, float[8] p, float[5,8,1,1] b, float[5] q",
    "h = Conv(x, a, p) r = Relu(h) y = Conv(r, b, q)",
)
GROWING = net(
    "(float[N,3,4,4] x) => (float[N,5,4,4] y)",
    "float[4,3,1,1] a, float[4,4,1,1] b, float[6,4,1,1] c, float[5,6,1,1] d, int64[8] pads = {0,1,0,0,0,1,0,0}",
    "h = Conv(x, a) r = Relu(h) i = Conv(r, b) s = Add(h, i) p = Pad(s, pads) k = Relu(s) j = Conv(k, c)"
    " t = Add(p, j) y = Conv(t, d)",
)


def plain(a: Array | None = None, p: Array | None = None, b: Array | None = None) -> Model:
    given = {"a": a, "p": p, "b": b}
    return parse_model(PLAIN, {name: array for name, array in given.items() if array is not None})


def weights(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def only(model: Model) -> ChannelGroup:
    (group,) = (g for g in channel_groups(model) if not g.blocked)
    return group


def obs(model: Model, depth: int = 7, groups: Sequence[ChannelGroup] | None = None) -> list[Ladder]:
    found = groups or [g for g in channel_groups(model) if not g.blocked]
    depths = {g.name: [min(depth, len(units) - 1) for units in tiers(g)] for g in found}
    return obs_ladders(model, found, depths, context_for(model), default_shapes(model))


def ranked(model: Model, criterion: str, seed: int = 0, depth: int = 7) -> Ladder:
    (found,) = ranked_ladders(model, only(model), [depth], criterion, seed)
    return found


# --- norms and chance ------------------------------------------------------------------------------------------------
def test_small_filters_go_first_and_the_two_norms_differ() -> None:
    a = np.zeros((8, 3, 3, 3), np.float32)
    a.reshape(8, -1)[:, :] = np.arange(8, 0, -1)[:, None] / 10
    a[7] = 0
    a[7, 0, 0, 0] = 12.0
    model = plain(a=a)
    assert ranked(model, "l1").order == (6, 5, 4, 7, 3, 2, 1)
    assert ranked(model, "l2").order == (6, 5, 4, 3, 2, 1, 0)
    costs = ranked(model, "l1").costs
    assert list(costs) == sorted(costs)


@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
def test_a_ladder_is_as_deep_as_asked_and_spares_units_that_must_stay(criterion: str) -> None:
    """Three channels reach the output too."""
    model = parse_model(
        net(
            "(float[N,3,8,8] x) => (float[N,5,8,8] y, float[N,3,8,8] z)",
            "float[8,3,1,1] a, float[5,8,1,1] b, int64[2] sizes = {3,5}",
            "h = Conv(x, a) y = Conv(h, b) z, rest = Split<axis=1>(h, sizes)",
        )
    )
    group = only(model)
    assert [units.tolist() for units in tiers(group)] == [[0, 1, 2], [3, 4, 5, 6, 7]]
    stays, goes = ranked_ladders(model, group, [2, 3], criterion, 0)
    assert (stays.order, stays.units) == ((), 3)
    assert (len(goes.order), goes.units) == (3, 5)
    assert set(goes.order) < {3, 4, 5, 6, 7}
    deep = ranked_ladders(model, group, [9, 9], criterion, 0)
    assert deep[1].order[:3] == goes.order
    blank = blank_ladders(group)
    assert [len(x.order) for x in blank] == [0, 4], "the Split's second output keeps one"


def test_chance_is_drawn_from_the_seed_and_the_name() -> None:
    model = plain()
    first = ranked(model, "random", 1)
    assert first == ranked(plain(), "random", 1)
    assert len({ranked(model, "random", seed).order for seed in range(6)}) == 6
    for node in model.graph.nodes:
        node.name += "_other"
    assert ranked(model, "random", 1).order != first.order, "equal layers must not lose equal channels"


def test_a_blank_ladder_leaves_one_unit_where_all_are_free() -> None:
    (found,) = blank_ladders(only(plain()))
    assert (found.units, len(found.order)) == (8, 7)


# --- elimination -----------------------------------------------------------------------------------------------------
def test_elimination_takes_dead_channels_first_then_duplicates() -> None:
    """Channel 2 is always zero, 5 always cut off by the Relu, 6 is three times channel 1."""
    a, p = weights(1, 8, 3, 3, 3), weights(2, 8)
    a[2], p[2] = 0, 0
    p[5] = -1e3
    a[6], p[6] = 3 * a[1], 3 * p[1]
    b = weights(3, 5, 8, 1, 1)
    b[:, [2, 5]] *= 100
    (found,) = obs(plain(a, p, b))
    assert set(found.order[:2]) == {2, 5}
    assert found.order[2] in (1, 6)
    assert len({1, 6} & set(found.order[:4])) == 1
    assert found.costs[:2] == (0.0, 0.0)
    assert found.costs[2] < 1e-2 * found.costs[3] or found.costs[2] < 1e-3


def test_a_channel_that_is_constant_costs_nothing_however_large() -> None:
    a, p = weights(1, 8, 3, 3, 3), weights(2, 8)
    a[3], p[3] = 0, 50.0
    (found,) = obs(plain(a, p))
    assert found.order[0] == 3
    assert found.costs[0] < 1e-6


def test_what_the_reader_ignores_goes_before_what_has_small_filters() -> None:
    a, b = weights(1, 8, 3, 3, 3), weights(3, 5, 8, 1, 1)
    a[0] /= 2
    b[:, 7] = 0
    model = plain(a=a, b=b)
    assert ranked(model, "l1").order[0] == 0
    (found,) = obs(model)
    assert found.order[0] == 7


def test_elimination_goes_as_deep_in_each_tier_as_asked_and_never_empties_a_value() -> None:
    model = parse_model(GROWING)
    groups = [g for g in channel_groups(model) if not g.blocked]
    (stream,) = (g for g in groups if g.coupled)
    sizes = [len(units) for units in tiers(stream)]
    for depth in ([1, 1], [3, 1], [0, 1], [9, 9]):
        depths = {g.name: [0 for _ in tiers(g)] for g in groups} | {stream.name: depth}
        found = obs_ladders(model, groups, depths, context_for(model), default_shapes(model))
        assert [x.group for x in found] == [stream.name] * 2
        gone = [set(x.order) for x in found]
        for number, units in enumerate(tiers(stream)):
            assert gone[number] <= set(units.tolist())
            assert len(gone[number]) <= depth[number]
        if depth != [9, 9]:
            assert [len(g) for g in gone] == depth
        for span in stream.spans:
            assert set(span.tolist()) - gone[0] - gone[1], "a value would lose its last channel"
    assert sorted(sizes) == [2, 4]


def test_groups_come_in_order_and_untouched_ones_not_at_all() -> None:
    model = zoo("digits_resnet")
    groups = [g for g in channel_groups(model) if not g.blocked]
    depths = {g.name: [2 * (place % 2) for _ in tiers(g)] for place, g in enumerate(groups)}
    context = zoo_context(model, 32)
    found = obs_ladders(model, groups, depths, context, default_shapes(model))
    assert list(dict.fromkeys(x.group for x in found)) == [g.name for g in groups[1::2]]


def test_statistics_in_several_runs_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo("digits_resnet")
    groups = [g for g in channel_groups(model) if not g.blocked and not g.coupled][:4]
    whole = obs(model, 3, groups)
    runs: list[int] = []
    monkeypatch.setattr(module, "MOMENT_BYTES", 1)

    def counting(*args: Any, **kwargs: Any) -> dict[str, Moments]:
        runs.append(1)
        return collect_moments(*args, **kwargs)

    monkeypatch.setattr(module, "collect_moments", counting)
    assert obs(model, 3, groups) == whole
    assert len(runs) == len(groups)


def test_wide_readers_are_judged_by_their_channels_and_for_single_taps_that_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (exact,) = obs(plain())
    monkeypatch.setattr("onnxcomp.compiler.repair.refit.WIDEST", 7)
    monkeypatch.setattr(module, "WIDEST", 7)
    (rough,) = obs(plain())
    assert rough.order == exact.order
    np.testing.assert_allclose(rough.costs, exact.costs, rtol=1e-3)


def test_wide_readers_with_several_taps_still_give_dead_channels_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = PLAIN.replace("float[5,8,1,1] b", "float[5,8,3,3] b").replace(
        "float[N,5,6,6] y", "float[N,5,4,4] y"
    )
    a, p = weights(1, 8, 3, 3, 3), weights(2, 8)
    p[5] = -1e3
    model = parse_model(text, {"a": a, "p": p})
    monkeypatch.setattr("onnxcomp.compiler.repair.refit.WIDEST", 8)
    monkeypatch.setattr(module, "WIDEST", 8)
    (found,) = obs(model)
    assert (found.order[0], found.costs[0]) == (5, 0.0)
    # Every tap reads the same channels: to the covariance of channels it is one more output.
    context = context_for(model)
    (node,) = (n for n in model.graph.nodes if n.output.name == "y")
    linear = linear_node(node)
    assert linear is not None
    wide = {node.name: 8}
    moments = collect_moments(model, [linear], context, default_shapes(model), "look", channelwise=wide)
    taps = linear.weight_array().transpose(0, 2, 3, 1).reshape(-1, 8).astype(np.float64)
    reader = Reader(taps, moments[node.name].covariance()[0], np.arange(8))
    order, costs = eliminate([reader], 8, lambda alive: alive & np.bool_(alive.sum() > 1))
    assert found.order == tuple(order)
    np.testing.assert_allclose(found.costs, costs)


def test_a_wide_reader_behind_flatten_counts_all_positions_of_a_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = parse_model(
        net(
            "(float[N,3,4,4] x) => (float[N,5] y)",
            "float[4,3,1,1] a, float[64,5] b",
            "h = Conv(x, a) r = Relu(h) f = Flatten(r) y = Gemm(f, b)",
        )
    )
    (exact,) = obs(model)
    monkeypatch.setattr("onnxcomp.compiler.repair.refit.WIDEST", 8)
    monkeypatch.setattr(module, "WIDEST", 8)
    (again,) = obs(model)
    assert set(exact.order) <= {0, 1, 2, 3}
    assert len(again.order) == 3
