"""The door between ModelProto and Model. Nothing is lost on the way through, and no proto is ever mutated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)

from onnxcomp.errors import ModelError
from onnxcomp.ir.attributes import read_attributes, write_attribute
from onnxcomp.ir.graph import Array, Constant, Graph, Node, Value, Variable, is_default_domain
from onnxcomp.ir.model import Model
from onnxcomp.ir.operands import check_operands
from onnxcomp.ir.scopes import captures, scoped
from onnxcomp.ir.tensors import TensorReader, check_axes, numpy_dtype, read_sparse, write_tensor
from onnxcomp.ir.tensors import read_tensor as read_inline

__all__ = [
    "SKELETON_LIMIT",
    "ModelProto",
    "TensorWriter",
    "declared_size",
    "from_proto",
    "numpy_dtype",
    "stored",
    "to_proto",
    "write_node",
    "write_tensor",
]

TensorWriter: TypeAlias = Callable[[Constant], TensorProto]
"""Turns a constant into a TensorProto, its data inside or beside the file."""

SKELETON_LIMIT = 1024
"""Constants with more elements than this become typed inputs in a skeleton: shape arithmetic never needs them."""

_SMALL_SPARSE = 2**16
"""Elements up to which a sparse tensor of a Constant node is held dense whatever it stores."""

_SIZES = (np.dtype(np.int32), np.dtype(np.int64))
"""What shape arithmetic computes with."""


# --- reading ---------------------------------------------------------------------------------------------------------
def from_proto(proto: ModelProto, read_tensor: TensorReader | None = None) -> Model:
    """Return the Model of `proto`, which is left as it is.

    Weights in `Constant` nodes become initializers, initializers that are listed as inputs stop being inputs, missing
    and duplicate node names are mended, unsorted nodes are sorted; each of these leaves a note. `read_tensor` turns a
    TensorProto into an array (external data); by default only data inside the proto is accepted.

    Raises:
        ModelError: for cycles, undefined inputs, duplicate value names, nodes and graphs without outputs, and
            malformed tensors, by name.
    """
    read = read_tensor or read_inline
    model = Model(
        graph=Graph(proto.graph.name, proto.graph.doc_string, 1),
        ir_version=proto.ir_version,
        opset_imports=_opset_imports(proto),
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        model_version=proto.model_version,
        doc_string=proto.doc_string,
        metadata={p.key: p.value for p in proto.metadata_props},
        functions=tuple(_copy(f) for f in proto.functions),
    )
    model.graph.opset = model.opset
    if proto.training_info:
        model.notes.append("the training information of the file is not carried over")
    if proto.configuration or any(n.device_configurations for n in proto.graph.node):
        model.notes.append(
            "the device configurations of the file are not carried over: passes change what they split"
        )
    _read_graph(model, proto.graph, read)
    if model.graph.sort():
        model.notes.append("the nodes were not in topological order; they have been sorted")
    return model


def _domain(domain: str) -> str:
    return "" if is_default_domain(domain) else domain


def _opset_imports(proto: ModelProto) -> dict[str, int]:
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = _domain(entry.domain)
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(
                f"the model imports domain {domain or 'ai.onnx'!r} in the versions {versions[domain]} "
                f"and {entry.version}; only one can be meant"
            )
    return versions


def _read_graph(model: Model, proto: GraphProto, read: TensorReader) -> None:
    graph = model.graph
    values: dict[str, Value] = {}
    _read_constants(model, proto, read, values)
    overridable: list[str] = []
    for info in proto.input:
        if info.name in graph.constants:
            overridable.append(info.name)
            continue
        _check_new(info.name, values)
        if not info.name:
            raise ModelError("a graph input has no name")
        values[info.name] = variable = _variable(info)
        graph.inputs.append(variable)
        model.io_protos[info.name] = _copy(info)
    if overridable:
        which = repr(overridable[0]) + (f" and {len(overridable) - 1} more" if len(overridable) > 1 else "")
        model.notes.append(f"inputs with a stored value are treated as weights: {which}")
        model.ir_version = max(model.ir_version, 4)
    nodes = [_read_node(model, n, read) for n in _lift_constants(model, proto.node, read, values)]
    for node, source in nodes:
        for name in source.output:
            _check_new(name, values)
            made = Variable(name)
            if name:
                values[name] = made
            node.outputs.append(made)
    for node, source in nodes:
        for name in source.input:
            if name and name not in values:
                raise ModelError(
                    f"node {source.name or source.op_type!r} reads {name!r}, which nothing defines"
                )
            node.inputs.append(values[name] if name else Variable(""))
        for name in node.captures:
            if name not in values and name not in node.scoped:
                raise ModelError(f"a subgraph of {source.name!r} reads {name!r}, which nothing defines")
        node.captures = tuple(name for name in node.captures if name in values)
        graph.nodes.append(node)
    _read_outputs(model, proto, values)
    _name_nodes(model)
    check_operands(graph)


def _check_new(name: str, values: dict[str, Value]) -> None:
    if name and name in values:
        raise ModelError(f"the value name {name!r} is used twice; every value needs a name of its own")


def _read_constants(model: Model, proto: GraphProto, read: TensorReader, values: dict[str, Value]) -> None:
    for tensor in proto.initializer:
        if not tensor.name:
            raise ModelError("an initializer has no name")
        _check_new(tensor.name, values)
        constant = Constant(tensor.name, read(tensor), tensor.doc_string)
        constant.metadata = {p.key: p.value for p in tensor.metadata_props}
        values[tensor.name] = model.graph.constants[tensor.name] = constant
    for sparse in proto.sparse_initializer:
        name = sparse.values.name
        if not name or name in values:
            raise ModelError(f"the value name {name!r} of a sparse initializer is empty or used twice")
        values[name] = model.graph.constants[name] = Constant(name, read_sparse(sparse, read))
        model.notes.append(f"the sparse initializer {name!r} is stored dense")


def _lift_constants(
    model: Model, nodes: Iterable[NodeProto], read: TensorReader, values: dict[str, Value]
) -> list[NodeProto]:
    """Return `nodes` without Constant nodes, whose tensors are registered as initializers under the same names."""
    rest: list[NodeProto] = []
    lifted = 0
    for node in nodes:
        array = (
            _constant_value(node, read)
            if node.op_type == "Constant" and is_default_domain(node.domain)
            else None
        )
        if array is None or len(node.output) != 1:
            rest.append(node)
            continue
        name = node.output[0]
        _check_new(name, values)
        values[name] = model.graph.constants[name] = constant = Constant(name, array, node.doc_string)
        constant.metadata = {p.key: p.value for p in node.metadata_props}
        if node.name:
            model.aliases[node.name] = ""
        lifted += 1
    if lifted:
        model.notes.append(f"{lifted} Constant nodes are held as initializers")
        # Initializers that are not graph inputs need IR version 4.
        model.ir_version = max(model.ir_version, 4)
    return rest


def _constant_value(node: NodeProto, read: TensorReader) -> Array | None:
    if len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    match attribute.name, attribute.type:
        case "value", AttributeProto.TENSOR:
            return read(attribute.t)
        case "sparse_value", AttributeProto.SPARSE_TENSOR if _worth_unfolding(attribute.sparse_tensor):
            return read_sparse(attribute.sparse_tensor, read)
        case "value_float", AttributeProto.FLOAT:
            return np.array(attribute.f, np.float32)
        case "value_floats", AttributeProto.FLOATS:
            return np.array(list(attribute.floats), np.float32)
        case "value_int", AttributeProto.INT:
            return np.array(attribute.i, np.int64)
        case "value_ints", AttributeProto.INTS:
            return np.array(list(attribute.ints), np.int64)
        case _:
            return None


def _worth_unfolding(sparse: SparseTensorProto) -> bool:
    """Return whether holding `sparse` as a dense array costs little: a few bytes may declare any size."""
    return bool(math.prod(sparse.dims) <= max(_SMALL_SPARSE, 4 * math.prod(sparse.values.dims)))


def _read_node(model: Model, proto: NodeProto, read: TensorReader) -> tuple[Node, NodeProto]:
    label = proto.name or proto.op_type
    if not proto.op_type:
        raise ModelError(f"node {label!r} names no operator")
    if not any(proto.output):
        raise ModelError(f"node {label!r} has no outputs; it computes nothing")
    domain = _domain(proto.domain)
    node = Node(proto.op_type, proto.name, domain=domain or None)
    own = any((f.domain, f.name) == (proto.domain, proto.op_type) for f in model.functions)
    read_attributes(node, proto, read, model.opset_imports.get(domain, 1), known=not own)
    node.captures = tuple(dict.fromkeys(captures(proto)))
    node.scoped = frozenset(scoped(proto))
    node.doc_string = proto.doc_string
    node.metadata = {p.key: p.value for p in proto.metadata_props}
    node.overload = proto.overload
    return node, proto


def _read_outputs(model: Model, proto: GraphProto, values: dict[str, Value]) -> None:
    if not proto.output:
        raise ModelError("the graph has no outputs; there is nothing to compute")
    for info in proto.output:
        if info.name not in values:
            raise ModelError(f"the graph output {info.name!r} is defined by nothing")
        value = values[info.name]
        if isinstance(value, Variable) and value.dtype is None:
            typed = _variable(info)
            value.dtype, value.shape, value.type = typed.dtype, typed.shape, typed.type
        model.graph.outputs.append(value)
        model.io_protos[info.name] = _copy(info)
    for info in proto.value_info:
        maker = values[info.name].producer if info.name in values else None
        if maker is not None and not maker.standard:
            model.declared[info.name] = _copy(info)
    model.graph_extras = {
        "quantization_annotation": [_copy(a) for a in proto.quantization_annotation],
        "metadata_props": [_copy(p) for p in proto.metadata_props],
    }


def _name_nodes(model: Model) -> None:
    """Give every node a unique name: tools, reports and excludes speak of nodes by name."""
    taken: set[str] = set()
    duplicates = 0
    for node in model.graph.nodes:
        wanted = node.name or next((v.name for v in node.outputs if v.name), node.op)
        name = model.graph.fresh_name(wanted, taken)
        duplicates += bool(node.name) and name != node.name
        node.name = name
        taken.add(name)
    if duplicates:
        model.notes.append(f"{duplicates} nodes shared a name with another; they have been renamed")


def _variable(info: ValueInfoProto) -> Variable:
    kind = info.type.WhichOneof("value") or "tensor_type"
    variable = Variable(info.name, type=kind)
    if kind == "tensor_type" and info.type.tensor_type.elem_type:
        tensor = info.type.tensor_type
        variable.dtype = numpy_dtype(tensor.elem_type)
        if tensor.HasField("shape"):
            check_axes(info.name, len(tensor.shape.dim))
            variable.shape = tuple(declared_size(d) for d in tensor.shape.dim)
    return variable


def declared_size(dim: Any) -> int | str | None:
    """Return what a dimension of a declared shape says: its size, the symbol of a free size, or None where it has no name.

    Exporters declare free sizes as -1, too, and as "?" on several axes of which each has its own.
    """
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) if dim.dim_param not in ("", "?") else None


def _copy(message: Any) -> Any:
    twin = type(message)()
    twin.CopyFrom(message)
    return twin


# --- writing ---------------------------------------------------------------------------------------------------------
def to_proto(
    model: Model,
    *,
    skeleton: bool = False,
    input_shapes: dict[str, tuple[int, ...]] | None = None,
    write: TensorWriter | None = None,
) -> ModelProto:
    """Return a new ModelProto of `model`.

    With `skeleton`, constants of more than `SKELETON_LIMIT` elements (int32, int64 excepted) are left out and declared as graph
    inputs instead, which is all that shape inference needs. `input_shapes` fixes the shapes of graph inputs and drops
    declared output shapes that could contradict them. `write` makes the TensorProto of a constant
    (name, type and data; external data is made that way).
    """
    # Here and below, None leaves a field unset: older readers do not know them all.
    proto = ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name or None,
        producer_version=model.producer_version or None,
        domain=model.domain or None,
        model_version=model.model_version or None,
        doc_string=model.doc_string or None,
    )
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items())
    onnx.helper.set_model_props(proto, model.metadata)
    proto.functions.extend(model.functions)
    _write_graph(model, proto.graph, input_shapes or {})
    for constant in stored(model.graph):
        if skeleton and constant.values.size > SKELETON_LIMIT and constant.values.dtype not in _SIZES:
            elem = onnx.helper.np_dtype_to_tensor_dtype(constant.values.dtype)
            info = onnx.helper.make_tensor_value_info(constant.name, elem, constant.values.shape)
            proto.graph.input.append(info)
        else:
            proto.graph.initializer.append(_write_constant(constant, write))
    return proto


def _write_graph(model: Model, out: GraphProto, shapes: dict[str, tuple[int, ...]]) -> None:
    graph = model.graph
    out.name = graph.name or "graph"
    if graph.doc_string:
        out.doc_string = graph.doc_string
    out.input.extend(_write_info(model, v, shapes) for v in graph.inputs)
    for value in graph.outputs:
        info = _write_info(model, value, {})
        if shapes and info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
        out.output.append(info)
    out.node.extend(write_node(n) for n in graph.nodes)
    kept = {v.name for n in graph.nodes for v in n.outputs}
    out.value_info.extend(info for name, info in model.declared.items() if name in kept)
    for extra, messages in model.graph_extras.items():
        getattr(out, extra).extend(messages)


def _write_constant(constant: Constant, write: TensorWriter | None) -> TensorProto:
    tensor = write(constant) if write is not None else write_tensor(constant.values, constant.name)
    if constant.doc_string:
        tensor.doc_string = constant.doc_string
    for key, value in constant.metadata.items():
        tensor.metadata_props.add(key=key, value=value)
    return tensor


def stored(graph: Graph) -> list[Constant]:
    """Return every constant to be written: the registered ones, then those that nodes read without registration."""
    found = dict(graph.constants)
    for value in [*(v for n in graph.nodes for v in n.inputs), *graph.outputs]:
        if isinstance(value, Constant):
            found.setdefault(value.name, value)
    return list(found.values())


def _write_info(model: Model, value: Value, shapes: dict[str, tuple[int, ...]]) -> ValueInfoProto:
    known = model.io_protos.get(value.name)
    if known is not None:
        info: ValueInfoProto = _copy(known)
    elif value.dtype is None:
        info = ValueInfoProto(name=value.name)
    else:
        elem = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
        info = onnx.helper.make_tensor_value_info(value.name, elem, value.shape)
    if value.name in shapes:
        tensor = info.type.tensor_type
        tensor.ClearField("shape")
        for size in shapes[value.name]:
            tensor.shape.dim.add().dim_value = size
        if not shapes[value.name]:
            tensor.shape.SetInParent()
    return info


def write_node(node: Node) -> NodeProto:
    """Return the NodeProto of `node`."""
    proto = NodeProto(
        op_type=node.op,
        name=node.name or None,
        domain=node.domain or None,
        doc_string=node.doc_string or None,
        overload=node.overload or None,
    )
    proto.input.extend(v.name for v in node.inputs)
    proto.output.extend(v.name for v in node.outputs)
    for key, value in node.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    for name, value in node.attrs.items():
        proto.attribute.append(write_attribute(name, value, node.attr_docs.get(name, "")))
    for name, kind in node.empty_lists.items():
        if name not in node.attrs:
            proto.attribute.add(name=name, type=kind, doc_string=node.attr_docs.get(name) or None)
    return proto
