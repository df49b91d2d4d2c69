"""Stored tensors: from TensorProto to numpy and back, trusting nothing that the file says about itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto, numpy_helper

from onnxcomp.errors import ModelError
from onnxcomp.ir.graph import Array

__all__ = [
    "MAX_AXES",
    "Layout",
    "TensorReader",
    "check_axes",
    "is_external",
    "layout",
    "numpy_dtype",
    "packed_bits",
    "raw_bytes",
    "read_raw",
    "read_sparse",
    "read_tensor",
    "write_tensor",
]

TensorReader: TypeAlias = Callable[[TensorProto], Array]
"""Turns a TensorProto into an array; knows where external data lies."""

MAX_AXES = 32
"""The most axes that every supported numpy can hold."""

_MAX_BYTES = 2**48
"""No tensor is larger than what an address space holds; sizes beyond this are an attack or damage."""

_NAMED_BITS = {
    "INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6,
}  # fmt: skip
_BITS = {number: _NAMED_BITS[name] for name, number in TensorProto.DataType.items() if name in _NAMED_BITS}
"""Element types of less than a byte that the installed onnx knows; they are packed in the file, bytes in memory."""

_MAX_DENSE_BYTES = 2**28
"""A sparse initializer may not unfold into more than this: its few bytes could declare any size."""

_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


@dataclass(frozen=True)
class Layout:
    """What a TensorProto declares: numpy `dtype`, `shape`, number of elements, bytes in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    count: int
    stored_bytes: int


def numpy_dtype(elem_type: int) -> np.dtype[Any] | None:
    """Return the numpy dtype of an ONNX element type, None for one that does not exist."""
    if elem_type == TensorProto.STRING:
        return np.dtype(object)
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except KeyError:
        return None


def packed_bits(elem_type: int) -> int | None:
    """Return the bits of one element where that is less than a byte, else None."""
    return _BITS.get(elem_type)


