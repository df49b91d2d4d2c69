"""Channel groups: which channels of a model have to go together, and what stands in the way.

A *unit* is one class of tied labels: the smallest thing that can be removed. Units that share an axis of a stored tensor
that produces them form a :class:`ChannelGroup`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.cut import axis_masks, cut, mask_consumers
from onnxcomp.analysis.labels import DIMS, HEADS, AxisUse, LabelMap, Role, compact
from onnxcomp.analysis.rules import propagate
from onnxcomp.analysis.views import Classes, partition
from onnxcomp.errors import PreconditionError
from onnxcomp.ir.model import Model
from onnxcomp.ir.shapes import infer_types
from onnxcomp.numerics.arrays import Mask

__all__ = ["ChannelGroup", "ChannelGroups", "Member", "channel_groups"]

Units = NDArray[np.int64]

DEFAULT_SIZE = 32
"""Stands in for symbolic sizes of graph inputs other than the first axis where the caller gives no shapes."""


@dataclass(frozen=True)
class Member:
    """An axis of a stored tensor that a group cuts: `units[i]` is the unit of position i, -1 for one of another group."""

    name: str
    axis: int
    units: Units
    role: Role
    node: str


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut together.

    Attributes:
        name: the first producer's node name.
        units: how many units there are; unit numbers run from 0.
        members: the axes of stored tensors that are cut.
        producers: names of the nodes whose weights make the channels.
        consumers: names of the nodes that contract them.
        reasons: for every unit why it must stay, or None.
        coupled: whether several producers are added together (a residual stream).
        spans: sets of units of which at least one must stay, or some value would lose its last channel.
        roots: the label class of every unit.
        view: by which partition of the labels the units go: `DIMS`, or `HEADS` for whole heads of attention.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    reasons: tuple[str | None, ...]
    coupled: bool
    spans: tuple[Units, ...]
    roots: Units
    view: int = DIMS

    @property
    def blocked(self) -> str | None:
        """Why no unit of the group may go, or None where at least one may."""
        if all(self.reasons):
            reason, _ = Counter(self.reasons).most_common(1)[0]
            return reason
        return None

    @cached_property
    def free(self) -> Mask:
        """Mask `[units]` of the units that may go."""
        return np.array([reason is None for reason in self.reasons])


@dataclass(frozen=True)
class ChannelGroups:
    """All channel groups of one model, in topological order of their first producers."""

    groups: tuple[ChannelGroup, ...]
    labels: LabelMap = field(repr=False)
    classes: Classes = field(repr=False)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def take(self, model: Model, keep: Mapping[str, Mask]) -> None:
        """Keep only the units that `keep` marks True, group by group name; edits `model` in place, all or nothing.

        `model` must be the analysed model or a clone of it. Groups that `keep` does not name stay whole.

        Raises:
            PreconditionError: where a blocked unit would go or a value would lose its last channel.
        """
        cut(model, self.labels, self.classes, self._removed(keep))

    def mask(self, model: Model, keep: Mapping[str, Mask]) -> None:
        """Zero the units that `keep` marks False where they are consumed, in place: the oracle of :meth:`take`."""
        mask_consumers(model, self.labels, self.classes, self._removed(keep))

    def shapes_after(self, keep: Mapping[str, Mask]) -> dict[str, tuple[int, ...]]:
        """Return the shape that every computed value would have after `take(model, keep)`, at the analysed sizes."""
        removed = self._removed(keep)
        shapes = {}
        for name, labels in self.labels.values.items():
            masks = axis_masks(labels, self.classes, removed)
            shapes[name] = tuple(
                int(masks[axis].sum()) if axis in masks else size for axis, size in enumerate(labels.shape)
            )
        return shapes

    def kept_along(self, name: str, axis: int, keep: Mapping[str, Mask]) -> Mask:
        """Return which positions of the value `name` along `axis` stay after `take(model, keep)`."""
        labels = self.labels.values[name]
        masks = axis_masks(labels, self.classes, self._removed(keep))
        return masks.get(axis, np.ones(labels.shape[axis], bool))

    def owners(self) -> tuple[Units, Units]:
        """Return for every class the number of the group whose unit it is, and the unit; -1 for none."""
        owner = np.full(int(self.classes.max(initial=-1)) + 1, -1, np.int64)
        unit = owner.copy()
        for number, group in enumerate(self.groups):
            owner[group.roots] = number
            unit[group.roots] = np.arange(group.units)
        return owner, unit

    def _removed(self, keep: Mapping[str, Mask]) -> Mask:
        removed = np.zeros(int(self.classes.max(initial=-1)) + 1, bool)
        for name, mask in keep.items():
            group = self[name]
            gone = ~np.asarray(mask, bool)
            if gone.shape != (group.units,):
                raise PreconditionError(f"channel group {name!r} has {group.units} units, not {gone.size}")
            for unit in np.flatnonzero(gone & ~group.free):
                raise PreconditionError(f"channel {unit} of {name!r} must stay: {group.reasons[unit]}")
            if any(gone[span].all() for span in group.spans):
                raise PreconditionError(f"nothing would be left of channel group {name!r}")
            removed[group.roots[gone]] = True
        return removed


def channel_groups(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    excluded: Mapping[str, str] | None = None,
) -> ChannelGroups:
    """Return the channel groups of `model`, read only.

    `shapes` are the concrete shapes of all values for one sample; without them they are inferred, symbolic sizes of
    graph inputs standing for 1 (first axis) and `DEFAULT_SIZE`. `excluded` maps node names to reasons.

    >>> from onnxcomp.analysis.channels import channel_groups
    >>> from onnxcomp.ir.parse import parse_model
    >>> model = parse_model('''<ir_version: 8, opset_import: ["" : 17]> net (float[N,2,4,4] x) => (float[N,3,4,4] y)
    ...     <float[4,2,1,1] a, float[3,4,1,1] b> { h = Conv(x, a)  r = Relu(h)  y = Conv(r, b) }''')
    >>> [(g.name, g.units, g.blocked) for g in channel_groups(model)]
    [('h', 4, None), ('y', 3, "it reaches the graph output 'y'")]
    """
    sure = shapes is not None
    labels = propagate(model, default_shapes(model) if shapes is None else shapes, excluded, sure=sure)
    classes = partition(labels)
    return ChannelGroups(tuple(_collect(labels, classes)), labels, classes)


def default_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the concrete shapes of all values that shape inference finds, with stand-ins for symbolic input sizes."""
    inputs = {}
    for value in model.graph.inputs:
        if value.shape is not None:
            inputs[value.name] = tuple(
                size if isinstance(size, int) and size > 0 else (1 if axis == 0 else DEFAULT_SIZE)
                for axis, size in enumerate(value.shape)
            )
    types = infer_types(model, inputs)
    return {name: kind.static for name, kind in types.items() if kind.static is not None}


