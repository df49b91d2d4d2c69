"""Pieces of a graph as models of their own, so that only what changed has to run again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import stored, to_proto, write_node, write_tensor

__all__ = ["model_bytes", "segment_bytes", "with_outputs"]

_PROTO_LIMIT = 2**31 - 1


def model_bytes(model: Model) -> bytes:
    """Return `model` serialized in one piece.

    Raises:
        ValueError: where the weights exceed what one protobuf message holds (2 GB); save to a path instead.
    """
    if model.weight_bytes > _PROTO_LIMIT:
        raise ValueError("the model is larger than 2 GB and cannot be serialized in one piece")
    return bytes(to_proto(model).SerializeToString())


def with_outputs(model: Model, names: Iterable[str]) -> bytes:
    """Return `model` serialized with the values `names` as additional outputs; the types are left to the runtime."""
    proto = to_proto(model)
    have = {o.name for o in proto.graph.output}
    for name in dict.fromkeys(names):
        if name not in have:
            proto.graph.output.add().name = name
    return bytes(proto.SerializeToString())


def segment_bytes(
    model: Model,
    nodes: Sequence[Node],
    inputs: Mapping[str, np.dtype[Any]],
    outputs: Collection[str],
    ndims: Mapping[str, int],
    sizes: Mapping[str, Sequence[int | None]] | None = None,
) -> bytes:
    """Return `nodes` (in order) as a serialized model from `inputs` to `outputs`.

    `inputs` maps the names of values fed from outside to their dtypes, `ndims` their number of axes; the sizes are left
    open so that any batch fits, but for those that `sizes` gives.
    Constants that the nodes read, directly or through subgraphs, come along.
    """
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items())
    proto.functions.extend(model.functions)
    graph = proto.graph
    graph.name = "segment"
    for name, dtype in inputs.items():
        elem = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        known = (sizes or {}).get(name) or [None] * ndims[name]
        shape = [f"{name}.{axis}" if size is None else size for axis, size in enumerate(known)]
        graph.input.append(onnx.helper.make_tensor_value_info(name, elem, shape))
    for name in outputs:
        graph.output.add().name = name
    constants = {c.name: c for c in stored(model.graph)}
    wanted: dict[str, Constant] = {}
    for node in nodes:
        graph.node.append(write_node(node))
        for name in [*(v.name for v in node.inputs), *node.captures]:
            if name in constants and name not in inputs:
                wanted[name] = constants[name]
    graph.initializer.extend(write_tensor(c.values, c.name) for c in wanted.values())
    return bytes(proto.SerializeToString())
