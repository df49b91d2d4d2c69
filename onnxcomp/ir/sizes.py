"""Arithmetic on sizes: what integer tensors made of shapes are known to hold before anything runs.

Shape inference knows some axes of a value and not others, so a tensor of sizes is known in some places only: an object
array with None where a size is not known. Operators that move or combine sizes are executed on such arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.ir.graph import Constant, Graph, Node, Value, Variable
from onnxcomp.ir.proto import numpy_dtype
from onnxcomp.ir.shapes import Shape, ValueType

__all__ = ["known_sizes"]

Sizes = NDArray[Any]
"""Integers or None, as an object array."""

_LIMIT = 1024
"""Tensors of sizes are as long as a value has axes; whatever is longer holds something else."""

_DTYPES = (np.dtype(np.int64), np.dtype(np.int32))
"""What sizes are stored as; results beyond 32 bits are given up, so that nothing depends on how they wrap."""


def known_sizes(
    graph: Graph, types: Mapping[str, ValueType], barred: Collection[Node] = ()
) -> dict[Variable, NDArray[Any]]:
    """Return the integer values computed by nodes that are known in full, with their own dtype.

    They come from Shape and Size of known axes through Gather, Slice, Concat, Squeeze, Unsqueeze, Cast, Identity, Add, Sub
    and Mul; nothing is followed through `barred` nodes. An element that depends on a symbolic axis stays unknown.
    """
    partial: dict[Value, Sizes] = {}
    found: dict[Variable, NDArray[Any]] = {}
    for node in graph.nodes:
        rule = _RULES.get(node.op)
        if rule is None or not node.standard or node in barred:
            continue
        sizes = rule(_Look(node, types, partial))
        if sizes is None or sizes.size > _LIMIT:
            continue
        partial[node.output] = sizes
        kind = types.get(node.output.name)
        if kind is not None and kind.dtype is not None and all(s is not None for s in sizes.flat):
            found[node.output] = sizes.astype(kind.dtype)
    return found


class _Look:
    """A node with what is known of its inputs."""

    def __init__(self, node: Node, types: Mapping[str, ValueType], partial: Mapping[Value, Sizes]) -> None:
        self.node = node
        self._types = types
        self._partial = partial

    def shape(self) -> Shape | None:
        """The shape of input 0."""
        value = self.node.input(0)
        known = self._types.get(value.name) if value is not None else None
        return known.shape if known is not None else None

    def sizes(self, index: int) -> Sizes | None:
        """What is known of input `index`, as integers or None; None where it holds no sizes."""
        value = self.node.input(index)
        if isinstance(value, Constant):
            values = value.values
            return values.astype(object) if values.dtype in _DTYPES and values.size <= _LIMIT else None
        return self._partial.get(value) if value is not None else None

    def integers(self, index: int, default: list[int] | None = None) -> list[int] | None:
        """Input `index` as a flat list of known integers, `default` where it is absent."""
        if self.node.input(index) is None:
            return default
        sizes = self.sizes(index)
        if sizes is None or any(s is None for s in sizes.flat):
            return None
        return [int(s) for s in sizes.flat]


def _shape(look: _Look) -> Sizes | None:
    shape = look.shape()
    if shape is None:
        return None
    attrs = look.node.attrs
    part = shape[attrs.get("start", 0) : attrs.get("end", len(shape))]
    sizes = np.empty(len(part), object)
    sizes[:] = [s if isinstance(s, int) else None for s in part]
    return sizes


def _size(look: _Look) -> Sizes | None:
    shape = look.shape()
    if shape is None or not all(isinstance(s, int) for s in shape):
        return None
    # Multiplied as Python integers, which do not overflow where the product is absurd.
    total = 1
    for size in shape:
        total *= int(size or 0)
    return np.array(total, object) if total < 2**63 else None


def _gather(look: _Look) -> Sizes | None:
    data, index = look.sizes(0), look.sizes(1)
    if data is None or index is None or data.ndim != 1 or any(i is None for i in index.flat):
        return None
    places = index.astype(np.int64)
    if places.size and (places.min() < -data.size or places.max() >= data.size):
        return None
    return np.asarray(data[places], object)


def _slice(look: _Look) -> Sizes | None:
    data = look.sizes(0)
    starts, ends = look.integers(1), look.integers(2)
    axes, steps = look.integers(3, [0]), look.integers(4, [1])
    if data is None or data.ndim != 1 or axes not in ([0], [-1]):
        return None
    if not starts or not ends or not steps or steps[0] <= 0:
        return None
    return data[starts[0] : ends[0] : steps[0]]


def _concat(look: _Look) -> Sizes | None:
    parts = [look.sizes(i) for i in range(len(look.node.inputs))]
    known = [p for p in parts if p is not None and p.ndim == 1]
    return np.concatenate(known) if len(known) == len(parts) else None


def _squeeze(look: _Look) -> Sizes | None:
    data = look.sizes(0)
    return data.reshape(()) if data is not None and data.shape == (1,) else None


def _unsqueeze(look: _Look) -> Sizes | None:
    data, axes = look.sizes(0), look.integers(1)
    return data.reshape(1) if data is not None and data.ndim == 0 and axes in ([0], [-1]) else None


def _cast(look: _Look) -> Sizes | None:
    data = look.sizes(0)
    dtype = numpy_dtype(int(look.node.attrs.get("to", 0)))
    if data is None or dtype not in _DTYPES:
        return None
    return data if all(s is None or abs(s) < 2**31 for s in data.flat) else None


def _arithmetic(operation: Callable[[Any, Any], Any]) -> Callable[[_Look], Sizes | None]:
    def apply(look: _Look) -> Sizes | None:
        first, second = look.sizes(0), look.sizes(1)
        if first is None or second is None:
            return None
        try:
            one, two = np.broadcast_arrays(first, second)
        except ValueError:
            return None
        result = np.empty(one.shape, object)
        for place in np.ndindex(one.shape):
            pair = (one[place], two[place])
            known = None not in pair
            result[place] = operation(*map(int, pair)) if known else None
            if known and abs(result[place]) >= 2**31:
                return None
        return result

    return apply


_RULES: Mapping[str, Callable[[_Look], Sizes | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Identity": lambda look: look.sizes(0),
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
}
