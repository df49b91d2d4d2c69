"""Stored weights that stay float, each with the reason: nobody should have to search for what was passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from onnxcomp.compiler.integer_rewrites.embedding_tables import LEAST
from onnxcomp.compiler.target.facts import Target
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import LINEAR, RECURRENT
from onnxcomp.ir.scopes import inner_elements, inner_operators

__all__ = ["stored_floats"]


def stored_floats(
    model: Model, target: Target, kept: Mapping[str, str], told: Collection[str]
) -> dict[str, str]:
    """Return why nodes that hold `LEAST` stored float weights or more stay float, by node name, in the graph's order.

    Nodes of subgraphs count with the node that holds them. `kept` says why nodes are to stay float by wish; those named in
    `told` have been told of.
    """
    found: dict[str, str] = {}
    for node in model.graph.nodes:
        if node.name in told:
            continue
        reason = _inside(model, node) or _own(node, target)
        if reason is not None:
            found[node.name] = kept.get(node.name, reason)
    return found


def _inside(model: Model, node: Node) -> str | None:
    """Return what the subgraphs of `node` hold of weights, those they read from outside included."""
    held = inner_elements(node)
    outer = (model.graph.constants.get(name) for name in node.captures)
    held += sum(c.values.size for c in outer if c is not None and _is_float(c))
    if held < LEAST:
        return None
    counts = Counter(op for op in inner_operators(node) if op in LINEAR | RECURRENT)
    inner = ", ".join(f"{count} {op}" for op, count in sorted(counts.items())) or "other nodes"
    return f"its {held:,} weights are in branches ({inner}), and only the main graph is quantized"


def _own(node: Node, target: Target) -> str | None:
    weights = [v for v in node.inputs if isinstance(v, Constant) and _is_large(v)]
    if not weights:
        return None
    names = ", ".join(repr(v.name) for v in weights)
    if target.role(node) == "quantize":
        return f"the constant {names} would lose digits"
    if target.role(node) == "same-scale":
        return f"the constant {names} is no table of rows for it alone"
    return f"{target.name} computes {node.op} in float, with the weights {names}"


def _is_large(constant: Constant) -> bool:
    """Return whether a constant is a large matrix or kernel: biases and scales have one axis."""
    long = sum(size > 1 for size in constant.values.shape)
    return long > 1 and constant.values.size >= LEAST and _is_float(constant)


def _is_float(constant: Constant) -> bool:
    return bool(np.issubdtype(constant.values.dtype, np.floating))
