"""How labels pass through each operator. An operator that no rule knows blocks what it reads, with its name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcomp.analysis.attention import CONTRACTIONS
from onnxcomp.analysis.flow import Blocked, Flow, Rule, Shapes
from onnxcomp.analysis.labels import Ids, LabelMap, Labels, meet
from onnxcomp.analysis.moves import MOVES
from onnxcomp.analysis.recurrent import RECURRENCES
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import ELEMENTWISE, MIXES_AXIS, MULTIPLIES, POOLING, REDUCTIONS, UNARY

__all__ = ["propagate"]


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
        labels = flow.map.of_constant(value) if isinstance(value, Constant) else flow.map.values[value.name]
        flow.map.block(labels.ids, f"it reaches the graph output {value.name!r}")
    for node in model.graph.nodes:
        for name in node.captures:
            reason = f"a subgraph of {node.op} {node.name!r} reads it"
            if name in flow.map.values:
                flow.map.block(flow.map.values[name].ids, reason)
            elif name in model.graph.constants:
                flow.map.foreign.setdefault(name, reason)
    _refuse_double_roles(flow.map)
    return flow.map


def _visit(flow: Flow, node: Node, excluded: str | None) -> None:
    mark = len(flow.map.uses)
    try:
        rule = _RULES.get(node.op) if node.standard else None
        if rule is None:
            op = node.op if node.standard else f"{node.domain}.{node.op}"
            raise Blocked(f"it passes through {op} {node.name!r}, which cannot be cut")
        if not flow.knows(node):
            raise Blocked(f"a shape at {node.op} {node.name!r} is unknown")
        made = rule(flow, node)
    except Blocked as refusal:
        del flow.map.uses[mark:]
        for value in node.inputs:
            if isinstance(value, Constant):
                flow.map.foreign.setdefault(value.name, str(refusal))
            elif value.name:
                flow.map.block(flow.map.values[value.name].ids, str(refusal))
        made = [flow.map.uniform(flow.shapes.get(v.name, ()), str(refusal)) for v in node.outputs]
    for value, labels in zip(node.outputs, made, strict=True):
        flow.map.values[value.name] = labels
    if excluded:
        read = [flow.map.values[v.name] for v in node.inputs if v.name and not isinstance(v, Constant)]
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
        made = meet(flow.map, [made], [flow.labels(node.inputs[2])], made.shape)
    return [made]


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
    return [flow.labels(node.inputs[0])] * len(node.outputs)


def _elementwise(flow: Flow, node: Node) -> list[Labels]:
    stored = [flow.labels(v) for v in node.inputs if isinstance(v, Constant)]
    computed = [flow.labels(v) for v in node.inputs if v.name and not isinstance(v, Constant)]
    additive = node.op not in MULTIPLIES
    return [meet(flow.map, computed, stored, flow.shape(node), additive=additive)]


def _pool(flow: Flow, node: Node) -> list[Labels]:
    if len(node.outputs) > 1:
        raise Blocked(f"{node.op} {node.name!r} returns indices")
    return [flow.map.fresh_along(flow.shape(node), 1, flow.channels(node, 1))]


def _reduce(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    ndim = len(labels.shape)
    if node.input(1) is not None and node.constant(1) is None:
        raise Blocked(f"{node.op} {node.name!r} has computed axes")
    given = node.constant(1) if node.input(1) is not None else node.attrs.get("axes")
    axes = {int(a) % ndim for a in np.ravel(given)} if isinstance(given, list | np.ndarray) else set()
    if not axes and node.attrs.get("noop_with_empty_axes"):
        return [labels]
    axes = axes or set(range(ndim))
    ids = _mixed(flow, labels, axes, f"{node.op} {node.name!r} reduces over the channel axis").ids
    if not node.attrs.get("keepdims", 1):
        ids = ids.reshape([size for a, size in enumerate(ids.shape) if a not in axes])
    return [Labels(ids, flow.shape(node))]


def _mixes(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    axis = node.attrs.get("axis", MIXES_AXIS[node.op])
    axes = set(labels.axes) if axis is None else {int(axis) % len(labels.shape)}
    return [_mixed(flow, labels, axes, f"{node.op} {node.name!r} mixes the channels")]


def _mixed(flow: Flow, labels: Labels, axes: set[int], reason: str) -> Labels:
    """Return `labels` where an operator mixes what lies along `axes`: it goes together, along other axes it goes alone.

    The node is declined with `reason` where there is no other axis with channels.
    """
    mixed = axes & set(labels.axes)
    if mixed and mixed == set(labels.axes):
        raise Blocked(reason)
    return Labels(flow.map.flatten(labels.ids, sorted(mixed)), labels.shape)


_RULES: dict[str, Rule] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "BatchNormalization": _batchnorm,
    "Clip": _same,
    "Dropout": _same,
    **CONTRACTIONS,
    **RECURRENCES,
    **MOVES,
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(POOLING, _pool),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(MIXES_AXIS, _mixes),
}
