"""Which axes of tensors and computed values the channel groups cut, and what a cut leaves of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.labels import Labels, compact
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.numerics.arrays import Mask

__all__ = ["CutAxes", "CutAxis", "Keep", "Mask"]

Keep = Mapping[str, Mask]
"""For each channel group by name, the mask of the units that stay; absent groups stay whole."""


@dataclass(frozen=True, eq=False)
class CutAxis:
    """An axis of `size` positions: for each group that cuts it the unit of every position, -1 for one of no unit."""

    size: int
    parts: tuple[tuple[str, NDArray[np.int64]], ...]

    @cached_property
    def _counts(self) -> tuple[tuple[str, NDArray[np.int64]], ...] | None:
        """For each group how many positions each unit has, or None where two groups hold the same position."""
        if np.sum([units >= 0 for _, units in self.parts], axis=0).max(initial=0) > 1:
            return None
        return tuple((group, np.bincount(units[units >= 0])) for group, units in self.parts)

    def left(self, keep: Keep) -> int:
        """Return how many positions are left with the units in `keep`."""
        if self._counts is not None:
            lost = sum(int(n[~keep[group][: len(n)]].sum()) for group, n in self._counts if group in keep)
            return self.size - lost
        stays = np.ones(self.size, bool)
        for group, units in self.parts:
            if group in keep:
                stays &= (units < 0) | keep[group][units]
        return int(np.count_nonzero(stays))

    def share(self, keep: Keep) -> float:
        """Return the share of positions that are left with the units in `keep`."""
        return self.left(keep) / self.size


class CutAxes:
    """The axes that `groups` cut. Axes that are cut alike are one object, so that each is counted once."""

    def __init__(self, groups: ChannelGroups) -> None:
        self._groups = groups
        self._owner, self._unit = groups.owners()
        self._known: dict[tuple[object, ...], CutAxis] = {}
        self._stored: dict[str, dict[int, CutAxis]] = {}
        for group in groups:
            for member in group.members:
                axes = self._stored.setdefault(member.name, {})
                old = axes.get(member.axis, CutAxis(len(member.units), ()))
                if all(name != group.name for name, _ in old.parts):
                    axes[member.axis] = CutAxis(old.size, (*old.parts, (group.name, member.units)))

    def stored(self, name: str) -> dict[int, CutAxis]:
        """Return the axes of the stored tensor `name` that are cut, by number."""
        return {number: self._shared(axis) for number, axis in self._stored.get(name, {}).items()}

    def computed(self, name: str) -> dict[int, CutAxis]:
        """Return the axes of the computed value `name` that are cut, by number; none where it has no labels."""
        found = self._of(self._groups.labels.values.get(name))
        return {number: self._shared(axis) for number, axis in found.items()}

    def of_product(self, node: Node) -> tuple[CutAxis, ...]:
        """Return the axes whose sizes multiply to the work of a MatMul: those of its output, and the contracted one."""
        values = self._groups.labels.values
        axes = self._of(values.get(node.output.name))
        first, second = node.inputs[:2]
        read = values.get(second.name if isinstance(first, Constant) else first.name)
        if read is not None:
            place = len(read.shape) - (min(2, len(read.shape)) if isinstance(first, Constant) else 1)
            found = self._of(read).get(place)
            axes |= {} if found is None else {-1: found}
        return tuple(self._shared(axis) for axis in axes.values())

    def _of(self, labels: Labels | None) -> dict[int, CutAxis]:
        found: dict[int, CutAxis] = {}
        for view, classes in enumerate(self._groups.classes if labels is not None else ()):
            assert labels is not None
            roots = compact(classes[labels.ids])
            varying = [axis for axis, size in enumerate(roots.shape) if size > 1]
            for number in set(self._owner[roots].reshape(-1).tolist()) - {-1} if varying else ():
                group = self._groups.groups[number]
                if group.view == view:
                    units = np.where(self._owner[roots] == number, self._unit[roots], -1).reshape(-1)
                    old = found.get(varying[0], CutAxis(labels.shape[varying[0]], ()))
                    found[varying[0]] = CutAxis(old.size, (*old.parts, (group.name, units)))
        return found

    def _shared(self, axis: CutAxis) -> CutAxis:
        key = (axis.size, *((group, units.tobytes()) for group, units in axis.parts))
        return self._known.setdefault(key, axis)
