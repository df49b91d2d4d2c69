"""Choosing channels under a budget, in one round or in several with a quick repair in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.blocks import residual_blocks
from onnxcomp.compiler.budget import Limits
from onnxcomp.compiler.divergence import Reference
from onnxcomp.compiler.lineage import Lineage
from onnxcomp.compiler.measured import MeasuredShares
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.scene import Plan, Price, Scene, open_scene
from onnxcomp.compiler.uniform import UniformShares, at_ratio
from onnxcomp.ir.model import Model

__all__ = ["Budget", "Chooser", "choose"]

Mask = NDArray[np.bool_]
QuickRepair = Callable[[Scene, Plan], Model]
"""Returns the first scene's model cut as planned so far and repaired quickly."""


@dataclass(frozen=True)
class Budget:
    """What may remain: `share` of `whole`, priced by `price_of`; or with `what="ratio"` the share removed everywhere."""

    what: Literal["ratio", "macs", "params", "latency"]
    share: float
    whole: float
    price_of: Callable[[Scene], Price]

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
    lineage, reference, scene = Lineage(first.groups), None, first
    so_far = Plan({}, True)
    targets = _targets(chooser, first)
    for number, target in enumerate(targets, 1):
        price = chooser.budget.price_of(scene)
        if chooser.scope == "global":
            blocks = residual_blocks(model, scene.groups, excluded) if chooser.layers and number == 1 else []
            shares = MeasuredShares(scene, price, reference, tuple(blocks))
            plan = shares.plan(target)
            if not plan.empty:
                reference = shares.measured.reference
        else:
            plan = UniformShares(scene, price).plan(target)
        lineage.record(scene.groups, plan.keep)
        estimate = None if plan.estimate is None else (so_far.estimate or 0.0) + plan.estimate
        so_far = Plan(lineage.keep, plan.reached, estimate, so_far.drops or plan.drops)
        if number < len(targets):
            current = quick_repair(first, so_far)
            scene = open_scene(current, excluded, chooser.limits, chooser.criterion, context, log, quiet=True)
    return first, so_far, reference


def _targets(chooser: Chooser, scene: Scene) -> Sequence[float]:
    start, end = chooser.budget.price_of(scene)({}), chooser.budget.target
    if end >= start or end <= 0:
        return [end]
    steps = np.arange(1, chooser.rounds + 1) / chooser.rounds
    return [*(start * (end / start) ** steps[:-1]).tolist(), end]
