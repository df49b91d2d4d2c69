"""Outlier channels split: copies of a channel are made, and its weights shared among them, where it is read.

What the network computes stays the same, up to the rounding of floats. Depthwise convolutions on the way get copies, too.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.graph import Array, Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import ACTIVATIONS, POOLING, UNARY
from onnxcomp.numerics.arrays import Shapes
from onnxcomp.numerics.splitting import split_outliers

__all__ = ["split_channels"]


@dataclass(frozen=True)
class _Way:
    """A layer `made`, the layer `read` behind it, the depthwise convolutions between, and the values on the way."""

    made: LinearNode
    read: LinearNode
    depthwise: tuple[LinearNode, ...]
    values: tuple[Variable, ...]

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return int(self.made.weight_array().shape[self.made.out_axis])


def split_channels(
    model: Model, share: float, levels: int, shapes: Shapes, left_alone: Container[str], log: PassLog
) -> int:
    """Split the outlier channels of `model` in place, the part `share` of each layer's; return how many there are more.

    `levels` are the steps to each side of the grid of the weights, `shapes` those of all values for one sample. Nodes
    named in `left_alone` keep their weights.
    """
    added = 0
    for node in list(model.graph.nodes):
        made = linear_node(node)
        if made is None or node.name in left_alone or made.group != 1 or made.layout == "left":
            continue
        way = _way(model, made, shapes, left_alone, log)
        if way is None:
            continue
        count = math.ceil(share * way.channels)
        before = float(np.abs(way.read.matrix()).max(initial=0.0))
        _split(model, way, count, levels)
        after = float(np.abs(way.read.matrix()).max(initial=0.0))
        log.change(
            way.read.node.name,
            f"{count} outliers of {way.channels - count} channels from {node.op} {node.name!r} split",
            largest=[float(f"{before:.4g}"), float(f"{after:.4g}")],
        )
        added += count
    return added


def _way(
    model: Model, made: LinearNode, shapes: Shapes, left_alone: Container[str], log: PassLog
) -> _Way | None:
    """Return the way from `made` to the next layer that sums over its channels, None where there is none."""
    value, values = made.node.output, list[Variable]()
    depthwise: list[LinearNode] = []
    channels = made.weight_array().shape[made.out_axis]
    if not made.spatial and len(shapes.get(value.name, ())) != 2:
        return None
    while True:
        values.append(value)
        node = model.graph.sole_use(value)
        if node is None or node.name in left_alone or node.inputs[0] is not value:
            return None
        read = linear_node(node)
        if read is not None and _is_depthwise(read, channels):
            depthwise.append(read)
        elif read is not None:
            return _ending(_Way(made, read, tuple(depthwise), tuple(values)), shapes, log)
        elif not _passes(node):
            return None
        value = node.output


def _ending(way: _Way, shapes: Shapes, log: PassLog) -> _Way | None:
    read, name = way.read, way.made.node.name
    if read.group != 1:
        log.skip(name, f"its channels are not split: {read.node.name!r} reads them in {read.group} groups")
        return None
    wide = read.layout in ("gemm", "right")
    width = read.weight_array().shape[read.in_axis]
    if read.layout == "left" or (wide and len(shapes.get(read.input, ())) != 2):
        return None
    return way if width % way.channels == 0 and (wide or width == way.channels) else None


def _is_depthwise(read: LinearNode, channels: int) -> bool:
    return read.layout == "conv" and 1 < read.group == channels == len(read.weight_array())


def _passes(node: Node) -> bool:
    """Return whether `node` computes each channel from that channel alone, the same way for all, whatever their number."""
    if any(v.name for v in node.outputs[1:]):
        return False
    if node.is_op("PRelu"):
        slope = node.constant(1)
        return slope is not None and slope.size == 1
    if node.is_op("Flatten"):
        return int(node.attrs.get("axis", 1)) == 1
    return node.is_op(*(ACTIVATIONS | POOLING | UNARY))


def _split(model: Model, way: _Way, count: int, levels: int) -> None:
    """Make `count` copies of channels, and share what reads them."""
    outputs = way.read.matrix().shape[1]
    weights = way.read.matrix()[0].reshape(outputs, way.channels, -1)
    sources, split = split_outliers(weights, count, levels)
    _store(model, way.made, way.made.weight_array().take(sources, way.made.out_axis), sources)
    for linear in way.depthwise:
        linear.node.attrs["group"] = len(sources)
        _store(model, linear, linear.weight_array()[sources], sources)
    _store_read(model, way.read, split)
    for value in way.values:
        value.shape = None


def _store(model: Model, linear: LinearNode, weight: Array, sources: NDArray[np.intp]) -> None:
    """Give `linear` its `weight` for more outputs, and the bias that belongs to it."""
    bias = linear.node.constant(2) if linear.has_bias else None
    model.graph.set_constant(linear.node, linear.weight, np.ascontiguousarray(weight), "split")
    if bias is not None and bias.size > 1:
        axis = bias.ndim - 1
        model.graph.set_constant(linear.node, 2, np.ascontiguousarray(bias.take(sources, axis)), "split")


def _store_read(model: Model, linear: LinearNode, split: NDArray[np.float64]) -> None:
    """Give `linear` the weights `split` `[o, c, k]` of more channels."""
    old = linear.weight_array()
    outward = (old.shape[1], old.shape[0], *old.shape[2:]) if linear.transposed else old.shape
    array = split.reshape(outward[0], -1, *outward[2:])
    array = array.swapaxes(0, 1) if linear.transposed else array
    if linear.layout == "gemm":
        linear.node.attrs.pop("alpha", None)
    model.graph.set_constant(
        linear.node, linear.weight, np.ascontiguousarray(array.astype(old.dtype)), "split"
    )
