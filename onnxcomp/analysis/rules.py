"""How labels pass through each operator. An operator that no rule knows blocks what it reads, with its name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcomp.analysis.attention import CONTRACTIONS
from onnxcomp.analysis.flow import Blocked, Flow, Rule, Shapes
from onnxcomp.analysis.grouped import conv, conv_transpose
from onnxcomp.analysis.labels import LabelMap, Labels, meet
from onnxcomp.analysis.moves import MOVES
from onnxcomp.analysis.norms import (
    batch_norm,
    group_norm,
    instance_norm,
    local_response,
    mean_variance,
    tail_norm,
)
from onnxcomp.analysis.picking import arg_pick, gather, top_k
from onnxcomp.analysis.recurrent import RECURRENCES
from onnxcomp.analysis.sizing import block_counted, track
from onnxcomp.analysis.spatial import (
    constant_of_shape,
    depth_to_space,
    expand,
    resize,
    sample_grid,
    space_to_depth,
    tile,
)
from onnxcomp.analysis.weights import look_through, quantize
from onnxcomp.errors import ModelError
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import (
    ELEMENTWISE,
    KEEPS_SOFT,
    MIXES_AXIS,
    MULTIPLIES,
    NORMALISES_TAIL,
    PICKING,
    POOLING,
    REDUCTIONS,
    UNARY,
)

__all__ = ["propagate"]


def propagate(
    model: Model, shapes: Shapes, excluded: Mapping[str, str] | None = None, *, sure: bool = True
) -> LabelMap:
    """Return the labels of all values of `model`, whose concrete `shapes` (one sample) are given.

    `excluded` maps names of nodes to the reason why neither their inputs' nor their outputs' channels may go. `sure` says
    that the shapes were observed.

    Raises:
        ModelError: naming the node, where shapes that are not sure contradict what it does.
    """
    flow = Flow(model.graph, shapes, LabelMap(), sure=sure)
    for fed in model.graph.inputs:
        flow.map.values[fed.name] = flow.map.uniform(shapes.get(fed.name, ()), "it meets a graph input")
    for node in model.graph.nodes:
        _visit(flow, node, (excluded or {}).get(node.name))
    for value in model.graph.outputs:
        reason = f"it reaches the graph output {value.name!r}"
        block_counted(flow, value)
        if isinstance(value, Constant):
            flow.map.foreign.setdefault(value.name, reason)
        else:
            flow.map.block(flow.map.values[value.name].ids, reason)
    for node in model.graph.nodes:
        for name in node.captures:
            _hold_captured(flow, node, name)
    for name in flow.weights:
        # What two axes of it lose, no labels of elements can say: the stored tensor behind it says it.
        del flow.map.values[name]
    _refuse_double_roles(flow.map)
    return flow.map


def _hold_captured(flow: Flow, node: Node, name: str) -> None:
    reason = f"a subgraph of {node.op} {node.name!r} reads it"
    if name in flow.map.values:
        block_counted(flow, flow.graph.values()[name])
        flow.map.block(flow.map.values[name].ids, reason)
    elif name in flow.graph.constants:
        flow.map.foreign.setdefault(name, reason)


def _visit(flow: Flow, node: Node, excluded: str | None) -> None:
    mark = len(flow.map.uses)
    if flow.knows(node) and look_through(flow, node):
        flow.map.values[node.output.name] = flow.map.uniform(flow.shape(node), None)
        if excluded:
            flow.map.foreign.setdefault(flow.weights[node.output.name].constant.name, excluded)
        return
    try:
        rule = _RULES.get(node.op) if node.standard else None
        if rule is None:
            op = node.op if node.standard else f"{node.domain}.{node.op}"
            raise Blocked(f"it passes through {op} {node.name!r}, which cannot be cut")
        if not flow.knows(node):
            raise Blocked(f"a shape at {node.op} {node.name!r} is unknown")
        made = rule(flow, node)
        track(flow, node)
    except Blocked as refusal:
        del flow.map.uses[mark:]
        made = _decline(flow, node, str(refusal))
    except (ArithmeticError, LookupError, TypeError, ValueError) as problem:
        if flow.sure:
            raise
        raise ModelError(
            f"{node.op} {node.name!r} does not fit what it reads, and the model was never run: {problem}"
        ) from problem
    for value, labels in zip(node.outputs, made, strict=True):
        flow.map.values[value.name] = labels
    if _stays_soft(flow, node):
        flow.soft.update(v.name for v in node.outputs)
    if excluded:
        read = [flow.map.values[v.name] for v in node.inputs if v.name and not isinstance(v, Constant)]
        for labels in [*read, *made]:
            flow.map.block(labels.ids, excluded)


def _stays_soft(flow: Flow, node: Node) -> bool:
    """Return whether what `node` makes depends on stored tensors alone, element by element."""
    return node.is_op(*KEEPS_SOFT) and all(flow.is_stored(v) for v in node.inputs if v.name)


def _decline(flow: Flow, node: Node, reason: str) -> list[Labels]:
    """Block all that `node` reads and makes; return the labels of its outputs."""
    for value in node.inputs:
        stored = flow.behind(value)
        if stored is not None:
            flow.map.foreign.setdefault(stored.constant.name, reason)
            for scale, _ in stored.scales:
                flow.map.foreign.setdefault(scale.name, reason)
        elif value.name:
            block_counted(flow, value)
            flow.map.block(flow.map.values[value.name].ids, reason)
    return [flow.map.uniform(flow.shapes.get(v.name, ()), reason) for v in node.outputs]


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
def _gemm(flow: Flow, node: Node) -> list[Labels]:
    weight = flow.weight(node, 1)
    if node.attrs.get("transA"):
        raise Blocked("Gemm with transA")
    inward = 1 if node.attrs.get("transB") else 0
    flow.use(node, weight, inward, flow.channels(node, 1), "consumes")
    out = flow.use(node, weight, 1 - inward, None, "produces")
    made = flow.map.fresh_along(flow.shape(node), 1, out)
    bias = node.input(2)
    if isinstance(bias, Constant):
        made = meet(flow.map, [made], [flow.labels(bias)], made.shape)
    elif bias is not None:
        behind = flow.behind(bias)
        if behind is None or behind.shape[-1:] != out.shape:
            raise Blocked(f"Gemm {node.name!r} has a computed bias")
        flow.use(node, behind, len(behind.shape) - 1, out, "follows")
    return [made]


# --- operators that keep or unite labels -----------------------------------------------------------------------------
def _same(flow: Flow, node: Node) -> list[Labels]:
    return [flow.labels(node.inputs[0])] * len(node.outputs)


def _elementwise(flow: Flow, node: Node) -> list[Labels]:
    stored = [flow.labels(v) for v in node.inputs if v.name and flow.is_stored(v)]
    computed = [flow.labels(v) for v in node.inputs if v.name and not flow.is_stored(v)]
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
    ids = flow.mixed(labels, axes, f"{node.op} {node.name!r} reduces over the channel axis").ids
    if not node.attrs.get("keepdims", 1):
        ids = ids.reshape([size for a, size in enumerate(ids.shape) if a not in axes])
    return [Labels(ids, flow.shape(node))]


def _mixes(flow: Flow, node: Node) -> list[Labels]:
    labels = flow.labels(node.inputs[0])
    axis = node.attrs.get("axis", MIXES_AXIS[node.op])
    if axis is None:
        given = node.constant(1)
        if given is None:
            raise Blocked(f"{node.op} {node.name!r} has a computed axis, which may be that of the channels")
        axis = given.item()
    mixed = (int(axis) % len(labels.shape),)
    return [flow.mixed(labels, mixed, f"{node.op} {node.name!r} mixes the channels")]


_RULES: dict[str, Rule] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": _gemm,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "MeanVarianceNormalization": mean_variance,
    "LRN": local_response,
    "Clip": _same,
    "Dropout": _same,
    "QuantizeLinear": quantize,
    "DequantizeLinear": quantize,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Resize": resize,
    "GridSample": sample_grid,
    "RoiAlign": sample_grid,
    "Tile": tile,
    "Expand": expand,
    "ConstantOfShape": constant_of_shape,
    "Gather": gather,
    "TopK": top_k,
    **CONTRACTIONS,
    **RECURRENCES,
    **MOVES,
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(POOLING, _pool),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(PICKING, arg_pick),
    **dict.fromkeys(NORMALISES_TAIL, tail_norm),
    **dict.fromkeys(MIXES_AXIS, _mixes),
}
