"""What folding a step into a linear node would make of the node: new weights and attributes, or the reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.analysis.affine import (
    Channels,
    Refusal,
    Step,
    Types,
    input_channels,
    normalization,
    output_channels,
)
from onnxcomp.ir.graph import Node
from onnxcomp.numerics import affine_fold as fold
from onnxcomp.numerics.affine_fold import Affine
from onnxcomp.numerics.arrays import Array, Array64

__all__ = ["Rewrite", "fold_after", "fold_before"]


@dataclass(frozen=True)
class Rewrite:
    """What changes about a node: its operator, constant inputs by index, and attributes that lose their value."""

    op: str
    inputs: Mapping[int, Array] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def fold_after(node: Node, step: Step, types: Types) -> Rewrite | Refusal:
    """Return what becomes of the linear node or BatchNormalization `node` when it does `step` on its output."""
    where = output_channels(node, types)
    if isinstance(where, Refusal):
        return where
    affine = step.along(where)
    if isinstance(affine, Refusal):
        return affine
    if node.is_op("BatchNormalization"):
        return _batchnorm(node, normalization(node).then(affine))
    bias = _bias(node)
    if isinstance(bias, Refusal):
        return bias
    weight: Array = node.inputs[1].values
    match node.op:
        case "Conv":
            new, moved = fold.conv_after(weight, bias, affine)
        case "ConvTranspose":
            new, moved = fold.conv_transpose_after(weight, bias, affine, node.attrs.get("group", 1))
        case _:
            new, moved = fold.matrix_after(_matrix(node), bias, affine)
            new = new.T if node.attrs.get("transB") else new
    needed = bias is not None or affine.shifts
    return _rewrite(node, where, None if (affine.scale == 1).all() else new, moved if needed else None)


def fold_before(node: Node, step: Step, types: Types) -> Rewrite | Refusal:
    """Return what becomes of the linear node or BatchNormalization `node` when it does `step` on its input 0."""
    where = input_channels(node, types)
    if isinstance(where, Refusal):
        return where
    affine = step.along(where)
    if isinstance(affine, Refusal):
        return affine
    if not step.keeps_shape(types, where):
        return Refusal("it may enlarge what it reads, or the shape of that is unknown")
    if node.is_op("BatchNormalization"):
        return _batchnorm(node, affine.then(normalization(node)))
    if affine.shifts and node.is_op("Conv", "ConvTranspose") and _mixes_borders(node):
        return Refusal(
            f"its shift would not reach all of the output of {node.op} {node.name!r} alike"
            + (", which pads with zeros" if node.op == "Conv" else "")
        )
    bias = _bias(node) if affine.shifts else None
    if isinstance(bias, Refusal):
        return bias
    weight: Array = node.inputs[1].values
    match node.op:
        case "Conv":
            new, moved = fold.conv_before(weight, bias, affine, node.attrs.get("group", 1))
        case "ConvTranspose":
            new, moved = fold.conv_transpose_before(weight, affine.scale), None
        case _:
            new, moved = fold.matrix_before(_matrix(node), None, affine)
            if moved is not None:
                moved = node.attrs.get("alpha", 1.0) * moved + (0 if bias is None else bias)
            new = new.T if node.attrs.get("transB") else new
    return _rewrite(node, where, None if (affine.scale == 1).all() else new, moved)


def _batchnorm(node: Node, affine: Affine) -> Rewrite | Refusal:
    mean, variance = node.inputs[3].values, node.inputs[4].values
    scale, bias = fold.batchnorm_parameters(affine, mean, variance, node.attrs.get("epsilon", 1e-5))
    return _stored(node, {1: (scale, node.inputs[1].values.dtype), 2: (bias, node.inputs[2].values.dtype)})


def _matrix(node: Node) -> Array:
    """The weight of a Gemm or MatMul as `[K, N]`."""
    weight: Array = node.inputs[1].values
    return weight.T if node.attrs.get("transB") else weight


def _bias(node: Node) -> Array | Refusal | None:
    """The constant that `node` adds to its output, with the factor of a Gemm in it."""
    if node.input(2) is None or node.is_op("MatMul"):
        return None
    values = node.constant(2)
    if values is None:
        return Refusal(f"the bias of {node.op} {node.name!r} is not a constant")
    beta = node.attrs.get("beta", 1.0)
    return values if beta == 1.0 else beta * values.astype(np.float64)


def _mixes_borders(node: Node) -> bool:
    """Whether some output positions of a (transposed) convolution see less of its kernel than others."""
    if node.is_op("ConvTranspose"):
        return True
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return any(size != 1 for size in node.inputs[1].shape[2:])
    return mode == "NOTSET" and any(node.attrs.get("pads", ()))


def _rewrite(node: Node, where: Channels, weight: Array64 | None, bias: Array64 | None) -> Rewrite | Refusal:
    """Return `node` with new `weight` and `bias`; None leaves what is there."""
    dtype = node.inputs[1].values.dtype
    inputs = {1: (weight, dtype)} if weight is not None else {}
    if bias is None:
        return _stored(node, inputs)
    inputs[2] = (bias, dtype)
    if node.is_op("Gemm"):
        return _stored(node, inputs, dropped=("beta",))
    if not node.is_op("MatMul"):
        return _stored(node, inputs)
    if where.rank != 2:
        return Refusal(f"MatMul {node.name!r} has no bias, and reads {where.rank} axes where Gemm reads two")
    return _stored(node, inputs, op="Gemm")


def _stored(
    node: Node,
    inputs: Mapping[int, tuple[Array64, np.dtype[Any]]],
    op: str | None = None,
    dropped: tuple[str, ...] = (),
) -> Rewrite | Refusal:
    arrays: dict[int, Array] = {}
    for index, (values, dtype) in inputs.items():
        array = fold.rounded(values, dtype)
        if array is None:
            return Refusal(f"the folded weights of {node.op} {node.name!r} would overflow {dtype}")
        arrays[index] = array
    return Rewrite(op or node.op, arrays, dropped)
