"""How labels pass through each operator. An operator that no rule knows blocks what it reads, with its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.analysis.labels import Ids, LabelMap, Labels, compact, meet, static_shapes
from onnxcomp.ir.graph import Constant, Graph, Node, Value
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import ELEMENTWISE, MIXES_AXIS, POOLING, REDUCTIONS, UNARY

__all__ = ["propagate"]

Shapes = Mapping[str, tuple[int, ...]]


class Blocked(Exception):  # noqa: N818 - a refusal, caught in this room
    """A rule declines a node; the message is the reason."""


@dataclass
class Flow:
    """The state of one propagation, as the rules see it."""

    graph: Graph
    shapes: Shapes
    map: LabelMap

    def labels(self, value: Value) -> Labels:
        """Return the labels of an input of a node."""
        if isinstance(value, Constant):
            return self.map.of_constant(value)
        return self.map.values[value.name]

    def shape(self, node: Node, index: int = 0) -> tuple[int, ...]:
        """Return the concrete shape of an output."""
        return self.shapes[node.outputs[index].name]

    def channels(self, node: Node, axis: int) -> Ids:
        """Return the labels of input 0 along `axis`; the node is declined where they differ along another axis."""
        ids = self.labels(node.inputs[0]).along(axis)
        if ids is None:
            raise Blocked(f"{node.op} reads channels that lie along another axis")
        return ids


Rule = Callable[[Flow, Node], "list[Labels]"]


def propagate(model: Model, shapes: Shapes, excluded: Mapping[str, str] | None = None) -> LabelMap:
    """Return the labels of all values of `model`, whose concrete `shapes` (one sample) are given.

    `excluded` maps names of nodes to the reason why neither their inputs' nor their outputs' channels may go.
    """
    flow = Flow(model.graph, shapes, LabelMap())
    for fed in model.graph.inputs:
        flow.map.values[fed.name] = flow.map.uniform(shapes.get(fed.name, ()), "it meets a graph input")
    for node in model.graph.nodes:
        _visit(flow, node, (excluded or {}).get(node.name))
    for value in model.graph.outputs:
        flow.map.block(flow.labels(value).ids, f"it reaches the graph output {value.name!r}")
    for name in model.graph.captured():
        if name in flow.map.values:
            flow.map.block(flow.map.values[name].ids, "a subgraph reads it")
        elif name in model.graph.constants:
            flow.map.foreign.setdefault(name, "a subgraph reads it")
    _refuse_double_roles(flow.map)
    return flow.map


def _visit(flow: Flow, node: Node, excluded: str | None) -> None:
    mark = len(flow.map.uses)
    try:
        if not static_shapes(flow.shapes, [*node.inputs, *node.outputs]):
            raise Blocked(f"a shape at {node.op} {node.name!r} is unknown")
        rule = _RULES.get(node.op) if node.standard else None
        if rule is None:
            raise Blocked(f"it passes through {node.op} {node.name!r}, which cannot be cut")
        made = rule(flow, node)
    except Blocked as refusal:
        del flow.map.uses[mark:]
        for value in node.inputs:
            if isinstance(value, Constant):
                flow.map.foreign.setdefault(value.name, str(refusal))
            elif value.name:
                flow.map.block(flow.labels(value).ids, str(refusal))
        made = [flow.map.uniform(flow.shapes.get(v.name, ()), str(refusal)) for v in node.outputs]
    for value, labels in zip(node.outputs, made, strict=True):
        flow.map.values[value.name] = labels
    if excluded:
        read = [flow.labels(v) for v in node.inputs if v.name and not isinstance(v, Constant)]
        for labels in [*read, *made]:
            flow.map.block(labels.ids, excluded)


def _refuse_double_roles(labels: LabelMap) -> None:
    """Block tensors that are a weight for one node and something else for another."""
    for name, reason in labels.foreign.items():
        if name in labels.spread:
            labels.block(labels.spread[name][1].ids, reason)
    for use in labels.uses:
        if use.constant.name in labels.foreign:
            labels.block(use.ids, labels.foreign[use.constant.name])
        spread = labels.spread.get(use.constant.name)
        if spread is not None:
            reason = f"{use.constant.name!r} is read as a weight and as a plain operand"
            labels.block(use.ids, reason)
            labels.block(spread[1].ids, reason)


# --- operators that contract an axis ---------------------------------------------------------------------------------
def _weight(node: Node, index: int) -> Constant:
    value = node.input(index)
    if not isinstance(value, Constant):
        raise Blocked(f"{node.op} {node.name!r} has a computed weight")
    return value


def _bias(flow: Flow, node: Node, index: int, out: Ids) -> None:
    value = node.input(index)
    if value is not None:
        flow.map.use_axis(node, _weight(node, index), 0, out, "follows")


def _conv(flow: Flow, node: Node) -> list[Labels]:
    weight = _weight(node, 1)
    ids = flow.channels(node, 1)
    group = int(node.attrs.get("group", 1))
    filters, per_group = weight.values.shape[:2]
    if group == 1:
        flow.map.use_axis(node, weight, 1, ids, "consumes")
        out = flow.map.use_axis(node, weight, 0, None, "produces")
    elif per_group == 1:
        # Depthwise: filter c * m + k reads channel c alone, and goes with it.
        out = flow.map.use_axis(node, weight, 0, np.repeat(ids, filters // group), "follows")
        flow.map.rederive.append((node, "group"))
    else:
        # Every block must lose the same positions, or the blocks become unequal.
        blocks = ids.reshape(group, per_group)
        flow.map.tie(blocks[:1], blocks)
        flow.map.use_axis(node, weight, 1, blocks[0], "consumes")
        out = flow.map.use_axis(node, weight, 0, None, "produces")
        made = out.reshape(group, filters // group)
        flow.map.tie(made[:1], made)
    _bias(flow, node, 2, out)
    return [flow.map.fresh_along(flow.shape(node), 1, out)]


def _gemm(flow: Flow, node: Node) -> list[Labels]:
    weight = _weight(node, 1)
    if node.attrs.get("transA"):
        raise Blocked("Gemm with transA")
    inward = 1 if node.attrs.get("transB") else 0
    flow.map.use_axis(node, weight, inward, flow.channels(node, 1), "consumes")
    out = flow.map.use_axis(node, weight, 1 - inward, None, "produces")
    made = flow.map.fresh_along(flow.shape(node), 1, out)
    if node.input(2) is not None:
        if node.constant(2) is None:
            raise Blocked(f"Gemm {node.name!r} has a computed bias")
        made = meet(flow.map, [made, flow.labels(node.inputs[2])], made.shape)
    return [made]


def _matmul(flow: Flow, node: Node) -> list[Labels]:
    if isinstance(node.input(1), Constant):
        weight, data, inward, axis = _weight(node, 1), node.inputs[0], 0, -1
    elif isinstance(node.input(0), Constant):
        weight, data, inward, axis = _weight(node, 0), node.inputs[1], 1, -2
    else:
        raise Blocked(f"it passes through MatMul {node.name!r} of two computed values, which cannot be cut")
    shape = flow.shape(node)
    ndim = len(flow.shapes[data.name])
    if weight.values.ndim != 2 or len(shape) != ndim or ndim < 2:
        raise Blocked(f"MatMul {node.name!r} has a weight that is not a matrix")
    ids = flow.labels(data).along(ndim + axis)
    if ids is None:
        raise Blocked(f"MatMul {node.name!r} reads channels that lie along another axis")
    flow.map.use_axis(node, weight, inward, ids, "consumes")
    out = flow.map.use_axis(node, weight, 1 - inward, None, "produces")
    return [flow.map.fresh_along(shape, ndim + axis, out)]


def _batchnorm(flow: Flow, node: Node) -> list[Labels]:
    if len(node.outputs) != 1 or node.attrs.get("training_mode"):
        raise Blocked(f"BatchNormalization {node.name!r} is in training mode")
    labels = flow.labels(node.inputs[0])
    ids = flow.channels(node, 1)
    for index in range(1, 5):
        flow.map.use_axis(node, _weight(node, index), 0, ids, "follows")
    return [Labels(labels.ids, flow.shape(node))]


# --- operators that keep or unite labels -----------------------------------------------------------------------------
def _same(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    return [labels, *(flow.map.uniform(flow.shape(node, i), None) for i in range(1, len(node.outputs)))]


def _elementwise(flow: Flow, node: Node) -> list[Labels]:
    operands = [flow.labels(v) for v in node.inputs if v.name]
    additive = (
        node.op not in {"Mul", "Div", "PRelu"} and sum(not isinstance(v, Constant) for v in node.inputs) > 1
    )
    return [meet(flow.map, operands, flow.shape(node), additive=additive)]


def _pool(flow: Flow, node: Node) -> list[Labels]:
    ids = flow.channels(node, 1)
    shape = flow.shape(node)
    made = [flow.map.fresh_along(shape, 1, ids)]
    if len(node.outputs) > 1:
        raise Blocked(f"{node.op} {node.name!r} returns indices")
    return made


def _reduce(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    ndim = len(labels.shape)
    given = node.constant(1) if node.input(1) is not None else node.attrs.get("axes")
    if given is None and node.input(1) is not None:
        raise Blocked(f"{node.op} {node.name!r} has computed axes")
    axes = {int(a) % ndim for a in np.ravel(given)} if given is not None else set(range(ndim))
    if node.attrs.get("noop_with_empty_axes") and given is None:
        return [labels]
    if axes & set(labels.axes):
        raise Blocked(f"{node.op} {node.name!r} reduces over the channel axis")
    ids = labels.ids
    if not node.attrs.get("keepdims", 1):
        ids = ids.reshape([size for a, size in enumerate(ids.shape) if a not in axes])
    return [Labels(ids, flow.shape(node))]


def _mixes(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    axis = node.attrs.get("axis", MIXES_AXIS[node.op])
    if axis is None or int(axis) % len(labels.shape) in labels.axes:
        raise Blocked(f"{node.op} {node.name!r} mixes the channels")
    return [labels]


# --- operators that move data: executed on the labels ----------------------------------------------------------------
def _reshape(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    made = Labels(compact(labels.full().reshape(flow.shape(node))), flow.shape(node))
    if node.is_op("Reshape"):
        if node.constant(1) is None and labels.axes:
            raise Blocked(f"Reshape {node.name!r} computes its shape; fold it first or fix the input shape")
        flow.map.rederive.append((node, "reshape"))
    return [made]


def _transpose(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    order = node.attrs.get("perm") or list(range(len(labels.shape)))[::-1]
    return [Labels(labels.ids.transpose(order), flow.shape(node))]


def _concat(flow: Flow, node: Node) -> list[Labels]:
    axis = int(node.attrs["axis"]) % len(flow.shape(node))
    parts = [flow.labels(v) for v in node.inputs]
    common = np.broadcast_shapes(*(p.ids.take([0], axis).shape for p in parts))
    stacked = []
    for part in parts:
        target = list(common)
        target[axis] = part.shape[axis]
        stacked.append(np.broadcast_to(part.ids, target))
    return [Labels(compact(np.concatenate(stacked, axis)), flow.shape(node))]


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
            raise Blocked(f"Slice {node.name!r} takes every {step}th channel")
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
    """The size of a channel axis must not be read, or its readers would have to be understood too."""
    labels = flow.labels(node.inputs[0])
    start, end, _ = slice(node.attrs.get("start"), node.attrs.get("end")).indices(len(labels.shape))
    if set(range(start, end)) & set(labels.axes):
        for reader in node.output.consumers:
            picked = reader.constant(1) if reader.is_op("Gather") else None
            if picked is None or {int(i) % (end - start) + start for i in np.ravel(picked)} & set(
                labels.axes
            ):
                raise Blocked(f"Shape {node.name!r} reads the number of channels")
    return [flow.map.uniform(flow.shape(node), None)]


def _gather(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % max(1, len(labels.shape))
    indices = flow.labels(node.inputs[1])
    if axis in labels.axes or indices.axes or isinstance(node.input(0), Constant):
        raise Blocked(f"it passes through Gather {node.name!r}, which cannot be cut")
    before, after = labels.ids.shape[:axis], labels.ids.shape[axis + 1 :]
    return [Labels(labels.ids.reshape(before + (1,) * len(indices.shape) + after), flow.shape(node))]


_RULES: dict[str, Rule] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batchnorm,
    "Clip": _same,
    "Dropout": _same,
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
    "Gather": _gather,
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(POOLING, _pool),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(MIXES_AXIS, _mixes),
}
