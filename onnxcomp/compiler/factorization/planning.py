"""Planning: which node is replaced by what, under a budget that is counted, under one of time, or by a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from onnxcomp.compiler.cost.budget import Budget, CountedBudget, TimeBudget, fits_exactly
from onnxcomp.compiler.cost.latency import measured_ratio
from onnxcomp.compiler.cost.latency_search import meet_latency
from onnxcomp.compiler.factorization.candidates import Alternative, Curve, Place
from onnxcomp.compiler.factorization.install import install
from onnxcomp.compiler.factorization.problem import FactorizationProblem
from onnxcomp.compiler.factorization.selection import (
    PlaceTrial,
    Plan,
    Rule,
    by_budget,
    by_rule,
    divergences,
    trial_of,
)
from onnxcomp.compiler.gradients.output_curvature import output_weights
from onnxcomp.compiler.repair.sites import biases_to_come
from onnxcomp.numerics.arrays import Array

__all__ = ["Planner", "planner_of"]

FASTER = 0.99
"""What a model must take of the time it took for replacements accepted by time to be kept: the clock's doubt is 1 %."""

TRIED_AT = 0.8
"""The largest share of its cost at which a place is tried alone."""


class Planner(ABC):
    """Chooses replacements for the places of `problem`; what stays, and why, goes into the problem's log.

    `outputs` are the output curvatures of the nodes, `[g, o, o]` by name; empty where they are not asked for.
    """

    outputs: Mapping[str, Array]

    def __init__(self, problem: FactorizationProblem) -> None:
        self._problem, self._log = problem, problem.log

    @abstractmethod
    def plan(self) -> Plan:
        """Return what takes the place of which node."""


class RulePlanner(Planner):
    """Plans by a rule for every place alone."""

    def __init__(self, problem: FactorizationProblem, rule: Rule) -> None:
        super().__init__(problem)
        self._rule = rule
        self.outputs = {}

    def plan(self) -> Plan:
        """Return what the rule chooses at every place."""
        problem = self._problem
        chosen: Plan = {}
        for wave in problem.waves(self.outputs):
            plan, stays = by_rule(problem.curves(wave, self._rule.only_rank), self._rule, problem.prices.of)
            chosen |= plan
            for name, reason in stays.items():
                self._log.skip(name, reason)
        return _faster(problem, chosen)


class BudgetPlanner(Planner):
    """Plans within a budget for the whole model, at the least predicted divergence of the outputs."""

    def __init__(self, problem: FactorizationProblem, budget: Budget) -> None:
        super().__init__(problem)
        self._goal = budget
        nodes = [place.node for place in problem.places.values()]
        self.outputs = (
            output_weights(problem.original, nodes, problem.context, problem.shapes, problem.log)
            if problem.settings.refits
            else {}
        )

    def plan(self) -> Plan:
        """Return the replacements that meet the budget, or where none do, those that come nearest."""
        if self.met():
            self._log.note(f"the budget {self._goal} is met without replacing anything")
            return {}
        curves, trials = self._curves()
        if not curves:
            self.report_short()
            return {}
        plan = self.within(curves, self._scales(curves, trials))
        for curve in curves:
            if curve.place.name not in plan:
                self._log.skip(
                    curve.place.name, "the budget is met at a smaller predicted divergence without it"
                )
        return self.checked(plan)

    @abstractmethod
    def met(self) -> bool:
        """Return whether the model as it is meets the budget."""

    @abstractmethod
    def within(self, curves: list[Curve], scales: Mapping[str, float]) -> Plan:
        """Return the plan within the budget; `scales` are divergences per unit of relative error, by place."""

    @abstractmethod
    def checked(self, plan: Plan) -> Plan:
        """Return what of `plan` holds in the whole model."""

    def report_short(self, left: float | None = None) -> None:
        """Say that the budget is not reached; `left` is the least share, None where there is nothing to replace."""
        reasons = "; ".join(list(dict.fromkeys(f"{s.where}: {s.reason}" for s in self._log.skips))[:5])
        least = f"{left:.4f} is the least" if left is not None else "there is nothing to replace"
        self._log.shortfall = f"{self._goal} cannot be reached; {least}" + (
            f" with min-saving={self._problem.settings.min_saving:g}; left alone are {reasons}"
            if reasons
            else ""
        )

    def _curves(self) -> tuple[list[Curve], list[PlaceTrial]]:
        """Return the alternatives of every place, and one trial for each where there are samples."""
        problem = self._problem
        curves: list[Curve] = []
        trials: list[PlaceTrial] = []
        middle = min(TRIED_AT, self._goal.share)
        for wave in problem.waves(self.outputs):
            found = problem.curves(wave)
            if problem.settings.refits:
                trials += [trial_of(problem.original, curve, middle, problem.prices.of) for curve in found]
            # Without the statistics of their wave, which take much room.
            curves += [Curve(problem.places[curve.place.name], curve.alternatives) for curve in found]
        return curves, trials

    def _scales(self, curves: list[Curve], trials: list[PlaceTrial]) -> Mapping[str, float]:
        if not trials:
            return {curve.place.name: 1.0 for curve in curves}
        scales, measured = divergences(self._problem.original, trials, self._problem.context)
        worst = sorted(measured, key=lambda item: -item[2])[:3]
        self._log.note(
            "divergence of the outputs measured layer by layer; the largest: "
            + ", ".join(f"{name} as {what} {divergence:.3g}" for name, what, divergence in worst)
        )
        return scales


