"""Nodes whose output is one of their inputs, unchanged in elements, type and shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxcomp.ir.graph import Array, Node
from onnxcomp.ir.ops import SINGLETON
from onnxcomp.ir.proto import numpy_dtype
from onnxcomp.ir.shapes import Shape, ValueType

__all__ = ["handed_through", "permutation", "whole_slice"]

Types = Mapping[str, ValueType]

_ENDLESS = 2**31 - 1
"""Exporters write this, or something larger, for "to the end"."""


def handed_through(node: Node, types: Types) -> int | None:
    """Return the index of the input that output 0 of `node` always equals; None where there is none.

    Decided from constants, attributes and `types` alone; what they do not tell counts as a difference. Nothing is said
    about further outputs, such as the mask of a Dropout.
    """
    if not node.standard:
        return None
    if node.op in _NEUTRAL:
        return _neutral_operand(node, types)
    rule = _RULES.get(node.op)
    return 0 if rule is not None and rule(node, types) else None


def _shape(node: Node, types: Types, index: int = 0) -> Shape | None:
    value = node.input(index)
    kind = types.get(value.name) if value is not None else None
    return kind.shape if kind is not None else None


def _ints(node: Node, index: int) -> list[int] | None:
    values = node.constant(index)
    return [int(v) for v in values.flat] if values is not None else None


def _same_type(node: Node, types: Types) -> bool:
    """Cast and CastLike to what the value is already."""
    value = node.input(0)
    kind = types.get(value.name) if value is not None else None
    if kind is None or kind.dtype is None:
        return False
    if node.op == "Cast":
        return numpy_dtype(int(node.attrs["to"])) == kind.dtype
    like = node.input(1)
    target = types.get(like.name) if like is not None else None
    return target is not None and target.dtype == kind.dtype


def _inference_dropout(node: Node, types: Types) -> bool:
    training = node.input(2)
    if training is None:
        return True
    flag = node.constant(2)
    return flag is not None and not flag.any()


def permutation(node: Node, types: Types) -> list[int] | None:
    """Return the `perm` of a Transpose, spelled out; None where the number of axes is unknown."""
    if node.attrs.get("perm"):
        return [int(axis) for axis in node.attrs["perm"]]
    shape = _shape(node, types)
    return None if shape is None else list(range(len(shape)))[::-1]


def _still_transpose(node: Node, types: Types) -> bool:
    """The permutation is the identity, or moves axes of size one only and leaves the shape as it is."""
    perm = permutation(node, types)
    if perm is None or sorted(perm) != list(range(len(perm))):
        return False
    if perm == sorted(perm):
        return True
    shape = _shape(node, types)
    if shape is None or len(shape) != len(perm) or any(s is None for s in shape):
        return False
    wide = [axis for axis in perm if shape[axis] != 1]
    return wide == sorted(wide) and [shape[axis] for axis in perm] == list(shape)


def _same_reshape(node: Node, types: Types) -> bool:
    target, shape = _ints(node, 1), _shape(node, types)
    if target is None or shape is None or len(target) != len(shape):
        return False
    copies = not node.attrs.get("allowzero", 0)
    return all(t == -1 or (t == 0 and copies) or t == s for t, s in zip(target, shape, strict=True))


def _flat_already(node: Node, types: Types) -> bool:
    shape = _shape(node, types)
    return shape is not None and len(shape) == 2 and node.attrs.get("axis", 1) in (1, -1)


def _zero_pad(node: Node, types: Types) -> bool:
    pads = _ints(node, 1)
    return pads is not None and not any(pads)


def _endless(start: int, end: int, step: int, size: int | str | None) -> bool:
    first = start == 0 or (isinstance(size, int) and start <= -size)
    last = end >= _ENDLESS or (isinstance(size, int) and end >= size)
    return step == 1 and first and last


def whole_slice(node: Node, types: Types) -> bool:
    """Return whether a Slice with constant bounds takes everything."""
    starts, ends, shape = _ints(node, 1), _ints(node, 2), _shape(node, types)
    if starts is None or ends is None or shape is None:
        return False
    axes = list(range(len(starts))) if node.input(3) is None else _ints(node, 3)
    steps = [1] * len(starts) if node.input(4) is None else _ints(node, 4)
    if axes is None or steps is None or any(not -len(shape) <= a < len(shape) for a in axes):
        return False
    if len({len(starts), len(ends), len(axes), len(steps)}) > 1:
        return False
    return all(_endless(b, e, s, shape[a]) for b, e, s, a in zip(starts, ends, steps, axes, strict=True))


def _same_expand(node: Node, types: Types) -> bool:
    target, shape = _ints(node, 1), _shape(node, types)
    if target is None or shape is None or len(target) > len(shape):
        return False
    aligned = zip(target, shape[len(shape) - len(target) :], strict=True)
    return all(t in (1, s) for t, s in aligned)


def _single_tile(node: Node, types: Types) -> bool:
    repeats = _ints(node, 1)
    return repeats is not None and all(r == 1 for r in repeats)


def _no_axes(node: Node, types: Types) -> bool:
    """Squeeze and Unsqueeze of an empty list of axes, and Squeeze of all where no axis has size one."""
    if node.input(1) is not None:
        return _ints(node, 1) == []
    shape = _shape(node, types)
    return node.op == "Squeeze" and shape is not None and all(isinstance(s, int) and s != 1 for s in shape)


_RULES: Mapping[str, Callable[[Node, Types], bool]] = {
    "Identity": lambda node, types: True,
    "Dropout": _inference_dropout,
    "Cast": _same_type,
    "CastLike": _same_type,
    "Transpose": _still_transpose,
    "Reshape": _same_reshape,
    "Flatten": _flat_already,
    "Pad": _zero_pad,
    "Slice": whole_slice,
    "Expand": _same_expand,
    "Tile": _single_tile,
    "Squeeze": _no_axes,
    "Unsqueeze": _no_axes,
    "Clip": lambda node, types: node.input(1) is None and node.input(2) is None,
    "Split": lambda node, types: len(node.outputs) == 1,
} | dict.fromkeys(SINGLETON, lambda node, types: len(node.inputs) == 1)

_NEUTRAL: Mapping[str, tuple[float, tuple[int, ...]]] = {
    "Add": (0, (0, 1)),
    "Sub": (0, (1,)),
    "Mul": (1, (0, 1)),
    "Div": (1, (1,)),
    "Pow": (1, (1,)),
    "Or": (0, (0, 1)),
    "And": (1, (0, 1)),
}
"""The element that changes nothing, and the inputs in which it does so."""


def _neutral_operand(node: Node, types: Types) -> int | None:
    """The input that arithmetic with zeros or ones hands through, if the other one does not enlarge it."""
    element, places = _NEUTRAL[node.op]
    for place in places:
        values = node.constant(place)
        other = 1 - place
        if values is None or values.dtype == object or node.input(other) is None:
            continue
        if node.op == "Pow" and not _alike(node, types, values):
            continue
        if np.all(values == element) and _covered(values.shape, _shape(node, types, other)):
            return other
    return None


def _alike(node: Node, types: Types, exponent: Array) -> bool:
    """Pow gives the type of its base; nothing is said here about bases of another type."""
    kind = types.get(node.inputs[0].name)
    return kind is not None and kind.dtype == exponent.dtype


def _covered(small: tuple[int, ...], shape: Shape | None) -> bool:
    """Whether broadcasting with `small` leaves `shape` as it is."""
    if shape is None or len(small) > len(shape):
        return False
    aligned = zip(small, shape[len(shape) - len(small) :], strict=True)
    return all(one in (1, size) for one, size in aligned)
