"""The graph that reverse mode is written into: forward nodes, derivatives so far, and how rules append to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from onnxcomp.ir.graph import Constant, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array

__all__ = ["PREFIX", "Grads", "Tape"]

Grads: TypeAlias = list[tuple[int, Variable]]
"""Derivatives at some inputs of a node, by index."""

PREFIX = "onnxcomp.adjoint."
"""Of the names of all nodes and values that are added."""


class Tape:
    """Holds the forward graph of `model`, which is edited, and appends the reverse of it node by node.

    `alive` are the values that depend on the graph input `source`, `grads` the derivatives known so far.
    """

    def __init__(self, model: Model, source: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.graph, self.shapes = model.graph, shapes
        self.source = next(v for v in model.graph.inputs if v.name == source)
        self.alive: set[Value] = {self.source}
        self.grads: dict[Value, Variable] = {}
        self._count = 0

    def give(self, value: Value, grad: Variable) -> None:
        """Add `grad` to the derivative of `value`."""
        have = self.grads.get(value)
        self.grads[value] = grad if have is None else self.op("Add", [have, grad])

    def grad(self, node: Node) -> Variable:
        """Return the derivative at the first output of `node`."""
        return self.grads[node.output]

    def op(self, op: str, inputs: Sequence[Value], **attrs: Any) -> Variable:
        """Append a node and return its output."""
        self._count += 1
        made = Variable(f"{PREFIX}{self._count}")
        self.graph.nodes.append(Node(op, made.name, attrs, list(inputs), [made]))
        return made

    def constant(self, values: Array) -> Constant:
        """Store `values`."""
        self._count += 1
        name = f"{PREFIX}{self._count}"
        self.graph.constants[name] = constant = Constant(name, values)
        return constant

    def scalar(self, number: float) -> Constant:
        """Store a number as float32."""
        return self.constant(np.array(number, np.float32))

    def mask(self, condition: Variable, grad: Variable) -> Variable:
        """Return `grad` where `condition` holds, else 0."""
        return self.op("Mul", [grad, self.op("Cast", [condition], to=1)])

    def shape(self, value: Value) -> tuple[int, ...] | None:
        """Return the shape of `value` for one sample, or None where it is unknown."""
        return self.shapes.get(value.name)

    def like(self, grad: Variable, value: Value) -> Variable:
        """Return `grad` with the axes of `value`."""
        return self.op("Reshape", [grad, self.op("Shape", [value])])

    def reduced(self, grad: Variable, node: Node, value: Value) -> Variable | None:
        """Return `grad`, which has the shape of `node`'s output, summed to that of `value`; None where that is unclear."""
        out, want = self.shape(node.output), self.shape(value)
        if out is None or want is None or len(out) != len(want):
            return None
        axes = [a for a, (o, w) in enumerate(zip(out, want, strict=True)) if o != w]
        if not axes:
            return grad
        return self.op("ReduceSum", [grad, self.constant(np.array(axes, np.int64))], keepdims=1)

    def spread(self, grad: Variable, axis: int, places: Array, length: int, rank: int) -> Variable:
        """Return `grad` put at `places` along `axis`, which becomes `length` long, with zeros elsewhere."""
        index = np.full(length, len(places), np.int64)
        index[places] = np.arange(len(places))
        pads = np.zeros(2 * rank, np.int64)
        pads[rank + axis] = 1
        return self.op(
            "Gather", [self.op("Pad", [grad, self.constant(pads)]), self.constant(index)], axis=axis
        )

    def input(self, name: str) -> Variable:
        """Return a new graph input for numbers per channel."""
        value = Variable(name, np.dtype(np.float32), (f"{name}.c",))
        self.graph.inputs.append(value)
        return value

    def output(self, value: Value, name: str) -> None:
        """Give `value` out as `name`."""
        self._count += 1
        out = Variable(name, np.dtype(np.float32))
        self.graph.nodes.append(Node("Identity", f"{PREFIX}{self._count}", {}, [value], [out]))
        self.graph.outputs.append(out)