class CountedPlanner(BudgetPlanner):
    """Plans within a budget of multiply-accumulates or parameters."""

    def __init__(self, problem: FactorizationProblem, budget: CountedBudget) -> None:
        super().__init__(problem, budget)
        self._budget = budget
        self._whole = budget.whole(problem.context)

    def met(self) -> bool:
        """Return whether the model as it is meets the budget."""
        return self._now() <= self._budget.share * self._whole

    def within(self, curves: list[Curve], scales: Mapping[str, float]) -> Plan:
        """Return the plan of least divergence whose counts fit."""
        budget, whole = self._budget, self._whole
        rest = self._now() - sum(self._cost(curve.place, None) for curve in curves)
        plan, reached = by_budget(curves, scales, self._cost, budget.share * whole - rest)
        left = rest + sum(self._cost(curve.place, plan.get(curve.place.name)) for curve in curves)
        if not reached:
            self.report_short(left / whole)
        elif not fits_exactly(left, budget.share * whole, whole):
            self._log.note(
                f"{budget.unit} fall to {left / whole:.4f}, more than asked for: ranks in steps of "
                f"{self._problem.settings.align} and forms that come in whole multiples allow nothing between"
            )
        return plan

    def checked(self, plan: Plan) -> Plan:
        """Return what of `plan` makes the whole model faster, where replacements are accepted by time."""
        kept = _faster(self._problem, plan)
        if len(kept) < len(plan):
            self._log.shortfall = "what meets the budget does not make the model faster, and was reverted"
        return kept

    def _cost(self, place: Place, alternative: Alternative | None) -> float:
        counted = place if alternative is None else alternative
        return counted.macs if self._budget.unit == "macs" else counted.parameters

    def _now(self) -> int:
        """Return what the budget counts of the model as it is, with the biases that a refit will add."""
        problem = self._problem
        now = self._budget.count(problem.cost)
        if self._budget.unit == "macs" or not problem.settings.refits:
            return now
        stored = problem.original.graph.constants
        return now + sum(
            int(stored[name].values.shape[axis]) for name, axis in biases_to_come(problem.original)
        )


class TimePlanner(BudgetPlanner):
    """Plans within a budget of time, which is held by the clock of the whole model."""

    def __init__(self, problem: FactorizationProblem, budget: TimeBudget) -> None:
        super().__init__(problem, budget)
        self._budget = budget

    def met(self) -> bool:
        """Return whether the model as it is meets the budget."""
        return self._budget.measure(self._problem.original, self._problem.context) <= self._budget.share

    def within(self, curves: list[Curve], scales: Mapping[str, float]) -> Plan:
        """Return the plan of least divergence that was measured to be within the budget."""
        problem, budget = self._problem, self._budget
        shares = problem.times.share([curve.place for curve in curves])
        now = budget.measure(problem.original, problem.context)

        def cost(place: Place, alternative: Alternative | None) -> float:
            own = 1.0 if alternative is None else problem.prices.of(place, alternative)
            return now * shares[place.name] * own

        rest = now - sum(cost(curve.place, None) for curve in curves)

        def plan_for(target: float) -> Plan:
            return by_budget(curves, scales, cost, target - rest)[0]

        def measure(plan: Plan) -> float:
            made, _ = install(problem.original, plan, problem.places)
            return budget.measure(made, problem.context)

        plan, measured, notes = meet_latency(plan_for, measure, budget.share)
        for note in notes:
            self._log.note(note)
        if measured > budget.share:
            self.report_short(measured)
        return plan

    def checked(self, plan: Plan) -> Plan:
        """Return `plan`: the whole model was timed with it."""
        return plan


def planner_of(problem: FactorizationProblem) -> Planner:
    """Return the planner for the goal of `problem`."""
    goal = problem.settings.goal
    if isinstance(goal, Rule):
        return RulePlanner(problem, goal)
    return TimePlanner(problem, goal) if isinstance(goal, TimeBudget) else CountedPlanner(problem, goal)


def _faster(problem: FactorizationProblem, plan: Plan) -> Plan:
    """Return what of `plan` makes the whole model faster, where time decides about accepting.

    What is faster alone may be slower among its neighbours, whose layouts it breaks up.
    """
    if not problem.prices.timed or not plan:
        return plan
    shares = problem.times.share([problem.places[name] for name in plan])
    gains = {n: shares[n] * (1 - problem.prices.of(problem.places[n], a)) for n, a in plan.items()}
    order = sorted(plan, key=lambda name: -gains[name])
    count = len(order)
    while count:
        kept = {name: plan[name] for name in order[:count]}
        made, _ = install(problem.original, kept, problem.places)
        ratio = measured_ratio(problem.original, made, problem.context)
        problem.log.note(f"with {count} of {len(order)} replacements the model takes {ratio:.3f} of its time")
        if ratio < FASTER:
            break
        count //= 2
    for name in order[count:]:
        problem.log.skip(name, f"{plan[name]}, together with others, does not make the whole model faster")
    return {name: plan[name] for name in order[:count]}
