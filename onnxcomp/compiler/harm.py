"""What does the harm in a network of integers: every scale and every stored weight, and how each is avoided.

A *place* is what is stored alone: the values that share a scale, or one weight. How much each disturbs the outputs is
expected from the derivatives that the choice of ranges has taken (`effects.py`), without running anything.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.placement import WeightSite, absorbed_by
from onnxcomp.compiler.quantizer import Plan
from onnxcomp.compiler.target import Target
from onnxcomp.compiler.weight_rounding import weight_affine
from onnxcomp.ir.graph import Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.observers import Histogram

__all__ = ["Place", "decibels", "exclude_words", "melted", "places", "tell_harm"]

Array64 = NDArray[np.float64]

HARMFUL = 1e-3
"""Share of the outputs' energy (30 dB) that a place must be expected to disturb before anybody is warned of it ..."""

FAR_ABOVE = 10.0
"""... and how many times more than the middle one of all places."""

APART = 16.0
"""Ranges of a Concat's inputs differ widely where one reaches so many times farther than another: four bits of eight."""

TOLD = 3
"""Places that notes are about."""

RANKED = 20
"""Places that the report ranks."""


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


def places(found: Plan, target: Target, *, corrected: bool = True) -> list[Place]:
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


def _causes(found: Plan, value: Any, target: Target) -> list[str]:
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
    found: Plan, node: Node, site: WeightSite, target: Target, corrected: bool
) -> float | None:
    """Return what rounding a weight to the nearest is expected to disturb, for inputs that are alike and independent."""
    linear = linear_node(node)
    assert linear is not None, site.node
    follower = absorbed_by(found.model, node, target)
    effect = found.effects.get((follower or node).output.name)
    seen = found.seen.get(linear.input)
    if effect is None or seen is None:
        return None
    matrix = linear.matrix()
    even = np.zeros((len(matrix), matrix.shape[2]))
    affine = weight_affine(matrix, even, found.formats.weights, found.formats.per_channel)
    rows = matrix.reshape(-1, matrix.shape[2])
    error = np.square(affine.round_trip(rows, 0) - rows).sum(1).mean()
    mean, power = _moments(seen)
    spread = power - mean**2 if corrected and linear.has_bias else power
    return float(error * spread * effect.squares.sum())


def _moments(seen: Histogram) -> tuple[float, float]:
    """Return the means of what was seen and of its square."""
    lower, upper = seen.edges
    centre = (lower + upper) / 2
    count = max(1, seen.count)
    return float(seen.counts @ centre) / count, float(seen.counts @ np.square(centre)) / count


# --- telling ---------------------------------------------------------------------------------------------------------
def decibels(share: float) -> float:
    """Return the signal-to-noise ratio in dB at which errors have the `share` of the signal's energy."""
    return math.inf if share <= 0 else -10 * math.log10(share)


def tell_harm(found: Plan, context: Context, log: PassLog, *, corrected: bool = True) -> None:
    """Rank the places of a plan in the report, and say how to spare what stands out: the `--exclude` to paste."""
    known = [(p, p.expected) for p in places(found, context.target, corrected=corrected)]
    ranked = sorted(((p, e) for p, e in known if e is not None), key=lambda item: -item[1])
    if ranked:
        rows = [
            {"place": p.name, "kind": p.kind, "nodes": list(p.nodes), "harm": float(f"{e:.4g}")}
            for p, e in ranked[:RANKED]
        ]
        log.change("graph", "what is expected to disturb the outputs, the worst first", ranking=rows)
    middle = float(np.median([e for _, e in ranked])) if ranked else 0.0
    for place, expected in ranked[:TOLD]:
        if expected < max(HARMFUL, FAR_ABOVE * middle):
            break
        what = f"the weight of {place.name!r}" if place.kind == "weight" else f"{place.name!r}"
        log.note(
            f"storing {what} in integers is expected to leave {decibels(expected):.1f} dB at the outputs, far below "
            f"other places{_cure(found.model, context, place.nodes)}"
        )
    _tell_concats(found, context, log)


def _tell_concats(found: Plan, context: Context, log: PassLog) -> None:
    """Name the Concats whose inputs' ranges differ widely: one scale fits only the largest."""
    for node in found.model.graph.nodes:
        if not node.is_op("Concat") or node.output.name not in found.placement.values:
            continue
        reach = {v.name: _reach(found, v.name) for v in node.inputs if _reach(found, v.name) > 0}
        if len(reach) < 2 or max(reach.values()) < APART * min(reach.values()):
            continue
        large, small = max(reach, key=reach.__getitem__), min(reach, key=reach.__getitem__)
        readers = [n for n in node.output.consumers if n.name in found.placement.nodes]
        nodes = [n.name for n in (node, *readers)]
        log.note(
            f"{node.name}: {large!r} reaches to {reach[large]:.4g} and {small!r} to {reach[small]:.4g}; one scale for "
            f"both fits the larger{_cure(found.model, context, nodes)}"
        )


def _reach(found: Plan, name: str) -> float:
    """Return the largest magnitude of a value, 0 where it was not looked at."""
    seen = found.seen.get(name)
    return 0.0 if seen is None or not seen.count else max(abs(seen.low), abs(seen.high))


def _cure(model: Model, context: Context, nodes: Sequence[str]) -> str:
    words = exclude_words(model, context, nodes)
    return f"; {words} keeps it in float" if words else ""


def exclude_words(model: Model, context: Context, nodes: Iterable[str]) -> str:
    """Return the options that exclude `nodes` of `model`, as a shell reads them; nodes that a pass made are left out."""
    given = {node.name for node in context.original.graph.nodes}
    back: Mapping[str, list[str]] = _before(model)
    names: dict[str, None] = {}
    for name in nodes:
        origin = next((old for old in [name, *back.get(name, [])] if old in given), None)
        if origin is not None:
            names[origin] = None
    return " ".join(f"--exclude {shlex.quote(name)}" for name in names)


def _before(model: Model) -> dict[str, list[str]]:
    """Return the names in the file of each node that is called otherwise now."""
    found: dict[str, list[str]] = {}
    for before, now in model.aliases.items():
        if now is not None:
            found.setdefault(now, []).append(before)
    return found
