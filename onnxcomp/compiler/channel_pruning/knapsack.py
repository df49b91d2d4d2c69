"""Which units go under a global budget: shares that differ from group to group, by measured effect on the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.compiler.channel_pruning.ladder import Limits
from onnxcomp.compiler.channel_pruning.sensitivity_curves import Curve
from onnxcomp.numerics.arrays import Array
from onnxcomp.numerics.knapsack import Options, choose

__all__ = ["Allocation", "Whole", "allocate"]


PASSES = 6
"""Times the costs are made linear around the last plan: channel counts multiply, so costs depend on each other."""

MOST_LEVELS = 24
"""Levels of a ladder that the knapsack chooses among; the exact fill takes single steps afterwards."""


BLOCK = 8
"""Multiples of so many channels are always among the levels: kernels are fast there."""

FARTHEST = 16
"""Counts further down that one step may go to where those between cost the same: kernels work on 16 channels at once."""


@dataclass(frozen=True)
class Allocation:
    """Units removed from each ladder, and the numbers of the alternatives taken whole instead of their ladders."""

    removed: tuple[int, ...]
    gone: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Whole:
    """An alternative to cutting the ladders numbered `ladders`: all that they belong to goes, at this divergence, `damage`."""

    ladders: tuple[int, ...]
    damage: float


Price = Callable[[Allocation], float]
"""What is left after an allocation costs."""


def allocate(
    curves: Sequence[Curve], price: Price, target: float, limits: Limits, wholes: Sequence[Whole] = ()
) -> tuple[Allocation, bool]:
    """Return what each curve's ladder loses so that `price` falls to `target` or just below, and whether it did.

    The divergence of an allocation is predicted to be the sum of the curves; its price is exact, made linear around the last
    allocation for the knapsack and stepped to the edge of the budget at the end.
    """
    problem = _Problem(curves, price, target, limits, wholes)
    deepest = problem.deepest()
    if price(deepest) > target:
        return deepest, False
    # Time falls in steps of many channels, and a step is seen only from where the other channels are whole.
    nothing = Allocation((0,) * len(curves))
    best = min((_settled(problem, start) for start in (problem.halfway(), nothing)), key=problem.damage_of)
    if wholes:
        # Around one alternative taken whole the linear costs of the others can mislead: they must not make it worse.
        alone, possible = allocate(curves, price, target, limits)
        if possible and problem.damage_of(alone) < problem.damage_of(best):
            best = alone
    return best, True


@dataclass
class _Problem:
    """The curves at every allowed number of removed units, and the exact price of an allocation."""

    curves: Sequence[Curve]
    price: Price
    target: float
    limits: Limits
    wholes: Sequence[Whole]
    allowed: list[list[int]] = field(init=False)
    damage: list[Array] = field(init=False)

    def __post_init__(self) -> None:
        self.allowed = [curve.ladder.counts(self.limits) for curve in self.curves]
        self.damage = [curve.at(counts) for curve, counts in zip(self.curves, self.allowed, strict=True)]

    def deepest(self) -> Allocation:
        """Return the allocation that removes all that can go."""
        return Allocation(tuple(counts[-1] for counts in self.allowed), frozenset(range(len(self.wholes))))

    def halfway(self) -> Allocation:
        """Return the smallest common share that fits: where costs are first made linear."""
        low, high = 0.0, 1.0
        if self.price(self._at(1.0)) > self.target:
            return self.deepest()
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if self.price(self._at(middle)) <= self.target else (middle, high)
        return self._at(high)

    def _at(self, share: float) -> Allocation:
        return Allocation(tuple(counts[round(share * (len(counts) - 1))] for counts in self.allowed))

    def damage_of(self, plan: Allocation) -> float:
        """Return the predicted divergence of `plan`."""
        covered = {index for number in plan.gone for index in self.wholes[number].ladders}
        return sum(self.wholes[number].damage for number in plan.gone) + sum(
            self.damage_at(index, count) for index, count in enumerate(plan.removed) if index not in covered
        )

    def damage_at(self, index: int, count: int) -> float:
        """Return the predicted divergence of removing `count` units of one ladder."""
        return float(self.damage[index][self.allowed[index].index(count)])

    def free(self, plan: Allocation) -> list[int]:
        """Return the ladders that no alternative has taken whole."""
        covered = {index for number in plan.gone for index in self.wholes[number].ladders}
        return [index for index in range(len(self.allowed)) if index not in covered]


def _settled(problem: _Problem, plan: Allocation) -> Allocation:
    """Return the best allocation on the way from `plan`, each taken from linear costs around the last."""
    linear, edge = _LinearCosts(problem), _BudgetEdge(problem)
    found: list[Allocation] = []
    for _ in range(PASSES):
        found.append(edge.reached(linear.chosen(plan)))
        if found[-1] == plan or found[-1] in found[:-1]:
            break
        plan = found[-1]
    return min(found, key=problem.damage_of)


@dataclass(frozen=True)
class _LinearCosts:
    """The knapsack on costs made linear around an allocation."""

    problem: _Problem

    def chosen(self, plan: Allocation) -> Allocation:
        """Return what the knapsack chooses where every choice costs what it would cost in `plan` alone."""
        here = self.problem.price(plan)
        owner = {index: number for number, whole in enumerate(self.problem.wholes) for index in whole.ladders}
        classes: list[Options] = []
        meaning: list[list[tuple[dict[int, int], int | None]]] = []
        for index in range(len(self.problem.allowed)):
            if index not in owner:
                costs, damage, counts = self._levels(index, plan, here)
                classes.append(Options(costs, damage))
                meaning.append([({index: count}, None) for count in counts])
        for number in range(len(self.problem.wholes)):
            options, means = self._whole_options(number, plan, here)
            classes.append(options)
            meaning.append(means)
        taken = choose(classes, self.problem.target - here)
        if taken is None:
            return plan
        removed, gone = list(plan.removed), set()
        for means, choice in zip(meaning, taken, strict=True):
            counts_of, whole = means[choice]
            for index, count in counts_of.items():
                removed[index] = count
            if whole is not None:
                gone.add(whole)
        return Allocation(tuple(removed), frozenset(gone))

    def _levels(self, index: int, plan: Allocation, here: float) -> tuple[Array, Array, list[int]]:
        counts = self.problem.allowed[index]
        spread = {round(x) for x in np.linspace(0, len(counts) - 1, min(len(counts), MOST_LEVELS))}
        units = self.problem.curves[index].ladder.units
        blocks = {place for place, count in enumerate(counts) if (units - count) % BLOCK == 0}
        picked = sorted(spread | blocks)
        costs = [self.problem.price(_with(plan, index, counts[p])) - here for p in picked]
        return np.array(costs), self.problem.damage[index][picked], [counts[p] for p in picked]

    def _whole_options(
        self, number: int, plan: Allocation, here: float
    ) -> tuple[Options, list[tuple[dict[int, int], int | None]]]:
        """Return all combinations of levels of one alternative's ladders that are not dominated, and the alternative."""
        whole = self.problem.wholes[number]
        there = Allocation(plan.removed, plan.gone - {number})
        base = self.problem.price(there) - here
        cost, damage, means = np.array([base]), np.zeros(1), [dict[int, int]()]
        for index in whole.ladders:
            costs, divergences, counts = self._levels(index, there, here)
            cost = (cost[:, None] + (costs - base)[None]).reshape(-1)
            damage = (damage[:, None] + divergences[None]).reshape(-1)
            means = [{**mean, index: count} for mean in means for count in counts]
            best = _undominated(cost, damage)
            cost, damage, means = cost[best], damage[best], [means[i] for i in best]
        without = self.problem.price(Allocation(plan.removed, plan.gone | {number})) - here
        kept: dict[int, int] = {}
        return (
            Options(np.append(cost, without), np.append(damage, whole.damage)),
            [*((mean, None) for mean in means), (kept, number)],
        )


