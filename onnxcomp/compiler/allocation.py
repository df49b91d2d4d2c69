"""Which units go under a global budget: shares that differ from group to group, by measured effect on the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.compiler.budget import Limits
from onnxcomp.compiler.curves import Curve
from onnxcomp.numerics.knapsack import Options, choose

__all__ = ["allocate"]

Array = NDArray[Any]

PASSES = 6
"""Times the costs are made linear around the last plan: channel counts multiply, so costs depend on each other."""

MOST_LEVELS = 24
"""Levels of a ladder that the knapsack chooses among; the exact fill takes single steps afterwards."""

Price = Callable[[Sequence[int]], float]
"""What a plan (units removed, by ladder) costs."""


def allocate(curves: Sequence[Curve], price: Price, target: float, limits: Limits) -> tuple[list[int], bool]:
    """Return how many units each curve's ladder loses so that `price` falls to `target` or just below, and whether it did.

    The damage of a plan is taken to be the sum of the curves; its price is exact, made linear around the last plan for
    the knapsack and stepped to the edge of the budget at the end.
    """
    allowed = [curve.ladder.counts(limits) for curve in curves]
    deepest = [counts[-1] for counts in allowed]
    if price(deepest) > target:
        return deepest, False
    damage = [curve.at(counts) for curve, counts in zip(curves, allowed, strict=True)]
    plan = _halfway(allowed, price, target)
    best: list[int] | None = None
    for _ in range(PASSES):
        found = _linear_plan(curves, allowed, damage, plan, price, target)
        exact = _to_edge(allowed, damage, found, price, target)
        if best is None or _sum(allowed, damage, exact) < _sum(allowed, damage, best):
            best = exact
        if exact == plan:
            break
        plan = exact
    assert best is not None
    return best, True


def _halfway(allowed: Sequence[Sequence[int]], price: Price, target: float) -> list[int]:
    """Return the plan with the smallest common share that fits: where the first linear costs are taken."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if price(_at(allowed, middle)) <= target:
            high = middle
        else:
            low = middle
    return _at(allowed, high)


def _at(allowed: Sequence[Sequence[int]], share: float) -> list[int]:
    return [counts[round(share * (len(counts) - 1))] for counts in allowed]


def _sum(allowed: Sequence[Sequence[int]], damage: Sequence[Array], plan: Sequence[int]) -> float:
    return sum(float(d[counts.index(k)]) for counts, d, k in zip(allowed, damage, plan, strict=True))


def _linear_plan(
    curves: Sequence[Curve],
    allowed: Sequence[Sequence[int]],
    damage: Sequence[Array],
    plan: list[int],
    price: Price,
    target: float,
) -> list[int]:
    here = price(plan)
    classes, levels = [], []
    for index, counts in enumerate(allowed):
        picked = _picked(len(counts))
        costs = [price([*plan[:index], counts[p], *plan[index + 1 :]]) - here for p in picked]
        classes.append(Options(np.array(costs), damage[index][picked]))
        levels.append([counts[p] for p in picked])
    taken = choose(classes, target - here)
    if taken is None:
        return plan
    return [counts[i] for counts, i in zip(levels, taken, strict=True)]


def _picked(count: int) -> list[int]:
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, MOST_LEVELS))})


def _to_edge(
    allowed: Sequence[Sequence[int]],
    damage: Sequence[Array],
    plan: Sequence[int],
    price: Price,
    target: float,
) -> list[int]:
    """Step to the budget's edge: the steps that do least damage per cost down, then what saves most back up."""
    places = [counts.index(k) for counts, k in zip(allowed, plan, strict=True)]

    def of(where: Sequence[int]) -> list[int]:
        return [counts[p] for counts, p in zip(allowed, where, strict=True)]

    def moved(index: int, by: int) -> list[int]:
        return [*places[:index], places[index] + by, *places[index + 1 :]]

    now = price(of(places))
    while now > target:
        best = None
        for index, counts in enumerate(allowed):
            if places[index] + 1 < len(counts):
                gain = now - price(of(moved(index, 1)))
                harm = float(damage[index][places[index] + 1] - damage[index][places[index]])
                rate = harm / gain if gain > 0 else np.inf
                if best is None or rate < best[0]:
                    best = (rate, index)
        if best is None:
            break
        places = moved(best[1], 1)
        now = price(of(places))
    while True:
        best = None
        for index in range(len(allowed)):
            if places[index]:
                then = price(of(moved(index, -1)))
                if then <= target:
                    saved = float(damage[index][places[index]] - damage[index][places[index] - 1])
                    rate = saved / max(then - now, 1e-12)
                    if best is None or rate > best[0]:
                        best = (rate, index)
        if best is None:
            return of(places)
        places = moved(best[1], -1)
        now = price(of(places))
