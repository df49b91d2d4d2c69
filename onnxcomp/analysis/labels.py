"""Provenance labels: which channel of which producer every element of every value stands for.

Every channel that a weight produces gets a fresh label; labels flow through the graph as integer arrays. Operators that
move data are executed on the labels, operators that compute element by element unite the labels that meet, operators
that contract an axis tie the labels there to an axis of their weight. What is not understood blocks its labels, with a
reason (algorithm: provenance labels by execution; no per-operator index maps are written by hand).

Label arrays are kept *compact*: an axis has its full size only where labels differ along it, else size 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxcomp.ir.graph import Constant, Node

__all__ = ["AxisUse", "Ids", "LabelMap", "Labels", "Role", "compact", "meet"]

Ids = NDArray[np.int64]
"""An array of label numbers."""
Role = Literal["produces", "consumes", "follows"]
"""How a stored tensor's axis relates to its labels: it makes them, contracts them, or is cut along with them."""


def compact(ids: Ids) -> Ids:
    """Return `ids` with every axis along which nothing differs reduced to size 1."""
    for axis, size in enumerate(ids.shape):
        if size > 1 and (ids.strides[axis] == 0 or bool((ids == ids.take([0], axis)).all())):
            ids = ids.take([0], axis)
    return ids


@dataclass(frozen=True)
class Labels:
    """Labels of one value: compact `ids` and the value's full `shape` (same number of axes)."""

    ids: Ids
    shape: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which labels differ."""
        return tuple(a for a, size in enumerate(self.ids.shape) if size > 1)

    def full(self) -> Ids:
        """Return the ids broadcast to the full shape (a view)."""
        return np.broadcast_to(self.ids, self.shape)

    def along(self, axis: int) -> Ids | None:
        """Return the ids `[shape[axis]]` along `axis`, or None where they differ along another axis too."""
        if any(a != axis % len(self.shape) for a in self.axes):
            return None
        return np.broadcast_to(self.ids.reshape(-1), (self.shape[axis],))


@dataclass(frozen=True)
class AxisUse:
    """An axis of a stored tensor and the label of each position along it."""

    constant: Constant
    axis: int
    ids: Ids
    role: Role
    node: Node


@dataclass
class LabelMap:
    """All labels of a graph: arrays per value, ties between labels, axes of stored tensors, and what is blocked.

    Attributes:
        values: labels of every computed value, by name.
        uses: axes of weights, as nodes use them.
        spread: stored tensors that are read element by element, with a label per element.
        rederive: nodes whose shape constants depend on channel counts, with the kind of constant.
        reasons: blocked labels and why.
        foreign: stored tensors that a declined node or a subgraph reads, and why they cannot be cut.
    """

    values: dict[str, Labels] = field(default_factory=dict)
    uses: list[AxisUse] = field(default_factory=list)
    spread: dict[str, tuple[Constant, Labels]] = field(default_factory=dict)
    rederive: list[tuple[Node, str]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)
    _count: int = 0
    _ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    _additive: list[Ids] = field(default_factory=list)
    _axis_ids: dict[tuple[str, int], Ids] = field(default_factory=dict)

    # --- making -------------------------------------------------------------------------------------------------
    def fresh(self, count: int) -> Ids:
        """Return `count` new labels."""
        ids = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        return ids

    def fresh_along(self, shape: tuple[int, ...], axis: int, ids: Ids | None = None) -> Labels:
        """Return labels of a value that differ along `axis` only (new ones unless given)."""
        flat = self.fresh(shape[axis]) if ids is None else ids
        layout = [1] * len(shape)
        layout[axis] = shape[axis]
        return Labels(compact(flat.reshape(layout)), shape)

    def uniform(self, shape: tuple[int, ...], reason: str | None) -> Labels:
        """Return one new label for a whole value, blocked where a `reason` is given."""
        ids = self.fresh(1)
        if reason:
            self.block(ids, reason)
        return Labels(ids.reshape((1,) * len(shape)), shape)

    def of_constant(self, constant: Constant) -> Labels:
        """Return the labels of a stored tensor read element by element: one label per element, made once."""
        if constant.name not in self.spread:
            shape = constant.values.shape
            self.spread[constant.name] = (
                constant,
                Labels(self.fresh(math.prod(shape)).reshape(shape), shape),
            )
        return self.spread[constant.name][1]

    def use_axis(self, node: Node, constant: Constant, axis: int, ids: Ids | None, role: Role) -> Ids:
        """Tie an axis of a stored tensor to `ids` (new ones where None) and return its labels.

        A tensor that several nodes share has one label per position: its readers are tied to each other.
        """
        key = (constant.name, axis)
        if ids is None:
            ids = self._axis_ids.get(key, None)
            ids = self.fresh(constant.values.shape[axis]) if ids is None else ids
        elif key in self._axis_ids:
            self.tie(self._axis_ids[key], ids)
        self._axis_ids.setdefault(key, ids)
        self.uses.append(AxisUse(constant, axis, ids, role, node))
        return ids

    def tie(self, first: Ids, second: Ids, *, additive: bool = False) -> None:
        """Unite labels pairwise (broadcasting); `additive` marks them as a stream that several producers add to."""
        a, b = np.broadcast_arrays(first, second)
        self._ties.append((a.reshape(-1).copy(), b.reshape(-1).copy()))
        if additive:
            self._additive.append(np.unique(a))

    def flatten(self, ids: Ids, axes: Iterable[int]) -> Ids:
        """Tie all labels along each of `axes` and return `ids` reduced to size 1 there."""
        for axis in axes:
            first = ids.take([0], axis)
            self.tie(first, ids)
            ids = first
        return ids

    def block(self, ids: Ids, reason: str) -> None:
        """Forbid the removal of `ids`; the first reason of each label stays."""
        for label in np.unique(ids):
            self.reasons.setdefault(int(label), reason)

    # --- reading ------------------------------------------------------------------------------------------------
    def roots(self) -> Ids:
        """Return for every label the number of its class of tied labels."""
        if not self._count:
            return np.zeros(0, np.int64)
        if self._ties:
            rows = np.concatenate([a for a, _ in self._ties])
            cols = np.concatenate([b for _, b in self._ties])
        else:
            rows = cols = np.zeros(0, np.int64)
        matrix: Any = coo_matrix(
            (np.ones(len(rows), np.bool_), (rows, cols)), shape=(self._count, self._count)
        )
        return connected_components(matrix, directed=False)[1].astype(np.int64)

    def additive(self, roots: Ids) -> set[int]:
        """Return the classes that several producers add to (residual streams)."""
        return {int(r) for ids in self._additive for r in np.unique(roots[ids])}

    def blocked(self, roots: Ids) -> dict[int, str]:
        """Return the reason of every blocked class."""
        found: dict[int, str] = {}
        for label, reason in self.reasons.items():
            found.setdefault(int(roots[label]), reason)
        return found

    def make_rectangular(self) -> Ids:
        """Tie labels until every class is a whole slab along one axis of every value; return the classes.

        A value whose labels differ along two axes (a channel axis split in two by Reshape) cannot lose single elements:
        all labels of one slab are tied, along the axis that has the most different slabs, so that the most classes are
        left. Ties only grow, so the loop ends.
        """
        while True:
            roots = self.roots()
            changed = False
            for labels in [*self.values.values(), *(spread for _, spread in self.spread.values())]:
                if len(labels.axes) < 2:
                    continue
                classes = compact(roots[labels.ids])
                axes = [a for a, size in enumerate(classes.shape) if size > 1]
                if len(axes) < 2:
                    continue
                keep = max(axes, key=lambda a: np.unique(classes, axis=a).shape[a])
                slabs = np.moveaxis(labels.ids, keep, 0).reshape(labels.ids.shape[keep], -1)
                self.tie(slabs[:, :1], slabs)
                changed = True
            if not changed:
                return roots


def meet(
    labels: LabelMap,
    computed: Sequence[Labels],
    stored: Sequence[Labels],
    shape: tuple[int, ...],
    *,
    additive: bool = False,
) -> Labels:
    """Return the labels of an element-by-element operator: labels that meet are tied, broadcasting as the data does.

    A computed operand of size 1 along an axis along which others have channels (a scalar, a spatial mask) is read by all
    of them and is not cut. Where such an operand has channels along another axis, everything that meets is blocked.
    `stored` operands are cut along the axes along which computed ones have channels, and along no other.
    """
    operands = [_pad(o, len(shape)) for o in (computed or stored)]
    varying = {a for o in operands for a in o.axes}
    taking: list[Labels] = []
    for operand in operands:
        stretched = {a for a in varying if operand.shape[a] == 1 and shape[a] > 1}
        if not stretched:
            taking.append(operand)
        elif operand.axes:
            for other in operands:
                labels.block(other.ids, "it meets a value that has channels along another axis")
    if not taking:
        return labels.uniform(shape, "it meets a value that has channels along another axis")
    merged = taking[0].ids
    for operand in taking[1:]:
        labels.tie(merged, operand.ids, additive=additive)
        merged = _flat_where_either(merged, operand.ids)
    for operand in (_pad(o, len(shape)) for o in (stored if computed else ())):
        if varying & set(operand.axes):
            labels.tie(merged, operand.ids)
    return Labels(merged, shape)


def _flat_where_either(first: Ids, second: Ids) -> Ids:
    """Return `first`, whose labels are tied to those of `second`, reduced along axes along which `second` is flat."""
    for axis, size in enumerate(second.shape):
        if size == 1:
            first = first.take([0], axis)
    return first


def _pad(labels: Labels, ndim: int) -> Labels:
    missing = (1,) * (ndim - len(labels.shape))
    return Labels(labels.ids.reshape(missing + labels.ids.shape), missing + labels.shape)
