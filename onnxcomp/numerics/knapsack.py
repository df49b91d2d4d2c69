"""The multiple-choice knapsack: one option from every class, least damage, within a budget of cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.arrays import Array64

__all__ = ["Options", "choose"]


BUCKETS = 4096
"""Steps into which dynamic programming divides the range of costs; rounding costs up keeps every answer within the budget."""

SMALL = 2_000_000
"""Options times buckets up to which dynamic programming is used: about a tenth of a second."""


@dataclass(frozen=True)
class Options:
    """The options of one class: what each costs and how much damage it does, `[n]` each, in any order."""

    cost: Array64
    damage: Array64


def choose(classes: Sequence[Options], budget: float) -> list[int] | None:
    """Return the index of the option taken from each class so that costs sum to at most `budget`, or None if none can.

    Small problems are solved by dynamic programming on rounded costs, others by Lagrangian relaxation (the option with
    the least `damage + price * cost`, the price found by bisection; Everett 1963); what either leaves of the budget is
    then filled by the exchanges that save most damage per cost.
    """
    if not classes:
        return []
    least = [int(np.lexsort((o.damage, o.cost))[0]) for o in classes]
    floor = sum(float(o.cost[i]) for o, i in zip(classes, least, strict=True))
    if floor > budget:
        return None
    relaxed = _fill(classes, _lagrangian(classes, budget, least), budget)
    if sum(len(o.cost) for o in classes) * BUCKETS > SMALL:
        return relaxed
    exact = _fill(classes, _dynamic(classes, budget, least), budget)
    return min(relaxed, exact, key=lambda taken: _total(classes, taken))


def _total(classes: Sequence[Options], taken: Sequence[int]) -> float:
    return sum(float(o.damage[i]) for o, i in zip(classes, taken, strict=True))


def _lagrangian(classes: Sequence[Options], budget: float, least: list[int]) -> list[int]:
    def at(price: float) -> list[int]:
        return [int(np.argmin(o.damage + price * o.cost)) for o in classes]

    def cost(taken: Sequence[int]) -> float:
        return sum(float(o.cost[i]) for o, i in zip(classes, taken, strict=True))

    free = at(0.0)
    if cost(free) <= budget:
        return free
    low, high = 0.0, _first_price(classes)
    for _ in range(200):
        if cost(at(high)) <= budget:
            break
        high *= 4
    else:
        return least
    best = at(high)
    for _ in range(60):
        middle = (low + high) / 2
        taken = at(middle)
        if cost(taken) <= budget:
            best, high = taken, middle
        else:
            low = middle
    return best


def _first_price(classes: Sequence[Options]) -> float:
    damage = max(float(o.damage.max() - o.damage.min()) for o in classes)
    cost = max(float(o.cost.max() - o.cost.min()) for o in classes)
    return max(damage, 1e-12) / max(cost, 1e-12)


def _dynamic(classes: Sequence[Options], budget: float, least: list[int]) -> list[int]:
    """Return the best choice on costs rounded up to buckets above each class's least cost."""
    floor = sum(float(o.cost[i]) for o, i in zip(classes, least, strict=True))
    step = (budget - floor) / BUCKETS
    if step <= 0:
        return list(least)
    best: NDArray[Any] = np.zeros(BUCKETS + 1)
    taken = np.zeros((len(classes), BUCKETS + 1), np.int32)
    for number, (o, cheapest) in enumerate(zip(classes, least, strict=True)):
        buckets = np.ceil((o.cost - o.cost[cheapest]) / step - 1e-9)
        # Beside a small step a cost can be beyond whole numbers.
        extra = np.minimum(buckets, BUCKETS + 1).astype(np.int64)
        new = np.full(BUCKETS + 1, np.inf)
        for index in np.flatnonzero(extra <= BUCKETS):
            shift = int(extra[index])
            trial = best[: BUCKETS + 1 - shift] + o.damage[index]
            better = trial < new[shift:]
            new[shift:][better] = trial[better]
            taken[number, shift:][better] = index
        best = new
    result, place = list(least), int(np.argmin(best))
    for number in reversed(range(len(classes))):
        o = classes[number]
        result[number] = int(taken[number, place])
        place -= int(np.ceil((o.cost[result[number]] - o.cost[least[number]]) / step - 1e-9))
    return result


def _fill(classes: Sequence[Options], taken: list[int], budget: float) -> list[int]:
    """Exchange options while one that does less damage still fits, the largest saving per cost first."""
    taken = list(taken)
    slack = budget - sum(float(o.cost[i]) for o, i in zip(classes, taken, strict=True))
    while True:
        best: tuple[float, int, int] | None = None
        for number, (o, now) in enumerate(zip(classes, taken, strict=True)):
            extra, saved = o.cost - o.cost[now], o.damage[now] - o.damage
            fits = np.flatnonzero((extra <= slack) & (saved > 0))
            if not len(fits):
                continue
            rate = np.where(extra[fits] > 0, saved[fits] / np.maximum(extra[fits], 1e-300), np.inf)
            index = int(fits[np.argmax(rate)])
            if best is None or rate.max() > best[0]:
                best = (float(rate.max()), number, index)
        if best is None:
            return taken
        _, number, index = best
        slack -= float(classes[number].cost[index] - classes[number].cost[taken[number]])
        taken[number] = index
