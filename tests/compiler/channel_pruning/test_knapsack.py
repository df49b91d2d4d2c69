"""Global plans against every plan there is: within the budget and the limits, and hardly more damage than the least."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcomp.compiler.channel_pruning.knapsack import Allocation, Whole, allocate
from onnxcomp.compiler.channel_pruning.ladder import Ladder, Limits
from onnxcomp.compiler.channel_pruning.sensitivity_curves import Curve

Cost = Callable[[Allocation], float]


def curve(units: int, damage: Sequence[float], name: str = "g", blocked: int = 0) -> Curve:
    """A curve measured at every unit: `damage[i]` after `i + 1` removals."""
    depth = units - 1 - blocked
    counts = tuple(range(depth + 1))
    return Curve(Ladder(name, units, tuple(range(depth))), counts, (0.0, *damage[:depth]))


def rising(units: int, seed: int, scale: float = 1.0) -> Curve:
    rng = np.random.default_rng([seed, units])
    steps = rng.random(units) ** 3 * scale
    return curve(units, np.cumsum(steps).tolist())


def chain(sizes: Sequence[int], wholes: Sequence[Whole] = ()) -> Cost:
    """The work of a chain of layers, products of neighbouring widths; what goes whole leaves a bypass of one channel."""

    def price(plan: Allocation) -> float:
        gone = {index for number in plan.gone for index in wholes[number].ladders}
        left = [0 if i in gone else n - r for i, (n, r) in enumerate(zip(sizes, plan.removed, strict=True))]
        return 11 + sum(9 * a * b for a, b in pairwise([3, *left, 10]))

    return price


def every(curves: Sequence[Curve], limits: Limits, wholes: Sequence[Whole] = ()) -> list[Allocation]:
    counts = [c.ladder.counts(limits) for c in curves]
    gone = itertools.chain.from_iterable(
        itertools.combinations(range(len(wholes)), n) for n in range(len(wholes) + 1)
    )
    return [Allocation(removed, frozenset(g)) for g in list(gone) for removed in itertools.product(*counts)]


def damage_of(curves: Sequence[Curve], plan: Allocation, wholes: Sequence[Whole] = ()) -> float:
    covered = {index for number in plan.gone for index in wholes[number].ladders}
    left = [(c, n) for i, (c, n) in enumerate(zip(curves, plan.removed, strict=True)) if i not in covered]
    return sum(float(c.at([n])[0]) for c, n in left) + sum(wholes[n].damage for n in plan.gone)


def uniform(curves: Sequence[Curve], price: Cost, target: float, limits: Limits) -> Allocation:
    """The smallest common share of what may go that fits."""
    counts = [c.ladder.counts(limits) for c in curves]
    for share in np.linspace(0, 1, 400):
        plan = Allocation(tuple(c[int(np.ceil(share * (len(c) - 1) - 1e-9))] for c in counts))
        if price(plan) <= target:
            return plan
    raise AssertionError("unreachable")


LADDERS = st.lists(
    st.tuples(st.integers(2, 6), st.integers(0, 99), st.sampled_from([0.2, 1, 20])), min_size=1, max_size=3
)
LIMITS = st.sampled_from(
    [Limits(), Limits(align=2), Limits(min_channels=2), Limits(max_ratio=0.5), Limits(3, 2, 0.9)]
)
thorough = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@given(LADDERS, st.floats(0.05, 1.0), LIMITS)
@thorough
def test_a_plan_keeps_to_the_budget_and_the_limits_or_is_the_deepest(
    drawn: list[tuple[int, int, float]], share: float, limits: Limits
) -> None:
    curves = [rising(*each) for each in drawn]
    price = chain([units for units, _, _ in drawn])
    target = share * price(Allocation((0,) * len(curves)))
    plan, reached = allocate(curves, price, target, limits)
    plans = every(curves, limits)
    assert plan in plans, "a number of channels that the limits allow"
    assert reached == any(price(each) <= target for each in plans)
    if reached:
        assert price(plan) <= target
    else:
        assert plan == Allocation(tuple(c.ladder.counts(limits)[-1] for c in curves))


@given(LADDERS, st.floats(0.05, 1.0), LIMITS)
@thorough
def test_a_plan_is_at_the_edge_and_no_worse_than_uniform_shares(
    drawn: list[tuple[int, int, float]], share: float, limits: Limits
) -> None:
    curves = [rising(*each) for each in drawn]
    price = chain([units for units, _, _ in drawn])
    target = share * price(Allocation((0,) * len(curves)))
    plan, reached = allocate(curves, price, target, limits)
    assume(reached)
    found = damage_of(curves, plan)
    assert found <= damage_of(curves, uniform(curves, price, target, limits)) + 1e-9
    for index, each in enumerate(curves):
        smaller = [n for n in each.ladder.counts(limits) if n < plan.removed[index]]
        if smaller:
            spared = (*plan.removed[:index], smaller[-1], *plan.removed[index + 1 :])
            assert price(Allocation(spared)) > target, f"ladder {index} could have kept more"


def test_plans_are_near_the_least_damage_there_is() -> None:
    """Over many small networks: mostly the best of all plans, and seldom far from it."""
    excess = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(4, 8, 3).tolist()
        curves = [rising(u, seed + 7 * n, float(rng.choice([0.2, 1, 20]))) for n, u in enumerate(sizes)]
        price = chain(sizes)
        target = float(rng.uniform(0.2, 0.8)) * price(Allocation((0, 0, 0)))
        plan, reached = allocate(curves, price, target, Limits())
        assert reached
        best = min(damage_of(curves, each) for each in every(curves, Limits()) if price(each) <= target)
        excess.append(damage_of(curves, plan) / best - 1)
    assert np.mean(excess) <= 0.05
    assert np.median(excess) <= 0.001
    assert min(excess) >= -1e-9


def test_what_the_network_does_not_need_goes_first() -> None:
    """Two layers of equal size and cost, one of which carries nothing: it pays for the whole budget."""
    idle, busy = curve(16, [1e-6 * n for n in range(1, 16)]), curve(16, [float(n) for n in range(1, 16)])
    price = lambda plan: 32.0 - sum(plan.removed)
    plan, reached = allocate([busy, idle], price, 24, Limits())
    assert (plan.removed, reached) == ((0, 8), True)


def test_a_budget_that_is_met_takes_nothing() -> None:
    curves = [rising(6, 1), rising(6, 2)]
    price = chain([6, 6])
    plan, reached = allocate(curves, price, price(Allocation((0, 0))), Limits())
    assert (plan, reached) == (Allocation((0, 0)), True)


@pytest.mark.parametrize("seed", range(12))
def test_many_ladders_are_planned_to_the_unit(seed: int) -> None:
    """More levels than the knapsack is given, and costs that depend on each other: single units meet the edge."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(30, 130, 5).tolist()
    curves = [rising(units, seed + 7 * number) for number, units in enumerate(sizes)]
    price = chain(sizes)
    target = float(rng.uniform(0.2, 0.8)) * price(Allocation((0,) * 5))
    plan, reached = allocate(curves, price, target, Limits())
    assert reached
    assert price(plan) <= target
    for index, count in enumerate(plan.removed):
        if count:
            spared = Allocation((*plan.removed[:index], count - 1, *plan.removed[index + 1 :]))
            assert price(spared) > target, f"ladder {index} could have kept more"


