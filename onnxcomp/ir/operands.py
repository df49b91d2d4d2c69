"""Stored operands that do not fit their operator: what the ONNX checker lets through and nothing can compute with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from onnxcomp.errors import ModelError
from onnxcomp.ir.graph import Graph, Node

__all__ = ["check_operands"]

_POSITIVE = (
    "block_shape",
    "blocksize",
    "dilations",
    "group",
    "hidden_size",
    "kernel_shape",
    "kv_num_heads",
    "num_groups",
    "num_heads",
    "num_outputs",
    "q_num_heads",
    "strides",
)
"""Attributes of standard operators that are counts and steps: less than 1 means nothing."""

_CONV_RANK = 3
_MATRIX = 2
_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def check_operands(graph: Graph) -> None:
    """Make sure that stored weights, biases and counts of the nodes of `graph` fit each other.

    Raises:
        ModelError: naming the node, for weights without the axes that the operator contracts, a bias or a statistic of
            another length than there are channels, and counts and steps below 1.
    """
    for node in graph.nodes:
        if not node.standard:
            continue
        problem = next(chain(_attributes(node), _RULES.get(node.op, _nothing)(node)), None)
        if problem is not None:
            raise ModelError(f"{node.op} {node.name!r} {problem}")


def _nothing(node: Node) -> Iterator[str]:
    yield from ()


def _attributes(node: Node) -> Iterator[str]:
    for name in _POSITIVE:
        value: Any = node.attrs.get(name)
        if isinstance(value, int | list) and any(
            size < 1 for size in (value if isinstance(value, list) else [value])
        ):
            yield f"has {name}={value}; only numbers from 1 make sense"


def _shape(node: Node, index: int) -> tuple[int, ...] | None:
    values = node.constant(index)
    return None if values is None else values.shape


def _lengths(node: Node, expected: int, where: dict[int, str]) -> Iterator[str]:
    """Yield a problem for each stored input of `where` that is not a vector of `expected` elements."""
    for index, what in where.items():
        shape = _shape(node, index)
        if shape is not None and shape != (expected,):
            yield f"has {expected} channels, but its {what} has the shape {list(shape)}"


def _conv(node: Node) -> Iterator[str]:
    weight, group = _shape(node, 1), int(node.attrs.get("group", 1))
    if weight is None:
        return
    if len(weight) < _CONV_RANK:
        yield f"has a weight of the shape {list(weight)}; it needs an axis of a kernel"
        return
    if weight[0] % group:
        yield f"has {weight[0]} {'filters' if node.op == 'Conv' else 'input channels'} in {group} groups"
    yield from _lengths(node, weight[0] if node.op == "Conv" else weight[1] * group, {2: "bias"})


def _gemm(node: Node) -> Iterator[str]:
    weight, bias = _shape(node, 1), _shape(node, 2)
    if weight is None:
        return
    if len(weight) != _MATRIX:
        yield f"has a weight of the shape {list(weight)}; it multiplies matrices"
    elif bias and bias[-1] not in (1, weight[0 if node.attrs.get("transB") else 1]):
        yield f"has {weight[0 if node.attrs.get('transB') else 1]} channels, but its bias has the shape {list(bias)}"


def _matmul(node: Node) -> Iterator[str]:
    if any(_shape(node, index) == () for index in (0, 1)):
        yield "multiplies a number; it needs matrices"


def _normalization(node: Node) -> Iterator[str]:
    scale = _shape(node, 1)
    if scale is not None and len(scale) != 1:
        yield f"has a scale of the shape {list(scale)}; it needs one number a channel"
    elif scale is not None:
        yield from _lengths(node, scale[0], {2: "bias", 3: "mean", 4: "variance"})


def _recurrent(node: Node) -> Iterator[str]:
    weight, recurrence = _shape(node, 1), _shape(node, 2)
    for what, shape in {"weight": weight, "recurrence weight": recurrence}.items():
        if shape is not None and len(shape) != _CONV_RANK:
            yield f"has a {what} of the shape {list(shape)}; it needs [directions, gates, inputs]"
            return
    gates = _GATES[node.op]
    units = node.attrs.get("hidden_size")
    if recurrence is not None and units not in (None, recurrence[2]):
        yield f"has hidden_size={units}, but a recurrence weight of the shape {list(recurrence)}"
    elif recurrence is not None and recurrence[1] != gates * recurrence[2]:
        yield f"has a recurrence weight of the shape {list(recurrence)}; it needs {gates} gates of every unit"
    elif weight is not None and recurrence is not None and weight[:2] != recurrence[:2]:
        yield f"has weights of the shapes {list(weight)} and {list(recurrence)}, which do not fit each other"
    elif recurrence is not None and _shape(node, 3) not in (None, (recurrence[0], 2 * recurrence[1])):
        yield f"has a bias of the shape {list(_shape(node, 3) or ())}; it needs {[recurrence[0], 2 * recurrence[1]]}"


_RULES: dict[str, Callable[[Node], Iterator[str]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _normalization,
    "InstanceNormalization": _normalization,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
}
