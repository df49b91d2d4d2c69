"""Nodes that only scale and shift channels: which they are, and what they do along the channel axis of a neighbour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.ir.graph import Node, Value
from onnxcomp.ir.ops import SCALE_OR_SHIFT
from onnxcomp.ir.shapes import ValueType
from onnxcomp.numerics.affine_fold import Affine, batchnorm_affine
from onnxcomp.numerics.arrays import Array

__all__ = [
    "Channels",
    "Refusal",
    "Step",
    "affine_step",
    "combined",
    "input_channels",
    "normalization",
    "output_channels",
]

Types = Mapping[str, ValueType]


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be folded: the end of a sentence that begins with the node."""

    reason: str


@dataclass(frozen=True)
class Channels:
    """Where the channels of a value lie: `axis` of `rank` axes, `count` of them."""

    axis: int
    rank: int
    count: int


@dataclass(frozen=True)
class Step:
    """A node that computes `scale * x + shift` with constants.

    Attributes:
        node: BatchNormalization in inference, or Add, Sub, Mul, Div with a floating-point constant.
        data: index of the input that is not a constant.
    """

    node: Node
    data: int

    @property
    def value(self) -> Value:
        """The value that is scaled and shifted."""
        value: Value = self.node.inputs[self.data]
        return value

    @property
    def is_batchnorm(self) -> bool:
        """Whether the node is a BatchNormalization."""
        return self.node.is_op("BatchNormalization")

    @property
    def factor(self) -> Array:
        """The constant of an elementwise step."""
        array: Array = self.node.inputs[1 - self.data].values
        return array

    def along(self, where: Channels) -> Affine | Refusal:
        """Return what the step does to channels that lie `where`; a Refusal where it is not one number per channel."""
        if self.is_batchnorm:
            return self._batchnorm(where)
        shape = self.factor.shape
        dims = (1,) * (where.rank - len(shape)) + shape
        others = [size for axis, size in enumerate(dims) if axis != where.axis]
        if len(dims) > where.rank or any(size != 1 for size in others):
            return Refusal(f"its constant of shape {list(shape)} is not one number per channel")
        if dims[where.axis] not in (1, where.count):
            return Refusal(f"its constant has {dims[where.axis]} channels where there are {where.count}")
        values = np.broadcast_to(self.factor.reshape(-1).astype(np.float64), where.count)
        return _finite(_elementwise(self.node.op, values, self.data))

    def _batchnorm(self, where: Channels) -> Affine | Refusal:
        if where.axis != 1:
            return Refusal(f"it normalizes axis 1, but the channels lie along axis {where.axis}")
        if any(parameter.shape != (where.count,) for parameter in self.node.inputs[1:5]):
            return Refusal(f"its parameters do not fit {where.count} channels")
        return _finite(normalization(self.node))

    def keeps_shape(self, types: Types, where: Channels) -> bool:
        """Return whether the step is known to leave the shape of its data alone, whose channels lie `where`."""
        if self.is_batchnorm:
            return True
        kind = types.get(self.value.name)
        if kind is None or kind.shape is None or len(kind.shape) != where.rank:
            return False
        return self.factor.size == 1 or kind.shape[where.axis] == where.count


def affine_step(node: Node) -> Step | Refusal | None:
    """Return `node` as a step, a Refusal for a BatchNormalization that is none, None for any other node."""
    if node.is_op("BatchNormalization"):
        return _batchnorm_step(node)
    if not node.is_op(*SCALE_OR_SHIFT):
        return None
    constants = [i for i in (0, 1) if node.constant(i) is not None]
    if len(constants) != 1:
        return None
    values = node.inputs[constants[0]].values
    if values.dtype.kind != "f" or values.size == 0:
        return None
    if node.op == "Div" and (constants[0] == 0 or not values.all()):
        return None
    return Step(node, 1 - constants[0])


def _batchnorm_step(node: Node) -> Step | Refusal:
    if node.attrs.get("training_mode", 0):
        return Refusal("it is in training mode and normalizes by the statistics of the batch")
    if any(v.name for v in node.outputs[1:]):
        return Refusal("its outputs of running statistics exist in training only")
    for index, part in enumerate(("scale", "bias", "mean", "variance"), start=1):
        if node.constant(index) is None:
            return Refusal(f"its {part} is not a constant")
    return Step(node, 0)