# --- alternatives ----------------------------------------------------------------------------------------------------
@given(LADDERS.filter(lambda drawn: len(drawn) > 1), st.floats(0.05, 1.0), st.floats(0.01, 20), st.booleans())
@thorough
def test_with_alternatives_plans_keep_to_the_budget_and_are_no_worse_than_without_them(
    drawn: list[tuple[int, int, float]], share: float, damage: float, both: bool
) -> None:
    curves = [rising(*each) for each in drawn]
    wholes = [Whole((0, 1), damage)] if both else [Whole((0,), damage), Whole((1,), 2 * damage)]
    price = chain([units for units, _, _ in drawn], wholes)
    target = share * price(Allocation((0,) * len(curves)))
    plan, reached = allocate(curves, price, target, Limits(), wholes)
    plans = every(curves, Limits(), wholes)
    assert reached == any(price(each) <= target for each in plans)
    if not reached:
        assert price(plan) == min(price(each) for each in plans)
        return
    assert price(plan) <= target
    assert plan.gone <= set(range(len(wholes)))
    alone, possible = allocate(curves, price, target, Limits())
    if possible:
        assert damage_of(curves, plan, wholes) <= damage_of(curves, alone) + 1e-9


@pytest.mark.parametrize(("damage", "gone"), [(0.01, {0}), (1e6, set())])
def test_what_goes_whole_goes_where_it_does_less_damage(damage: float, gone: set[int]) -> None:
    curves = [rising(8, 1), rising(8, 2)]
    wholes = [Whole((0,), damage)]
    price = lambda plan: 16.0 - (8 + plan.removed[1] if plan.gone else sum(plan.removed))
    plan, reached = allocate(curves, price, 8, Limits(), wholes)
    assert (set(plan.gone), reached) == (gone, True)
