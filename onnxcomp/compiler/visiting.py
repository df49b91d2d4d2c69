"""In which order a walk visits the nodes it refits."""

from __future__ import annotations

from collections.abc import Iterable

from onnxcomp.analysis.linear import linear_node
from onnxcomp.ir.graph import Node, Variable
from onnxcomp.ir.model import Model

__all__ = ["visiting_order"]


def visiting_order(model: Model, names: Iterable[str]) -> list[str]:
    """Return `names` of linear nodes of `model` in topological order, but the lighter of two that are added first.

    Of a residual block whose shortcut has a convolution of its own, the shortcut loses little and is solved from what is
    there already. The branch comes last: it can then be fitted to what the sum still lacks, and knows the activation
    behind the sum.
    """
    wanted = set(names)
    nodes = {node.name: node for node in model.graph.nodes}
    place = {name: float(index) for index, name in enumerate(nodes)}
    for node in model.graph.nodes:
        makers = [v.producer for v in node.inputs if isinstance(v, Variable)] if node.is_op("Add") else []
        if len(makers) != 2 or any(m is None or m.name not in wanted for m in makers):
            continue
        light, heavy = sorted((m for m in makers if m is not None), key=_weight)
        if place[light.name] < place[heavy.name]:
            continue
        before = _upstream(light) & wanted
        if all(place[name] < place[heavy.name] for name in before):
            place[light.name] = place[heavy.name] - 0.5
    return sorted(wanted, key=place.__getitem__)


def _weight(node: Node) -> int:
    linear = linear_node(node)
    return linear.weight_array().size if linear is not None else 0


def _upstream(node: Node) -> set[str]:
    """Return the names of all nodes that `node` depends on."""
    found: set[str] = set()
    queue = [node]
    while queue:
        for value in queue.pop().inputs:
            maker = value.producer if isinstance(value, Variable) else None
            if maker is not None and maker.name not in found:
                found.add(maker.name)
                queue.append(maker)
    return found
