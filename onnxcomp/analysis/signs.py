"""Which values are never negative, by what computes them."""

from __future__ import annotations

from onnxcomp.ir.graph import Constant, Node, Value
from onnxcomp.ir.ops import KEEPS_SIGN, KEEPS_SIGN_OF_ALL, NONNEGATIVE

__all__ = ["clip_bounds", "is_nonnegative"]


def clip_bounds(node: Node) -> tuple[float | None, float | None]:
    """Return `(low, high)` of a Clip: infinite where a bound is left out, None where it is not a constant."""
    bounds: list[float | None] = []
    for index, absent in ((1, float("-inf")), (2, float("inf"))):
        values = node.constant(index)
        if values is not None and values.size == 1:
            bounds.append(float(values.reshape(())))
        else:
            bounds.append(absent if node.input(index) is None else None)
    return bounds[0], bounds[1]


def is_nonnegative(value: Value) -> bool:
    """Return whether no element of `value` can be negative; False where that is not known. NaN is not thought of."""
    waiting: list[Value] = [value]
    seen: set[Value] = set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        sources = _deciding(current)
        if sources is None:
            return False
        waiting.extend(sources)
    return True


def _deciding(value: Value) -> list[Value] | None:
    """Return the values of which none may be negative for `value` not to be; None where `value` may be in any case."""
    if isinstance(value, Constant):
        numbers = value.values.dtype.kind in "fiu"
        return [] if numbers and bool((value.values >= 0).all()) else None
    node = value.producer
    if node is None or not node.standard:
        return None
    if node.op in NONNEGATIVE:
        return []
    if node.op in KEEPS_SIGN:
        return [node.inputs[0]]
    if node.op in KEEPS_SIGN_OF_ALL:
        return list(node.inputs)
    if node.op == "Clip":
        low, high = clip_bounds(node)
        # Where the bounds cross, Clip gives the upper one.
        if high is None or high < 0:
            return None
        return [] if low is not None and low >= 0 else [node.inputs[0]]
    return None