def normalization(node: Node) -> Affine:
    """Return what a BatchNormalization with constant parameters does to its channels."""
    scale, bias, mean, variance = (parameter.values for parameter in node.inputs[1:5])
    return batchnorm_affine(scale, bias, mean, variance, node.attrs.get("epsilon", 1e-5))


def _elementwise(op: str, values: NDArray[np.float64], data: int) -> Affine:
    one, zero = np.ones_like(values), np.zeros_like(values)
    match op:
        case "Mul":
            return Affine(values, zero)
        case "Div":
            return Affine(1 / values, zero)
        case "Add":
            return Affine(one, values)
        case _:
            return Affine(one, -values) if data == 0 else Affine(-one, values)


def _finite(step: Affine) -> Affine | Refusal:
    return step if step.finite else Refusal("its parameters are not finite")


def output_channels(node: Node, types: Types) -> Channels | Refusal:
    """Return where the channels of the output of a linear node or BatchNormalization lie; constant weights needed."""
    weight = node.constant(1)
    if weight is None:
        return Refusal(f"the weight of {node.op} {node.name!r} is not a constant")
    match node.op:
        case "Conv":
            return Channels(1, weight.ndim, weight.shape[0])
        case "ConvTranspose":
            return Channels(1, weight.ndim, weight.shape[1] * node.attrs.get("group", 1))
        case "Gemm":
            return Channels(1, 2, weight.shape[0 if node.attrs.get("transB") else 1])
        case "MatMul" if weight.ndim == 2:
            rank = _rank(node, types)
            return rank if isinstance(rank, Refusal) else Channels(rank - 1, rank, weight.shape[1])
        case "BatchNormalization":
            rank = _rank(node, types)
            return rank if isinstance(rank, Refusal) else Channels(1, rank, weight.size)
        case _:
            return Refusal(f"{node.op} {node.name!r} multiplies by a stack of matrices")


def input_channels(node: Node, types: Types) -> Channels | Refusal:
    """Return where the channels of input 0 of a linear node or BatchNormalization lie; constant weights needed."""
    weight = node.constant(1)
    if weight is None:
        return Refusal(f"the weight of {node.op} {node.name!r} is not a constant")
    match node.op:
        case "Conv":
            return Channels(1, weight.ndim, weight.shape[1] * node.attrs.get("group", 1))
        case "ConvTranspose":
            return Channels(1, weight.ndim, weight.shape[0])
        case "Gemm" if node.attrs.get("transA"):
            return Refusal(f"Gemm {node.name!r} reads it transposed")
        case "Gemm":
            return Channels(1, 2, weight.shape[1 if node.attrs.get("transB") else 0])
        case "MatMul" if weight.ndim == 2:
            rank = _rank(node, types)
            return rank if isinstance(rank, Refusal) else Channels(rank - 1, rank, weight.shape[0])
        case _:
            return output_channels(node, types)


def _rank(node: Node, types: Types) -> int | Refusal:
    kind = types.get(node.inputs[0].name)
    if kind is None or kind.shape is None or len(kind.shape) < 2:
        return Refusal(f"the number of axes that {node.op} {node.name!r} reads is unknown or below two")
    return len(kind.shape)


def combined(first: Step, second: Step) -> tuple[str, Array] | None:
    """Return the one operator and constant that do two elementwise steps in a row; None where there is no such form.

    Two scalings make a Mul, two shifts an Add. The constant is never larger than the larger of the two.
    """
    if first.is_batchnorm or second.is_batchnorm:
        return None
    one = _elementwise(first.node.op, first.factor.astype(np.float64), first.data)
    two = _elementwise(second.node.op, second.factor.astype(np.float64), second.data)
    if not one.shifts and not two.shifts:
        op, values = "Mul", one.scale * two.scale
    elif (one.scale == 1).all() and (two.scale == 1).all():
        op, values = "Add", one.shift + two.shift
    else:
        return None
    if values.size > max(first.factor.size, second.factor.size) or not np.isfinite(values).all():
        return None
    return op, values
