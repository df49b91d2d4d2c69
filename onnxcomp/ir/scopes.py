"""What lies inside nodes: the names and the tensors of subgraphs and attributes, on the level of the file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

if TYPE_CHECKING:
    from onnxcomp.ir.graph import Node

__all__ = [
    "captures",
    "inner_elements",
    "inner_operators",
    "nested_tensors",
    "scoped",
    "subgraph_initializers",
    "subgraphs",
]


def subgraphs(node: NodeProto) -> Iterable[GraphProto]:
    """Yield the graphs that `node` holds as attributes."""
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def captures(node: NodeProto) -> Iterable[str]:
    """Yield the names that the subgraphs of `node` read before they define them; some may be defined later on."""
    for graph in subgraphs(node):
        inner = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        inner |= {s.values.name for s in graph.sparse_initializer}
        for child in graph.node:
            yield from (n for n in [*child.input, *captures(child)] if n and n not in inner)
            inner.update(child.output)
        yield from (o.name for o in graph.output if o.name not in inner)


def scoped(node: NodeProto) -> Iterable[str]:
    """Yield the names that the subgraphs of `node` define: no new value of the outer graph may take one."""
    for graph in subgraphs(node):
        yield from (i.name for i in graph.input)
        yield from (t.name for t in graph.initializer)
        yield from (s.values.name for s in graph.sparse_initializer)
        for child in graph.node:
            yield from (name for name in child.output if name)
            yield from scoped(child)


def nested_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of `proto` but the initializers of its main graph: in attributes, subgraphs, functions."""
    for sparse in proto.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in [*proto.graph.node, *(n for f in proto.functions for n in f.node)]:
        yield from _node_tensors(node)
    for function in proto.functions:
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for pair in [*sparse, *attribute.sparse_tensors]:
        yield from (pair.values, pair.indices)
    for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
        yield from _graph_tensors(graph)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def subgraph_initializers(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield every dense initializer of the subgraphs of `proto`, however deep."""
    waiting = [graph for node in proto.graph.node for graph in subgraphs(node)]
    while waiting:
        graph = waiting.pop(0)
        yield from graph.initializer
        waiting.extend(inner for node in graph.node for inner in subgraphs(node))


def inner_operators(node: Node) -> Iterator[str]:
    """Yield the operators inside the subgraphs of `node`, at any depth."""
    for attribute in _protos(node):
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from _operators(graph)


def _operators(graph: GraphProto) -> Iterator[str]:
    for child in graph.node:
        yield child.op_type
        for inner in subgraphs(child):
            yield from _operators(inner)


def inner_elements(node: Node) -> int:
    """Return how many numbers the floating-point tensors inside the subgraphs of `node` hold, at any depth."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    held = (t for a in _protos(node) if a.HasField("g") or a.graphs for t in _attribute_tensors(a))
    return sum(math.prod(tensor.dims) for tensor in held if tensor.data_type in floats)


def _protos(node: Node) -> list[AttributeProto]:
    return [v for v in node.attrs.values() if isinstance(v, AttributeProto)]
