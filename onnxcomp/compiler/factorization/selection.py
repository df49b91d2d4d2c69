"""Which alternative every place gets: by a budget for the whole model, or by a rule for each place alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from onnxcomp.compiler.cost.budget import Budget, budget_of
from onnxcomp.compiler.evaluation.trials import JUDGES, Judging, Trial, run_trials
from onnxcomp.compiler.factorization.candidates import LOOK_STEPS, Alternative, Curve, Place, Price
from onnxcomp.compiler.factorization.chain import Chain
from onnxcomp.compiler.factorization.solver import FIRST_STEPS
from onnxcomp.compiler.pass_options import BudgetOptions
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model
from onnxcomp.numerics.knapsack import Options, choose

__all__ = [
    "LargestError",
    "Plan",
    "Rule",
    "SameRank",
    "Stays",
    "by_budget",
    "by_rule",
    "divergences",
    "goal_of",
    "trial_of",
]


Plan: TypeAlias = dict[str, Alternative]
"""What takes the place of which node, by name; nodes that stay are absent."""


LEAST = 1e-9
"""Divergence below which measured outputs do not distinguish an alternative from the node itself."""


@dataclass(frozen=True)
class PlaceTrial:
    """One place replaced alone by `alternative`, to be judged."""

    name: str
    alternative: Alternative
    trial: Trial


def trial_of(model: Model, curve: Curve, share: float, price: Price) -> PlaceTrial:
    """Return the trial of the alternative of `curve` whose price is nearest to `share`, fitted to the statistics there are."""
    place = curve.place
    near = min(curve.alternatives, key=lambda a: abs(price(place, a) - share))
    blocks, _ = place.fitted(near.form, LOOK_STEPS)
    bias = place.shifted_bias(near.form, blocks)
    node, spatial = place.node, place.spatial

    def build() -> Model:
        clone = model.clone()
        chain = Chain.build(clone, node, near.form, near.layout, blocks, spatial)
        chain.install_factors(clone, blocks, bias)
        return clone

    return PlaceTrial(place.name, near, Trial(place.name, build))


def divergences(
    model: Model, trials: Sequence[PlaceTrial], context: Context
) -> tuple[dict[str, float], list[tuple[str, str, float]]]:
    """Return the divergence of the outputs per unit of relative error of each place, and what was measured.

    Divergence is that of `divergence`; divergences are assumed to add up, and to grow with the error.
    """
    verdicts, _ = run_trials(
        model, [t.trial for t in trials], None, context, "measuring effects on the output", Judging(JUDGES)
    )
    scales, measured = {}, []
    for each, verdict in zip(trials, verdicts, strict=True):
        scales[each.name] = max(verdict.damage, LEAST) / each.alternative.error
        measured.append((each.name, str(each.alternative), verdict.damage))
    return scales, measured


def by_budget(
    curves: Sequence[Curve],
    scales: Mapping[str, float],
    cost: Callable[[Place, Alternative | None], float],
    budget: float,
) -> tuple[Plan, bool]:
    """Return the plan of least predicted divergence whose costs, `cost(place, None)` for one that stays, sum to at most `budget`.

    Where no plan does, the cheapest of all is returned, and False.
    """
    classes, choices = [], []
    for curve in curves:
        options: list[Alternative | None] = [None, *curve.alternatives]
        choices.append(options)
        costs = np.array([cost(curve.place, option) for option in options])
        divergence = np.array([0.0 if o is None else scales[curve.place.name] * o.error for o in options])
        classes.append(Options(costs, divergence))
    chosen = choose(classes, budget)
    if chosen is None:
        chosen = [int(np.lexsort((o.damage, o.cost))[0]) for o in classes]
        return _plan(curves, choices, chosen), False
    return _plan(curves, choices, chosen), True


@dataclass(frozen=True)
class Stays:
    """That a node stays as it is, and why."""

    reason: str


class Rule(ABC):
    """What decides at every place alone which alternative it gets."""

    @property
    def only_rank(self) -> int | None:
        """The only rank that is considered, or None for all."""
        return None

    @abstractmethod
    def pick(self, curve: Curve, price: Price) -> Alternative | Stays:
        """Return the alternative of `curve` that takes the place, or why the node stays."""


@dataclass(frozen=True)
class SameRank(Rule):
    """The same rank everywhere: the form that gets least wrong."""

    rank: int

    @property
    def only_rank(self) -> int:
        """That rank."""
        return self.rank

    def pick(self, curve: Curve, price: Price) -> Alternative | Stays:
        """Return the alternative of least error; those of `curve` are of that rank."""
        return min(curve.alternatives, key=lambda a: a.error)


@dataclass(frozen=True)
class LargestError(Rule):
    """The cheapest that misses at most the share `most` of its output, fitted to the end to see that it does."""

    most: float

    def pick(self, curve: Curve, price: Price) -> Alternative | Stays:
        """Return the cheapest alternative that misses no more, or why the node stays."""
        found, best = _cheapest(curve, self.most, price)
        return found or Stays(f"what saves enough misses more: {best} misses {best.error:.1%} of the output")


def goal_of(step: BudgetOptions) -> Budget | Rule:
    """Return the budget or the rule that the options of a factorizing pass set.

    Raises:
        UsageError: unless exactly one is given.
    """
    field, value = step.goal()
    rules: dict[str, Callable[[], Rule]] = {
        "rank": lambda: SameRank(int(value)),
        "multiplier": lambda: SameRank(int(value)),
        "energy": lambda: LargestError(1 - value),
        "max_error": lambda: LargestError(value),
    }
    return budget_of(step) or rules[field]()


def by_rule(curves: Sequence[Curve], rule: Rule, price: Price) -> tuple[Plan, dict[str, str]]:
    """Return the plan that follows `rule` at every place, and why places stay, by name."""
    plan: Plan = {}
    stays: dict[str, str] = {}
    for curve in curves:
        picked = rule.pick(curve, price)
        if isinstance(picked, Stays):
            stays[curve.place.name] = picked.reason
        else:
            plan[curve.place.name] = picked
    return plan, stays


def _cheapest(curve: Curve, most_wrong: float, price: Price) -> tuple[Alternative | None, Alternative]:
    """Return the cheapest alternative that misses at most `most_wrong`, if one does, and the last that was tried.

    The curve only says where to begin: most of its errors are drawn between others. Steps grow, so that few are fitted.
    """
    ladder = sorted(curve.alternatives, key=lambda a: price(curve.place, a))
    last = len(ladder) - 1
    at, step = next((n for n, a in enumerate(ladder) if a.error <= most_wrong), last), 1
    while True:
        _, error = curve.place.fitted(ladder[at].form, FIRST_STEPS)
        tried = replace(ladder[at], error=error)
        if error <= most_wrong:
            return tried, tried
        if at == last:
            return None, tried
        at, step = min(last, at + step), 2 * step


def _plan(
    curves: Sequence[Curve], choices: Sequence[Sequence[Alternative | None]], chosen: Sequence[int]
) -> Plan:
    found = {}
    for curve, options, index in zip(curves, choices, chosen, strict=True):
        option = options[index]
        if option is not None:
            found[curve.place.name] = option
    return found
