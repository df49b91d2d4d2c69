"""Small made models in which one operator is timed: several copies of it, so that what surrounds them cancels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.ir.builder import GraphBuilder
from onnxcomp.ir.graph import Array, Constant, Node, Value, Variable
from onnxcomp.ir.model import Model

__all__ = ["ConvKind", "Maker"]

_INPUT = "onnxcomp.made"
"""Of a made graph; no network that is timed beside it has an input of that name."""


@dataclass(frozen=True)
class ConvKind:
    """A two-dimensional convolution but for its channels: input `size`, `kernel`, the `attrs` that shape its work.

    It is dense, or `depthwise` with one filter per channel.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    attrs: tuple[tuple[str, Any], ...]
    depthwise: bool

    def __str__(self) -> str:
        words = [f"{self.kernel[0]}x{self.kernel[1]}", f"at {self.size[0]}x{self.size[1]}"]
        words += [f"{name}={_text(value)}" for name, value in self.attrs]
        return f"{'depthwise' if self.depthwise else 'conv'} {' '.join(words)}"

    @classmethod
    def of(cls, node: Node, size: tuple[int, int], kernel: tuple[int, int], *, depthwise: bool) -> ConvKind:
        """Return the kind of the Conv `node`."""
        given = {n: v for n, v in node.attrs.items() if n in ("strides", "pads", "dilations", "auto_pad")}
        attrs = tuple((n, tuple(v) if isinstance(v, list) else v) for n, v in sorted(given.items()))
        return cls(size, kernel, attrs, depthwise)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Maker:
    """Makes models of the versions of `model`, with the seed's weights."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        self._like, self._seed = model, seed

    def reference(self) -> Model:
        """Return a model that stands for the speed of the machine: an ordinary convolution of some ten microseconds."""
        return self.conv(ConvKind((16, 16), (3, 3), (("pads", (1, 1, 1, 1)),), False), 64, 64, 1)

    def conv(self, kind: ConvKind, read: int, made: int, copies: int, behind: int = 0) -> Model:
        """Return `copies` convolutions of one input, from `read` to `made` channels, whose results are added up.

        That is how onnxruntime runs the convolution in front of a residual addition: the addition is part of it. An
        activation ends the chain, which becomes part of the last one. With `behind`, each reads what a convolution of
        1x1 makes of that many channels.
        """
        graph = GraphBuilder(self._like)
        x = graph.input(_INPUT, (1, behind or read, *kind.size))
        rng = np.random.default_rng(self._seed)
        shape = (made, 1 if kind.depthwise else read, *kind.kernel)
        attrs = {n: list(v) if isinstance(v, tuple) else v for n, v in kind.attrs}
        attrs |= {"kernel_shape": list(kind.kernel), "group": read if kind.depthwise else 1}
        results = []
        for number in range(copies):
            value = x
            if behind:
                mixed = _weight(rng, (read, behind, 1, 1))
                value = graph.op("Conv", [x, graph.constant(f"m{number}", mixed)])
            weight = _weight(rng, shape)
            stored = [
                graph.constant(f"w{number}", weight),
                graph.constant(f"b{number}", weight[:, 0, 0, 0]),
            ]
            results.append(graph.op("Conv", [value, *stored], attrs))
        return graph.model(graph.op("Relu", [graph.added(results)]))

    def moves(self, elements: int, copies: int) -> Model:
        """Return a chain of `copies` elementwise operators over `elements` numbers."""
        graph = GraphBuilder(self._like)
        value = graph.input(_INPUT, (1, elements))
        for _ in range(copies):
            value = graph.op("Neg", [value])
        return graph.model(value)

    def conversions(self, channels: int, elements: int, copies: int, *, between: bool) -> Model:
        """Return `copies` + 1 convolutions in a row of `elements` values; with `between`, what needs plain layout lies between."""
        side = max(1, round(math.sqrt(elements / channels)))
        graph = GraphBuilder(self._like)
        value = graph.input(_INPUT, (1, channels, side, side))
        weight = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
        for number in range(copies + 1):
            value = graph.op("Conv", [value, graph.constant(f"w{number}", weight)])
            if between and number < copies:
                value = graph.op("Neg", [value])
        return graph.model(value)

    def node(self, node: Node, shapes: Mapping[str, tuple[int, ...]], copies: int) -> Model | None:
        """Return `copies` of `node` side by side on inputs of `shapes`; None where it cannot stand alone."""
        if node.captures or any(
            v.name and v.name not in shapes for v in node.inputs if not isinstance(v, Constant)
        ):
            return None
        builder = GraphBuilder(self._like)
        graph = builder.graph
        twins: dict[str, Value] = {"": Variable("")}
        for value in node.inputs:
            if value.name in twins:
                continue
            if isinstance(value, Constant):
                twins[value.name] = builder.constant(value.name, value.values)
            else:
                dtype = np.dtype(value.dtype or np.float32)
                twins[value.name] = builder.input(value.name, shapes[value.name], dtype)
        for number in range(copies):
            outputs = [Variable(f"{v.name}.{number}" if v.name else "", v.dtype) for v in node.outputs]
            inputs = [twins[v.name] for v in node.inputs]
            graph.nodes.append(Node(node.op, f"node{number}", dict(node.attrs), inputs, outputs, node.domain))
            graph.outputs += [v for v in outputs if v.name]
        return builder.model()


def _weight(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
