"""What a model would cost after a cut, without cutting it: exact counts from the sizes of stored tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.cost import Shapes, node_macs, weight_elements
from onnxcomp.analysis.cutaxes import CutAxes, CutAxis, Keep
from onnxcomp.ir.graph import Constant
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import RECURRENT
from onnxcomp.ir.proto import stored

__all__ = ["CutCost", "Keep"]


@dataclass(frozen=True)
class _Item:
    """Something whose costs follow from the sizes of its axes: a stored tensor, or the work of a node."""

    parameters: int
    macs: float
    axes: tuple[CutAxis, ...]


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
        cut = CutAxes(groups)
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
                work.append(_Item(0, count, cut.of_product(node)))
                continue
            # A recurrent node multiplies at every step with two weights, each other node with one.
            used = weights[:2] if node.is_op(*RECURRENT) else weights[:1]
            elements = sum(weight.values.size for weight in used)
            for weight in used:
                macs[weight.name] = macs.get(weight.name, 0.0) + count * weight.values.size / max(1, elements)
        work += [
            _Item(weight_elements(c), macs.get(c.name, 0.0), tuple(cut.stored(c.name).values()))
            for c in stored(model.graph)
        ]
        for name, axis in biases:
            axes = tuple(filter(None, [cut.stored(name).get(axis)]))
            work.append(_Item(model.graph.constants[name].values.shape[axis], 0.0, axes))
        self._whole = (float(sum(i.parameters for i in work)), float(sum(i.macs for i in work)))
        self._items = [item for item in work if item.axes]

    def count(self, keep: Keep) -> tuple[int, int]:
        """Return `(parameters, macs)` with only the units in `keep`."""
        parameters, macs = self._whole
        shares: dict[CutAxis, float] = {}
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
