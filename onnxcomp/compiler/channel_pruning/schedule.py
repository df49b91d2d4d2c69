"""Choosing channels under a budget, in one round or in several with a trial refit in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from onnxcomp.analysis.blocks import Block, residual_blocks
from onnxcomp.analysis.cost import model_cost
from onnxcomp.compiler.channel_pruning.curve_weights import CurveWeights, search_weights
from onnxcomp.compiler.channel_pruning.ladder import Limits
from onnxcomp.compiler.channel_pruning.lineage import Lineage
from onnxcomp.compiler.channel_pruning.measured_allocation import MeasuredShares
from onnxcomp.compiler.channel_pruning.problem import Plan, Price, Scene, open_scene
from onnxcomp.compiler.channel_pruning.uniform_allocation import UniformShares, at_ratio
from onnxcomp.compiler.cost.latency_search import meet_latency
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.outputs import judge
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.ir.model import Model

__all__ = ["Budget", "Chooser", "choose"]


QUICK_MACS = 32 * 10**9
"""Work of one pass of the trial refit's samples through the network; a few seconds."""

QUICK_LEAST, QUICK_MOST = 64, 256
"""Bounds of the trial refit's samples."""

MORE_MACS = 64 * 10**9
"""Work of all trial refits for single groups together, each counted as one pass: as much as two for a ResNet-56."""

LARGE = 2 * 10**8
"""Work for one sample from which on a trial refit is no longer quick."""

MORE_MOST = 12
"""Plans tried for single groups at most."""

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
) -> tuple[Scene, Plan]:
    """Return the scene of `model` and the plan for all of its units.

    With several rounds the budget is approached in equal ratios; in between the network is cut and repaired quickly, so
    that later rounds see what is left of it. Whole blocks go in the first round. `model` is not edited.
    """
    first = open_scene(model, excluded, chooser.limits, chooser.criterion, context, log)
    if chooser.budget.what == "ratio":
        return first, at_ratio(first, chooser.budget.share)
    return first, _Rounds(chooser, first, excluded, quick_repair).plan()


@dataclass(frozen=True)
class _Rounds:
    """The rounds in which a budget is approached from the problem `first`."""

    chooser: Chooser
    first: Scene
    excluded: Mapping[str, str]
    trial_refit: QuickRepair

    def plan(self) -> Plan:
        """Return the plan for all units of the first problem."""
        chooser, first = self.chooser, self.first
        so_far, scene = Plan({}, True), first
        reference: Reference | None = None
        for target in _targets(chooser, first)[:-1]:
            price = chooser.budget.price_of(scene)
            if chooser.scope == "uniform":
                plan = UniformShares(scene, price).plan(target)
            else:
                shares = MeasuredShares(scene, price, reference, self._blocks(scene))
                plan, reference = shares.plan(target), shares.measured.reference
            so_far = _composed(first, so_far, scene, plan)
            current = self.trial_refit(first, so_far)
            scene = open_scene(
                current,
                self.excluded,
                chooser.limits,
                chooser.criterion,
                first.context,
                first.log,
                quiet=True,
            )
        return self._last(so_far, scene, reference)

    def _last(self, base: Plan, scene: Scene, reference: Reference | None) -> Plan:
        """Return the whole plan: what is cut of `scene` comes on top of `base`."""
        budget, price = self.chooser.budget, self.chooser.budget.price_of(scene)
        if price({}) <= budget.target:
            return base
        uniform = UniformShares(scene, price, deep=budget.measure is not None)
        shares: Callable[[float], Plan] = uniform.plan
        if self.chooser.scope == "global":
            measured = MeasuredShares(scene, price, reference, self._blocks(scene))
            shares = measured.plan
            if measured.reaches(budget.target):
                weights = self._weights(base, scene, measured, uniform)
                shares = uniform.plan if weights is None else partial(measured.plan, weights=weights)

        def plan_for(target: float) -> Plan:
            return _composed(self.first, base, scene, shares(target))

        plain = budget.measure is None
        return plan_for(budget.target) if plain else _meet(budget, self.first, plan_for, self.first.log)

    def _weights(
        self, base: Plan, scene: Scene, measured: MeasuredShares, uniform: UniformShares
    ) -> CurveWeights | None:
        """Return the weights of the curves that trial refits choose, None where uniform shares do better."""
        first, target = self.first, self.chooser.budget.target
        return search_weights(
            lambda weights: _composed(first, base, scene, measured.plan(target, weights)),
            _composed(first, base, scene, uniform.plan(target)),
            partial(_distance, first, measured.measured.reference, self.trial_refit),
            first.log,
            [group.name for group in scene.open],
            _more(first),
            brief=(model_cost(first.model, first.shapes).macs or 0) > LARGE,
        )

    def _blocks(self, scene: Scene) -> tuple[Block, ...]:
        """Return the residual blocks that compete with channels: they do in the first round."""
        if not self.chooser.layers or scene is not self.first:
            return ()
        return tuple(residual_blocks(scene.model, scene.groups, self.excluded))


def _composed(first: Scene, base: Plan, scene: Scene, plan: Plan) -> Plan:
    """Return the plan for `first` of what `base` has cut already and `plan` cuts next of `scene`."""
    lineage = Lineage(first.groups, base.keep)
    lineage.record(scene.groups, plan.keep)
    estimate = None if plan.estimate is None else (base.estimate or 0.0) + plan.estimate
    return Plan(lineage.keep, plan.reached, estimate, base.drops or plan.drops)


def _distance(first: Scene, reference: Reference | None, quick_repair: QuickRepair, plan: Plan) -> float:
    """Return how far the outputs are from the original's after a trial refit of `plan`."""
    context = first.context
    assert reference is not None and context.calibration is not None, "curves have been measured"
    # The judges are not among those it is repaired on: with few samples those would be learnt by heart.
    fitted = context.calibration.after(reference.samples).take(_quick(first))
    few = replace(context, calibration=fitted)
    made = quick_repair(replace(first, context=few), plan)
    return judge(made, reference, context.calibration.take(reference.samples), context)


def _quick(scene: Scene) -> int:
    """Return on how many samples a plan is repaired quickly: fewer for large networks."""
    macs = model_cost(scene.model, scene.shapes).macs or 1
    return int(min(QUICK_MOST, max(QUICK_LEAST, QUICK_MACS // macs)))


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


def _more(scene: Scene) -> int:
    """Return how many plans may be tried for the sake of single groups: none for large networks."""
    macs = model_cost(scene.model, scene.shapes).macs or 1
    return 0 if macs > LARGE else int(min(MORE_MOST, MORE_MACS // (macs * _quick(scene))))


def _targets(chooser: Chooser, scene: Scene) -> Sequence[float]:
    start, end = chooser.budget.price_of(scene)({}), chooser.budget.target
    if end >= start or end <= 0:
        return [end]
    steps = np.arange(1, chooser.rounds + 1) / chooser.rounds
    return [*(start * (end / start) ** steps[:-1]).tolist(), end]
