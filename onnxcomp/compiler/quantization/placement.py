"""Which nodes are computed in integers, and which values are therefore stored in them.

What a target says of operators leaves a choice: an addition between two convolutions is cheaper in integers, the same
addition between float operators is not, and a float operator in the midst of integers costs two conversions. The choice of
the least cost is a minimum cut: integers on one side, floats on the other, and an edge for every value that would have to be
converted, as heavy as the conversion takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np

from onnxcomp.analysis.cost import node_macs
from onnxcomp.analysis.linear import linear_node, not_refitted
from onnxcomp.compiler.target.facts import Target
from onnxcomp.ir.graph import Constant, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import LINEAR, QUANTIZATION
from onnxcomp.ir.shapes import infer_types
from onnxcomp.numerics.arrays import Shapes

__all__ = ["Placement", "WeightSite", "absorbed_by", "place"]

Choice = Callable[[Node], str | None]
"""Says why the user or a measurement wants a node left in float; None where nobody does."""

CALL = 3.0
"""Microseconds that any operator takes for being called."""

PER_ELEMENT = 2e-4
"""Microseconds to convert one element."""

PER_MAC = 1.3e-5
"""Microseconds that a multiply-accumulate is faster in integers: two thirds of 0.02 ns."""

ALWAYS = math.inf


@dataclass(frozen=True)
class WeightSite:
    """A stored weight that becomes integers: input `index` of `node`, output channels along `axis`, `count` of them."""

    node: str
    index: int
    axis: int
    count: int


@dataclass(frozen=True)
class Placement:
    """What becomes integers.

    Attributes:
        nodes: names of the nodes computed in integers, in the order of the graph.
        values: names of the values stored in integers -> the value whose scale and zero point they have.
        weights: stored weights.
        constants: other constants that nodes computed in integers read: (node, input index).
        reasons: why nodes that a user might expect in integers stay float.
    """

    nodes: tuple[str, ...]
    values: Mapping[str, str]
    weights: tuple[WeightSite, ...]
    constants: tuple[tuple[str, int], ...]
    reasons: Mapping[str, str]

    @property
    def sources(self) -> dict[str, list[str]]:
        """The values that say how far a scale must reach, by the value that has it."""
        found: dict[str, list[str]] = {}
        for name, root in self.values.items():
            found.setdefault(root, []).append(name)
        return found


def place(model: Model, target: Target, shapes: Shapes, kept: Choice) -> Placement:
    """Return what of `model` becomes integers on `target`; `shapes` are those of all values for one sample."""
    return _Placer(model, target, shapes, kept).solve()


def absorbed_by(model: Model, node: Node, target: Target) -> Node | None:
    """Return the activation behind `node` that melts into it, None where there is none."""
    reader = model.graph.sole_use(node.output) if node.outputs else None
    if reader is None or reader not in target.absorbs or reader.inputs[0] is not node.output:
        return None
    if reader.is_op("Clip"):
        bounds = [reader.constant(i) for i in (1, 2)]
        missing = [reader.input(i) is not None and b is None for i, b in zip((1, 2), bounds, strict=True)]
        low = -math.inf if bounds[0] is None else float(np.min(bounds[0]))
        high = math.inf if bounds[1] is None else float(np.max(bounds[1]))
        if any(missing) or low > 0 or high < 0:
            return None
    return reader


class _Placer:
    """The cut of one model."""

    def __init__(self, model: Model, target: Target, shapes: Shapes, kept: Choice) -> None:
        self.model, self.target, self.shapes, self.kept = model, target, shapes, kept
        types = infer_types(model, {v.name: shapes[v.name] for v in model.graph.inputs if v.name in shapes})
        self.floats = {
            name for name, kind in types.items() if kind.dtype is not None and kind.dtype == np.float32
        }
        self.captured = model.graph.captured()
        self.alive = _depending(model)
        self.reasons: dict[str, str] = {}
        self.head: dict[Node, Node] = {}
        """The node that an activation melts into."""

    def solve(self) -> Placement:
        """Return the placement of least cost."""
        graph = self.model.graph
        fixed: dict[Node, float | None] = {}
        for node in graph.nodes:
            fixed[node] = self._gain(node)
        for node in graph.nodes:
            if fixed[node] is not None and node not in self.head:
                follower = absorbed_by(self.model, node, self.target)
                if follower is not None and self.kept(follower) is None:
                    self.head[follower] = node
        chosen = self._cut(fixed)
        values = {v.name: v for v in self._stored(chosen)}
        for node in graph.nodes:
            if fixed[node] not in (None, ALWAYS) and node not in chosen and node.op in LINEAR:
                self.reasons[node.name] = "converting its operands would cost more than integers save"
        return Placement(
            tuple(node.name for node in graph.nodes if node in chosen),
            self._shared(chosen, values),
            tuple(site for node in graph.nodes if node in chosen for site in self._weights(node)),
            tuple(
                (node.name, index)
                for node in graph.nodes
                if node in chosen and linear_node(node) is None
                for index in self._operands(node)
                if isinstance(node.inputs[index], Constant)
            ),
            self.reasons,
        )

    # --- what each node would gain ------------------------------------------------------------------------------------
    def _gain(self, node: Node) -> float | None:
        """Return the microseconds that `node` gains in integers: `ALWAYS` for weights, None where it must stay float."""
        role = self.target.role(node)
        if role not in ("quantize", "same-scale"):
            if node.op in LINEAR and node.standard:
                self.reasons[node.name] = f"{self.target.name} computes {node.op} in float"
            return None
        problem = self.kept(node) or self._problem(node) or _computed_wrongly(node, self.target)
        if problem is not None:
            if node.op in LINEAR:
                self.reasons[node.name] = problem
            return None
        if linear_node(node) is not None:
            return ALWAYS
        return PER_MAC * node_macs(node, self.shapes) if node.op in LINEAR else 0.0

    def _problem(self, node: Node) -> str | None:
        """Return why `node` cannot be computed in integers, None where it can."""
        if node.op in LINEAR and linear_node(node) is None:
            reason = not_refitted(node)
            if reason is not None:
                return reason
        wired = [node.inputs[i] for i in self._operands(node)]
        for value in [*wired, *node.outputs[:1]]:
            if isinstance(value, Variable) and value.name not in self.alive:
                return f"{value.name!r} is computed from constants alone; run fold-constants first"
            if isinstance(value, Constant):
                uniform = value.values.size and (value.values == value.values.flat[0]).all()
                if linear_node(node) is None and not uniform:
                    return f"its constant operand {value.name!r} would lose digits"
            elif value.name not in self.floats:
                return f"{value.name!r} is not of type float32"
            if any(n.op in QUANTIZATION for n in (value.producer,) if n is not None):
                return "it is quantized already"
        if any(v.name for v in node.outputs[1:]) and node.op not in ("Split",):
            return "it has several outputs"
        return None

    def _operands(self, node: Node) -> list[int]:
        """Return the inputs that hold data, not sizes, indices, weights or biases."""
        linear = linear_node(node)
        if linear is not None:
            return [linear.data]
        if node in self.target.all_inputs:
            return [i for i, v in enumerate(node.inputs) if v.name]
        return [0] if node.inputs else []

    # --- the cut ----------------------------------------------------------------------------------------------------
    def _cut(self, gains: Mapping[Node, float | None]) -> set[Node]:
        """Return the nodes on the side of the integers."""
        net = nx.DiGraph()
        net.add_nodes_from(("integers", "floats"))
        for node, gain in gains.items():
            if node in self.head:
                continue
            if gain is None:
                _add(net, node, "floats", ALWAYS)
            elif gain == ALWAYS:
                _add(net, "integers", node, ALWAYS)
            else:
                _add(net, "integers", node, gain)
                # Where it makes no difference nothing is converted.
                _add(net, node, "floats", 1e-3)
        for value in self.model.graph.values().values():
            if isinstance(value, Variable) and value.name in self.floats:
                self._edges(net, value)
        _, (integers, _) = nx.minimum_cut(net, "integers", "floats")
        chosen = {node for node in integers if isinstance(node, Node)}
        return chosen | {node for node, head in self.head.items() if head in chosen}

    def _edges(self, net: nx.DiGraph, value: Variable) -> None:
        """Add what converting `value` costs, once, whatever number of nodes reads it."""
        maker = value.producer
        readers: set[Node | str] = {
            self.head.get(node, node) if index in self._operands(node) or node in self.head else "floats"
            for node, index in self.model.graph.uses(value)
        }
        if self.model.graph.is_output(value) or value.name in self.captured:
            readers.add("floats")
        made: Node | str = "floats" if maker is None else self.head.get(maker, maker)
        readers.discard(made)
        if not readers:
            return
        price = CALL + PER_ELEMENT * math.prod(self.shapes.get(value.name, (1,)))
        free = isinstance(made, Node) and made.op in LINEAR and made not in self.target.output_pair
        down, up = ("down", value), ("up", value)
        _add(net, made, down, 0.0 if free else price)
        _add(net, up, made, price)
        for reader in readers:
            _add(net, down, reader, ALWAYS)
            _add(net, reader, up, ALWAYS)

    # --- what follows from it ---------------------------------------------------------------------------------------
    def _stored(self, chosen: set[Node]) -> list[Variable]:
        """Return the values that pass through integers, in the order of the graph."""
        graph = self.model.graph
        found: dict[Value, None] = {}
        for value in graph.inputs:
            if value.name in self.floats and self._read(value, chosen):
                found[value] = None
        for node in graph.nodes:
            for value in node.outputs:
                if not value.name or value.name not in self.floats:
                    continue
                inside = any(self.head.get(reader) is self.head.get(node, node) for reader in value.consumers)
                if inside:
                    continue
                head = self.head.get(node, node)
                needs = node in chosen and not _goes_bare(head, value, self.target)
                final = self.target.outputs_quantized and graph.is_output(value)
                if needs or final or self._read(value, chosen):
                    found[value] = None
        return [value for value in found if isinstance(value, Variable)]

    def _read(self, value: Variable, chosen: set[Node]) -> bool:
        return any(
            n in chosen and n not in self.head and i in self._operands(n)
            for n, i in self.model.graph.uses(value)
        )

    def _shared(self, chosen: set[Node], values: Mapping[str, Variable]) -> dict[str, str]:
        """Return which value's scale each of `values` has: of what is only moved, that of its origin."""
        root = {name: name for name in values}

        def find(name: str) -> str:
            while root[name] != name:
                name = root[name]
            return name

        for node in self.model.graph.nodes:
            if node not in chosen:
                continue
            tied = self.target.role(node) == "same-scale" or node in self.target.one_scale
            if not tied or node in self.head:
                continue
            names = [node.inputs[i].name for i in self._operands(node)]
            names += [v.name for v in node.outputs]
            last = next((a for a, head in self.head.items() if head is node), None)
            names += [last.output.name] if last is not None else []
            inside = [name for name in names if name in root]
            for name in inside[1:]:
                root[find(name)] = find(inside[0])
        return {name: find(name) for name in values}

    def _weights(self, node: Node) -> list[WeightSite]:
        linear = linear_node(node)
        if linear is None:
            return []
        weight = linear.weight_array()
        return [WeightSite(node.name, linear.weight, linear.out_axis, weight.shape[linear.out_axis])]


