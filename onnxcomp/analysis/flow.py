"""What the rules of label propagation share: the state of one walk over a graph, and how a rule declines a node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxcomp.analysis.labels import Ids, LabelMap, Labels
from onnxcomp.ir.graph import Constant, Graph, Node, Value

__all__ = ["Blocked", "Flow", "Rule", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]
"""Concrete shapes by value name."""


class Blocked(Exception):  # noqa: N818 - a refusal, caught in this room
    """A rule declines a node; the message is the reason."""


@dataclass
class Flow:
    """The state of one propagation, as the rules see it."""

    graph: Graph
    shapes: Shapes
    map: LabelMap

    def labels(self, value: Value) -> Labels:
        """Return the labels of an input of a node; the node is declined where the value holds nothing."""
        found = self.map.of_constant(value) if isinstance(value, Constant) else self.map.values[value.name]
        if 0 in found.shape:
            raise Blocked(f"it meets the empty value {value.name!r}")
        return found

    def shape(self, node: Node, index: int = 0) -> tuple[int, ...]:
        """Return the concrete shape of an output; the node is declined where nothing comes out."""
        found = self.shapes[node.outputs[index].name]
        if 0 in found:
            raise Blocked(f"{node.op} {node.name!r} makes an empty value")
        return found

    def knows(self, node: Node) -> bool:
        """Return whether the shapes of all inputs and outputs of `node` are known."""
        return all(not v.name or v.name in self.shapes for v in [*node.inputs, *node.outputs])

    def channels(self, node: Node, axis: int) -> Ids:
        """Return the labels of input 0 along `axis`; the node is declined where they differ along another axis."""
        ids = self.labels(node.inputs[0]).along(axis)
        if ids is None:
            raise Blocked(f"{node.op} {node.name!r} reads channels that lie along another axis")
        return ids


Rule = Callable[[Flow, Node], "list[Labels]"]
"""Returns the labels of every output of a node; raises Blocked where it cannot say."""