def _collect(labels: LabelMap, classes: Classes) -> list[ChannelGroup]:
    """Return the groups: units that share a producing axis, and go by the same view."""
    order: dict[int, int] = {}
    graph: nx.Graph[int] = nx.Graph()
    units = _units(labels, classes)
    for use in (use for use in labels.uses if use.role == "produces"):
        for view, going in enumerate(units):
            roots = [root for root in dict.fromkeys(classes[view][use.ids].tolist()) if root in going]
            for root in roots:
                order.setdefault(root, len(order))
            nx.add_path(graph, roots)
            graph.add_nodes_from(roots)
    components = sorted(
        (sorted(c, key=order.__getitem__) for c in nx.connected_components(graph)), key=lambda c: order[c[0]]
    )
    where = {
        root: (number, unit) for number, roots in enumerate(components) for unit, root in enumerate(roots)
    }
    spans = _spans(labels, classes, where, len(components))
    uses: list[list[AxisUse]] = [[] for _ in components]
    for view, going in enumerate(units):
        for use in [*labels.uses, *_plain_uses(labels, classes[view])]:
            for number in {where[root][0] for root in set(classes[view][use.ids].tolist()) & going}:
                uses[number].append(use)
    blocked = [
        labels.blocked(classes[v], v) | _uncovered(labels, classes, where, v) for v in range(len(units))
    ]
    hints = [{int(roots[label]): hint for label, hint in reversed(labels.hints.items())} for roots in classes]
    additive = [labels.additive(roots) for roots in classes]
    groups: list[ChannelGroup] = []
    for number, roots in enumerate(components):
        view = next(v for v, going in enumerate(units) if roots[0] in going)
        reasons = _Reasons(blocked[view], hints[view])
        group = _group(roots, uses[number], spans[number], classes, view, reasons)
        group = replace(group, coupled=bool(additive[view] & set(roots)))
        # One node can make channels along two axes of its weight (an Einsum), and so begin two groups.
        same = sum(other.name.partition("#")[0] == group.name for other in groups)
        groups.append(replace(group, name=f"{group.name}#{same + 1}") if same else group)
    return groups


def _units(labels: LabelMap, classes: Classes) -> list[set[int]]:
    """Return the classes that are units of each view: those that a weight produces, and that do not rest.

    A class of the same labels in both views is a unit of the first. What rests in every view is a blocked unit of the
    first, so that nothing is left out of the groups without a word.
    """
    made = [use.ids for use in labels.uses if use.role == "produces"]
    if not made:
        return [set() for _ in classes]
    produced = np.unique(np.concatenate(made))
    still = [np.array([*labels.resting[v]], np.int64) for v in range(len(classes))]
    awake = [~np.isin(view[produced], view[ids]) for view, ids in zip(classes, still, strict=True)]
    first = awake[DIMS] | ~np.any(awake, axis=0)
    found = [set(classes[DIMS][produced[first]].tolist())]
    if len(classes) > 1:
        found.append(set(classes[HEADS][produced[awake[HEADS]]].tolist()) - set(classes[DIMS].tolist()))
    return found


