"""Operators that pick positions: by stored or computed indices, by size, and tables that are looked up."""

from __future__ import annotations

import numpy as np

from onnxcomp.analysis.flow import Blocked, Flow, Weight
from onnxcomp.analysis.labels import Labels, compact
from onnxcomp.ir.graph import Node

__all__ = ["arg_pick", "gather", "top_k"]


def gather(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a Gather: of stored indices on the channel axis, along another axis, or from a table.

    The rows of a stored matrix of floats (an embedding) are a producer's channels; indices of channels are renumbered.
    """
    table = flow.behind(node.input(0))
    axis = int(node.attrs.get("axis", 0))
    if table is not None and (table.constant is not node.input(0) or _is_table(table)):
        return _look_up(flow, node, table, axis % len(table.axes))
    if table is not None:
        raise Blocked(f"it passes through Gather {node.name!r}, which cannot be cut")
    labels = flow.labels(node.inputs[0])
    axis %= max(1, len(labels.shape))
    if axis in labels.axes:
        return [_pick(flow, node, labels, axis)]
    _plain_indices(flow, node)
    before, after = labels.ids.shape[:axis], labels.ids.shape[axis + 1 :]
    rank = len(flow.shapes[node.inputs[1].name])
    return [Labels(labels.ids.reshape(before + (1,) * rank + after), flow.shape(node))]


def _plain_indices(flow: Flow, node: Node) -> None:
    value = node.inputs[1]
    if not flow.is_stored(value) and flow.labels(value).axes:
        raise Blocked(f"Gather {node.name!r} reads indices that have channels")


def _is_table(weight: Weight) -> bool:
    return weight.constant.values.dtype.kind == "f" and len(weight.axes) == 2


def _look_up(flow: Flow, node: Node, table: Weight, axis: int) -> list[Labels]:
    if len(table.axes) != 2:
        raise Blocked(f"it passes through Gather {node.name!r}, which cannot be cut")
    _plain_indices(flow, node)
    shape = flow.shape(node)
    made = flow.use(node, table, 1 - axis, None, "produces")
    return [flow.map.fresh_along(shape, len(shape) - 1 if axis == 0 else 0, made)]


def _pick(flow: Flow, node: Node, labels: Labels, axis: int) -> Labels:
    indices = node.constant(1)
    if indices is None:
        raise Blocked(f"Gather {node.name!r} picks channels by computed indices")
    flow.map.rederive.append((node, "gather"))
    return Labels(compact(labels.ids.take(np.asarray(indices), axis)), flow.shape(node))


def arg_pick(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of an ArgMax or ArgMin along an axis without channels."""
    labels = flow.labels(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(labels.shape)
    reason = f"{node.op} {node.name!r} returns the numbers of channels"
    ids = flow.mixed(labels, (axis,), reason).ids
    return [
        Labels(
            ids if node.attrs.get("keepdims", 1) else ids.reshape(np.delete(ids.shape, axis)),
            flow.shape(node),
        )
    ]


def top_k(flow: Flow, node: Node) -> list[Labels]:
    """Return the labels of a TopK along an axis without channels."""
    labels = flow.labels(node.inputs[0])
    axis = int(node.attrs.get("axis", -1)) % len(labels.shape)
    ids = flow.mixed(labels, (axis,), f"TopK {node.name!r} picks among the channels").ids
    return [Labels(ids, flow.shape(node, index)) for index in range(len(node.outputs))]
