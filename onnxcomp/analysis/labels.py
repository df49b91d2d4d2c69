"""Provenance labels: which channel of which producer every element of every value stands for.

Every channel that a weight produces gets a fresh label; labels flow through the graph as integer arrays. Operators that
move data are executed on the labels, operators that compute element by element unite the labels that meet, operators
that contract an axis tie the labels there to an axis of their weight. What is not understood blocks its labels, with a
reason (algorithm: provenance labels by execution; no per-operator index maps are written by hand).

Label arrays are kept *compact*: an axis has its full size only where labels differ along it, else size 1.

Where elements can go in two ways (a value of attention by whole heads, or by the same positions of every head), there are
two *views*: sets of ties that each make a valid partition of their own (see `onnxcomp.analysis.views`).
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

__all__ = [
    "DIMS",
    "HEADS",
    "MOST_LABELS",
    "AxisUse",
    "Blocked",
    "Deferred",
    "Ids",
    "LabelMap",
    "Labels",
    "Role",
    "Ties",
    "compact",
    "meet",
]

Ids = NDArray[np.int64]
"""An array of label numbers."""
Role = Literal["produces", "consumes", "follows"]
"""How a stored tensor's axis relates to its labels: it makes them, contracts them, or is cut along with them."""

DIMS, HEADS = 0, 1
"""The views: single positions (the same ones in every head), and whole heads."""


_MOST_STORED = 2**24
"""Labels that one stored tensor may have: its elements stand in the file."""

MOST_LABELS = 2**22
"""Labels of one value beyond which it is not followed: a few bytes of a file may claim a value of any size."""


class Blocked(Exception):  # noqa: N818 - a refusal, caught in this room
    """A rule declines a node; the message is the reason."""


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

    def reshaped(self, shape: tuple[int, ...]) -> Labels:
        """Return the labels of the value in another shape; what is the same along an axis stays so, at no cost.

        Raises:
            Blocked: where the shapes do not fit, or labels that differ would take too much memory in the new one.
        """
        sides, ids = [], self.ids
        for old, new in _segments(self.shape, shape):
            varies = any(ids.shape[axis] > 1 for axis in old)
            sides.append(
                ([self.shape[a] if varies else 1 for a in old], [shape[a] if varies else 1 for a in new])
            )
        if math.prod(size for old, _ in sides for size in old) > MOST_LABELS:
            raise Blocked(
                f"a value of the shape {list(self.shape)} has too many elements to be followed one by one"
            )
        full = np.broadcast_to(ids, [size for old, _ in sides for size in old])
        return Labels(compact(full.reshape([size for _, new in sides for size in new])), shape)

    def along(self, axis: int) -> Ids | None:
        """Return the ids `[shape[axis]]` along `axis`, or None where they differ along another axis too."""
        if any(a != axis % len(self.shape) for a in self.axes):
            return None
        return np.broadcast_to(self.ids.reshape(-1), (self.shape[axis],))


