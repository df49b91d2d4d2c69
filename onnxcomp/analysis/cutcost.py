"""What a model would cost after a cut, without cutting it: exact counts from the sizes of stored tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.cost import Shapes, node_macs, weight_elements
from onnxcomp.ir.graph import Constant
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import stored

__all__ = ["CutCost", "Keep"]

Mask = NDArray[np.bool_]
Keep = Mapping[str, Mask]
"""For each channel group by name, the mask of the units that stay; absent groups stay whole."""


@dataclass(frozen=True)
class _Part:
    """Positions of one axis that belong to one group."""

    group: str
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class _Tensor:
    """A stored tensor: elements, multiply-accumulates per element, and for each cut axis its size and parts."""

    elements: int
    macs_each: float
    axes: tuple[tuple[int, tuple[_Part, ...]], ...]


class CutCost:
    """Parameters and MACs of `model` as functions of the units kept.

    The MACs of a Conv, Gemm or MatMul are the elements of its weight times the positions it is applied at, so that both
    counts follow from the sizes of the cut axes. `biases` names weights, with their axes of output channels, whose nodes
    will be given a bias by a refit.
    """

    def __init__(
        self, model: Model, groups: ChannelGroups, shapes: Shapes, biases: Iterable[tuple[str, int]] = ()
    ) -> None:
        cut: dict[str, dict[int, tuple[int, tuple[_Part, ...]]]] = {}
        for group in groups:
            for member in group.members:
                counts = np.bincount(member.units[member.units >= 0], minlength=group.units)
                axes = cut.setdefault(member.name, {})
                size, parts = axes.get(member.axis, (len(member.units), ()))
                if all(part.group != group.name for part in parts):
                    axes[member.axis] = (size, (*parts, _Part(group.name, counts)))
        self._fixed_macs = 0.0
        each: dict[str, float] = {}
        for node in model.graph.nodes:
            macs = node_macs(node, shapes)
            weight = next((v for v in node.inputs if isinstance(v, Constant) and v.values.ndim > 1), None)
            if not macs:
                continue
            if weight is None or node.is_op("LSTM", "GRU"):
                self._fixed_macs += macs
            else:
                each[weight.name] = each.get(weight.name, 0.0) + macs / max(1, weight.values.size)
        self._tensors = tuple(
            _Tensor(weight_elements(c), each.get(c.name, 0.0), tuple(cut.get(c.name, {}).values()))
            for c in stored(model.graph)
        ) + tuple(
            _Tensor(
                model.graph.constants[name].values.shape[axis],
                0.0,
                tuple(filter(None, [cut.get(name, {}).get(axis)])),
            )
            for name, axis in biases
        )

    def count(self, keep: Keep) -> tuple[int, int]:
        """Return `(parameters, macs)` with only the units in `keep`."""
        parameters, macs = 0.0, self._fixed_macs
        for tensor in self._tensors:
            elements = float(tensor.elements)
            for size, parts in tensor.axes:
                lost = sum(int(part.counts[~keep[part.group]].sum()) for part in parts if part.group in keep)
                elements *= (size - lost) / size
            parameters += elements
            macs += elements * tensor.macs_each
        return round(parameters), math.ceil(round(macs, 3))
