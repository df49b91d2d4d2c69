"""Which alternative every place gets: by a budget for the whole model, or by a rule for each place alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from onnxcomp.compiler.cost.budget import Goal
from onnxcomp.compiler.evaluation.trials import JUDGES, Judging, Trial, run_trials
from onnxcomp.compiler.factorization.candidates import LOOK_STEPS, Alternative, Curve, Place
from onnxcomp.compiler.factorization.chain import Chain
from onnxcomp.compiler.factorization.solver import FIRST_STEPS
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model
from onnxcomp.numerics.knapsack import Options, choose

__all__ = ["Plan", "by_budget", "by_rule", "damages", "trial_of"]


Plan: TypeAlias = dict[str, Alternative]
"""What takes the place of which node, by name; nodes that stay are absent."""


LEAST = 1e-9
"""Damage below which measured outputs do not tell an alternative from the node itself."""


@dataclass(frozen=True)
class PlaceTrial:
    """One place replaced alone by `alternative`, to be judged."""

    name: str
    alternative: Alternative
    trial: Trial


def trial_of(
    model: Model, curve: Curve, share: float, price: Callable[[Place, Alternative], float]
) -> PlaceTrial:
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


def damages(
    model: Model, trials: Sequence[PlaceTrial], context: Context
) -> tuple[dict[str, float], list[tuple[str, str, float]]]:
    """Return what an error of each place does to the outputs, per unit of relative error, and what was measured.

    The distance of outputs is that of `divergence`; errors are taken to add up, and damage to grow with the error.
    """
    verdicts, _ = run_trials(
        model, [t.trial for t in trials], None, context, "measuring effects on the output", Judging(JUDGES)
    )
    scales, told = {}, []
    for each, verdict in zip(trials, verdicts, strict=True):
        scales[each.name] = max(verdict.damage, LEAST) / each.alternative.error
        told.append((each.name, str(each.alternative), verdict.damage))
    return scales, told


def by_budget(
    curves: Sequence[Curve],
    scales: Mapping[str, float],
    cost: Callable[[Place, Alternative | None], float],
    budget: float,
) -> tuple[Plan, bool]:
    """Return the plan of least damage whose costs, `cost(place, None)` for one that stays, sum to at most `budget`.

    Where no plan does, the cheapest of all is returned, and False.
    """
    classes, choices = [], []
    for curve in curves:
        options: list[Alternative | None] = [None, *curve.alternatives]
        choices.append(options)
        costs = np.array([cost(curve.place, option) for option in options])
        damage = np.array([0.0 if o is None else scales[curve.place.name] * o.error for o in options])
        classes.append(Options(costs, damage))
    taken = choose(classes, budget)
    if taken is None:
        taken = [int(np.lexsort((o.damage, o.cost))[0]) for o in classes]
        return _plan(curves, choices, taken), False
    return _plan(curves, choices, taken), True


def by_rule(
    curves: Sequence[Curve], goal: Goal, price: Callable[[Place, Alternative], float]
) -> tuple[Plan, dict[str, str]]:
    """Return the plan that follows a rule at every place, and why places stay, by name.

    `rank`: the form that gets least wrong; `energy`: the cheapest that keeps that share of the output's variance;
    `max-error`: the cheapest that misses no more than that share of it, each fitted to the end to see that it does.
    """
    plan: Plan = {}
    stays: dict[str, str] = {}
    for curve in curves:
        place = curve.place
        if goal.what == "rank":
            plan[place.name] = min(curve.alternatives, key=lambda a: a.error)
            continue
        most_wrong = goal.value if goal.what == "max-error" else 1 - goal.value
        found, best = _cheapest(curve, most_wrong, price)
        if found is not None:
            plan[place.name] = found
        else:
            stays[place.name] = f"what saves enough misses more: {best} misses {best.error:.1%} of the output"
    return plan, stays


def _cheapest(
    curve: Curve, most_wrong: float, price: Callable[[Place, Alternative], float]
) -> tuple[Alternative | None, Alternative]:
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
    curves: Sequence[Curve], choices: Sequence[Sequence[Alternative | None]], taken: Sequence[int]
) -> Plan:
    found = {}
    for curve, options, index in zip(curves, choices, taken, strict=True):
        option = options[index]
        if option is not None:
            found[curve.place.name] = option
    return found
