"""The multiple-choice knapsack against every combination there is: never over the budget, near the least damage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.numerics import knapsack
from onnxcomp.numerics.knapsack import BUCKETS, Options, choose

Raw = list[list[tuple[int, int]]]
"""Classes of options, each with cost and damage."""


def options(raw: Raw) -> list[Options]:
    return [Options(np.array([c for c, _ in o], float), np.array([d for _, d in o], float)) for o in raw]


def total(raw: Raw, taken: Sequence[int]) -> tuple[int, int]:
    """Cost and damage of one option from each class."""
    picked = [o[i] for o, i in zip(raw, taken, strict=True)]
    return sum(c for c, _ in picked), sum(d for _, d in picked)


def combinations(raw: Raw) -> list[tuple[int, int]]:
    return [total(raw, taken) for taken in itertools.product(*(range(len(o)) for o in raw))]


def least_damage(raw: Raw, budget: float) -> int | None:
    return min((damage for cost, damage in combinations(raw) if cost <= budget), default=None)


def hull_damage(raw: Raw, budget: float) -> int:
    """The damage of the dearest corner of the lower convex hull of all combinations that fits the budget."""
    corners: list[tuple[int, int]] = []
    for point in sorted(set(combinations(raw))):
        if corners and point[1] >= corners[-1][1]:
            continue
        while len(corners) > 1 and not _turns(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return min(damage for cost, damage in corners if cost <= budget)


def _turns(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    return (b[1] - a[1]) * (c[0] - b[0]) < (c[1] - b[1]) * (b[0] - a[0])


CLASSES = st.lists(
    st.lists(st.tuples(st.integers(-40, 60), st.integers(0, 30)), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)
"""Costs may be negative: they are counted from a plan. Small ranges make ties, free options and doubles common."""

thorough = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@given(CLASSES, st.integers(-120, 200))
@thorough
def test_the_choice_fits_and_is_none_exactly_where_nothing_fits(raw: Raw, budget: int) -> None:
    taken = choose(options(raw), budget)
    best = least_damage(raw, budget)
    assert (taken is None) == (best is None)
    if taken is not None:
        assert total(raw, taken)[0] <= budget


@given(CLASSES, st.integers(-120, 200))
@thorough
def test_dynamic_programming_is_within_its_rounding_of_the_best(raw: Raw, budget: int) -> None:
    """Every class rounds its cost up by a bucket at most: what fits a budget smaller by as much is never missed."""
    taken = choose(options(raw), budget)
    if taken is None:
        return
    room = budget - sum(min(c for c, _ in o) for o in raw)
    sure = least_damage(raw, budget - len(raw) * room / BUCKETS)
    best = least_damage(raw, budget)
    assert best is not None
    found = total(raw, taken)[1]
    assert found >= best
    if sure is not None:
        assert found <= sure
    if room > 0 and BUCKETS % room == 0:
        assert found == best, "costs are whole buckets, and nothing is rounded"


@given(CLASSES, st.integers(-120, 200))
@thorough
def test_relaxation_alone_does_no_more_damage_than_the_corner_of_the_hull_below_the_budget(
    raw: Raw, budget: int
) -> None:
    """Everett's theorem: what a price chooses is the best at its own cost; filling up only improves on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "SMALL", 0)
        taken = choose(options(raw), budget)
    if taken is None:
        assert least_damage(raw, budget) is None
        return
    cost, damage = total(raw, taken)
    assert cost <= budget
    assert damage <= hull_damage(raw, budget)


