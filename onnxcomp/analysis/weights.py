"""Weights that stand behind other nodes: Identity, Cast, Transpose, and the quantization of a stored tensor.

A weight has two axes that are cut, which labels per element cannot say. So nodes that only prepare a stored tensor for
the nodes that read it as a weight are looked through: the tensor in the file is what is cut, its scales along with it.
"""

from __future__ import annotations

import math

from onnxcomp.analysis.flow import Blocked, Flow, Weight
from onnxcomp.analysis.labels import Ids, Labels
from onnxcomp.ir.graph import Constant, Node, Value
from onnxcomp.ir.ops import QUANTIZATION, WEIGHT_INPUTS, WRAPS_WEIGHTS

__all__ = ["look_through", "quantize"]


def look_through(flow: Flow, node: Node) -> bool:
    """Record the output of `node` as a weight where it is one; return whether it is."""
    if not node.is_op(*WRAPS_WEIGHTS):
        return False
    inner = flow.behind(node.input(0))
    if inner is None or not _only_weights(flow, node.output):
        return False
    if inner.constant.values.dtype.kind != "f" and not _is_quantized(flow, node.output):
        return False
    made = _quantized(node, inner) if node.op in QUANTIZATION else _same(node, inner)
    if isinstance(made, str):
        flow.opaque[node.output.name] = made
        return False
    flow.weights[node.output.name] = made
    return True


def _only_weights(flow: Flow, value: Value) -> bool:
    """Return whether every reader of `value` reads it as a weight, through such nodes or at once."""
    uses = list(flow.graph.uses(value))
    if not uses or flow.graph.is_output(value) or value.name in flow.graph.captured():
        return False
    return all(
        _only_weights(flow, reader.output)
        if reader.is_op(*WRAPS_WEIGHTS) and index == 0
        else reader.standard and index in WEIGHT_INPUTS.get(reader.op, ())
        for reader, index in uses
    )


def _is_quantized(flow: Flow, value: Value) -> bool:
    """Return whether the integers of `value` are dequantized before they are read."""
    maker = value.producer
    if maker is not None and maker.is_op("DequantizeLinear"):
        return True
    return all(
        reader.is_op(*WRAPS_WEIGHTS) and _is_quantized(flow, reader.output) for reader in value.consumers
    )


def _same(node: Node, inner: Weight) -> Weight:
    if not node.is_op("Transpose"):
        return inner
    order = node.attrs.get("perm") or list(range(len(inner.axes)))[::-1]
    scales = tuple((scale, order.index(axis)) for scale, axis in inner.scales)
    return Weight(inner.constant, tuple(inner.axes[a] for a in order), scales, inner.zero)


def _quantized(node: Node, inner: Weight) -> Weight | str:
    """Return the weight behind a QuantizeLinear or DequantizeLinear, or the reason why it cannot be cut."""
    scale, offset = node.input(1), node.input(2)
    if not isinstance(scale, Constant) or not (offset is None or isinstance(offset, Constant)):
        return f"{node.op} {node.name!r} computes the scales of a weight"
    scales, zero, axis = inner.scales, inner.zero, 0
    if scale.values.size > 1:
        axis = int(node.attrs.get("axis", 1)) % max(1, len(inner.axes))
        parts = [scale, *([offset] if offset is not None else [])]
        if node.attrs.get("block_size") or any(p.values.shape != (inner.shape[axis],) for p in parts):
            return f"{node.op} {node.name!r} quantizes a weight in blocks, which cannot be cut"
        scales += tuple((part, axis) for part in parts)
    # A float tensor holds zero as 0; one of integers holds its zero point.
    if offset is not None and node.is_op("DequantizeLinear") and inner.constant.values.dtype.kind != "f":
        zero = (offset, inner.axes[axis] if inner.axes else 0)
    return Weight(inner.constant, inner.axes, scales, zero)


# --- quantized activations -------------------------------------------------------------------------------------------
def quantize(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels behind a QuantizeLinear or DequantizeLinear of an activation; scales per channel are cut along."""
    labels = flow.labels(node.inputs[0])
    scales = [flow.behind(node.input(i)) for i in (1, 2) if node.input(i) is not None]
    if any(scale is None for scale in scales) and math.prod(flow.shapes[node.inputs[1].name]) != 1:
        raise Blocked(f"{node.op} {node.name!r} computes its scales")
    varying = [s for s in scales if s is not None and s.constant.values.size > 1]
    if not varying or not labels.axes:
        return [Labels(labels.ids, flow.shape(node))]
    if node.attrs.get("block_size"):
        raise Blocked(f"{node.op} {node.name!r} quantizes in blocks of {node.attrs['block_size']}")
    axis = int(node.attrs.get("axis", 1)) % len(labels.shape)
    if axis not in labels.axes:
        return [Labels(labels.ids, flow.shape(node))]
    ids: Ids = flow.channels(node, axis)
    for scale in varying:
        flow.use(node, scale, 0, ids, "follows")
    return [flow.map.fresh_along(flow.shape(node), axis, ids)]
