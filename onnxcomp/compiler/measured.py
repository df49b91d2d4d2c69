"""Global plans: shares that differ from group to group, by what each group's cut was measured to do to the output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.blocks import Block, drop_block
from onnxcomp.compiler.allocation import Allocation, Whole, allocate
from onnxcomp.compiler.budget import keep_of
from onnxcomp.compiler.curves import BATCH, JUDGES, Curve, measure_curves
from onnxcomp.compiler.divergence import Reference
from onnxcomp.compiler.scene import Drop, Plan, Price, Scene
from onnxcomp.ir.model import Model
from onnxcomp.runtime.capture import Frontier, Spool

__all__ = ["Measured", "MeasuredShares"]

Array = NDArray[Any]


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

    def plan(self, target: float) -> Plan:
        """Return the plan with the least foretold damage whose price falls to `target` or just below."""
        scene = self._scene
        if self._price({}) <= target:
            return Plan({}, True, 0.0)
        ladders = [curve.ladder for curve in self.measured.curves]
        numbers: dict[str, list[int]] = {}
        for number, ladder in enumerate(ladders):
            numbers.setdefault(ladder.group, []).append(number)
        wholes = [
            Whole(tuple(n for name in drop.block.groups for n in numbers.get(name, ())), damage)
            for drop, damage in self.measured.drops
        ]

        def keep_after(allocation: Allocation, *, emptied: bool) -> dict[str, NDArray[np.bool_]]:
            keep = keep_of(scene.sizes, ladders, allocation.removed)
            for number in allocation.gone:
                for name in self.measured.drops[number][0].block.groups:
                    keep.pop(name, None)
                    if emptied:
                        keep[name] = np.zeros(scene.groups[name].units, bool)
            return keep

        def price(allocation: Allocation) -> float:
            return self._price(keep_after(allocation, emptied=True))

        allocation, reached = allocate(self.measured.curves, price, target, scene.limits, wholes)
        harm = [drop[1] for number, drop in enumerate(self.measured.drops) if number in allocation.gone]
        gone = {n for number in allocation.gone for n in wholes[number].ladders}
        cut = [
            float(curve.at([count])[0])
            for number, (curve, count) in enumerate(
                zip(self.measured.curves, allocation.removed, strict=True)
            )
            if number not in gone
        ]
        drops = tuple(self.measured.drops[number][0] for number in sorted(allocation.gone))
        return Plan(keep_after(allocation, emptied=False), reached, sum(harm) + sum(cut), drops)

    @cached_property
    def measured(self) -> Measured:
        """The curves and drops, measured."""
        scene, reference = self._scene, self._given
        found: list[Curve] = []
        depths: Mapping[str, list[int]] = {
            name: [len(ladder.order) for ladder in ladders] for name, ladders in scene.blank().items()
        }
        for ladders, moments in scene.ordered_waves(depths):
            curves, reference = measure_curves(
                scene.model, scene.groups, ladders, moments, reference, scene.context, scene.limits
            )
            found.extend(curves)
        drops: list[tuple[Drop, float]] = []
        if self._blocks and reference is not None:
            drops = _measure_drops(scene, self._blocks, reference)
        return Measured(tuple(found), tuple(drops), reference)


def _measure_drops(scene: Scene, blocks: tuple[Block, ...], reference: Reference) -> list[tuple[Drop, float]]:
    """Return every block with its branch's mean and the damage of dropping it alone, mean left in its place."""
    model, context = scene.model, scene.context
    assert context.calibration is not None, "the driver's preflight supplies calibration samples"
    nodes = {node.name: node for node in model.graph.nodes}
    outputs = [v.name for v in model.graph.outputs]
    found = []
    with Spool() as spool:
        count = 0
        for feed in context.calibration.take(JUDGES).batches(BATCH):
            for name, array in feed.items():
                spool.write(name, array)
            count += 1
        frontier = Frontier(
            model, spool, count, threads=context.threads, custom_op_libs=context.custom_op_libs
        )
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