@dataclass(frozen=True)
class _BudgetEdge:
    """Single steps to the edge of the budget, at exact prices."""

    problem: _Problem

    def reached(self, plan: Allocation) -> Allocation:
        """Step to the budget's edge: what does least damage per cost down, then what saves most back up."""
        now = self.problem.price(plan)
        while now > self.problem.target:
            plan, now = self._step_down(plan, now)
        while (found := self._step_up(plan, now)) is not None:
            plan, now = found
        return plan

    def _step_down(self, plan: Allocation, now: float) -> tuple[Allocation, float]:
        best: tuple[float, Allocation, float] | None = None
        for index in self.problem.free(plan):
            counts = self.problem.allowed[index]
            here = counts.index(plan.removed[index])
            # Time falls in steps of many channels: the next count that is any cheaper is one step.
            for place in range(here + 1, min(len(counts), here + 1 + FARTHEST)):
                trial = _with(plan, index, counts[place])
                added = float(self.problem.damage[index][place] - self.problem.damage[index][here])
                found = self._better(best, trial, added, now)
                if found is not best or place == here + FARTHEST:
                    best = found
                    break
        for number, whole in enumerate(self.problem.wholes):
            if number not in plan.gone:
                had = sum(self.problem.damage_at(index, plan.removed[index]) for index in whole.ladders)
                trial = Allocation(plan.removed, plan.gone | {number})
                best = self._better(best, trial, max(0.0, whole.damage - had), now)
        assert best is not None, "the deepest allocation fits"
        return best[1], best[2]

    def _better(
        self, best: tuple[float, Allocation, float] | None, trial: Allocation, added: float, now: float
    ) -> tuple[float, Allocation, float] | None:
        then = self.problem.price(trial)
        rate = added / (now - then) if then < now else np.inf
        return (rate, trial, then) if best is None or rate < best[0] else best

    def _step_up(self, plan: Allocation, now: float) -> tuple[Allocation, float] | None:
        best: tuple[float, Allocation, float] | None = None
        for index in self.problem.free(plan):
            counts = self.problem.allowed[index]
            place = counts.index(plan.removed[index])
            if not place:
                continue
            trial = _with(plan, index, counts[place - 1])
            then = self.problem.price(trial)
            if then <= self.problem.target:
                saved = float(self.problem.damage[index][place] - self.problem.damage[index][place - 1])
                rate = saved / max(then - now, 1e-12)
                if best is None or rate > best[0]:
                    best = (rate, trial, then)
        return None if best is None else (best[1], best[2])


def _with(plan: Allocation, index: int, count: int) -> Allocation:
    return Allocation((*plan.removed[:index], count, *plan.removed[index + 1 :]), plan.gone)


def _undominated(cost: Array, damage: Array) -> list[int]:
    """Return the options than which no other is both cheaper and less damaging, ascending by cost."""
    best, kept = np.inf, []
    for index in np.lexsort((damage, cost)):
        if damage[index] < best:
            best = damage[index]
            kept.append(int(index))
    return kept
