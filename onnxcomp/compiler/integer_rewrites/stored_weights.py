"""Weights that are stored in integers already, with Cast, Sub and Mul behind them, as the floats that they stand for.

Files hold such weights to be smaller, and compute the floats at every run. Stored as floats again they are rounded to
integers like any other weight, which loses nothing where each output channel has a scale, and products take them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import numpy as np

from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.edits import drop_orphans
from onnxcomp.ir.graph import Constant, Node, Value
from onnxcomp.ir.liveness import dead_nodes, unread_constants
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import WEIGHT_INPUTS
from onnxcomp.numerics.arrays import Array

__all__ = ["fold_stored"]


FLOAT = 1
"""The number of float32 among the types of ONNX."""


def fold_stored(model: Model, left_alone: Container[str], log: PassLog) -> None:
    """Store what nodes compute from integers by Cast, Sub, Mul and Transpose alone, where a weight or table is read.

    Edits `model` in place. Nodes named in `left_alone` read on what they did.
    """
    graph = model.graph
    unread = {c.name for c in unread_constants(model)}
    dead = dead_nodes(graph)
    folded = 0
    for node in list(graph.nodes):
        if node.name in left_alone or not node.standard:
            continue
        for index in _weight_inputs(node):
            source = node.input(index)
            values = None if source is None or isinstance(source, Constant) else _value(source)
            if values is None or source is None or values.dtype != np.float32:
                continue
            graph.set_input(node, index, graph.add_constant(f"{source.name}__real", values))
            log.change(
                node.name,
                f"weight {source.name!r}, stored in integers behind Cast and Mul, was taken as it is",
            )
            folded += 1
    if folded:
        graph.remove_nodes(dead_nodes(graph, dead))
        drop_orphans(model, unread)


def _weight_inputs(node: Node) -> tuple[int, ...]:
    return (0,) if node.op == "Gather" else WEIGHT_INPUTS.get(node.op, ())


def _value(value: Value) -> Array | None:
    """Return what `value` always is, None where it is not computed from integers in the way this module is about."""
    return _computed(value) if _from_integers(value) else None


def _from_integers(value: Value) -> bool:
    node = value.producer
    while node is not None and node.op in _STEPS and node.standard:
        if node.op == "Cast":
            stored = node.constant(0)
            return stored is not None and stored.dtype in (np.int8, np.uint8)
        node = node.inputs[0].producer
    return False


def _computed(value: Value) -> Array | None:
    if isinstance(value, Constant):
        return value.values
    node = value.producer
    if node is None or not node.standard or node.op not in _STEPS:
        return None
    parts = [_computed(v) for v in node.inputs]
    held = [part for part in parts if part is not None]
    return _STEPS[node.op](node, *held) if len(held) == len(parts) else None


def _cast(node: Node, x: Array) -> Array | None:
    return x.astype(np.float32) if node.attrs.get("to") == FLOAT else None


_STEPS: Mapping[str, Callable[..., Array | None]] = {
    "Cast": _cast,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Transpose": lambda node, x: np.transpose(x, node.attrs.get("perm")),
}
