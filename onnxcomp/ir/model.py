"""The model: a graph and everything else an ONNX file carries, kept through every edit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxcomp.ir.graph import Constant, Graph, Node, Value, Variable

__all__ = ["Model"]


@dataclass
class Model:
    """A graph with the file-level fields that graphsurgeon's own round trip drops.

    Attributes:
        graph: the mutable top-level graph.
        ir_version: of the file; raised only where a used feature needs it.
        opset_imports: version by domain; the standard domain is `""`.
        metadata: `metadata_props`, kept and extended by `onnxcomp.*` keys.
        functions: model-local functions (FunctionProto), carried through untouched.
        io_protos: the declared ValueInfoProto of every graph input and output by name, given back as they were.
        declared: declared types of values that shape inference cannot find out (outputs of custom operators).
        graph_extras: fields of GraphProto with no place in the graph (quantization annotations, metadata).
        notes: what loading had to mend, one sentence each.
        sources: the files the model was read from, which are never written to.
        converted_from: version of the standard operators in the file, where that is not the model's own.
        aliases: names of nodes in the loaded file -> names now; an absent key means unchanged, "" means removed.
    """

    graph: Graph
    ir_version: int = 8
    opset_imports: dict[str, int] = field(default_factory=lambda: {"": 17})
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc_string: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    functions: tuple[Any, ...] = ()
    io_protos: dict[str, Any] = field(default_factory=dict)
    declared: dict[str, Any] = field(default_factory=dict)
    graph_extras: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    converted_from: int | None = None

    @property
    def opset(self) -> int:
        """Version of the standard operators; 1 where the file imports none."""
        return self.opset_imports.get("", 1)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored tensors in memory."""
        return sum(c.values.nbytes for c in self.graph.constants.values())

    def clone(self) -> Model:
        """Return an independent model that shares the (read-only) arrays: time and memory do not depend on weights."""
        return replace(
            self,
            graph=_clone_graph(self.graph),
            opset_imports=dict(self.opset_imports),
            metadata=dict(self.metadata),
            io_protos=dict(self.io_protos),
            declared=dict(self.declared),
            graph_extras=dict(self.graph_extras),
            notes=list(self.notes),
            aliases=dict(self.aliases),
        )

    def rename_node(self, old: str, new: str) -> None:
        """Record that the node `old` is now `new` ("" = removed), following earlier records."""
        for first, current in self.aliases.items():
            if current == old:
                self.aliases[first] = new
        self.aliases.setdefault(old, new)


def _clone_graph(graph: Graph) -> Graph:
    made: dict[Value, Value] = {}

    def twin(value: Value) -> Value:
        if value not in made:
            if isinstance(value, Constant):
                made[value] = constant = Constant(value.name, value.values, value.doc_string)
                constant.metadata = dict(value.metadata)
            else:
                made[value] = Variable(value.name, value.dtype, value.shape, value.type)
        return made[value]

    new = Graph(graph.name, graph.doc_string, graph.opset)
    new.inputs = [twin(v) for v in graph.inputs]  # type: ignore[misc]
    new.constants = {name: twin(c) for name, c in graph.constants.items()}  # type: ignore[misc]
    for node in graph.nodes:
        new.nodes.append(_clone_node(node, twin))
    new.outputs = [twin(v) for v in graph.outputs]
    return new


def _clone_node(node: Node, twin: Any) -> Node:
    inputs = [twin(v) if v.name else Variable("") for v in node.inputs]
    outputs = [twin(v) if v.name else Variable("") for v in node.outputs]
    attrs = {name: list(value) if isinstance(value, list) else value for name, value in node.attrs.items()}
    new = Node(node.op, node.name, attrs, inputs, outputs, node.domain)
    new.captures, new.scoped = node.captures, node.scoped
    new.attr_docs, new.empty_lists = dict(node.attr_docs), dict(node.empty_lists)
    new.doc_string = node.doc_string
    new.metadata = dict(node.metadata)
    new.overload = node.overload
    return new
