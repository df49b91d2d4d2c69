"""What a model would cost after a cut, without cutting it: exact counts from the sizes of stored tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.cost import Shapes, node_macs, weight_elements
from onnxcomp.analysis.labels import Labels, compact
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import RECURRENT
from onnxcomp.ir.proto import stored

__all__ = ["CutCost", "Keep"]

Mask = NDArray[np.bool_]
Keep = Mapping[str, Mask]
"""For each channel group by name, the mask of the units that stay; absent groups stay whole."""


@dataclass(frozen=True, eq=False)
class _Axis:
    """An axis of `size` positions: for each group that cuts it the unit of every position, -1 for one of no unit."""

    size: int
    parts: tuple[tuple[str, NDArray[np.int64]], ...]

    @cached_property
    def counts(self) -> tuple[tuple[str, NDArray[np.int64]], ...] | None:
        """For each group how many positions each unit has, or None where two groups hold the same position."""
        if np.sum([units >= 0 for _, units in self.parts], axis=0).max(initial=0) > 1:
            return None
        return tuple((group, np.bincount(units[units >= 0])) for group, units in self.parts)

    def share(self, keep: Keep) -> float:
        """Return the share of positions that are left with the units in `keep`."""
        if self.counts is not None:
            lost = sum(int(n[~keep[group][: len(n)]].sum()) for group, n in self.counts if group in keep)
            return (self.size - lost) / self.size
        stays = np.ones(self.size, bool)
        for group, units in self.parts:
            if group in keep:
                stays &= (units < 0) | keep[group][units]
        return float(np.count_nonzero(stays)) / self.size


@dataclass(frozen=True)
class _Item:
    """Something whose costs follow from the sizes of its axes: a stored tensor, or the work of a node."""

    parameters: int
    macs: float
    axes: tuple[_Axis, ...]


class CutCost:
    """Parameters and MACs of `model` as functions of the units kept.

    The MACs of a Conv, a Gemm or a recurrent node are the elements of its weights times the positions they are applied
    at, so that they follow from the sizes of the weights' axes. Those of a MatMul follow from the axes of what it reads
    and makes, whether it has a weight or not. `biases` names weights, with their axes of output channels, whose nodes will
    be given a bias by a refit.
    """

    def __init__(
        self, model: Model, groups: ChannelGroups, shapes: Shapes, biases: Iterable[tuple[str, int]] = ()
    ) -> None:
        cut = _cut_axes(groups)
        places = _Places(groups)
        behind = _weights_behind(groups)
        work: list[_Item] = []
        macs: dict[str, float] = {}
        for node in model.graph.nodes:
            if not (count := node_macs(node, shapes)):
                continue
            weights = behind.get(node.name) or [
                v for v in node.inputs if isinstance(v, Constant) and v.values.ndim > 1
            ]
            if node.is_op("MatMul") or not weights:
                work.append(_Item(0, count, places.of_product(node)))
                continue
            # A recurrent node multiplies at every step with two weights, each other node with one.
            used = weights[:2] if node.is_op(*RECURRENT) else weights[:1]
            elements = sum(weight.values.size for weight in used)
            for weight in used:
                macs[weight.name] = macs.get(weight.name, 0.0) + count * weight.values.size / max(1, elements)
        work += [
            _Item(weight_elements(c), macs.get(c.name, 0.0), tuple(cut.get(c.name, {}).values()))
            for c in stored(model.graph)
        ]
        for name, axis in biases:
            axes = tuple(filter(None, [cut.get(name, {}).get(axis)]))
            work.append(_Item(model.graph.constants[name].values.shape[axis], 0.0, axes))
        self._whole = (float(sum(i.parameters for i in work)), float(sum(i.macs for i in work)))
        self._items = _shared([item for item in work if item.axes])

    def count(self, keep: Keep) -> tuple[int, int]:
        """Return `(parameters, macs)` with only the units in `keep`."""
        parameters, macs = self._whole
        shares: dict[_Axis, float] = {}
        for item in self._items:
            share = 1.0
            for axis in item.axes:
                if axis not in shares:
                    shares[axis] = axis.share(keep)
                share *= shares[axis]
            parameters -= item.parameters * (1 - share)
            macs -= item.macs * (1 - share)
        return round(parameters), math.ceil(round(macs, 3))


def _weights_behind(groups: ChannelGroups) -> dict[str, list[Constant]]:
    """Return by node the stored tensors that it reads as weights, possibly through other nodes (a quantization)."""
    found: dict[str, list[Constant]] = {}
    for use in groups.labels.uses:
        known = found.setdefault(use.node.name, [])
        if use.constant.values.ndim > 1 and use.constant not in known:
            known.append(use.constant)
    return found


def _cut_axes(groups: ChannelGroups) -> dict[str, dict[int, _Axis]]:
    """Return the axes of stored tensors that groups cut, by the tensor's name."""
    cut: dict[str, dict[int, _Axis]] = {}
    for group in groups:
        for member in group.members:
            axes = cut.setdefault(member.name, {})
            old = axes.get(member.axis, _Axis(len(member.units), ()))
            if all(name != group.name for name, _ in old.parts):
                axes[member.axis] = _Axis(old.size, (*old.parts, (group.name, member.units)))
    return cut


class _Places:
    """Finds the axes of computed values along which units of groups lie."""

    def __init__(self, groups: ChannelGroups) -> None:
        self._groups = groups
        self._owner, self._unit = groups.owners()

    def of_product(self, node: Node) -> tuple[_Axis, ...]:
        """Return the axes whose sizes multiply to the work of a MatMul: those of its output, and the contracted one."""
        values = self._groups.labels.values
        axes = self._of(values.get(node.output.name))
        first, second = node.inputs[:2]
        # What is stored, or stands behind other nodes, has no labels of its own.
        right = first.name not in values
        read = values.get(second.name if right else first.name)
        if read is not None:
            place = len(read.shape) - (min(2, len(read.shape)) if right else 1)
            found = self._of(read).get(place)
            axes |= {} if found is None else {-1: found}
        return tuple(axes.values())

    def _of(self, labels: Labels | None) -> dict[int, _Axis]:
        found: dict[int, _Axis] = {}
        for view, classes in enumerate(self._groups.classes if labels is not None else ()):
            assert labels is not None
            roots = compact(classes[labels.ids])
            varying = [axis for axis, size in enumerate(roots.shape) if size > 1]
            for number in set(self._owner[roots].reshape(-1).tolist()) - {-1} if varying else ():
                group = self._groups.groups[number]
                if group.view == view:
                    units = np.where(self._owner[roots] == number, self._unit[roots], -1).reshape(-1)
                    old = found.get(varying[0], _Axis(labels.shape[varying[0]], ()))
                    found[varying[0]] = _Axis(old.size, (*old.parts, (group.name, units)))
        return found


def _shared(items: list[_Item]) -> tuple[_Item, ...]:
    """Return `items` with equal axes being the same object: a channel lies on many tensors, and is counted once."""
    known: dict[tuple[object, ...], _Axis] = {}
    made = []
    for item in items:
        axes = []
        for axis in item.axes:
            key = (axis.size, *((group, units.tobytes()) for group, units in axis.parts))
            axes.append(known.setdefault(key, axis))
        made.append(_Item(item.parameters, item.macs, tuple(axes)))
    return tuple(made)
