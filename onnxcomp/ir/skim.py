"""A light view of any graph, subgraphs included: what reads what, and of which type; weights stay unread.

It serves graphs that are only looked at: onnxruntime's optimised ones hold operators that no schema knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnxcomp.ir.graph import Array, is_default_domain
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import TYPED_BY_INPUT
from onnxcomp.ir.proto import stored, to_proto
from onnxcomp.ir.scopes import subgraphs
from onnxcomp.ir.tensors import is_external, numpy_dtype, read_tensor

__all__ = ["SkimNode", "SkimValue", "skim", "skim_bytes"]

_SMALL = 4096
"""Stored tensors of at most this many elements are read: scales, zero points, bounds."""


@dataclass(eq=False)
class SkimValue:
    """A value: `dtype` is None where it is not known, `array` where it is computed or large.

    `leaves` says whether it is an output of the main graph; outputs of subgraphs are read by the node that holds them.
    """

    name: str
    dtype: np.dtype[Any] | None = None
    stored: bool = False
    array: Array | None = None
    producer: SkimNode | None = None
    readers: list[SkimNode] = field(default_factory=list)
    leaves: bool = False

    def __repr__(self) -> str:
        return f"<{self.name!r} {self.dtype}>"


@dataclass(eq=False)
class SkimNode:
    """An operator call. `inner` are the outputs of its subgraphs; `attrs` holds numbers and text only."""

    name: str
    op: str
    domain: str
    attrs: Mapping[str, int | float | str]
    inputs: tuple[SkimValue | None, ...] = ()
    outputs: tuple[SkimValue, ...] = ()
    inner: tuple[SkimValue, ...] = ()

    def __repr__(self) -> str:
        return f"<{self.op} {self.name!r}>"

    def input(self, index: int) -> SkimValue | None:
        """Return input `index`, None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None


def skim(model: Model) -> list[SkimNode]:
    """Return the nodes of `model` in order, those of subgraphs before the node that holds them."""
    # A skeleton declares large constants as inputs.
    return _Reader(to_proto(model, skeleton=True), frozenset(c.name for c in stored(model.graph))).nodes


def skim_bytes(data: bytes) -> list[SkimNode]:
    """Return the nodes of a serialized ModelProto in order, those of subgraphs before the node that holds them.

    External data is neither looked for nor read.
    """
    return _Reader(ModelProto.FromString(data)).nodes


