"""What is stored in integers, place by place: the values that share a scale, or one weight.

How much each alone disturbs the outputs is expected from the derivatives that the choice of ranges has taken
(`gradients/value_sensitivity.py`), without running anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.quantization.placement import WeightSite, absorbed_by
from onnxcomp.compiler.quantization.plan import QuantizationPlan
from onnxcomp.compiler.quantization.weight_rounding import weight_affine
from onnxcomp.compiler.target.facts import Target
from onnxcomp.ir.graph import Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.observers import Histogram

__all__ = ["Place", "melted", "places"]


@dataclass(frozen=True)
class Place:
    """Something that is stored in integers.

    Attributes:
        kind: `value` for values with one scale, `weight` for a stored weight.
        name: the value that has the scale, or the node that reads the weight.
        values: the values that share the scale; none for a weight.
        nodes: which all would have to stay float for it to stay float, in the order of the graph.
        expected: share of the outputs' energy that it is expected to disturb; None where nothing is known.
    """

    kind: Literal["value", "weight"]
    name: str
    values: tuple[str, ...]
    nodes: tuple[str, ...]
    expected: float | None


def places(found: QuantizationPlan, target: Target, *, corrected: bool = True) -> list[Place]:
    """Return the places of a plan in the order of the graph; with `corrected` biases take up what a mean moves."""
    order = {node.name: number for number, node in enumerate(found.model.graph.nodes)}
    known = found.model.graph.values()
    made = []
    for root, members in found.placement.sources.items():
        needs = {n for name in members for n in _causes(found, known[name], target)}
        nodes = tuple(sorted(needs, key=order.__getitem__))
        made.append(Place("value", root, tuple(members), nodes, found.chosen.costs.get(root)))
    nodes_of = {node.name: node for node in found.model.graph.nodes}
    for site in found.placement.weights:
        expected = _expected_weight(found, nodes_of[site.node], site, target, corrected)
        made.append(Place("weight", site.node, (), (site.node,), expected))
    return sorted(made, key=lambda place: min((order[n] for n in place.nodes), default=0))


def _causes(found: QuantizationPlan, value: Any, target: Target) -> list[str]:
    """Return the nodes computed in integers because of which `value` is stored."""
    inside = set(found.placement.nodes)
    causes = [
        node.name
        for node, index in found.model.graph.uses(value)
        if node.name in inside and (linear_node(node) is None or index == _data(node))
    ]
    maker = value.producer
    if maker is not None and maker.name in inside:
        head = _head(found.model, maker, target)
        if linear_node(head) is None or head in target.output_pair:
            causes.append(head.name)
    return causes


def _data(node: Node) -> int:
    linear = linear_node(node)
    return 0 if linear is None else linear.data


def _head(model: Model, node: Node, target: Target) -> Node:
    """Return the node that the activation `node` melts into, `node` itself for any other."""
    source = node.inputs[0] if node.inputs else None
    maker = source.producer if isinstance(source, Variable) else None
    return maker if maker is not None and absorbed_by(model, maker, target) is node else node


def melted(model: Model, target: Target) -> dict[str, str]:
    """Return the activations that melt into the node in front, by the name of that node."""
    pairs = [(node, absorbed_by(model, node, target)) for node in model.graph.nodes]
    return {node.name: follower.name for node, follower in pairs if follower is not None}


def _expected_weight(
    found: QuantizationPlan, node: Node, site: WeightSite, target: Target, corrected: bool
) -> float | None:
    """Return what rounding a weight to the nearest is expected to disturb, for inputs that are alike and independent."""
    linear = linear_node(node)
    assert linear is not None, site.node
    follower = absorbed_by(found.model, node, target)
    effect = found.observed.sensitivity.get((follower or node).output.name)
    seen = found.observed.seen.get(linear.input)
    if effect is None or seen is None:
        return None
    matrix = linear.matrix()
    even = np.zeros((len(matrix), matrix.shape[2]))
    affine = weight_affine(matrix, even, found.formats.weights, found.formats.per_channel)
    rows = matrix.reshape(-1, matrix.shape[2])
    # Of a channel that is large by itself nobody knows whether it counts as much as the others.
    error = np.median(np.square(affine.round_trip(rows, 0) - rows).sum(1))
    mean, power = _moments(seen)
    spread = power - mean**2 if corrected and linear.has_bias else power
    return float(error * spread * effect.squares.sum())


def _moments(seen: Histogram) -> tuple[float, float]:
    """Return the means of what was seen and of its square."""
    lower, upper = seen.edges
    centre = (lower + upper) / 2
    count = max(1, seen.count)
    return float(seen.counts @ centre) / count, float(seen.counts @ np.square(centre)) / count
