"""Global plans: shares that differ from group to group, by what each group's cut was measured to do to the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.blocks import Block, drop_block
from onnxcomp.analysis.cost import model_cost
from onnxcomp.compiler.channel_pruning.curve_weights import AS_MEASURED, CurveWeights
from onnxcomp.compiler.channel_pruning.knapsack import Allocation, Whole, allocate
from onnxcomp.compiler.channel_pruning.ladder import keep_of
from onnxcomp.compiler.channel_pruning.problem import Drop, Plan, Price, Scene
from onnxcomp.compiler.channel_pruning.sensitivity_curves import (
    JUDGES,
    LEVELS,
    Curve,
    CurveSettings,
    measure_curves,
)
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.trials import Judging, together
from onnxcomp.ir.model import Model
from onnxcomp.runtime.capture import Frontier, Spool

__all__ = ["Measured", "MeasuredShares"]


TRIAL_MACS = 2 * 10**12
"""Work that measuring curves may take, about a minute on two cores."""

FEWEST = 32
"""Samples that curves are measured on at least."""

FEW_LEVELS = (1 / 4, 1 / 2, 3 / 4)
"""Levels at which the curves of large networks are measured, where more would take longer than that."""


@dataclass(frozen=True)
class Measured:
    """What was measured: a curve for every ladder, every block's drop with its damage, and the outputs judged by."""

    curves: tuple[Curve, ...]
    drops: tuple[tuple[Drop, float], ...]
    reference: Reference | None


