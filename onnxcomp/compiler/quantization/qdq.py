"""Edits that put QuantizeLinear and DequantizeLinear into a graph.

The dequantized value takes over the name of the value it stands for, so that its readers and graph outputs read on; what
the node itself makes is then called `NAME__float`. Where somebody is to go on reading what was made in float, the names are
the other way round: the dequantized value is called `NAME__dq`. Subgraphs always do: onnxruntime 1.32 aborts the process
when a body of If, Loop or Scan reads what a DequantizeLinear outside makes. Weights, scales and zero points that are equal are
stored once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.ir.graph import Constant, Graph, Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.affine import Affine
from onnxcomp.numerics.arrays import Array

__all__ = ["Stored", "quantize_values", "store_constant"]


@dataclass(frozen=True)
class Stored:
    """A constant in integers: `real = affine.scale * (values - affine.zero)`, scales along `axis` if there are several."""

    values: Array
    affine: Affine
    axis: int = 0

    def real(self) -> Array:
        """Return what the integers mean, float32."""
        return self.affine.dequantize(self.values, self.axis)


def quantize_values(
    model: Model,
    values: Mapping[str, Affine],
    integers: Collection[str] | None = None,
    *,
    outputs: bool = False,
) -> None:
    """Put a pair of QuantizeLinear and DequantizeLinear behind each of `values`, by name; edits `model` in place.

    `integers` names the nodes that compute in integers, None for all: what another node makes, other nodes go on reading as
    it was. So do the outputs of the graph without `outputs`.
    """
    parameters = _Parameters(model.graph)
    known = model.graph.values()
    captured = model.graph.captured()
    for name, affine in values.items():
        value = known[name]
        assert isinstance(value, Variable), f"{name} is a constant"
        kept = integers is not None and _stays_float(model.graph, value, integers, outputs)
        named = value.producer is None or kept or name in captured
        _pair(model, value, affine, parameters, integers if kept else None, keeps_name=named)


def _pair(
    model: Model,
    value: Variable,
    affine: Affine,
    parameters: _Parameters,
    integers: Collection[str] | None,
    *,
    keeps_name: bool,
) -> None:
    """Put one pair behind `value`, for all its readers or, given `integers`, for those among them.

    With `keeps_name` the name stays with what was made in float; a graph input always keeps its own.
    """
    graph, name = model.graph, value.name
    maker = value.producer
    stored = Variable(graph.fresh_name(f"{name}__q"), np.dtype(affine.grid.dtype), value.shape)
    if maker is None or keeps_name:
        # What stays as it is keeps its name, so the readers of integers are told the new one.
        real = Variable(graph.fresh_name(f"{name}__dq"), value.dtype, value.shape)
        for node, index in list(graph.uses(value)):
            if integers is None or node.name in integers:
                graph.set_input(node, index, real)
        source, place = value, 0 if maker is None else graph.nodes.index(maker) + 1
    else:
        real = value
        source = Variable(graph.fresh_name(f"{name}__float"), value.dtype, value.shape)
        maker.outputs[list(maker.outputs).index(value)] = source
        place = graph.nodes.index(maker) + 1
    inputs = parameters.of(affine)
    quantize = Node("QuantizeLinear", graph.fresh_name(f"{name}__quantize"), {}, [source, *inputs], [stored])
    dequantize = Node(
        "DequantizeLinear", graph.fresh_name(f"{name}__dequantize"), {}, [stored, *inputs], [real]
    )
    graph.nodes[place:place] = [quantize, dequantize]


def _stays_float(graph: Graph, value: Variable, integers: Collection[str], outputs: bool) -> bool:
    """Return whether `value` is made in float and read in integers: then nobody else need suffer from its storage."""
    if value.producer is not None and value.producer.name in integers:
        return False
    read = any(node.name in integers for node, _ in graph.uses(value))
    return read and not (outputs and graph.is_output(value))


def store_constant(model: Model, node: Node, index: int, stored: Stored) -> None:
    """Make `node` read its constant input `index` from integers through a DequantizeLinear; edits `model` in place.

    A constant with other readers stays for them.
    """
    graph = model.graph
    old = node.input(index)
    assert isinstance(old, Constant), f"input {index} of {node.name} is not stored"
    name, dtype = old.name, old.values.dtype
    if graph.sole_use(old) is node:
        graph.constants.pop(name, None)
    integers = graph.add_constant(f"{name}__q", stored.values)
    attrs = {"axis": stored.axis} if stored.affine.per_axis else {}
    # onnxruntime fuses a Gemm only where the zero point is there, and the file is smaller without.
    plain = node.is_op("Conv") and stored.affine.grid.signed and not np.any(stored.affine.zero)
    inputs = _Parameters(graph).of(stored.affine, zero=not plain)
    real = Variable(graph.fresh_name(f"{name}__dq"), dtype, stored.values.shape)
    maker = Node(
        "DequantizeLinear", graph.fresh_name(f"{name}__dequantize"), attrs, [integers, *inputs], [real]
    )
    graph.set_input(node, index, real)
    graph.insert(maker, before=node)


class _Parameters:
    """Scales and zero points of a graph, each stored once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def of(self, affine: Affine, *, zero: bool = True) -> list[Constant]:
        """Return the constants that hold `affine`: its scale and, with `zero`, its zero point."""
        kind = "_".join(map(str, affine.zero.reshape(-1)[:1]))
        uniform = affine.zero.ndim == 0
        scale = self._shared("scale" if uniform else f"scales_x{affine.scale.size}", affine.scale)
        if not zero:
            return [scale]
        name = f"zero_{kind}" if uniform else f"zeros_{kind}x{affine.zero.size}"
        return [scale, self._shared(f"{affine.grid.dtype}_{name}", affine.zero)]

    def _shared(self, name: str, values: Array) -> Constant:
        for other in self._graph.constants.values():
            if (
                other.name.startswith(name)
                and other.values.dtype == values.dtype
                and other.values.shape == values.shape
                and np.array_equal(other.values, values)
            ):
                return other
        return self._graph.add_constant(name, values)