def _segments(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return the shortest runs of axes of two shapes that hold equally many elements, in order.

    Raises:
        Blocked: where the shapes hold different numbers of elements.
    """
    if math.prod(old) != math.prod(new):
        raise Blocked(f"a value of the shape {list(old)} cannot be given the shape {list(new)}")
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        one = two = 1
        while not left or not right or one != two:
            if (one <= two and i < len(old)) or j == len(new):
                if i == len(old):
                    break
                left.append(i)
                one *= old[i]
                i += 1
            else:
                right.append(j)
                two *= new[j]
                j += 1
        runs.append((left, right))
    return runs


@dataclass(frozen=True)
class AxisUse:
    """An axis of a stored tensor and the label of each position along it.

    `zero` is what stands for zero in a quantized tensor, with the axis of the tensor along which that varies.
    """

    constant: Constant
    axis: int
    ids: Ids
    role: Role
    node: Node
    zero: tuple[Constant, int] | None = None


@dataclass(frozen=True)
class Deferred:
    """A tie whose axis is known only when labels of the surrounding nodes have been tied.

    Once the classes of `ids` differ along one axis only: `other` (of as many axes) is tied to them where it is `full`
    along that axis. Otherwise `other` is not cut with them, and rests; where it has channels of its own (`own`), both do.
    """

    ids: Ids
    other: Ids
    full: frozenset[int]
    own: bool
    additive: bool = False


@dataclass
class Ties:
    """What is said about labels: which go together, which may not go, and why.

    Attributes:
        reasons: blocked labels and why.
        hints: why labels are tied, for those that end up as the only channel of a value.
        deferred: ties that wait for others.
        resting: for each view the labels that cannot go by it, and why; another view may let them go.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    hints: dict[int, str] = field(default_factory=dict)
    deferred: list[Deferred] = field(default_factory=list)
    resting: tuple[dict[int, str], dict[int, str]] = field(default_factory=lambda: ({}, {}))
    _ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    _view_ties: tuple[list[tuple[Ids, Ids]], list[tuple[Ids, Ids]]] = field(default_factory=lambda: ([], []))
    _additive: list[Ids] = field(default_factory=list)

    def tie(self, first: Ids, second: Ids, *, additive: bool = False, view: int | None = None) -> None:
        """Unite labels pairwise (broadcasting), in one view where one is given.

        `additive` marks them as a stream that several producers add to.
        """
        a, b = np.broadcast_arrays(first, second)
        ties = self._ties if view is None else self._view_ties[view]
        ties.append((a.reshape(-1).copy(), b.reshape(-1).copy()))
        if additive:
            self._additive.append(np.unique(a))

    def flatten(self, ids: Ids, axes: Iterable[int], view: int | None = None) -> Ids:
        """Tie all labels along each of `axes` (in one view where one is given) and return `ids` at size 1 there."""
        for axis in axes:
            first = ids.take([0], axis)
            self.tie(first, ids, view=view)
            ids = first
        return ids

    def rest(self, ids: Ids, view: int | None, reason: str) -> None:
        """Let `ids` stay in `view` (in every one where None); unlike `block`, another view may let them go."""
        for number in (DIMS, HEADS) if view is None else (view,):
            for label in np.unique(ids):
                self.resting[number].setdefault(int(label), reason)

    def defer(self, ids: Ids, other: Labels, varying: set[int], own: bool, additive: bool = False) -> None:
        """Tie `other` to `ids`, whose labels differ along the axes `varying`, once it is known along which they can go."""
        full = frozenset(a for a in varying if other.shape[a] > 1)
        if full or own:
            self.deferred.append(Deferred(ids, other.ids, full, own, additive))

    def block(self, ids: Ids, reason: str) -> None:
        """Forbid the removal of `ids`; the first reason of each label stays."""
        for label in np.unique(ids):
            self.reasons.setdefault(int(label), reason)

    def hint(self, ids: Ids, reason: str) -> None:
        """Say why `ids` are tied: the reason that users see should nothing else be left in a value."""
        for label in np.unique(ids):
            self.hints.setdefault(int(label), reason)

    @property
    def views(self) -> int:
        """How many views there are: two where any tie or rest belongs to one of them."""
        return 2 if any(self._view_ties) or self.resting[DIMS].keys() != self.resting[HEADS].keys() else 1

    def additive(self, roots: Ids) -> set[int]:
        """Return the classes that several producers add to (residual streams)."""
        return {int(r) for ids in self._additive for r in np.unique(roots[ids])}

    def blocked(self, roots: Ids, view: int) -> dict[int, str]:
        """Return the reason of every class of `view` that is blocked or rests."""
        found: dict[int, str] = {}
        for reasons in (self.reasons, self.resting[view]):
            for label, reason in reasons.items():
                found.setdefault(int(roots[label]), reason)
        return found


@dataclass
class LabelMap(Ties):
    """All labels of a graph: arrays per value, ties between labels, axes of stored tensors, and what is blocked.

    Attributes:
        values: labels of every computed value, by name.
        uses: axes of weights, as nodes use them.
        spread: stored tensors that are read element by element, with a label per element.
        rederive: nodes whose shape constants depend on channel counts, with the kind of constant.
        frozen: nodes that compute with numbers of channels as they are now: `(node, numbers, counted axes)`.
        counts: inputs of Concat nodes that come to be stored: `(node, input, value, axis)` for the number of positions left.
        foreign: stored tensors that a declined node or a subgraph reads, and why they cannot be cut.
        products: inputs of nodes at which two computed values are contracted: their channels are read there, by no weight.
        balanced: labels `[blocks, positions]` of which every block must lose equally many.
    """

    values: dict[str, Labels] = field(default_factory=dict)
    uses: list[AxisUse] = field(default_factory=list)
    spread: dict[str, tuple[Constant, Labels]] = field(default_factory=dict)
    rederive: list[tuple[Node, str]] = field(default_factory=list)
    counts: list[tuple[Node, int, str, int]] = field(default_factory=list)
    frozen: list[tuple[Node, Ids, tuple[tuple[str, int], ...]]] = field(default_factory=list)
    foreign: dict[str, str] = field(default_factory=dict)
    products: list[tuple[Node, int]] = field(default_factory=list)
    balanced: list[Ids] = field(default_factory=list)
    _count: int = 0
    _axis_ids: dict[tuple[str, int], Ids] = field(default_factory=dict)

    # --- making -------------------------------------------------------------------------------------------------
    def fresh(self, count: int) -> Ids:
        """Return `count` new labels.

        Raises:
            Blocked: where those are more than are worth their memory.
        """
        if count > _MOST_STORED:
            raise Blocked(f"it has {count:,} elements, more than are followed one by one")
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

    def use_axis(
        self,
        node: Node,
        constant: Constant,
        axis: int,
        ids: Ids | None,
        role: Role,
        *,
        zero: tuple[Constant, int] | None = None,
    ) -> Ids:
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
        self.uses.append(AxisUse(constant, axis, ids, role, node, zero))
        return ids

    def block_along(self, labels: Labels, axis: int, reason: str) -> None:
        """Forbid that a value with `labels` loses positions along `axis`; along others it may."""
        if not set(labels.axes) - {axis}:
            self.block(labels.ids, reason)
            return
        held = self.fresh_along(labels.shape, axis)
        self.block(held.ids, reason)
        self.defer(labels.ids, held, {axis}, own=False)

    # --- reading ------------------------------------------------------------------------------------------------
    def roots(self, view: int | None = None) -> Ids:
        """Return for every label the number of its class of labels that are tied (in `view`, or in every view)."""
        if not self._count:
            return np.zeros(0, np.int64)
        ties = self._ties + ([] if view is None else self._view_ties[view])
        if ties:
            rows = np.concatenate([a for a, _ in ties])
            cols = np.concatenate([b for _, b in ties])
        else:
            rows = cols = np.zeros(0, np.int64)
        matrix: Any = coo_matrix(
            (np.ones(len(rows), np.bool_), (rows, cols)), shape=(self._count, self._count)
        )
        return connected_components(matrix, directed=False)[1].astype(np.int64)


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
    `stored` operands are cut along the axes along which computed ones have channels, and along no other. Where the
    others have labels along several axes, it is decided when it is known along which of them they can go.
    """
    operands = [_pad(o, len(shape)) for o in (computed or stored)]
    varying = {a for o in operands for a in o.axes}
    taking: list[Labels] = []
    waiting: list[Labels] = []
    for operand in operands:
        (waiting if _stretched(operand, varying, shape) else taking).append(operand)
    if not taking or (len(varying) < 2 and any(operand.axes for operand in waiting)):
        reason = "it meets a value that has channels along another axis"
        for operand in operands:
            labels.block(operand.ids, reason)
        return labels.uniform(shape, reason)
    merged = taking[0].ids
    for operand in taking[1:]:
        labels.tie(merged, operand.ids, additive=additive)
        merged = _flat_where_either(merged, operand.ids)
    for operand in waiting:
        labels.defer(merged, operand, varying, bool(operand.axes), additive)
    for operand in (_pad(o, len(shape)) for o in (stored if computed else ())):
        if _stretched(operand, varying, shape):
            labels.defer(merged, operand, varying, own=False)
        elif varying & set(operand.axes):
            labels.tie(merged, operand.ids)
    return Labels(merged, shape)


def _stretched(operand: Labels, varying: set[int], shape: tuple[int, ...]) -> bool:
    """Return whether `operand` is repeated along an axis along which labels differ."""
    return any(operand.shape[a] == 1 and shape[a] > 1 for a in varying)


def _flat_where_either(first: Ids, second: Ids) -> Ids:
    """Return `first`, whose labels are tied to those of `second`, reduced along axes along which `second` is flat."""
    for axis, size in enumerate(second.shape):
        if size == 1:
            first = first.take([0], axis)
    return first


def _pad(labels: Labels, ndim: int) -> Labels:
    missing = (1,) * (ndim - len(labels.shape))
    return Labels(labels.ids.reshape(missing + labels.ids.shape), missing + labels.shape)