@given(CLASSES, st.integers(-120, 200), st.booleans())
@thorough
def test_no_single_exchange_would_still_improve_the_choice(raw: Raw, budget: int, relaxed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if relaxed:
            patch.setattr(knapsack, "SMALL", 0)
        taken = choose(options(raw), budget)
    if taken is None:
        return
    damage = total(raw, taken)[1]
    for number, each in enumerate(raw):
        for other in range(len(each)):
            trial = [*taken[:number], other, *taken[number + 1 :]]
            cost, less = total(raw, trial)
            assert less >= damage or cost > budget


@given(CLASSES, st.integers(-120, 200), st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_the_units_of_cost_and_damage_do_not_matter(
    raw: Raw, budget: int, cost_unit: float, damage_unit: float
) -> None:
    scaled = [Options(o.cost * cost_unit, o.damage * damage_unit) for o in options(raw)]
    limit = (budget + 0.5) * cost_unit
    taken, plain = choose(scaled, limit), choose(options(raw), budget + 0.5)
    assert (taken is None) == (plain is None)
    if taken is not None and plain is not None:
        assert total(raw, taken)[0] <= budget
        assert total(raw, taken)[1] == total(raw, plain)[1]


# --- corners ---------------------------------------------------------------------------------------------------------
def test_nothing_to_choose_from_is_an_empty_choice() -> None:
    assert choose([], 0.0) == []
    assert choose([], 5.0) == []


def test_of_one_class_the_least_damage_that_fits_is_taken() -> None:
    raw: Raw = [[(0, 9), (4, 5), (5, 5), (7, 1), (9, 0)]]
    found = {budget: choose(options(raw), budget) for budget in (-1, 0, 3, 4, 6, 8, 9, 100)}
    assert found == {-1: None, 0: [0], 3: [0], 4: [1], 6: [1], 8: [3], 9: [4], 100: [4]}


@pytest.mark.parametrize("small", [knapsack.SMALL, 0])
def test_a_budget_of_exactly_the_least_cost_leaves_only_the_cheapest(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knapsack, "SMALL", small)
    raw: Raw = [[(0, 9), (5, 0), (0, 7)], [(-3, 4), (1, 0)]]
    assert choose(options(raw), -3) == [2, 0]


def test_a_budget_a_hair_above_the_least_cost_is_no_other() -> None:
    """The step between buckets is then so small that costs are beyond any whole number."""
    raw: Raw = [[(0, 9), (10**9, 0)], [(3, 4), (10**12, 0)]]
    assert choose(options(raw), 3 + 1e-15) == [0, 0]
    assert choose(options(raw), np.nextafter(3.0, 4.0)) == [0, 0]


def test_options_that_cost_nothing_more_are_taken_for_what_they_save() -> None:
    raw: Raw = [[(0, 5), (0, 3), (0, 8)], [(2, 2), (2, 1)]]
    assert choose(options(raw), 2) == [1, 1]


def test_a_large_problem_is_relaxed_and_filled() -> None:
    """200 classes of 24 levels: too many for dynamic programming; the gap to the relaxed bound is one exchange."""
    rng = np.random.default_rng(0)
    levels = np.arange(24)
    classes = [
        Options(
            np.asarray(-levels * rng.uniform(1, 9), np.float64),
            np.asarray(np.cumsum(rng.random(24)) * rng.uniform(0.1, 5), np.float64),
        )
        for _ in range(200)
    ]
    assert sum(len(o.cost) for o in classes) * BUCKETS > knapsack.SMALL
    budget = 0.5 * sum(float(o.cost.min()) for o in classes)
    taken = choose(classes, budget)
    assert taken is not None
    cost = sum(float(o.cost[i]) for o, i in zip(classes, taken, strict=True))
    damage = sum(float(o.damage[i]) for o, i in zip(classes, taken, strict=True))
    prices = np.geomspace(1e-4, 10, 400)
    bound = max(sum(float((o.damage + p * o.cost).min()) for o in classes) - p * budget for p in prices)
    assert cost <= budget
    assert bound <= damage <= 1.01 * bound


def test_a_small_problem_is_solved_exactly_where_relaxation_is_not() -> None:
    """The one option with the best rate leaves no room for the two that together save more."""
    raw: Raw = [[(0, 7), (6, 0)], [(0, 5), (5, 0)], [(0, 5), (5, 0)]]
    assert choose(options(raw), 10) == [0, 1, 1]
