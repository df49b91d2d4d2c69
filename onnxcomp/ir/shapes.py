"""Static types and shapes of every value, without touching the weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnxcomp.errors import ModelError
from onnxcomp.ir.graph import is_default_domain
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import KEEPS_SHAPE
from onnxcomp.ir.proto import declared_size, numpy_dtype, to_proto
from onnxcomp.ir.tensors import check_axes

__all__ = ["Shape", "ValueType", "infer_types", "shape_key"]

Shape: TypeAlias = tuple[int | str | None, ...]
"""A size per axis: a number, the name of a symbolic size, or None where nothing is known."""


@dataclass(frozen=True)
class ValueType:
    """`dtype` and `shape` of one value; None where unknown, and strings for symbolic sizes."""

    dtype: np.dtype[Any] | None
    shape: Shape | None

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape where every size is a known number, else None."""
        if self.shape is None or not all(isinstance(size, int) for size in self.shape):
            return None
        return tuple(int(size) for size in self.shape if isinstance(size, int))


def infer_types(
    model: Model, input_shapes: dict[str, tuple[int, ...]] | None = None, *, strict: bool = False
) -> dict[str, ValueType]:
    """Return the type of every value that shape inference finds, constants included.

    `input_shapes` replaces the declared shapes of graph inputs. Values behind unknown operators are absent.

    Raises:
        ModelError: for a value with more axes than an array can have; with `strict`, where inference finds a
            contradiction; the message names the node.
    """
    proto = to_proto(model, skeleton=True, input_shapes=input_shapes)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as problem:
        if strict:
            raise ModelError(f"shape inference failed: {' '.join(str(problem).split())[:300]}") from problem
        inferred = proto
    while not strict and _fill_in(inferred):
        inferred = onnx.shape_inference.infer_shapes(inferred, data_prop=True)
    types = {c.name: ValueType(c.values.dtype, c.values.shape) for c in model.graph.constants.values()}
    for info in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        if info.name not in types and info.type.WhichOneof("value") == "tensor_type":
            check_axes(info.name, len(info.type.tensor_type.shape.dim))
            types[info.name] = _value_type(info.type.tensor_type)
    return types


def shape_key(model: Model) -> bytes:
    """Return a digest of everything in `model` that shapes depend on: nodes, attributes, names, types, short constants."""
    proto = to_proto(model, skeleton=True)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).digest()


def _fill_in(proto: onnx.ModelProto) -> bool:
    """Give the first value without a type that has the shape of an input its type, in place; return whether there is one.

    Inference says nothing about operators that are defined by a function whose body it does not see through.
    """
    graph = proto.graph
    known = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output) if _has_shape(v)}
    for node in graph.node:
        if node.op_type in KEEPS_SHAPE and is_default_domain(node.domain) and node.output[0] not in known:
            found = known.get(node.input[0])
            if found is not None:
                for stale in [v for v in graph.value_info if v.name == node.output[0]]:
                    graph.value_info.remove(stale)
                graph.value_info.add(name=node.output[0], type=found)
                return True
    return False


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.HasField("shape"))


def _value_type(tensor: Any) -> ValueType:
    shape: Shape | None = None
    if tensor.HasField("shape"):
        shape = tuple(declared_size(d) for d in tensor.shape.dim)
    return ValueType(numpy_dtype(tensor.elem_type) if tensor.elem_type else None, shape)
