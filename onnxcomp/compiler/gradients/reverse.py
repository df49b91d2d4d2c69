"""Reverse mode over a graph: how the statistics of inner values vary with the input, as one more graph.

Built from ONNX operators and run by onnxruntime, so that nothing needs a training framework. An operator without a rule
lets nothing through and is named; what lies before it is then not told of what lies behind.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.compiler.gradients.rules import RULES
from onnxcomp.compiler.gradients.tape import PREFIX, Tape
from onnxcomp.ir.graph import Graph, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import SIZES
from onnxcomp.numerics.arrays import Shapes

__all__ = ["PREFIX", "Adjoint", "Backward", "adjoint", "backward"]


@dataclass(frozen=True)
class Adjoint:
    """A graph that runs forward and back.

    Attributes:
        model: takes the inputs of the original and, for site number k with c channels, `offset.k` and `slope.k` `[c]`;
            gives `sum.k` and `squares.k` `[c]` (over all axes but the second) and `gradient`, the derivative by the input
            of `sum over k of <offset.k, y> + <slope.k, y^2> / 2`. All these names begin with `PREFIX`.
        sites: the values y that are reached from the input, in order.
        stopped: names of nodes without a rule, which let no derivative through.
    """

    model: Model
    sites: tuple[str, ...]
    stopped: tuple[str, ...]


def adjoint(model: Model, source: str, sites: Sequence[str], shapes: Shapes) -> Adjoint:
    """Return the adjoint of `model` between the graph input `source` and the values `sites`.

    `shapes` are those of all values for one sample; the number of samples stays free. `model` is not edited.
    """
    model = model.clone()
    forward = list(model.graph.nodes)
    tape = Tape(model, source, shapes)
    for node in forward:
        if any(v in tape.alive for v in node.inputs):
            tape.alive.update(v for v in node.outputs if v.name)
    values = model.graph.values()
    reached = [name for name in sites if values.get(name) in tape.alive]
    model.graph.outputs.clear()
    for number, name in enumerate(reached):
        _watch(tape, number, values[name])
    stopped = [node.name for node in reversed(forward) if not _reverse(tape, node)]
    found = tape.grads.get(tape.source)
    if found is None:
        found = tape.op("Mul", [tape.source, tape.constant(np.zeros((), np.float32))])
    tape.output(found, f"{PREFIX}gradient")
    _sweep(model.graph)
    return Adjoint(model, tuple(reached), tuple(stopped))


@dataclass(frozen=True)
class Backward:
    """A graph that gives inner values and the derivatives of a direction of the outputs by them.

    Attributes:
        model: takes the inputs of the original and, for output number k, the direction `seed.k` with the output's shape;
            gives `value.i` and `grad.i` for value number i. All these names begin with `PREFIX`.
        values: names of the values that the outputs depend on in a way that is known, in order.
        blocked: for wanted values in front of nodes without a rule, which let no derivative through: the operator and
            name of the first such nodes behind them. Such a value is among `values` where other paths lead to the outputs.
    """

    model: Model
    values: tuple[str, ...]
    blocked: Mapping[str, tuple[str, ...]]


def backward(model: Model, wanted: Sequence[str], outputs: Sequence[str], shapes: Shapes) -> Backward:
    """Return the graph of derivatives of `outputs` by the values `wanted`; `model` is not edited.

    `shapes` are those of all values for one sample; the number of samples stays free.
    """
    model = model.clone()
    forward = list(model.graph.nodes)
    tape = Tape(model, model.graph.inputs[0].name, shapes)
    tape.alive.update(model.graph.inputs)
    for node in forward:
        if any(v in tape.alive for v in node.inputs):
            tape.alive.update(v for v in node.outputs if v.name)
    values = model.graph.values()
    model.graph.outputs.clear()
    for number, name in enumerate(outputs):
        sizes = (None,) * len(shapes[name])
        seed = Variable(f"{PREFIX}seed.{number}", np.dtype(np.float32), sizes)
        model.graph.inputs.append(seed)
        tape.give(values[name], seed)
    stopped = {node for node in reversed(forward) if not _reverse(tape, node)}
    blocked = _stops_behind(forward, stopped, tape.alive)
    reached = [name for name in wanted if values.get(name) in tape.grads]
    for number, name in enumerate(reached):
        tape.output(values[name], f"{PREFIX}value.{number}")
        tape.output(tape.grads[values[name]], f"{PREFIX}grad.{number}")
    _sweep(model.graph)
    known = {name: blocked[values[name]] for name in wanted if values.get(name) in blocked}
    return Backward(model, tuple(reached), known)


def _stops_behind(
    forward: Sequence[Node], stopped: Container[Node], alive: Container[Value]
) -> dict[Value, tuple[str, ...]]:
    """Return the first nodes among `stopped` behind each value, as operator and name; values without any are absent."""
    found: dict[Value, dict[str, None]] = {}
    for node in reversed(forward):
        behind = (
            {f"{node.op} {node.name!r}": None}
            if node in stopped
            else {stop: None for value in node.outputs for stop in found.get(value, ())}
        )
        for value in node.inputs:
            # Of sizes nothing has a derivative anyway.
            if behind and value in alive and not node.is_op(*SIZES):
                found.setdefault(value, {}).update(behind)
    return {value: tuple(stops) for value, stops in found.items()}


def _watch(tape: Tape, number: int, value: Value) -> None:
    """Give out the sums of `value`, and seed its derivative."""
    rank = len(tape.shapes[value.name])
    axes = tape.constant(np.array([a for a in range(rank) if a != 1], np.int64))
    square = tape.op("Mul", [value, value])
    for kind, summed in (("sum", value), ("squares", square)):
        tape.output(tape.op("ReduceSum", [summed, axes], keepdims=0), f"{PREFIX}{kind}.{number}")
    shape = tape.constant(np.array([1, -1] + [1] * (rank - 2), np.int64))
    offset, slope = (
        tape.op("Reshape", [tape.input(f"{PREFIX}{kind}.{number}"), shape]) for kind in ("offset", "slope")
    )
    tape.give(value, tape.op("Add", [tape.op("Mul", [value, slope]), offset]))


def _reverse(tape: Tape, node: Node) -> bool:
    """Hand the derivative at the outputs of `node` to its inputs; return whether there was a way to."""
    if not any(v in tape.grads for v in node.outputs):
        return True
    inputs = [i for i, v in enumerate(node.inputs) if v in tape.alive]
    rule = RULES.get(node.op) if node.standard else None
    found = rule(tape, node) if rule is not None else None
    for index, grad in found or ():
        if index in inputs:
            tape.give(node.inputs[index], grad)
    return found is not None


def _sweep(graph: Graph) -> None:
    """Remove nodes that no output needs."""
    values = graph.values()
    needed: set[Value] = set(graph.outputs)
    keep: set[Node] = set()
    for node in reversed(graph.nodes):
        if any(v in needed for v in node.outputs):
            keep.add(node)
            needed.update(node.inputs)
            needed.update(values[name] for name in node.captures if name in values)
    graph.remove_nodes([n for n in graph.nodes if n not in keep])
