"""What a graph needs and what not: nodes that nothing waits for, constants that nothing reads, names that must stay."""

from __future__ import annotations

from collections.abc import Collection

from onnx import AttributeProto

from onnxcomp.ir.graph import Constant, Graph, Node
from onnxcomp.ir.model import Model

__all__ = ["dead_nodes", "has_subgraphs", "pinned_names", "unread_constants"]


def dead_nodes(graph: Graph, keep: Collection[Node] = ()) -> list[Node]:
    """Return the nodes that no graph output and no node of `keep` depends on, in graph order.

    A value that a living node's subgraph captures counts as read.
    """
    makers = {v.name: node for node in graph.nodes for v in node.outputs if v.name}
    waiting = [*keep, *(makers[v.name] for v in graph.outputs if v.name in makers)]
    alive: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node in alive:
            continue
        alive.add(node)
        reads = [*(v.name for v in node.inputs), *node.captures]
        waiting.extend(makers[name] for name in reads if name in makers)
    return [node for node in graph.nodes if node not in alive]


def pinned_names(model: Model) -> set[str]:
    """Return the names that must keep their values for other reasons than a reader in the graph.

    These are graph inputs and outputs, captures of subgraphs, and tensors that quantization annotations speak of.
    """
    graph = model.graph
    pinned = {v.name for v in [*graph.inputs, *graph.outputs]} | graph.captured()
    for annotation in model.graph_extras.get("quantization_annotation", ()):
        pinned.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return pinned


def unread_constants(model: Model) -> list[Constant]:
    """Return the registered constants that no node, subgraph, graph output or annotation reads."""
    pinned = pinned_names(model)
    return [c for c in model.graph.constants.values() if not c.outputs and c.name not in pinned]


def has_subgraphs(node: Node) -> bool:
    """Return whether `node` holds graphs of its own, as If, Loop and Scan do."""
    graphs = (v for v in node.attrs.values() if isinstance(v, AttributeProto))
    return any(attribute.HasField("g") or attribute.graphs for attribute in graphs)