def _plain_uses(labels: LabelMap, classes: Units) -> list[AxisUse]:
    """Return the axes along which stored tensors that are plain operands (a bias that is added, slopes) are cut."""
    uses = []
    for constant, spread in labels.spread.values():
        varying = [a for a, size in enumerate(compact(classes[spread.ids]).shape) if size > 1]
        if len(varying) == 1 and constant.consumers:
            ids = np.moveaxis(spread.ids, varying[0], 0).reshape(spread.shape[varying[0]], -1)[:, 0]
            uses.append(AxisUse(constant, varying[0], ids, "follows", constant.consumers[0]))
    return uses


@dataclass(frozen=True)
class _Reasons:
    """Why classes of one view must stay, and why those would have to that are the only ones of a value."""

    blocked: dict[int, str]
    hints: dict[int, str]


def _group(
    roots: list[int],
    uses: list[AxisUse],
    spans: list[Units],
    classes: Classes,
    view: int,
    reasons: _Reasons,
) -> ChannelGroup:
    """Return the group of the classes `roots`; whether it is coupled is for the caller to say."""
    lookup = np.full(int(classes.max()) + 1, -1, np.int64)
    lookup[roots] = np.arange(len(roots))
    members = tuple(
        Member(u.constant.name, u.axis, lookup[classes[view][u.ids]], u.role, u.node.name) for u in uses
    )
    alone = {int(span[0]): roots[int(span[0])] for span in spans if len(span) == 1}
    width = max(len(m.units) for m in members if m.role == "produces")
    tied = len(roots) == 1 < width
    said = f"its {width} channels can only go all together" if tied else "it is the only channel of a value"
    only = {unit: reasons.hints.get(root, said) for unit, root in alone.items()}
    name = next(m.node for m in members if m.role == "produces")
    return ChannelGroup(
        name=name if view == DIMS else f"{name}:heads",
        units=len(roots),
        members=members,
        producers=tuple(dict.fromkeys(m.node for m in members if m.role == "produces")),
        consumers=tuple(dict.fromkeys(m.node for m in members if m.role == "consumes")),
        reasons=tuple(reasons.blocked.get(root, only.get(unit)) for unit, root in enumerate(roots)),
        coupled=False,
        spans=tuple(spans),
        roots=np.array(roots, np.int64),
        view=view,
    )


def _spans(
    labels: LabelMap, classes: Classes, where: dict[int, tuple[int, int]], count: int
) -> list[list[Units]]:
    """Return for each group the distinct sets of its units of which one must stay, or some value would be empty."""
    found: list[dict[bytes, Units]] = [{} for _ in range(count)]
    distinct: dict[bytes, Units] = {}
    for value in labels.values.values():
        for view in classes:
            roots = np.unique(view[value.ids])
            distinct.setdefault(roots.tobytes(), roots)
    for roots in distinct.values():
        number, units = _answering(roots.tolist(), where)
        if len(units):
            found[number].setdefault(units.tobytes(), units)
    return [list(each.values()) for each in found]


def _answering(roots: list[int], where: dict[int, tuple[int, int]]) -> tuple[int, Units]:
    """Return the group, and its units among the classes `roots` of one value, of which one must stay.

    Where units of several groups make up a value together, those of the first group answer for it: one choice of units
    in one group must be valid whatever the others choose. There are none where the value also holds other things.
    """
    places = [where[root] for root in roots if root in where]
    if not places or len(places) != len(roots):
        return -1, np.zeros(0, np.int64)
    first = min(number for number, _ in places)
    return first, np.array(sorted(unit for number, unit in places if number == first), np.int64)


def _uncovered(
    labels: LabelMap, classes: Classes, where: dict[int, tuple[int, int]], view: int
) -> dict[int, str]:
    """Return the heads that must stay, since a value does not hold every position of every one of them.

    Each view alone leaves something of every value. Both together do where every unit that one view has to leave meets
    all of those of which the other has to leave one, or something that the other cannot remove.
    """
    distinct: dict[bytes, Units] = {}
    for value in labels.values.values() if view == HEADS else ():
        pairs = np.unique(classes[:, value.ids.reshape(-1)], axis=1)
        if not (pairs[DIMS] == pairs[HEADS]).all():
            distinct.setdefault(pairs.tobytes(), pairs)
    found: dict[int, str] = {}
    for pairs in distinct.values():
        reason = "its heads and their channels do not make up a whole rectangle"
        found.update({} if _covered(pairs, where) else dict.fromkeys(pairs[HEADS].tolist(), reason))
    return found


def _covered(pairs: Units, where: dict[int, tuple[int, int]]) -> bool:
    """Return whether elements of the classes `pairs` `[2, n]` (both views) stay, however both views choose."""
    spans = []
    for roots in pairs:
        number, units = _answering(np.unique(roots).tolist(), where)
        own = {root for root in roots.tolist() if len(units) and where[root][0] == number}
        spans.append(own)
    heads: dict[int, set[int]] = {}
    for dim, head in pairs.T.tolist():
        heads.setdefault(dim, set()).add(head)

    def covers(dim: int) -> bool:
        met = heads[dim]
        return (
            dim in met or any(head not in where for head in met) or bool(spans[HEADS] and met >= spans[HEADS])
        )

    if spans[DIMS]:
        return all(map(covers, spans[DIMS]))
    return any(covers(dim) for dim in heads if dim not in where)
