"""A model as text: the same model gives the same text, and a changed one another, weights included by digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from onnxcomp.ir.convert import minimum_ir_version
from onnxcomp.ir.graph import Array, Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import stored, to_proto, write_node
from onnxcomp.ir.tensors import numpy_dtype, raw_bytes, read_tensor

__all__ = ["digest", "dump", "printable"]

_PLAIN = re.compile(r"[\w./:+\-]+")
_SHOWN_ELEMENTS = 8
"""Tensors of so few elements are shown in full: they are axes, shapes, scales."""
_DIGEST_HEX = 16


def printable(text: str) -> str:
    r"""Return `text` on one line: as it is where it is plain, else quoted, with `\u....` for what does not print.

    Names and documentation in a model come from anybody; neither terminal nor diff may obey their control characters.

    >>> printable("conv1/weight:0"), printable("two words"), printable("a\x1b[31m")
    ('conv1/weight:0', '"two words"', '"a\\u001b[31m"')
    """
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in escaped) + '"'


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def digest(values: Array) -> str:
    """Return 16 hex digits that stand for dtype, shape and every bit of `values`."""
    state = hashlib.sha256(f"{_dtype(values.dtype)}{list(values.shape)}".encode())
    if values.dtype == object:
        for item in values.flat:
            data = item if isinstance(item, bytes) else str(item).encode()
            state.update(b"%d:%b" % (len(data), data))
    else:
        for piece in raw_bytes(values):
            state.update(piece)
    return state.hexdigest()[:_DIGEST_HEX]


def dump(model: Model) -> str:
    """Return `model` as text: header, interface, stored tensors, nodes in order, functions; subgraphs are indented.

    Two models have equal dumps if and only if they would be saved as the same model: metadata and attributes are
    sorted, since their order means nothing; nodes are not.
    """
    return "\n".join(_model_lines(model)) + "\n"


def _model_lines(model: Model) -> Iterator[str]:
    opsets = " ".join(f"{printable(d or 'ai.onnx')}={v}" for d, v in sorted(model.opset_imports.items()))
    yield f"model ir_version={max(model.ir_version, minimum_ir_version(model))} {opsets}"
    labels = {
        "domain": model.domain,
        "producer_name": model.producer_name,
        "producer_version": model.producer_version,
        "model_version": str(model.model_version or ""),
        "doc_string": model.doc_string,
    }
    yield from (f"  {key} {printable(text)}" for key, text in labels.items() if text)
    yield from _metadata_lines(model.metadata, "  ")
    yield f"graph {printable(model.graph.name)}"
    if model.graph.doc_string:
        yield f"  doc_string {printable(model.graph.doc_string)}"
    yield from _interface_lines(model)
    yield from (f"  constant {_constant(c)}" for c in sorted(stored(model.graph), key=lambda c: c.name))
    for node in model.graph.nodes:
        yield from _node_lines(node, "  ")
    for function in model.functions:
        yield from _function_lines(function)


def _interface_lines(model: Model) -> Iterator[str]:
    proto = to_proto(model, skeleton=True).graph
    yield from _metadata_lines(_props(proto), "  ")
    yield from (f"  input {_info(info)}" for info in proto.input[: len(model.graph.inputs)])
    yield from (f"  output {_info(info)}" for info in proto.output)
    yield from (f"  declared {_info(info)}" for info in sorted(proto.value_info, key=lambda info: info.name))
    yield from _annotation_lines(proto, "  ")


def _annotation_lines(graph: GraphProto, indent: str) -> Iterator[str]:
    for note in graph.quantization_annotation:
        pairs = {p.key: p.value for p in note.quant_parameter_tensor_names}
        yield f"{indent}quantization {printable(note.tensor_name)}{_inline_metadata(pairs)}"


def _props(message: Any) -> dict[str, str]:
    return {p.key: p.value for p in message.metadata_props}


def _metadata_lines(metadata: Mapping[str, str], indent: str) -> Iterator[str]:
    for key, value in sorted(metadata.items()):
        yield f"{indent}metadata {printable(key)} = {printable(value)}"


def _inline_metadata(metadata: Mapping[str, str]) -> str:
    return "".join(f" [{printable(k)} = {printable(v)}]" for k, v in sorted(metadata.items()))


def _labels(doc_string: str, metadata: Mapping[str, str]) -> str:
    return (f" # {printable(doc_string)}" if doc_string else "") + _inline_metadata(metadata)


def _constant(constant: Constant) -> str:
    return f"{printable(constant.name)}: {_array(constant.values)}{_labels(constant.doc_string, constant.metadata)}"


def _array(values: Array) -> str:
    text = f"{_dtype(values.dtype)}{list(values.shape)} {digest(values)}"
    if values.size <= _SHOWN_ELEMENTS:
        text += " {" + ", ".join(_element(item) for item in values.flat) + "}"
    return text


def _element(item: Any) -> str:
    if not isinstance(item, bytes):
        return printable(str(item))
    try:
        return printable(item.decode())
    except UnicodeDecodeError:
        return f"bytes({item.hex()})"


def _dtype(dtype: np.dtype[Any] | None) -> str:
    if dtype is None:
        return "?"
    return "string" if dtype == object else str(dtype)


# --- interface -------------------------------------------------------------------------------------------------------
def _info(info: ValueInfoProto) -> str:
    return f"{printable(info.name)}: {_type(info.type)}{_labels(info.doc_string, _props(info))}"


def _type(proto: TypeProto) -> str:
    match proto.WhichOneof("value"):
        case "tensor_type":
            return _tensor_type(proto.tensor_type)
        case "sparse_tensor_type":
            return f"sparse {_tensor_type(proto.sparse_tensor_type)}"
        case "sequence_type":
            return f"sequence({_type(proto.sequence_type.elem_type)})"
        case "optional_type":
            return f"optional({_type(proto.optional_type.elem_type)})"
        case "map_type":
            key = _dtype(numpy_dtype(proto.map_type.key_type))
            return f"map({key}, {_type(proto.map_type.value_type)})"
        case other:
            return other or "?"


def _tensor_type(proto: Any) -> str:
    name = _dtype(numpy_dtype(proto.elem_type))
    if not proto.HasField("shape"):
        return f"{name}[...]"
    return f"{name}[{', '.join(_dim(dim) for dim in proto.shape.dim)}]"


def _dim(dim: Any) -> str:
    if dim.HasField("dim_value"):
        return str(dim.dim_value)
    if dim.dim_param.lstrip("-").isdigit():
        return f'"{dim.dim_param}"'
    return printable(dim.dim_param) if dim.dim_param else "?"


# --- nodes -----------------------------------------------------------------------------------------------------------
def _node_lines(node: Node, indent: str) -> Iterator[str]:
    yield from _proto_lines(write_node(node), indent)


def _proto_lines(node: NodeProto, indent: str) -> Iterator[str]:
    operator = ".".join(printable(part) for part in (node.domain, node.op_type, node.overload) if part)
    attributes = sorted(node.attribute, key=lambda a: a.name)
    plain = [f"{printable(a.name)}={_attribute(a)}" for a in attributes if not _graphs(a)]
    yield (
        f"{indent}{_names(node.output)} = {operator}({_names(node.input)})"
        + (f" {{{', '.join(plain)}}}" if plain else "")
        + (f" as {printable(node.name)}" if node.name else "")
        + _labels(node.doc_string, _props(node))
    )
    for attribute in attributes:
        for graph in _graphs(attribute):
            yield f"{indent}  {printable(attribute.name)}{_labels(attribute.doc_string, {})}:"
            yield from _graph_lines(graph, indent + "    ")


def _names(names: Iterable[str]) -> str:
    return ", ".join(printable(name) if name else "~" for name in names)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _graph_lines(graph: GraphProto, indent: str) -> Iterator[str]:
    yield f"{indent}graph {printable(graph.name)}{_labels(graph.doc_string, _props(graph))}"
    for kind, infos in {"input": graph.input, "output": graph.output, "declared": graph.value_info}.items():
        yield from (f"{indent}  {kind} {_info(info)}" for info in infos)
    yield from (f"{indent}  constant {_tensor(tensor)}" for tensor in graph.initializer)
    yield from (f"{indent}  constant {_sparse(sparse)}" for sparse in graph.sparse_initializer)
    yield from _annotation_lines(graph, indent + "  ")
    for node in graph.node:
        yield from _proto_lines(node, indent + "  ")


def _tensor(tensor: TensorProto) -> str:
    name = f"{printable(tensor.name)}: " if tensor.name else ""
    return f"{name}{_array(read_tensor(tensor))}{_labels(tensor.doc_string, _props(tensor))}"


def _sparse(sparse: Any) -> str:
    return f"sparse {list(sparse.dims)} {_tensor(sparse.values)} at {_array(read_tensor(sparse.indices))}"


def _attribute(attribute: AttributeProto) -> str:
    if attribute.ref_attr_name:
        return f"@{printable(attribute.ref_attr_name)}:{_kind(attribute)}"
    return _attribute_value(attribute) + _labels(attribute.doc_string, {})


def _attribute_value(attribute: AttributeProto) -> str:
    match attribute.type:
        case AttributeProto.FLOAT:
            return repr(attribute.f)
        case AttributeProto.INT:
            return str(attribute.i)
        case AttributeProto.STRING:
            return "'" + _element(attribute.s) + "'"
        case AttributeProto.TENSOR:
            return _tensor(attribute.t)
        case AttributeProto.SPARSE_TENSOR:
            return _sparse(attribute.sparse_tensor)
        case AttributeProto.TYPE_PROTO:
            return _type(attribute.tp)
        case _:
            # An empty list tells nothing of its type, which is part of the attribute.
            items = list(_list_items(attribute))
            return f"[{', '.join(items)}]" if items else f"[]:{_kind(attribute)}"


def _kind(attribute: AttributeProto) -> str:
    return str(AttributeProto.AttributeType.Name(attribute.type)).lower()


def _list_items(attribute: AttributeProto) -> Iterator[str]:
    yield from (repr(item) for item in attribute.floats)
    yield from (str(item) for item in attribute.ints)
    yield from ("'" + _element(item) + "'" for item in attribute.strings)
    yield from (_tensor(item) for item in attribute.tensors)
    yield from (_sparse(item) for item in attribute.sparse_tensors)
    yield from (_type(item) for item in attribute.type_protos)


def _function_lines(function: FunctionProto) -> Iterator[str]:
    name = ".".join(printable(part) for part in (function.domain, function.name, function.overload) if part)
    opsets = " ".join(
        f"{printable(o.domain or 'ai.onnx')}={o.version}"
        for o in sorted(function.opset_import, key=lambda o: o.domain)
    )
    attributes = [*map(printable, function.attribute)]
    attributes += [f"{printable(a.name)}={_attribute(a)}" for a in function.attribute_proto]
    yield (
        f"function {name}({_names(function.input)}) {{{', '.join(attributes)}}} -> {_names(function.output)} {opsets}"
        + _labels(function.doc_string, _props(function))
    )
    yield from (f"  declared {_info(info)}" for info in function.value_info)
    for node in function.node:
        yield from _proto_lines(node, "  ")
