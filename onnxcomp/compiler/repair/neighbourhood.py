"""What stands around a node that is refitted: its activation, its residual branch, its only reader; and the visiting order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.ir.graph import Constant, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.runtime.capture import Frontier

__all__ = ["PairLink", "activation_bounds", "find_pairs", "other_branch", "visiting_order"]


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


def activation_bounds(node: Node, model: Model, other: str | None) -> tuple[float, float] | None:
    """Return the bounds of the Relu or Clip that alone reads `node`'s output (after its residual addition), or None."""
    reader = _reader(model, node.output)
    if reader is not None and reader.is_op("Add") and other:
        reader = _reader(model, reader.output)
    if reader is None:
        return None
    if reader.is_op("Relu"):
        return 0.0, np.inf
    if reader.is_op("Clip") and all(
        reader.input(i) is None or reader.constant(i) is not None for i in (1, 2)
    ):
        low, high = reader.constant(1), reader.constant(2)
        # Bounds are scalars by the standard, and arrays of one element in files that runtimes accept all the same.
        return (-np.inf if low is None else low.item()), (np.inf if high is None else high.item())
    return None


def _reader(model: Model, value: Variable) -> Node | None:
    """Return the only reader of `value`, looking through a pair of QuantizeLinear and DequantizeLinear."""
    return model.graph.sole_use(past_pair(model, value))


def past_pair(model: Model, value: Variable) -> Variable:
    """Return what a pair of QuantizeLinear and DequantizeLinear makes of `value`, or `value` where there is none."""
    graph = model.graph
    for op in ("QuantizeLinear", "DequantizeLinear"):
        reader = graph.sole_use(value)
        if reader is None or not reader.is_op(op) or reader.inputs[0] is not value:
            return value
        value = reader.output
    return value


@dataclass(frozen=True)
class PairLink:
    """A producer, the bounds of the activation between it and its only reader, and the nodes up to there."""

    producer: LinearNode
    bounds: tuple[float, float]
    between: tuple[Node, ...]


def find_pairs(model: Model, names: Sequence[str]) -> dict[str, PairLink]:
    """Return, by the reader's name, the convolutions among `names` that one other of them alone reads.

    Between them stands one Relu or Clip. In a chain every node is reader of one pair and producer of the next.
    """
    found: dict[str, PairLink] = {}
    nodes = {node.name: node for node in model.graph.nodes}
    wanted = set(names)
    for name in names:
        producer = linear_node(nodes[name])
        activation = model.graph.sole_use(nodes[name].output)
        if producer is None or producer.layout != "conv" or activation is None:
            continue
        bounds = activation_bounds(nodes[name], model, None)
        reader = model.graph.sole_use(activation.output) if bounds is not None else None
        if bounds is None or reader is None or reader.name not in wanted or not reader.is_op("Conv"):
            continue
        if reader.inputs[0] is activation.output and linear_node(reader) is not None:
            found[reader.name] = PairLink(producer, bounds, (nodes[name], activation))
    return found


def other_branch(
    node: Node,
    original: Model,
    new: Frontier,
    unvisited: Collection[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> str | None:
    """Return the value that `node`'s output is added to, where the compressed network can already compute it.

    A value of another shape, which the addition would broadcast, is no branch of a residual block and is left alone.
    """
    adder = _reader(new.model, node.output)
    if adder is None or not adder.is_op("Add"):
        return None
    mine = past_pair(new.model, node.output)
    others: list[Value] = [v for v in adder.inputs if v is not mine]
    if len(others) != 1 or isinstance(others[0], Constant) or others[0].name not in original.graph.values():
        return None
    other = others[0].name
    if shapes.get(other) is None or shapes.get(other) != shapes.get(mine.name):
        return None
    return None if any(n.name in unvisited for n in new.pending([other])) else other
