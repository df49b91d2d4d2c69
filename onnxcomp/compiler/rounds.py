"""Choosing channels under a budget, in one round or in several with a quick repair in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.blocks import residual_blocks
from onnxcomp.compiler.budget import Limits
from onnxcomp.compiler.curves import JUDGES
from onnxcomp.compiler.divergence import Reference
from onnxcomp.compiler.lineage import Lineage
from onnxcomp.compiler.measured import MeasuredShares
from onnxcomp.compiler.meet import meet_latency
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.recovery import judge
from onnxcomp.compiler.scene import Plan, Price, Scene, open_scene
from onnxcomp.compiler.uniform import UniformShares, at_ratio
from onnxcomp.ir.model import Model

__all__ = ["Budget", "Chooser", "choose", "guarded", "uniform_instead"]

Mask = NDArray[np.bool_]

WRONG = 3.0
"""A plan that is this many times worse than foretold is compared with the uniform one: effects of cuts add up to more
than their sum, but on trained networks to less than twice it after repair."""

QuickRepair = Callable[[Scene, Plan], Model]
"""Returns the first scene's model cut as planned so far and repaired quickly."""


@dataclass(frozen=True)
class Budget:
    """What may remain: `share` of `whole`, priced by `price_of`; or with `what="ratio"` the share removed everywhere.

    Where a price is only an estimate, `measure` returns the real one of a model that has been cut.
    """

    what: Literal["ratio", "macs", "params", "latency"]
    share: float
    whole: float
    price_of: Callable[[Scene], Price]
    measure: Callable[[Model], float] | None = None

    @property
    def target(self) -> float:
        """What may remain, in the unit of the price."""
        return self.share * self.whole


@dataclass(frozen=True)
class Chooser:
    """How channels are chosen: the options of a pass that concern it."""

    budget: Budget
    scope: Literal["global", "uniform"]
    criterion: str
    limits: Limits
    rounds: int
    layers: bool = False


def choose(
    chooser: Chooser,
    model: Model,
    excluded: Mapping[str, str],
    context: Context,
    log: PassLog,
    quick_repair: QuickRepair,
) -> tuple[Scene, Plan, Reference | None]:
    """Return the scene of `model`, the plan for all of its units, and the outputs that plans were judged by.

    With several rounds the budget is approached in equal ratios; in between the network is cut and repaired quickly, so
    that later rounds see what is left of it. Whole blocks go in the first round. `model` is not edited.
    """
    first = open_scene(model, excluded, chooser.limits, chooser.criterion, context, log)
    if chooser.budget.what == "ratio":
        return first, at_ratio(first, chooser.budget.share), None
    reference: Reference | None = None
    scene = first
    so_far = Plan({}, True)
    targets = _targets(chooser, first)
    for number, target in enumerate(targets, 1):
        shares = _shares(chooser, scene, reference, excluded, blocks=number == 1)

        plan_for = partial(_composed, first, so_far, scene, shares)
        if chooser.budget.measure is None or number < len(targets):
            so_far = plan_for(target)
        else:
            so_far = _meet(chooser.budget, first, plan_for, log)
        if isinstance(shares, MeasuredShares) and not so_far.empty:
            reference = shares.measured.reference
        if number < len(targets):
            current = quick_repair(first, so_far)
            scene = open_scene(current, excluded, chooser.limits, chooser.criterion, context, log, quiet=True)
    return first, so_far, reference


def _composed(
    first: Scene, base: Plan, scene: Scene, shares: MeasuredShares | UniformShares, target: float
) -> Plan:
    """Return the plan for `first` of what `base` has cut already and `shares` cut next of `scene`."""
    plan = shares.plan(target)
    lineage = Lineage(first.groups, base.keep)
    lineage.record(scene.groups, plan.keep)
    estimate = None if plan.estimate is None else (base.estimate or 0.0) + plan.estimate
    return Plan(lineage.keep, plan.reached, estimate, base.drops or plan.drops)


def _shares(
    chooser: Chooser, scene: Scene, reference: Reference | None, excluded: Mapping[str, str], *, blocks: bool
) -> MeasuredShares | UniformShares:
    price = chooser.budget.price_of(scene)
    if chooser.scope == "uniform":
        return UniformShares(scene, price, deep=chooser.budget.measure is not None)
    whole = residual_blocks(scene.model, scene.groups, excluded) if chooser.layers and blocks else []
    return MeasuredShares(scene, price, reference, tuple(whole))


def _meet(budget: Budget, scene: Scene, plan_for: Callable[[float], Plan], log: PassLog) -> Plan:
    """Return the plan whose cut model is measured to be within `budget`, and nearest to it."""
    assert budget.measure is not None

    def measure(plan: Plan) -> float:
        cut = scene.model.clone()
        plan.cut(cut, scene.groups)
        assert budget.measure is not None
        return budget.measure(cut)

    plan, measured, notes = meet_latency(plan_for, measure, budget.target)
    for note in notes:
        log.note(note)
    return replace(plan, reached=measured <= budget.target, measured=measured)


def uniform_instead(chooser: Chooser, scene: Scene) -> Plan | None:
    """Return the uniform plan for the same budget, or None where its price cannot be told without a measurement."""
    if chooser.budget.measure is not None:
        return None
    return UniformShares(scene, chooser.budget.price_of(scene)).plan(chooser.budget.target)


def guarded(
    plan: Plan,
    made: tuple[Model, PassLog],
    reference: Reference,
    uniform: Callable[[], Plan | None],
    carry_out: Callable[[Plan], tuple[Model, PassLog]],
    context: Context,
    log: PassLog,
) -> tuple[Plan, Model, PassLog]:
    """Return `plan` with the model and notes it led to, or the uniform plan with its own where that does better.

    The real distance of the outputs is measured on the samples that the curves were judged by. Only where it is more than
    `WRONG` times what the curves foretold, the uniform plan for the same budget is carried out too.
    """
    assert context.calibration is not None, "the driver's preflight supplies calibration samples"
    samples = context.calibration.take(JUDGES)
    found = judge(made[0], reference, samples, context)
    log.note(f"distance of the outputs: {plan.estimate or 0.0:.3g} foretold, {found:.3g} measured")
    if plan.estimate is None or found <= WRONG * plan.estimate:
        return plan, *made
    other = uniform()
    if other is None or not other.reached or other.empty:
        return plan, *made
    second = carry_out(other)
    instead = judge(second[0], reference, samples, context)
    better = instead < found
    log.note(
        f"the forecast was wrong; uniform shares give {instead:.3g} and are {'taken' if better else 'no better'}"
    )
    return (other, *second) if better else (plan, *made)


def _targets(chooser: Chooser, scene: Scene) -> Sequence[float]:
    start, end = chooser.budget.price_of(scene)({}), chooser.budget.target
    if end >= start or end <= 0:
        return [end]
    steps = np.arange(1, chooser.rounds + 1) / chooser.rounds
    return [*(start * (end / start) ** steps[:-1]).tolist(), end]
