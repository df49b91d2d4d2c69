"""Operators that move data: executed on the labels, and the constants that say where they move it to."""

from __future__ import annotations

import numpy as np

from onnxcomp.analysis.flow import Blocked, Flow, Rule
from onnxcomp.analysis.labels import Labels, compact
from onnxcomp.analysis.sizing import follow_target
from onnxcomp.ir.graph import Node

__all__ = ["MOVES", "pad_amounts", "slice_bounds"]


def _reshape(flow: Flow, node: Node) -> list[Labels]:
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node)
    made = labels.reshaped(shape)
    if node.is_op("Reshape"):
        follow_target(flow, node, 1, made, {axis: axis for axis in range(len(shape))})
        flow.map.rederive.append((node, "reshape"))
    return [made]


def _transpose(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    order = node.attrs.get("perm") or list(range(len(labels.shape)))[::-1]
    return [Labels(labels.ids.transpose(order), flow.shape(node))]


def _concat(flow: Flow, node: Node) -> list[Labels]:
    shape = flow.shape(node)
    axis = int(node.attrs["axis"]) % len(shape)
    parts = [flow.labels(v) for v in node.inputs]
    computed = [p for p, v in zip(parts, node.inputs, strict=True) if not flow.is_stored(v)]
    across = {a for part in (computed or parts) for a in part.axes} - {axis}
    # A stored part is cut along the axes along which computed ones have channels, and is whole along the others.
    flat = [flow.map.flatten(p.ids, set(p.axes) - across - {axis}) for p in parts]
    if not across or any(axis in part.axes for part in computed):
        sides = [shape[a] if a in across else 1 for a in range(len(shape))]
        whole = [
            np.broadcast_to(ids, [*sides[:axis], p.shape[axis], *sides[axis + 1 :]])
            for ids, p in zip(flat, parts, strict=True)
        ]
        return [Labels(compact(np.concatenate(whole, axis)), shape)]
    # What lies at one position of another axis is cut in all parts or in none.
    common = flat[0].take([0], axis)
    for ids in flat:
        flow.map.tie(common, ids)
        common = np.broadcast_to(common, np.broadcast_shapes(common.shape, ids.take([0], axis).shape))
    return [Labels(compact(common), shape)]


def _split(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(labels.shape)
    made, start = [], 0
    for index in range(len(node.outputs)):
        shape = flow.shape(node, index)
        ids = labels.ids
        if axis in labels.axes:
            ids = compact(ids.take(np.arange(start, start + shape[axis]), axis))
        made.append(Labels(ids, shape))
        start += shape[axis]
    if axis in labels.axes:
        if node.input(1) is not None and node.constant(1) is None:
            raise Blocked(f"Split {node.name!r} has computed sizes")
        flow.map.rederive.append((node, "split"))
    return made


def slice_bounds(node: Node, shape: tuple[int, ...]) -> dict[int, tuple[int, int, int]]:
    """Return `{axis: (start, end, step)}` of a Slice with constant bounds, as Python slices would clamp them.

    Raises:
        Blocked: where the bounds are computed.
    """
    given = [node.constant(i) for i in range(1, 5)]
    if (
        given[0] is None
        or given[1] is None
        or any(node.input(i) is not None and given[i - 1] is None for i in (3, 4))
    ):
        raise Blocked(f"Slice {node.name!r} has computed bounds")
    starts, ends = np.ravel(given[0]), np.ravel(given[1])
    axes = np.ravel(given[2]) if given[2] is not None else np.arange(len(starts))
    steps = np.ravel(given[3]) if given[3] is not None else np.ones(len(starts), np.int64)
    bounds = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = int(axis) % len(shape)
        bounds[axis] = slice(int(start), int(end), int(step)).indices(shape[axis])
    return bounds


def _slice(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    ids = labels.ids
    for axis, (start, end, step) in slice_bounds(node, labels.shape).items():
        if axis not in labels.axes:
            continue
        if step != 1:
            raise Blocked(f"Slice {node.name!r} takes channels in steps of {step}")
        ids = ids.take(np.arange(start, max(start, end)), axis)
        flow.map.rederive.append((node, "slice"))
    return [Labels(compact(ids), flow.shape(node))]


def pad_amounts(node: Node, ndim: int) -> list[tuple[int, int]]:
    """Return `[(before, after)]` per axis of a Pad with constant amounts.

    Raises:
        Blocked: where the amounts or axes are computed.
    """
    pads = node.constant(1)
    axes = node.constant(3)
    if pads is None or (node.input(3) is not None and axes is None):
        raise Blocked(f"Pad {node.name!r} has computed amounts")
    where = [int(a) % ndim for a in np.ravel(axes)] if axes is not None else list(range(ndim))
    amounts = [(0, 0)] * ndim
    flat = np.ravel(pads)
    for place, axis in enumerate(where):
        amounts[axis] = (int(flat[place]), int(flat[place + len(where)]))
    return amounts


def _pad(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    ids = labels.ids
    for axis, (before, after) in enumerate(pad_amounts(node, len(labels.shape))):
        if axis not in labels.axes or (before, after) == (0, 0):
            continue
        if min(before, after) < 0 or node.attrs.get("mode", "constant") != "constant":
            raise Blocked(f"Pad {node.name!r} pads the channel axis with more than a constant")
        layout = [1] * ids.ndim
        layout[axis] = -1
        shape = list(ids.shape)
        parts = [ids]
        for count, first in ((before, True), (after, False)):
            shape[axis] = count
            new = np.broadcast_to(flow.map.fresh(count).reshape(layout), shape)
            parts = [new, *parts] if first else [*parts, new]
        ids = np.concatenate(parts, axis)
        flow.map.rederive.append((node, "pad"))
    return [Labels(ids, flow.shape(node))]


def _shape_of(flow: Flow, node: Node) -> list[Labels]:
    """What is done with the numbers of channels is followed beside the labels."""
    return [flow.map.uniform(flow.shape(node), None)]


MOVES: dict[str, Rule] = {
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Shape": _shape_of,
    "Size": _shape_of,
}
"""The rules by operator."""