def _goes_bare(product: Node, value: Variable, target: Target) -> bool:
    """Return whether `value`, which `product` or an activation in it makes, needs no pair for its own sake."""
    bare = product.op in LINEAR and product not in target.output_pair
    return bare and not any(reader in target.pair_in_front for reader in value.consumers)


def _computed_wrongly(node: Node, target: Target) -> str | None:
    """Return why `target` would compute wrong numbers if `node` were in integers, None where it would not."""
    if len(node.inputs) == 1 and node in target.several_inputs:
        return f"{target.name} takes no {node.op} of a single input between pairs"
    near = node.output.consumers if node.op in LINEAR else []
    far = [last for reader in near if reader in target.absorbs for last in reader.output.consumers]
    for reader in (*near, *far):
        if target.must_stay_float(node, reader):
            return f"{target.name} computes {reader.op} {reader.name!r} behind it wrongly where it is in integers"
    return None


def _depending(model: Model) -> set[str]:
    """Return the names of the values that depend on an input of the graph, which others never change with."""
    found = {v.name for v in model.graph.inputs}
    for node in model.graph.nodes:
        if found.intersection((*(v.name for v in node.inputs), *node.captures)):
            found.update(v.name for v in node.outputs if v.name)
    return found


def _add(net: nx.DiGraph, start: object, end: object, capacity: float) -> None:
    """Add an edge, or make the one there is heavier."""
    if start == end or capacity <= 0:
        return
    if net.has_edge(start, end):
        net[start][end]["capacity"] += capacity
    elif capacity == ALWAYS:
        net.add_edge(start, end, capacity=ALWAYS)
    else:
        net.add_edge(start, end, capacity=capacity)
