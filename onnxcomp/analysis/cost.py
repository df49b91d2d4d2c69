"""What a model costs: nodes, parameters, bytes and multiply-accumulates for one sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import COUNTED
from onnxcomp.ir.proto import stored
from onnxcomp.numerics.arrays import Shapes

__all__ = ["Cost", "Shapes", "model_cost", "node_macs", "weight_elements"]


@dataclass(frozen=True)
class Cost:
    """Counts of a whole model.

    `parameters` are the elements of all stored tensors that hold weights (see `weight_elements`), `bytes` what all stored
    tensors take in memory, `macs` the multiply-accumulates of Conv, ConvTranspose, Gemm, MatMul, LSTM and GRU for one
    sample; None where shapes are unknown.
    """

    nodes: int
    parameters: int
    bytes: int
    macs: int | None


def model_cost(model: Model, shapes: Shapes | None) -> Cost:
    """Return the cost of `model`; `shapes` are the concrete shapes of all values for one sample, or None."""
    constants = stored(model.graph)
    parameters = sum(map(weight_elements, constants))
    size = sum(c.values.nbytes for c in constants)
    macs = None if shapes is None else sum(node_macs(node, shapes) for node in model.graph.nodes)
    return Cost(len(model.graph.nodes), parameters, size, macs)


def weight_elements(constant: Constant) -> int:
    """Return the elements of a stored tensor that holds weights, 0 for shapes, indices, truth values and text.

    Floats of any width and integers below 64 bits count: quantized weights and biases are such, shapes never are.
    """
    dtype = constant.values.dtype
    plain = dtype.kind in "bOUS" or (dtype.kind in "iu" and dtype.itemsize == 8)
    return 0 if plain else int(constant.values.size)


def node_macs(node: Node, shapes: Shapes) -> int:
    """Return the multiply-accumulates of `node` for one sample, 0 for operators that are not counted.

    Nodes whose shapes are missing (behind unknown operators) count 0.
    """
    if not node.is_op(*COUNTED):
        return 0
    operands = [shapes.get(v.name) for v in node.inputs[:3]]
    result = shapes.get(node.outputs[0].name) or (
        shapes.get(node.outputs[-1].name) if node.is_op("LSTM", "GRU") else None
    )
    if result is None or any(o is None for o in operands[:2]):
        return 0
    first, second = operands[0] or (), operands[1] or ()
    match node.op:
        case "Conv":
            return math.prod(result) * math.prod(second[1:])
        case "ConvTranspose":
            return math.prod(first) * math.prod(second[1:])
        case "Gemm":
            return math.prod(result) * first[0 if node.attrs.get("transA") else 1]
        case "MatMul":
            return math.prod(result) * first[-1]
        case _:
            # X [sequence, batch, input]; W [directions, gates*hidden, input]; R [directions, gates*hidden, hidden].
            steps = first[0] * first[1]
            return steps * (math.prod(second) + math.prod(operands[2] or ()))