def is_external(tensor: TensorProto) -> bool:
    """Return whether `tensor` keeps its data in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def layout(tensor: TensorProto) -> Layout:
    """Return what `tensor` declares, checked for sense but not yet held against its data.

    Raises:
        ModelError: for unknown element types, negative sizes and sizes beyond any memory.
    """
    dtype = numpy_dtype(tensor.data_type)
    if dtype is None:
        raise ModelError(f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}")
    shape = tuple(int(size) for size in tensor.dims)
    if any(size < 0 for size in shape):
        raise ModelError(f"tensor {tensor.name!r} has a negative size in its shape {list(shape)}")
    check_axes(tensor.name, len(shape))
    # An empty tensor may still declare sizes whose product overflows: numpy refuses those as well.
    if math.prod(size for size in shape if size) * dtype.itemsize > _MAX_BYTES:
        raise ModelError(f"tensor {tensor.name!r} declares an impossible shape {list(shape)}")
    count = math.prod(shape)
    bits = packed_bits(tensor.data_type)
    stored = count * dtype.itemsize if bits is None else (count * bits + 7) // 8
    return Layout(dtype, shape, count, stored)


def check_axes(name: str, count: int) -> None:
    """Raise ModelError where the value `name` has more axes than an array can have."""
    if count > MAX_AXES:
        raise ModelError(f"tensor {name!r} has {count} axes; at most {MAX_AXES} are supported")


def read_tensor(tensor: TensorProto) -> Array:
    """Return the data inside `tensor` as an array; strings come as an object array of bytes.

    Raises:
        ModelError: naming the tensor, where its data does not fit what it declares or lies in another file.
    """
    if is_external(tensor):
        raise ModelError(
            f"tensor {tensor.name!r} keeps its data in another file; load the model from its path"
        )
    declared = layout(tensor)
    _check_data(tensor, declared)
    if tensor.data_type == TensorProto.STRING:
        return np.array(list(tensor.string_data), dtype=object).reshape(declared.shape)
    if not declared.count:
        return np.empty(declared.shape, declared.dtype)
    return numpy_helper.to_array(tensor)


def _check_data(tensor: TensorProto, declared: Layout) -> None:
    if tensor.HasField("segment"):
        raise ModelError(f"tensor {tensor.name!r} is stored in segments, which nothing supports")
    filled = [field for field in _TYPED_FIELDS if len(getattr(tensor, field))]
    if tensor.HasField("raw_data"):
        filled.append("raw_data")
    if len(filled) > 1:
        raise ModelError(f"tensor {tensor.name!r} stores its data twice, as {' and '.join(filled)}")
    if not filled:
        if declared.count:
            raise ModelError(f"tensor {tensor.name!r} has the shape {list(declared.shape)} but no data")
        return
    expected, unit = declared.stored_bytes, "bytes"
    if filled[0] != "raw_data":
        wanted = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        if filled[0] != wanted:
            raise ModelError(
                f"tensor {tensor.name!r} stores its data as {filled[0]}; its type needs {wanted}"
            )
        expected, unit = _typed_entries(tensor.data_type, declared.count), "entries"
    elif tensor.data_type == TensorProto.STRING:
        raise ModelError(f"tensor {tensor.name!r} stores strings as raw_data; they need string_data")
    found = len(getattr(tensor, filled[0]))
    if found != expected:
        raise ModelError(
            f"tensor {tensor.name!r} of shape {list(declared.shape)} needs {expected} {unit} of {filled[0]}, "
            f"has {found}"
        )


def _typed_entries(elem_type: int, count: int) -> int:
    """Return how many entries of its typed field `count` elements take."""
    if elem_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    bits = packed_bits(elem_type)
    # Six-bit elements are packed in raw_data only; in int32_data each has an entry of its own.
    return count if bits in (None, 6) else (count * bits + 7) // 8


def read_sparse(sparse: SparseTensorProto, read: TensorReader) -> Array:
    """Return `sparse` as a dense array; `read` reads its two parts (indices linear `[nnz]` or `[nnz, ndim]`).

    Raises:
        ModelError: naming the tensor, where the parts do not fit together or the dense array would be huge.
    """
    name = sparse.values.name
    declared = layout(TensorProto(name=name, data_type=sparse.values.data_type, dims=sparse.dims))
    if declared.stored_bytes > _MAX_DENSE_BYTES:
        raise ModelError(
            f"sparse initializer {name!r} unfolds to {declared.stored_bytes} bytes; store it dense"
        )
    values, indices = read(sparse.values), read(sparse.indices)
    if (
        indices.dtype.kind not in "iu"
        or indices.ndim not in (1, 2)
        or values.ndim != 1
        or values.dtype == object
    ):
        raise ModelError(
            f"sparse initializer {name!r} is malformed: {indices.ndim}-D {indices.dtype} indices "
            f"of {values.ndim}-D {values.dtype} values"
        )
    dense = np.zeros(declared.shape, values.dtype)
    try:
        places = (indices,) if indices.ndim == 1 else tuple(indices.T)
        linear = np.ravel_multi_index(places, (declared.count,) if indices.ndim == 1 else declared.shape)
        dense.reshape(-1)[linear] = values
    except (ValueError, IndexError, TypeError) as problem:
        raise ModelError(f"sparse initializer {name!r} is malformed: {problem}") from problem
    return dense


def read_raw(elem_type: int, declared: Layout, data: bytes) -> Array:
    """Return the array whose raw form is `data`, which must have `declared.stored_bytes` bytes."""
    return numpy_helper.to_array(TensorProto(data_type=elem_type, dims=declared.shape, raw_data=data))


def write_tensor(values: Array, name: str, doc_string: str = "") -> TensorProto:
    """Return a TensorProto in raw form (strings excepted)."""
    if values.dtype == object:
        tensor = TensorProto(
            name=name, data_type=TensorProto.STRING, dims=values.shape, string_data=list(values.flat)
        )
    else:
        tensor = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
    if doc_string:
        tensor.doc_string = doc_string
    return tensor


def raw_bytes(values: Array, chunk: int = 2**24) -> Iterator[memoryview]:
    """Yield the raw form of `values` in pieces of at most `chunk` bytes; no copy of a whole contiguous array is made.

    Elements of less than a byte are packed first. Strings have no raw form.
    """
    if packed_bits(onnx.helper.np_dtype_to_tensor_dtype(values.dtype)) is not None:
        flat = np.frombuffer(write_tensor(values, "").raw_data, np.uint8)
    else:
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, chunk):
        yield flat[start : start + chunk].data
