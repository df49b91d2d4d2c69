"""What the pairs of QuantizeLinear and DequantizeLinear in a graph say: read only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxcomp.ir.graph import Array, Constant, Graph, Node, Value
from onnxcomp.ir.ops import LINEAR

__all__ = [
    "Parameters",
    "StoredInput",
    "dequantizer",
    "parameters",
    "quantizers",
    "stored_inputs",
    "stored_values",
]

_TENSOR_TYPES = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 21: "uint4", 22: "int4"}
"""Numbers of types in the attribute `output_dtype` (ONNX TensorProto.DataType)."""


@dataclass(frozen=True)
class Parameters:
    """Scale and zero point of a Q or DQ node, of shape `[1]` or `[C]`; `axis` is where the channels lie, if there are several.

    `dtype` names the type of the integers; `blocked` tells that scales belong to blocks of values, which no rule reads.
    """

    scale: Array
    zero: Array
    dtype: str
    axis: int
    blocked: bool

    @property
    def per_channel(self) -> bool:
        """Whether there are several scales."""
        return self.scale.size > 1

    @property
    def symmetric(self) -> bool:
        """Whether zero lies in the middle: 0, or 128 for uint8."""
        middle = 1 << (8 * np.dtype(self.dtype).itemsize - 1) if self.dtype in ("uint8", "uint16") else 0
        return bool(np.all(self.zero == middle))

    def same_as(self, other: Parameters) -> bool:
        """Return whether both stand for the same numbers."""
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )


@dataclass(frozen=True)
class StoredInput:
    """An input of a linear node that is stored and dequantized: `values` are integers, or floats that a Q node turns into some.

    `axis` is the axis of output channels of a weight, None for a bias.
    """

    node: Node
    index: int
    dequantizer: Node
    values: Array
    axis: int | None


def parameters(node: Node) -> Parameters | None:
    """Return the parameters of a Q or DQ node, None where they are not stored in the file."""
    scale, zero = node.constant(1), node.constant(2)
    if scale is None or (zero is None and node.input(2) is not None):
        return None
    if zero is None:
        zero = np.zeros(scale.shape, _implied_dtype(node))
    axis = int(node.attrs.get("axis", 1))
    flat = np.atleast_1d(scale).astype(np.float64)
    blocked = scale.ndim > 1 or bool(node.attrs.get("block_size"))
    return Parameters(flat, np.atleast_1d(zero).astype(np.int64), str(zero.dtype), axis, blocked)


def _implied_dtype(node: Node) -> str:
    """Return the type of the integers of a Q or DQ node without zero point."""
    if node.op == "QuantizeLinear":
        return _TENSOR_TYPES.get(int(node.attrs.get("output_dtype", 0)), "uint8")
    stored = node.constant(0)
    if stored is not None:
        return str(stored.dtype)
    maker = node.inputs[0].producer
    return _implied_dtype(maker) if maker is not None and maker.op == "QuantizeLinear" else "uint8"


def dequantizer(value: Value | None) -> Node | None:
    """Return the DQ node that makes `value`, of any domain, None where it is not made by one."""
    maker = None if value is None else value.producer
    return maker if maker is not None and maker.op == "DequantizeLinear" else None


def quantizers(graph: Graph) -> Iterator[Node]:
    """Yield the Q nodes of computed values, of any domain."""
    for node in graph.nodes:
        if node.op == "QuantizeLinear" and not isinstance(node.inputs[0], Constant):
            yield node


def stored_values(node: Node) -> Array | None:
    """Return what is stored in front of a DQ node: integers, or floats in front of its Q node; None for an activation."""
    maker: Node | None = node.inputs[0].producer
    return maker.constant(0) if maker is not None and maker.op == "QuantizeLinear" else node.constant(0)


def stored_inputs(graph: Graph) -> Iterator[StoredInput]:
    """Yield the quantized weights and biases of linear nodes; weights of nodes with a float input are left out.

    Such a weight is only stored in integers, not computed with, and what a target computes with does not bind it.
    """
    for node in graph.nodes:
        if not node.is_op(*LINEAR):
            continue
        found = [(i, dequantizer(v)) for i, v in enumerate(node.inputs)]
        stored = [(i, dq, stored_values(dq)) for i, dq in found if dq is not None]
        if not any(values is None for _, _, values in stored):
            continue
        for index, dq, values in stored:
            if values is not None:
                yield StoredInput(
                    node, index, dq, values, None if index > 1 else _out_axis(node, index, values)
                )


def _out_axis(node: Node, index: int, weight: Array) -> int:
    if node.op == "MatMul":
        return weight.ndim - 1 if index else max(weight.ndim - 2, 0)
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB") else 1
    return 1 if node.op == "ConvTranspose" else 0
