"""Two data-movement nodes in a row that are one node, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.analysis.noops import permutation
from onnxcomp.ir.graph import Array, Node, Value
from onnxcomp.ir.ops import RESHAPING
from onnxcomp.ir.proto import numpy_dtype
from onnxcomp.ir.shapes import ValueType

__all__ = ["Merge", "cancelled", "merge"]

Types = Mapping[str, ValueType]


@dataclass(frozen=True)
class Merge:
    """How a node does the work of the `first` node before it too: new attributes, and new constants by input index."""

    first: Node
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, Array] = field(default_factory=dict)


def merge(node: Node, types: Types) -> Merge | None:
    """Return how `node` can read the input of the node before it instead, None where it cannot.

    Transposes compose; a Reshape needs no Reshape, Flatten, Squeeze or Unsqueeze before it; Slices of different axes
    are one; a Cast needs no lossless Cast before it.
    """
    first = _producer(node)
    if first is None or not node.standard:
        return None
    if node.op == "Reshape" and first.op in RESHAPING:
        return _reshapes(first, node, types)
    if node.op != first.op:
        return None
    match node.op:
        case "Transpose":
            return _transposes(first, node, types)
        case "Slice":
            return _slices(first, node, types)
        case "Cast":
            return _casts(first, node, types)
        case _:
            return None


def cancelled(node: Node) -> Value | None:
    """Return the value that a Squeeze after an Unsqueeze of the same axes gives back, or the reverse; else None."""
    first = _producer(node)
    if first is None or {first.op, node.op} != {"Squeeze", "Unsqueeze"} or not node.standard:
        return None
    one, two = first.constant(1), node.constant(1)
    if one is None or two is None or sorted(one.flat) != sorted(two.flat):
        return None
    return first.input(0)


def _producer(node: Node) -> Node | None:
    value = node.input(0)
    first = value.producer if value is not None else None
    return first if first is not None and first.standard and first.input(0) is not None else None


def _transposes(first: Node, node: Node, types: Types) -> Merge | None:
    one, two = permutation(first, types), permutation(node, types)
    if one is None or two is None or len(one) != len(two):
        return None
    return Merge(first, {"perm": [one[axis] for axis in two]})


def _reshapes(first: Node, node: Node, types: Types) -> Merge | None:
    target = node.constant(1)
    if target is None:
        return None
    if node.attrs.get("allowzero", 0) or target.all():
        return Merge(first)
    sizes = [int(t) for t in target]
    middle, source = (types.get(v.name) for v in (node.inputs[0], first.inputs[0]))
    if middle is None or middle.shape is None:
        return None
    for axis, size in enumerate(sizes):
        if size != 0:
            continue
        # A zero copies the size of the same axis, which is another axis of another value now.
        known = middle.shape[axis] if axis < len(middle.shape) else None
        if isinstance(known, int) and known > 0:
            sizes[axis] = known
        elif not _same_axis(first, axis, known, source):
            return None
    return Merge(first, constants={1: np.array(sizes, np.int64)})


def _same_axis(first: Node, axis: int, size: int | str | None, source: ValueType | None) -> bool:
    """Whether `axis` of what `first` gives has the size of the same axis of what it reads."""
    copied = first.constant(1) if first.is_op("Reshape") and not first.attrs.get("allowzero", 0) else None
    if copied is not None and axis < copied.size and copied.flat[axis] == 0:
        return True
    shape = source.shape if source is not None else None
    return size is not None and shape is not None and axis < len(shape) and shape[axis] == size


def _slices(first: Node, node: Node, types: Types) -> Merge | None:
    kind = types.get(first.inputs[0].name)
    if kind is None or kind.shape is None:
        return None
    one, two = (_bounds(n, len(kind.shape)) for n in (first, node))
    if one is None or two is None or one.keys() & two.keys():
        return None
    both = {**one, **two}
    columns = zip(*((*bounds, axis) for axis, bounds in sorted(both.items())), strict=True)
    starts, ends, steps, axes = (np.array(column, np.int64) for column in columns)
    return Merge(first, constants={1: starts, 2: ends, 3: axes, 4: steps})


def _bounds(node: Node, rank: int) -> dict[int, tuple[int, int, int]] | None:
    """Return start, end and step by axis of a Slice with constant bounds."""
    rows = []
    for index in range(1, 5):
        values = node.constant(index)
        if values is None and node.input(index) is not None:
            return None
        rows.append(None if values is None else [int(v) for v in values.flat])
    starts, ends, axes, steps = rows
    if starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else [a % rank for a in axes]
    return dict(zip(axes, zip(starts, ends, steps or [1] * len(starts), strict=True), strict=True))


def _casts(first: Node, node: Node, types: Types) -> Merge | None:
    kind = types.get(first.inputs[0].name)
    source = kind.dtype if kind is not None else None
    middle = numpy_dtype(int(first.attrs["to"]))
    if source is None or middle is None or not _holds(middle, source):
        return None
    return Merge(first)


def _holds(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    """Whether every number of `narrow` is one of `wide`, of the same kind."""
    if narrow.isbuiltin != 1 or wide.isbuiltin != 1 or narrow == object or wide == object:
        return False
    kinds = {narrow.kind, wide.kind}
    return (kinds <= {"f"} or kinds <= set("iu")) and np.can_cast(narrow, wide, "safe")
