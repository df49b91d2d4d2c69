"""What is there twice: constants with equal contents, and nodes that compute the same from the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import numpy as np

from onnxcomp.ir.graph import Constant, Graph, Node, is_default_domain
from onnxcomp.ir.liveness import has_subgraphs
from onnxcomp.ir.ops import NONDETERMINISTIC, QUANTIZATION

__all__ = ["equal_constants", "equal_nodes"]

T = TypeVar("T")


def equal_constants(graph: Graph) -> list[list[Constant]]:
    """Return the registered constants that are equal to another one bit for bit, in groups, in the order they stand.

    Contents are read only of constants that share type and shape with another one.
    """
    alike = _groups(graph.constants.values(), lambda c: (c.values.dtype, c.values.shape))
    return [group for part in alike for group in _groups(part, _contents)]


def _contents(constant: Constant) -> Hashable:
    values = constant.values
    return tuple(values.flat) if values.dtype == object else values.tobytes()


def equal_nodes(graph: Graph) -> list[list[Node]]:
    """Return the nodes that compute the same from the same inputs, in groups, in graph order.

    Only standard operators that give the same at every run count, without subgraphs, and none that carry a quantization:
    where those stand has a meaning of its own.
    """
    return _groups((n for n in graph.nodes if _comparable(n)), _computation)


def _comparable(node: Node) -> bool:
    special = node.op in NONDETERMINISTIC or node.op in QUANTIZATION
    return is_default_domain(node.domain) and not special and not has_subgraphs(node)


def _computation(node: Node) -> Hashable:
    attrs = tuple(sorted((name, _frozen(value)) for name, value in node.attrs.items()))
    inputs = tuple(id(v) if v.name else None for v in node.inputs)
    return node.op, attrs, inputs, tuple(bool(v.name) for v in node.outputs)


def _frozen(value: Any) -> tuple[str, Hashable]:
    """Return an attribute's value as something that hashes and compares by content."""
    serialize = getattr(value, "SerializeToString", None)
    if serialize is not None:
        return "proto", serialize(deterministic=True)
    if isinstance(value, np.ndarray):
        return "tensor", (str(value.dtype), value.shape, value.tobytes())
    return type(value).__name__, repr(value)


def _groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return the items that share their key with another one, group by group."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return [group for group in found.values() if len(group) > 1]
