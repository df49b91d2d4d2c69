"""Which units go under a budget: never more than it, as little below as can be, and the same share from every group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.compiler.channel_pruning.ladder import Ladder, Limits, at_share, keep_of, tiers, uniform_keep
from onnxcomp.compiler.cost.budget import fits_exactly
from onnxcomp.ir.parse import parse_model
from tests.support.text import net

Mask = NDArray[np.bool_]
Keep = Mapping[str, Mask]


def ladder(name: str, units: int, blocked: int = 0, seed: int = 0) -> Ladder:
    """A ladder over all but `blocked` units in random order, dearer from step to step."""
    rng = np.random.default_rng([seed, units, *name.encode()])
    order = tuple(rng.permutation(units)[blocked:].tolist())
    return Ladder(name, units, order, tuple(np.sort(rng.random(len(order))).tolist()))


def chain(sizes: Mapping[str, int]) -> Callable[[Keep], int]:
    """The cost of a chain of layers: products of neighbouring widths, and some that nothing can lower."""

    def cost(keep: Keep) -> int:
        widths = [3, *(int(keep[n].sum()) if n in keep else size for n, size in sizes.items()), 10]
        return 17 + sum(9 * a * b for a, b in pairwise(widths))

    return cost


def kept(keep: Keep, sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: int(keep[name].sum()) if name in keep else size for name, size in sizes.items()}


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=4),
    st.lists(st.integers(2, 24), max_size=2),
    st.floats(0.02, 0.999),
    st.sampled_from(
        [Limits(), Limits(align=4), Limits(min_channels=3), Limits(max_ratio=0.5), Limits(8, 2, 0.8)]
    ),
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_a_plan_holds_its_budget_and_its_limits_and_wastes_no_more_than_a_hundredth(
    inner: list[int], streams: list[int], share: float, limits: Limits
) -> None:
    sizes = {f"i{k}": n for k, n in enumerate(inner)} | {f"s{k}": n for k, n in enumerate(streams)}
    steps = {name: ladder(name, units) for name, units in sizes.items()}
    cost = chain(sizes)
    target = int(share * cost({}))
    ours = [steps[n] for n in sizes if n[0] == "i"]
    theirs = [steps[n] for n in sizes if n[0] == "s"]
    keep, reached = uniform_keep(sizes, ours, theirs, cost, target, limits)
    left = kept(keep, sizes)
    for name, units in sizes.items():
        removed = units - left[name]
        assert removed in steps[name].counts(limits)
        assert left[name] == units or left[name] % limits.align == 0
        assert left[name] >= min(limits.min_channels, units)
        assert removed <= units * limits.max_ratio + 1e-9
        gone = set(np.flatnonzero(~keep[name])) if name in keep else set()
        assert gone == set(steps[name].order[:removed]), "what goes is a beginning of the ladder"
    least = {n: units - steps[n].counts(limits)[-1] for n, units in sizes.items()}
    if not reached:
        assert left == least
        assert cost(keep) > target
        return
    assert cost(keep) <= target
    inner_least = cost(keep_of(sizes, ours, [x.counts(limits)[-1] for x in ours]))
    if inner_least <= target:
        assert all(left[n] == sizes[n] for n in sizes if n[0] == "s"), "streams go only when they must"
    if fits_exactly(cost(keep), target, cost({})):
        return
    for name in sizes:
        smaller = [c for c in steps[name].counts(limits) if c < sizes[name] - left[name]]
        if smaller:
            counts = [smaller[-1] if n == name else sizes[n] - left[n] for n in sizes]
            spared = keep_of(sizes, [steps[n] for n in sizes], counts)
            assert cost(spared) > target, f"{name} could have kept more"


def test_the_share_is_the_same_for_all_inner_groups_to_a_step() -> None:
    sizes = {"a": 16, "b": 64, "c": 32}
    cost = chain(sizes)
    for share in (0.9, 0.5, 0.25):
        keep, reached = uniform_keep(
            sizes, [ladder(n, u) for n, u in sizes.items()], [], cost, int(share * cost({})), Limits()
        )
        assert reached
        shares = [1 - count / sizes[name] for name, count in kept(keep, sizes).items()]
        steps = [1 / units for units in sizes.values()]
        assert max(shares) - min(shares) <= 2 * max(steps)
        assert fits_exactly(cost(keep), int(share * cost({})), cost({}))


def test_what_rounding_leaves_goes_back_to_the_dearest_removal_that_fits() -> None:
    """One unit of each of three ladders must go by the share; the budget asks for two, and `dear` is spared."""
    steps = [
        Ladder(n, 10, tuple(range(10)), (c,) * 10) for n, c in (("cheap", 0.1), ("dear", 9.0), ("fair", 1.0))
    ]
    sizes = {x.group: 10 for x in steps}
    keep, reached = uniform_keep(
        sizes,
        steps,
        [],
        lambda keep: sum(int(m.sum()) for m in keep.values()) + 10 * (3 - len(keep)),
        28,
        Limits(),
    )
    assert reached
    assert kept(keep, sizes) == {"cheap": 9, "dear": 10, "fair": 9}


def test_a_large_step_of_one_group_is_made_up_for_by_several_small_ones_of_another() -> None:
    """A unit of `wide` costs as much as 20 of `fine`: after the last of its steps much of the budget would lie idle."""
    sizes = {"wide": 4, "fine": 40}
    steps = [ladder(n, u) for n, u in sizes.items()]

    def cost(keep: Keep) -> int:
        left = kept(keep, sizes)
        return 20 * left["wide"] + left["fine"]

    keep, reached = uniform_keep(sizes, steps, [], cost, 79, Limits())
    assert reached
    assert kept(keep, sizes)["wide"] == 2
    assert fits_exactly(cost(keep), 79, cost({}))


def test_streams_share_the_burden_once_the_inner_groups_cannot_bear_it() -> None:
    sizes = {"i": 10, "s": 10}
    inner, stream = ladder("i", 10), ladder("s", 10)
    cost = chain(sizes)
    alone = cost(keep_of(sizes, [inner], [9]))
    keep, reached = uniform_keep(sizes, [inner], [stream], cost, alone, Limits())
    assert (reached, kept(keep, sizes)) == (True, {"i": 1, "s": 10})
    keep, reached = uniform_keep(sizes, [inner], [stream], cost, alone - 1, Limits())
    assert reached
    left = kept(keep, sizes)
    assert abs(left["i"] - left["s"]) <= 2, "neither is emptied while the other stays whole"


def test_a_budget_that_is_met_removes_nothing_and_one_beyond_reach_removes_all_that_may() -> None:
    sizes = {"i": 6, "s": 4}
    cost = chain(sizes)
    steps = [ladder("i", 6, blocked=2)], [ladder("s", 4)]
    assert uniform_keep(sizes, *steps, cost, cost({}), Limits()) == ({}, True)
    keep, reached = uniform_keep(sizes, *steps, cost, 0, Limits())
    assert (reached, kept(keep, sizes)) == (False, {"i": 2, "s": 1})
    assert uniform_keep({}, [], [], lambda keep: 7, 6, Limits()) == ({}, False)


# --- ladders ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        (Limits(), list(range(12))),
        (Limits(align=4), [0, 4, 8]),
        (Limits(align=5), [0, 2, 7]),
        (Limits(align=8), [0, 4]),
        (Limits(align=16), [0]),
        (Limits(min_channels=9), [0, 1, 2, 3]),
        (Limits(min_channels=20), [0]),
        (Limits(max_ratio=0.25), [0, 1, 2, 3]),
        (Limits(max_ratio=0.0), [0]),
        (Limits(align=4, min_channels=5, max_ratio=0.9), [0, 4]),
    ],
)
def test_limits_say_how_many_units_may_go(limits: Limits, counts: list[int]) -> None:
    assert ladder("a", 12).counts(limits) == counts


def test_units_that_must_stay_end_the_ladder_early() -> None:
    assert ladder("a", 12, blocked=9).counts(Limits()) == [0, 1, 2, 3]
    assert ladder("a", 12, blocked=12).counts(Limits()) == [0]


@pytest.mark.parametrize(
    ("share", "limits", "removed"),
    [
        (0.0, Limits(), 0),
        (0.5, Limits(), 6),
        (0.3, Limits(), 4),
        (0.25, Limits(), 3),
        (0.99, Limits(), 11),
        (0.5, Limits(align=8), 4),
        (0.3, Limits(align=4), 4),
        (0.4, Limits(align=4), 8),
        (0.5, Limits(max_ratio=0.3), 3),
    ],
)
def test_a_share_is_rounded_towards_removing_as_far_as_the_limits_allow(
    share: float, limits: Limits, removed: int
) -> None:
    assert at_share(ladder("a", 12), share, limits) == removed


def test_masks_hold_the_groups_that_lose_something_and_join_the_tiers_of_one() -> None:
    steps = [Ladder("a", 2, (1, 0)), Ladder("a", 3, (4, 2, 3)), Ladder("b", 2, (0,))]
    keep = keep_of({"a": 5, "b": 2}, steps, [1, 2, 0])
    assert list(keep) == ["a"]
    np.testing.assert_array_equal(keep["a"], [True, False, False, True, False])


def test_a_stream_that_grows_has_a_tier_for_every_stage() -> None:
    """The first 4 channels flow through both stages, the 2 that the shortcut pads on only through the second."""
    model = parse_model(
        net(
            "(float[N,3,4,4] x) => (float[N,5,4,4] y)",
            "float[4,3,1,1] a, float[4,4,1,1] b, float[6,4,1,1] c, float[5,6,1,1] d,"
            " int64[8] pads = {0,1,0,0,0,1,0,0}",
            "h = Conv(x, a) r = Relu(h) i = Conv(r, b) s = Add(h, i) p = Pad(s, pads) k = Relu(s) j = Conv(k, c)"
            " t = Add(p, j) y = Conv(t, d)",
        )
    )
    (group,) = (g for g in channel_groups(model) if g.coupled)
    found = tiers(group)
    assert sorted(len(units) for units in found) == [2, 4]
    assert sorted(np.concatenate(found).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("achieved", "fits"), [(500, True), (501, False), (490, True), (489, False), (0, False)]
)
def test_a_budget_is_used_when_at_most_one_percent_of_the_whole_is_left(achieved: int, fits: bool) -> None:
    assert fits_exactly(achieved, 500, 1000) is fits
