"""Stored tensors are held against what they declare."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import ModelError
from onnxcomp.ir.tensors import numpy_dtype, raw_bytes, read_tensor, write_tensor

FLOAT = TensorProto.FLOAT


def raw(data: bytes, dims: list[int], elem_type: int = FLOAT) -> TensorProto:
    return TensorProto(name="w", data_type=elem_type, dims=dims, raw_data=data)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: raw(bytes(7), [2]), "needs 8 bytes of raw_data, has 7"),
        (lambda: raw(bytes(12), [2]), "needs 8 bytes of raw_data, has 12"),
        (lambda: raw(bytes(8), [-2]), "negative size"),
        (lambda: raw(bytes(8), [-1, -2]), "negative size"),
        (lambda: raw(bytes(8), [2**62, 2**62]), "impossible shape"),
        (lambda: raw(b"", [0, 2**62, 2**62]), "impossible shape"),
        (lambda: raw(bytes(4), [1] * 40), "40 axes"),
        (lambda: raw(bytes(8), [2], 99), "unknown element type 99"),
        (lambda: raw(bytes(8), [2], 0), "unknown element type 0"),
        (lambda: raw(bytes(2), [1], TensorProto.STRING), "needs? string_data"),
        (lambda: raw(bytes(2), [5], TensorProto.INT4), "needs 3 bytes of raw_data, has 2"),
        (lambda: TensorProto(name="w", data_type=FLOAT, dims=[2]), "but no data"),
        (
            lambda: TensorProto(name="w", data_type=FLOAT, dims=[2], float_data=[1]),
            "needs 2 entries of float_data, has 1",
        ),
        (
            lambda: TensorProto(name="w", data_type=FLOAT, dims=[1], int32_data=[1]),
            "its type needs float_data",
        ),
        (
            lambda: TensorProto(name="w", data_type=FLOAT, dims=[1], raw_data=bytes(4), float_data=[1]),
            "twice",
        ),
        (
            lambda: TensorProto(name="w", data_type=FLOAT, dims=[1], segment=TensorProto.Segment(begin=0)),
            "segments",
        ),
        (
            lambda: TensorProto(name="w", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL),
            "another file",
        ),
    ],
)
def test_tensors_that_contradict_themselves_are_refused_by_name(
    make: Callable[[], TensorProto], reason: str
) -> None:
    with pytest.raises(ModelError, match=f"tensor 'w'.*{reason}"):
        read_tensor(make())


def test_an_element_type_that_does_not_exist_has_no_dtype() -> None:
    assert numpy_dtype(99) is None
    assert numpy_dtype(TensorProto.FLOAT) == np.float32
    assert numpy_dtype(TensorProto.STRING) == object


@pytest.mark.parametrize(
    "name", ["INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT"]
)
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_raw_bytes_are_what_the_file_holds(name: str, count: int) -> None:
    elem_type = TensorProto.DataType.Value(name)
    ones = numpy_helper.to_array(helper.make_tensor("", elem_type, [count], [1] * count))
    pieces = b"".join(bytes(piece) for piece in raw_bytes(ones, chunk=100))
    assert pieces == numpy_helper.from_array(ones).raw_data
    assert np.array_equal(read_tensor(raw(pieces, [count], elem_type)), ones)


def test_raw_bytes_of_an_array_out_of_order_follow_its_elements() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert b"".join(bytes(p) for p in raw_bytes(values)) == values.tobytes()
    assert np.array_equal(read_tensor(write_tensor(values, "w")), values)


def test_a_string_tensor_keeps_its_doc_string() -> None:
    tensor = write_tensor(np.array([b"a", b"b"], object), "s", "what for")
    assert (tensor.doc_string, list(tensor.string_data)) == ("what for", [b"a", b"b"])
