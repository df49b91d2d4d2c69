"""Building small graphs node by node: for timing, for kernels of our own, for what is appended to a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.ir.graph import Array, Constant, Graph, Node, Value, Variable
from onnxcomp.ir.model import Model

__all__ = ["GraphBuilder"]


class GraphBuilder:
    """Appends to a new graph of the versions, opsets and functions of `like`; all values are float32."""

    def __init__(self, like: Model) -> None:
        self._like = like
        self.graph = Graph("made", opset=like.opset_imports.get("", 17))

    def input(self, name: str, shape: Sequence[int], dtype: np.dtype[Any] | None = None) -> Variable:
        """Add a graph input of that shape and return it."""
        value = Variable(name, dtype or np.dtype(np.float32), tuple(shape))
        self.graph.inputs.append(value)
        return value

    def constant(self, name: str, values: Array) -> Constant:
        """Store `values` under `name`, made unique, and return the stored tensor."""
        return self.graph.add_constant(name, values)

    def op(
        self,
        op: str,
        inputs: Sequence[Value],
        attrs: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> Variable:
        """Append a node, by the name given or a new one, and return its output."""
        made = Variable(f"v{len(self.graph.nodes)}", np.dtype(np.float32))
        named = name or f"n{len(self.graph.nodes)}"
        self.graph.nodes.append(Node(op, named, dict(attrs or {}), list(inputs), [made]))
        return made

    def added(self, values: Sequence[Value]) -> Value:
        """Append additions of all `values`, one by one, and return the sum."""
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", [total, value])
        return total

    def model(self, *outputs: Variable) -> Model:
        """Return the model that gives out `outputs`, besides what the graph gives out already."""
        self.graph.outputs += outputs
        like = self._like
        return Model(self.graph, like.ir_version, dict(like.opset_imports), functions=like.functions)
