"""Attributes of nodes: read into plain values that passes can compute with, and written back as they were."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from onnxcomp.errors import ModelError
from onnxcomp.ir.graph import Node, frozen, is_default_domain
from onnxcomp.ir.tensors import TensorReader, write_tensor

__all__ = ["read_attributes", "write_attribute"]

_FIELDS: dict[int, str] = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
"""Where the value of an attribute of each type stands."""

_LISTS = (AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS)


def read_attributes(node: Node, proto: NodeProto, read: TensorReader, version: int, *, known: bool) -> None:
    """Put the attributes of `proto` into `node`: numbers, text, lists of them and tensors as plain values.

    An empty list says the same as no attribute, as it does in onnxruntime, and is kept only to be written again, as doc
    strings are. Graphs, types, sparse tensors and bytes that are no text stay an AttributeProto. `version` is that of the
    node's domain; `known` says that the operator is the one that onnx defines under this name.

    Raises:
        ModelError: naming node and attribute, for one of another type than the operator takes, one that is given twice,
            one that is missing and one that refers to the attribute of a function.
    """
    label = proto.name or next(filter(None, proto.output), proto.op_type)
    types = _declared_types(proto.op_type, proto.domain, version) if known else {}
    for attribute in proto.attribute:
        where = f"attribute {attribute.name!r} of {proto.op_type} {label!r}"
        if attribute.name in node.attrs or attribute.name in node.empty_lists:
            raise ModelError(f"node {label!r} has two attributes of one name: {attribute.name!r}")
        if attribute.ref_attr_name and types:
            raise ModelError(
                f"{where} refers to {attribute.ref_attr_name!r} of a function, but stands in none"
            )
        wanted = types.get(attribute.name)
        kind = attribute.type or _filled(attribute) or wanted
        if kind not in _FIELDS:
            raise ModelError(f"{where} has the unknown type {kind or 0}")
        if wanted is not None and kind != wanted:
            raise ModelError(
                f"{where} is of type {_type_name(kind)}; {proto.op_type} takes {_type_name(wanted)}"
            )
        if attribute.doc_string:
            node.attr_docs[attribute.name] = attribute.doc_string
        if kind in _LISTS and not attribute.ref_attr_name and not getattr(attribute, _FIELDS[kind]):
            node.empty_lists[attribute.name] = kind
        else:
            node.attrs[attribute.name] = _value(attribute, kind, read)
    for name in _required(proto.op_type, proto.domain, version) if known else ():
        if name not in node.attrs and name not in node.empty_lists:
            raise ModelError(f"{proto.op_type} {label!r} has no attribute {name!r}, which it needs")


def _value(attribute: AttributeProto, kind: int, read: TensorReader) -> Any:
    given = getattr(attribute, _FIELDS[kind])
    match 0 if attribute.ref_attr_name else kind:
        case AttributeProto.FLOAT | AttributeProto.INT:
            return given
        case AttributeProto.FLOATS | AttributeProto.INTS:
            return list(given)
        case AttributeProto.STRING | AttributeProto.STRINGS:
            try:
                return given.decode() if kind == AttributeProto.STRING else [text.decode() for text in given]
            except UnicodeDecodeError:
                pass
        case AttributeProto.TENSOR if given.data_type != TensorProto.STRING:
            return frozen(read(given))
    twin = AttributeProto()
    twin.CopyFrom(attribute)
    return twin


def _filled(attribute: AttributeProto) -> int:
    """Return the type of the only value of an attribute that does not say it (files of IR version 1), else 0."""
    found = [
        kind
        for kind, field in _FIELDS.items()
        if (
            len(getattr(attribute, field))
            if field.endswith("s") and field != "s"
            else attribute.HasField(field)
        )
    ]
    return found[0] if len(found) == 1 else 0


def _type_name(kind: int) -> str:
    return str(AttributeProto.AttributeType.Name(kind)).lower()


@functools.lru_cache(maxsize=4096)
def _declared_types(op: str, domain: str, version: int) -> dict[str, int]:
    """Return the type of every attribute of an operator of onnx, by name; nothing of others."""
    return {name: int(attribute.type.value) for name, attribute in _schema(op, domain, version).items()}


@functools.lru_cache(maxsize=4096)
def _required(op: str, domain: str, version: int) -> tuple[str, ...]:
    """Return the names of the attributes without which an operator of onnx means nothing."""
    return tuple(name for name, attribute in _schema(op, domain, version).items() if attribute.required)


def _schema(op: str, domain: str, version: int) -> dict[str, Any]:
    try:
        schema = onnx.defs.get_schema(op, version, "" if is_default_domain(domain) else domain)
    except onnx.defs.SchemaError:
        return {}
    return dict(schema.attributes)


def write_attribute(name: str, value: Any, doc_string: str = "") -> AttributeProto:
    """Return the AttributeProto of `value`, which is as `read_attributes` leaves it, or a plain one of a pass."""
    if isinstance(value, AttributeProto):
        return value
    attribute: AttributeProto
    if isinstance(value, np.ndarray):
        attribute = AttributeProto(name=name, type=AttributeProto.TENSOR, t=write_tensor(value, ""))
    elif isinstance(value, list) and not value:
        attribute = AttributeProto(name=name, type=AttributeProto.INTS)
    else:
        attribute = onnx.helper.make_attribute(name, value)
    if doc_string:
        attribute.doc_string = doc_string
    return attribute