class _Reader:
    def __init__(self, proto: ModelProto, constants: frozenset[str] = frozenset()) -> None:
        self._constants = constants
        self.nodes: list[SkimNode] = []
        self._opsets = {o.domain: o.version for o in proto.opset_import}
        for value in self._read(proto.graph, {}):
            value.leaves = True

    def _read(self, graph: GraphProto, outer: Mapping[str, SkimValue]) -> list[SkimValue]:
        """Read `graph`, in which the values of `outer` are seen, too, and return its outputs."""
        scope = dict(outer)
        for info in graph.input:
            scope[info.name] = SkimValue(info.name, _declared(info), stored=info.name in self._constants)
        for tensor in graph.initializer:
            scope[tensor.name] = _stored(tensor, tensor.name)
        for sparse in graph.sparse_initializer:
            scope[sparse.values.name] = SkimValue(
                sparse.values.name, numpy_dtype(sparse.values.data_type), stored=True
            )
        for proto in graph.node:
            self._read_node(proto, scope)
        known = {info.name: _declared(info) for info in [*graph.value_info, *graph.output]}
        for name, dtype in known.items():
            if name in scope and scope[name].dtype is None:
                scope[name].dtype = dtype
        return [scope[o.name] for o in graph.output if o.name in scope]

    def _read_node(self, proto: NodeProto, scope: dict[str, SkimValue]) -> None:
        if proto.op_type == "Constant" and is_default_domain(proto.domain):
            scope[proto.output[0]] = _constant(proto)
            return
        domain = "" if is_default_domain(proto.domain) else proto.domain
        node = SkimNode(proto.name, proto.op_type, domain, _plain_attributes(proto))
        node.inputs = tuple(scope.get(name) if name else None for name in proto.input)
        inner = [self._read(graph, scope) for graph in subgraphs(proto)]
        node.inner = tuple(value for outputs in inner for value in outputs)
        for value in dict.fromkeys([*node.inputs, *node.inner]):
            if value is not None:
                value.readers.append(node)
        types = inner[0] if inner else None
        made = []
        for index, name in enumerate(proto.output):
            value = SkimValue(name, producer=node)
            if types is None:
                value.dtype = self._type_of(node, index)
            elif index < len(types):
                value.dtype = types[index].dtype
            if name:
                scope[name] = value
            made.append(value)
        node.outputs = tuple(made)
        self.nodes.append(node)

    def _type_of(self, node: SkimNode, index: int) -> np.dtype[Any] | None:
        """Return the type of output `index` of `node`, from its attributes, its schema and what it reads."""
        chosen = node.attrs.get("to" if node.op == "Cast" else "output_dtype")
        if isinstance(chosen, int) and chosen:
            return numpy_dtype(chosen)
        if node.op == "QuantizeLinear" and node.input(2) is None:
            return np.dtype(np.uint8)
        if index == 0 and node.op in TYPED_BY_INPUT:
            place = TYPED_BY_INPUT[node.op]
            value = node.input(place)
            # An operator that was not told a zero point for what it makes makes floats.
            return value.dtype if value is not None else np.dtype(np.float32)
        return self._by_schema(node, index)

    def _by_schema(self, node: SkimNode, index: int) -> np.dtype[Any] | None:
        try:
            schema = onnx.defs.get_schema(node.op, self._opsets.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            return next((value.dtype for value in node.inputs if value is not None), None)
        formal = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}.get(
            formal, [formal]
        )
        if len(allowed) == 1:
            return _NAMED_TYPES.get(allowed[0])
        # The last parameter may stand for all further inputs.
        places = [min(place, len(schema.inputs) - 1) for place in range(len(node.inputs))]
        same = [v for v, p in zip(node.inputs, places, strict=True) if schema.inputs[p].type_str == formal]
        return next((v.dtype for v in same if v is not None), None)


_NAMED_TYPES = {
    f"tensor({name.lower()})": numpy_dtype(number) for name, number in TensorProto.DataType.items() if number
}
"""Types as schemas write them."""


def _declared(info: ValueInfoProto) -> np.dtype[Any] | None:
    kind = info.type.tensor_type.elem_type
    return numpy_dtype(kind) if kind else None


def _stored(tensor: TensorProto, name: str) -> SkimValue:
    small = int(np.prod(tensor.dims, dtype=np.int64)) <= _SMALL and not is_external(tensor)
    array = read_tensor(tensor) if small else None
    return SkimValue(name, numpy_dtype(tensor.data_type), stored=True, array=array)


def _constant(proto: NodeProto) -> SkimValue:
    for attribute in proto.attribute:
        if attribute.HasField("t"):
            return _stored(attribute.t, proto.output[0])
        if attribute.type in (AttributeProto.FLOAT, AttributeProto.FLOATS):
            return SkimValue(proto.output[0], np.dtype(np.float32), stored=True)
        if attribute.type in (AttributeProto.INT, AttributeProto.INTS):
            return SkimValue(proto.output[0], np.dtype(np.int64), stored=True)
    return SkimValue(proto.output[0], stored=True)


def _plain_attributes(proto: NodeProto) -> dict[str, int | float | str]:
    return dict(_pairs(proto.attribute))


def _pairs(attributes: Iterable[AttributeProto]) -> Iterator[tuple[str, int | float | str]]:
    for attribute in attributes:
        match attribute.type:
            case AttributeProto.INT:
                yield attribute.name, attribute.i
            case AttributeProto.FLOAT:
                yield attribute.name, attribute.f
            case AttributeProto.STRING:
                yield attribute.name, attribute.s.decode(errors="replace")
