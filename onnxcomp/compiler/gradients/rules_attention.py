"""Rules of derivatives for what transformers consist of, one for each operator; see `rules.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from onnxcomp.compiler.gradients.tape import Tape
from onnxcomp.ir.graph import Constant, Node, Value, Variable

__all__ = ["ATTENTION_RULES", "product_of_values"]

Grads: TypeAlias = list[tuple[int, Variable]]


def product_of_values(tape: Tape, node: Node) -> Grads | None:
    """Return the derivatives by both sides of a MatMul of stacks of matrices, None where their stacks differ."""
    a, b = node.inputs
    left, right = tape.shape(a), tape.shape(b)
    if left is None or right is None or isinstance(a, Constant) or isinstance(b, Constant):
        return None
    if min(len(left), len(right)) < 2 or left[:-2] != right[:-2]:
        return None
    grad, rank = tape.grad(node), len(left)
    return [
        (0, tape.op("MatMul", [grad, _turned(tape, b, rank)])),
        (1, tape.op("MatMul", [_turned(tape, a, rank), grad])),
    ]


def _turned(tape: Tape, value: Value, rank: int) -> Variable:
    """Return `value` with its matrices transposed."""
    return tape.op("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])


def _summed(tape: Tape, value: Value, axis: int) -> Variable:
    return tape.op("ReduceSum", [value, tape.constant(np.array([axis], np.int64))], keepdims=1)


def _layer_norm(tape: Tape, node: Node) -> Grads | None:
    x, shape = node.inputs[0], tape.shape(node.inputs[0])
    if shape is None or int(node.attrs.get("axis", -1)) not in (-1, len(shape) - 1):
        return None
    share = tape.scalar(1.0 / shape[-1])
    centred = tape.op("Sub", [x, tape.op("Mul", [_summed(tape, x, -1), share])])
    variance = tape.op("Mul", [_summed(tape, tape.op("Mul", [centred, centred]), -1), share])
    tiny = tape.scalar(float(node.attrs.get("epsilon", 1e-5)))
    inverse = tape.op("Reciprocal", [tape.op("Sqrt", [tape.op("Add", [variance, tiny])])])
    normal = tape.op("Mul", [centred, inverse])
    grad = tape.op("Mul", [tape.grad(node), node.inputs[1]])
    # A shift and a stretch of the whole row change nothing: what goes along them is taken out.
    shift = tape.op("Mul", [_summed(tape, grad, -1), share])
    along = tape.op("Mul", [_summed(tape, tape.op("Mul", [grad, normal]), -1), share])
    left = tape.op("Sub", [tape.op("Sub", [grad, shift]), tape.op("Mul", [normal, along])])
    return [(0, tape.op("Mul", [left, inverse]))]


def _softmax(tape: Tape, node: Node) -> Grads | None:
    if tape.graph.opset < 13:
        return None
    axis, y, grad = int(node.attrs.get("axis", -1)), node.output, tape.grad(node)
    mean = _summed(tape, tape.op("Mul", [grad, y]), axis)
    return [(0, tape.op("Mul", [y, tape.op("Sub", [grad, mean])]))]


def _bell(tape: Tape, x: Value, width: float, height: float) -> Variable:
    """Return `height * exp(-width * x^2)`."""
    square = tape.op("Mul", [tape.op("Mul", [x, x]), tape.scalar(-width)])
    return tape.op("Mul", [tape.op("Exp", [square]), tape.scalar(height)])


def _erf(tape: Tape, node: Node) -> Grads | None:
    bell = _bell(tape, node.inputs[0], 1.0, 2 / math.sqrt(math.pi))
    return [(0, tape.op("Mul", [tape.grad(node), bell]))]


def _gelu(tape: Tape, node: Node) -> Grads | None:
    # x * P(x) with the normal distribution P: the approximation by tanh has all but the same derivative.
    x = node.inputs[0]
    erf = tape.op("Erf", [tape.op("Mul", [x, tape.scalar(math.sqrt(0.5))])])
    below = tape.op("Mul", [tape.op("Add", [erf, tape.scalar(1.0)]), tape.scalar(0.5)])
    density = tape.op("Mul", [x, _bell(tape, x, 0.5, 1 / math.sqrt(2 * math.pi))])
    return [(0, tape.op("Mul", [tape.grad(node), tape.op("Add", [below, density])]))]


def _where(tape: Tape, node: Node) -> Grads | None:
    condition, grad, nothing = node.inputs[0], tape.grad(node), tape.scalar(0.0)
    found: Grads = []
    for index in (1, 2):
        if node.inputs[index] not in tape.alive:
            continue
        sides: list[Value] = [grad, nothing] if index == 1 else [nothing, grad]
        part = tape.reduced(tape.op("Where", [condition, *sides]), node, node.inputs[index])
        if part is None:
            return None
        found.append((index, part))
    return found


ATTENTION_RULES: Mapping[str, Callable[[Tape, Node], Grads | None]] = {
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
    "Erf": _erf,
    "Gelu": _gelu,
    "Where": _where,
}
"""The rules by operator, beside those of `derivatives.RULES`."""