class MeasuredShares:
    """Plans for a budget from measured curves; the curves are measured once, when the first plan is asked for.

    `reference` are the original's outputs to judge by; None where the scene's model is the original. `blocks` compete
    whole with the channels inside them.
    """

    def __init__(
        self, scene: Scene, price: Price, reference: Reference | None, blocks: tuple[Block, ...] = ()
    ) -> None:
        self._scene = scene
        self._price = price
        self._given = reference
        self._blocks = blocks

    def reaches(self, target: float) -> bool:
        """Return whether any plan reaches `target`; where none does, all that can go goes, whatever was measured."""
        return self.plan(target).reached

    def plan(self, target: float, weights: CurveWeights = AS_MEASURED) -> Plan:
        """Return the plan with the least predicted divergence whose price falls to `target` or just below.

        `weights` multiply the curves; the estimate is that of the curves as measured.
        """
        scene = self._scene
        if self._price({}) <= target:
            return Plan({}, True, 0.0)
        curves = [self._weighed(curve, weights) for curve in self.measured.curves]
        ladders = [curve.ladder for curve in curves]
        numbers: dict[str, list[int]] = {}
        for number, ladder in enumerate(ladders):
            numbers.setdefault(ladder.group, []).append(number)
        wholes = [
            Whole(
                tuple(n for name in drop.block.groups for n in numbers.get(name, ())),
                damage * self._factor(drop.block.groups[0], weights),
            )
            for drop, damage in self.measured.drops
        ]

        def price(allocation: Allocation) -> float:
            return self._price(self._keep_after(allocation, emptied=True))

        allocation, reached = allocate(curves, price, target, scene.limits, wholes)
        drops = tuple(self.measured.drops[number][0] for number in sorted(allocation.gone))
        keep = self._keep_after(allocation, emptied=False)
        return Plan(keep, reached, self._estimate(allocation, wholes), drops)

    def _keep_after(self, allocation: Allocation, *, emptied: bool) -> dict[str, NDArray[np.bool_]]:
        """Return the masks of an allocation; a block that goes is left out, or with `emptied` has no channels."""
        scene = self._scene
        ladders = [curve.ladder for curve in self.measured.curves]
        keep = keep_of(scene.sizes, ladders, allocation.removed)
        for number in allocation.gone:
            for name in self.measured.drops[number][0].block.groups:
                keep.pop(name, None)
                if emptied:
                    keep[name] = np.zeros(scene.groups[name].units, bool)
        return keep

    def _estimate(self, allocation: Allocation, wholes: Sequence[Whole]) -> float:
        gone = {n for number in allocation.gone for n in wholes[number].ladders}
        harm = sum(self.measured.drops[number][1] for number in allocation.gone)
        pairs = enumerate(zip(self.measured.curves, allocation.removed, strict=True))
        return harm + sum(float(curve.at([count])[0]) for n, (curve, count) in pairs if n not in gone)

    def _weighed(self, curve: Curve, weights: CurveWeights) -> Curve:
        factor = self._factor(curve.ladder.group, weights)
        return replace(curve, damage=tuple(factor * damage for damage in curve.damage))

    def _factor(self, name: str, weights: CurveWeights) -> float:
        return weights.weight(name, self._depth(name), residual=self._scene.groups[name].coupled)

    def _depth(self, name: str) -> float:
        """Return how deep in the network the readers of a group lie on average, in [0, 1]."""
        places, group = self._places, self._scene.groups[name]
        readers = [places[reader] for reader in group.consumers or group.producers]
        return sum(readers) / (len(readers) * max(1, len(places)))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {node.name: place for place, node in enumerate(self._scene.model.graph.nodes)}

    @cached_property
    def measured(self) -> Measured:
        """The curves and drops, measured."""
        scene, reference = self._scene, self._given
        found: list[Curve] = []
        depths: Mapping[str, list[int]] = {
            name: [len(ladder.order) for ladder in ladders] for name, ladders in scene.blank().items()
        }
        work = self._trial_work() * FEWEST
        levels = LEVELS if work * len(LEVELS) <= TRIAL_MACS else FEW_LEVELS
        most = int(min(JUDGES, max(FEWEST, FEWEST * TRIAL_MACS // max(1, work * len(levels)))))
        judging = Judging(most if reference is None else reference.samples)
        settings = CurveSettings(scene.limits, judging, levels)
        for ladders, moments in scene.ordered_waves(depths):
            curves, reference = measure_curves(
                scene.model,
                scene.groups,
                ladders,
                moments,
                reference,
                scene.context,
                settings,
            )
            found.extend(curves)
        drops: list[tuple[Drop, float]] = []
        if self._blocks and reference is not None:
            drops = _measure_drops(scene, self._blocks, reference)
        return Measured(tuple(found), tuple(drops), reference)

    def _trial_work(self) -> int:
        """Return what one level of every curve costs for one sample: half the network, on average."""
        ladders = sum(len(ladders) for ladders in self._scene.blank().values())
        return ladders * (model_cost(self._scene.model, self._scene.shapes).macs or 1) // 2


def _measure_drops(scene: Scene, blocks: tuple[Block, ...], reference: Reference) -> list[tuple[Drop, float]]:
    """Return every block with its branch's mean and the damage of dropping it alone, mean left in its place."""
    model, context = scene.model, scene.context
    nodes = {node.name: node for node in model.graph.nodes}
    outputs = [v.name for v in model.graph.outputs]
    found = []
    with Spool() as spool:
        count = spool.fill(context.samples.take(reference.samples), together(context))
        frontier = Frontier(model, spool, count, **context.runtime)
        floor = reference.distance(frontier.preview(model, outputs))
        for number, block in enumerate(blocks):
            axis = _channel_axis(scene, block)
            total, parts = np.zeros(1), 0
            for values in frontier.advance(frontier.live_before(nodes[block.name])):
                branch = values[block.branch]
                others = tuple(a for a in range(branch.ndim) if a != axis)
                total = total + branch.mean(axis=others, keepdims=True, dtype=np.float64) * len(branch)
                parts += len(branch)
            constant = (total / max(1, parts)).astype(branch.dtype)
            candidate: Model = model.clone()
            drop_block(candidate, block, constant)
            damage = reference.distance(frontier.preview(candidate, outputs)) - floor
            found.append((Drop(block, constant, axis), max(0.0, damage)))
            context.progress("measuring blocks", number + 1, len(blocks))
    return found


def _channel_axis(scene: Scene, block: Block) -> int:
    axes = scene.groups.labels.values[block.branch].axes
    return axes[0] if len(axes) == 1 else 1
