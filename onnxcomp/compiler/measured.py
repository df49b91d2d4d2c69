"""Global plans: shares that differ from group to group, by what each group's cut was measured to do to the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from onnxcomp.compiler.allocation import allocate
from onnxcomp.compiler.budget import keep_of
from onnxcomp.compiler.curves import Curve, measure_curves
from onnxcomp.compiler.divergence import Reference
from onnxcomp.compiler.scene import Plan, Price, Scene

__all__ = ["MeasuredShares"]


class MeasuredShares:
    """Plans for a budget from measured curves; the curves are measured once, when the first plan is asked for.

    `reference` are the original's outputs to judge by; None where the scene's model is the original.
    """

    def __init__(self, scene: Scene, price: Price, reference: Reference | None) -> None:
        self._scene = scene
        self._price = price
        self._given = reference

    def plan(self, target: float) -> Plan:
        """Return the plan with the least foretold damage whose price falls to `target` or just below."""
        scene = self._scene
        if self._price({}) <= target:
            return Plan({}, True, 0.0)
        curves, _ = self.curves
        ladders = [curve.ladder for curve in curves]

        def price(removed: Sequence[int]) -> float:
            return self._price(keep_of(scene.sizes, ladders, removed))

        removed, reached = allocate(curves, price, target, scene.limits)
        estimate = sum(float(curve.at([count])[0]) for curve, count in zip(curves, removed, strict=True))
        return Plan(keep_of(scene.sizes, ladders, removed), reached, estimate)

    @cached_property
    def curves(self) -> tuple[list[Curve], Reference | None]:
        """The curve of every ladder, and the outputs they were judged by."""
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
        return found, reference
