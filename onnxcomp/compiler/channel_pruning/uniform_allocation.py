"""Uniform plans: the same share from every channel group."""

from __future__ import annotations

from functools import cached_property

from onnxcomp.analysis.channels import ChannelGroup
from onnxcomp.compiler.channel_pruning.ladder import Ladder, at_share, keep_of, tiers, uniform_keep
from onnxcomp.compiler.channel_pruning.problem import Plan, Price, Scene
from onnxcomp.numerics.arrays import Mask

__all__ = ["UniformShares", "at_ratio"]


def at_ratio(scene: Scene, ratio: float) -> Plan:
    """Return the plan that removes the share `ratio` from every group."""
    depths = {
        name: [at_share(ladder, ratio, scene.limits) for ladder in ladders]
        for name, ladders in scene.blank().items()
    }
    ladders = scene.ordered(depths)
    return Plan(keep_of(scene.sizes, ladders, [len(x.order) for x in ladders]), True)


class UniformShares:
    """Plans for a budget with one share for all inner channels, and one for residual streams where they must go too.

    With `deep` all units are put in order once, for plans at several targets.
    """

    def __init__(self, scene: Scene, price: Price, *, deep: bool = False) -> None:
        self._scene = scene
        self._price = price
        self._deep = deep

    @cached_property
    def _rough(self) -> dict[str, list[Ladder]]:
        return self._scene.blank()

    def plan(self, target: float) -> Plan:
        """Return the plan whose price falls to `target` or just below, or the least there is."""
        scene = self._scene
        if self._price({}) <= target:
            return Plan({}, True)
        if self._deep:
            ordered = self._all
        else:
            # The depth is planned with unordered ladders first: only what may go has to be put in order.
            rough, _ = self._filled(self._rough, target, fill=False)
            ordered = self._ordered({g.name: self._depths(g, rough.get(g.name)) for g in scene.open})
        keep, reached = self._filled(ordered, target, fill=True)
        return Plan(keep, reached)

    @cached_property
    def _all(self) -> dict[str, list[Ladder]]:
        return self._ordered({name: [len(x.order) for x in made] for name, made in self._rough.items()})

    def _ordered(self, depths: dict[str, list[int]]) -> dict[str, list[Ladder]]:
        ordered: dict[str, list[Ladder]] = {g.name: [] for g in self._scene.open}
        for ladder in self._scene.ordered(depths):
            ordered[ladder.group].append(ladder)
        return ordered

    def _filled(
        self, ladders: dict[str, list[Ladder]], target: float, *, fill: bool
    ) -> tuple[dict[str, Mask], bool]:
        scene = self._scene
        inner = [x for g in scene.open if not g.coupled for x in ladders[g.name]]
        streams = [x for g in scene.open if g.coupled for x in ladders[g.name]]
        return uniform_keep(scene.sizes, inner, streams, self._price, target, scene.limits, fill=fill)

    def _depths(self, group: ChannelGroup, rough: Mask | None) -> list[int]:
        """Return how many units of each tier to order: what the rough plan removes, and one step of slack."""
        if rough is None:
            return [0 for _ in tiers(group)]
        return [int((~rough[units]).sum()) + self._scene.limits.align for units in tiers(group)]
