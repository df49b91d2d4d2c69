"""Models from ONNX text, for tests and examples: short to write, random weights included."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from typing import TypeAlias

import numpy as np
import onnx
import onnx.parser

from onnxcomp.errors import ModelError
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import from_proto, numpy_dtype, write_tensor

__all__ = ["ModelLike", "as_model", "parse_model", "valueless"]

ModelLike: TypeAlias = "Model | onnx.ModelProto | str"
"""A model, its proto, or its ONNX text."""


def as_model(source: ModelLike) -> Model:
    """Return `source` as a Model that may be edited: a clone, a reading of the proto, or of the text."""
    if isinstance(source, Model):
        return source.clone()
    return parse_model(source) if isinstance(source, str) else from_proto(source)


def parse_model(text: str, weights: Mapping[str, Array] | None = None, *, seed: int = 0) -> Model:
    """Return the model that the ONNX `text` describes (the syntax of `onnx.parser`).

    A floating-point tensor that is declared in `<...>` after the graph's signature, without a value, and made by no node
    becomes a stored tensor: the array in `weights`, or random values that depend on `seed`, its name and its shape
    alone. Matrices and kernels are scaled so that activations keep their size; the variance of a BatchNormalization
    is positive.

    >>> from onnxcomp.ir.parse import parse_model
    >>> model = parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ...     net (float[N,2,4,4] x) => (float[N,3,4,4] y) <float[3,2,1,1] w> { y = Conv(x, w) }''')
    >>> model.graph.constants["w"].values.shape
    (3, 2, 1, 1)

    Raises:
        ModelError: where the text is malformed, or a tensor without a value is not floating-point or has no shape.
    """
    proto = _parsed(text)
    given = dict(weights or {})
    positive = {n.input[4] for n in proto.graph.node if n.op_type == "BatchNormalization"}
    for info in _undefined(proto):
        dtype = numpy_dtype(info.type.tensor_type.elem_type)
        shape = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
        array = given.pop(info.name, None)
        if array is None:
            if dtype is None or not np.issubdtype(dtype, np.floating) or 0 in shape:
                raise ModelError(
                    f"{info.name!r} needs a value in the text: only floats of known shape are made up"
                )
            array = _random(shape, info.name in positive, [seed, zlib.crc32(info.name.encode())]).astype(
                dtype
            )
        proto.graph.initializer.append(write_tensor(np.asarray(array), info.name))
    if given:
        raise ModelError(f"the text declares no stored tensor {next(iter(given))!r}")
    return from_proto(proto)


def valueless(text: str) -> Collection[str]:
    """Return the names of the stored tensors that `text` declares without values."""
    return [info.name for info in _undefined(_parsed(text))]


def _parsed(text: str) -> onnx.ModelProto:
    try:
        return onnx.parser.parse_model(text)
    except onnx.parser.ParseError as problem:
        # The parser hands its message over as bytes.
        words = " ".join(bytes(problem.args[0]).decode(errors="replace").split())
        raise ModelError(f"the ONNX text is malformed: {words[:300]}") from problem


def _undefined(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    graph = proto.graph
    made = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    made |= {name for node in graph.node for name in node.output}
    return [info for info in graph.value_info if info.name not in made]


def _random(shape: tuple[int, ...], positive: bool, seed: list[int]) -> Array:
    rng = np.random.default_rng(seed)
    if positive:
        return rng.uniform(0.5, 1.5, shape)
    spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.5
    return rng.standard_normal(shape) * spread
