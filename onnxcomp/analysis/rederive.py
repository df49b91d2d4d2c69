"""Constants that depend on numbers of channels: what they have to be after a cut, operator by operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcomp.analysis.labels import LabelMap, Labels
from onnxcomp.analysis.moves import pad_amounts, slice_bounds
from onnxcomp.analysis.sizing import target_places
from onnxcomp.analysis.views import Classes, Mask
from onnxcomp.ir.graph import Array, Constant, Node, Value, Variable
from onnxcomp.ir.model import Model

__all__ = ["Edit", "axis_masks", "edits"]

Edit = Callable[[Model], None]
"""A change of a model, in place."""
Rederive = Callable[[Node, LabelMap, Classes, Mask], "Edit | None"]
"""Returns what a node needs once the marked classes are gone, or None where it needs nothing."""


def edits(model: Model, labels: LabelMap, classes: Classes, removed: Mask) -> list[Edit]:
    """Return what has to be edited in `model`, beside stored weights, once the marked classes are gone."""
    nodes = {node.name: node for node in model.graph.nodes}
    found = [
        _REDERIVE[kind](nodes[node.name], labels, classes, removed)
        for node, kind in dict.fromkeys(labels.rederive)
    ]
    found += [
        _counted(model, maker.name, part, value, axis_masks(labels.values[value], classes, removed).get(axis))
        for maker, part, value, axis in labels.counts
    ]
    for node, numbers, counted in labels.frozen:
        if any(axis in axis_masks(labels.values[value], classes, removed) for value, axis in counted):
            found.append(_set_computed(nodes[node.name], 0, numbers))
    return [edit for edit in found if edit is not None]


def axis_masks(labels: Labels, classes: Classes, removed: Mask) -> dict[int, Mask]:
    """Return, for every axis of a value that loses positions, the mask `[shape[axis]]` of those that stay."""
    masks: dict[int, Mask] = {}
    for view in classes:
        gone = removed[view[labels.ids]]
        for axis in labels.axes:
            others = tuple(a for a in range(gone.ndim) if a != axis)
            lost = np.asarray(gone.all(axis=others), bool)
            if lost.any():
                masks[axis] = masks.get(axis, np.ones_like(lost)) & ~lost
    return masks


def _labels_of(value: Value, labels: LabelMap) -> Labels:
    return labels.spread[value.name][1] if isinstance(value, Constant) else labels.values[value.name]


def _set(node: Node, index: int, values: Array) -> Edit:
    def edit(model: Model) -> None:
        model.graph.set_constant(node, index, values)

    return edit


def _set_computed(node: Node, index: int, values: Array) -> Edit:
    def edit(model: Model) -> None:
        model.graph.set_input(node, index, model.graph.add_constant(f"{node.name}.{index}", values))

    return edit


def _set_attribute(node: Node, name: str, number: int) -> Edit:
    def edit(model: Model) -> None:
        node.attrs[name] = number

    return edit


def _regroup(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    """Return the edit of a depthwise convolution's `group` attribute: as many as input channels stay."""
    data = _labels_of(node.inputs[0], labels)
    masks = axis_masks(data, classes, removed)
    if 1 not in masks:
        return None
    return _set_attribute(node, "group", int(masks[1].sum()))


def _regroup_norm(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    """Return the edit of a GroupNormalization's `num_groups`: as many as stay."""
    data = _labels_of(node.inputs[0], labels)
    masks = axis_masks(data, classes, removed)
    if 1 not in masks:
        return None
    each = data.shape[1] // int(node.attrs["num_groups"])
    return _set_attribute(node, "num_groups", int(masks[1].sum()) // each)


def _counted(model: Model, maker: str, part: int, value: str, stays: Mask | None) -> Edit | None:
    """Return the edit that stores how many positions stay, as input `part` of the Concat whose sizes make `value`."""
    if stays is None:
        return None
    count = np.array([stays.sum()], np.int64)
    node = next(n for n in model.graph.nodes if any(v.name == value for v in n.outputs))
    index = next(i for i, v in enumerate(node.inputs) if v.producer is not None and v.producer.name == maker)

    def edit(model: Model) -> None:
        own = _own_sizes(model, node, index)
        model.graph.set_input(own, part, model.graph.add_constant(f"{own.name}.{part}", count))

    return edit


def _own_sizes(model: Model, node: Node, index: int) -> Node:
    """Return the Concat of the sizes that `node` reads as input `index`, after a copy where others read them too."""
    sizes = node.inputs[index]
    maker = sizes.producer
    assert isinstance(maker, Node)
    if model.graph.sole_use(sizes) is node:
        return maker
    name = model.graph.fresh_name(f"{node.name}.sizes")
    made = Variable(name, sizes.dtype, sizes.shape)
    own = Node("Concat", name, dict(maker.attrs), list(maker.inputs), [made])
    model.graph.insert(own, node)
    model.graph.set_input(node, index, made)
    return own


def _target(index: int, *, axes: bool = False) -> Rederive:
    """Return the rule of an operator that reads the sizes of what it makes as input `index`, all or for its `axes`."""

    def rederive(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
        made = labels.values[node.outputs[0].name]
        masks = axis_masks(made, classes, removed)
        places = target_places(node, index, labels)
        if not masks or places is None:
            return None
        rank = len(made.shape)
        given = node.attrs.get("axes") if axes else None
        order = [int(a) % rank for a in given] if given else list(range(rank))[rank - len(places) :]
        new: dict[tuple[Node, int], Array] = {}
        for axis, place in zip(order, places, strict=True):
            if axis not in masks or place is None or place.position is None:
                continue
            target = new.setdefault((place.node, place.index), np.array(place.node.constant(place.index)))
            # An Expand leaves the axes as they are for which it says 1.
            if target[place.position] == made.shape[axis]:
                target[place.position] = masks[axis].sum()
        return _set_all(node, index, new)

    return rederive


def _reshape(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    made, data = labels.values[node.outputs[0].name], _labels_of(node.inputs[0], labels)
    masks, before = (axis_masks(of, classes, removed) for of in (made, data))
    places = target_places(node, 1, labels)
    if not masks or places is None:
        return None
    new: dict[tuple[Node, int], Array] = {}
    for axis, place in enumerate(places):
        size = int(masks[axis].sum()) if axis in masks else made.shape[axis]
        if place is None or place.position is None:
            continue
        target = new.setdefault((place.node, place.index), np.array(place.node.constant(place.index)))
        if target[place.position] == 0 and not node.attrs.get("allowzero"):
            copied = int(before[axis].sum()) if axis in before else data.shape[axis]
            if copied != size:
                target[place.position] = size
        elif target[place.position] != -1 and axis in masks:
            target[place.position] = size
    return _set_all(node, 1, new)


def _set_all(node: Node, index: int, new: dict[tuple[Node, int], Array]) -> Edit | None:
    """Return the edit that stores new parts of the sizes that `node` reads as input `index`, by node and input."""
    changed = {
        key: array
        for key, array in new.items()
        if not np.array_equal(array, np.asarray(key[0].constant(key[1])))
    }
    if not changed:
        return None

    def edit(model: Model) -> None:
        for (maker, part), array in changed.items():
            owner = node if maker is node else _own_sizes(model, node, index)
            model.graph.set_constant(owner, part, array)

    return edit


def _gather(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    """Return the edit of the indices of a Gather: those of channels that stay, in their new numbers."""
    data, made = _labels_of(node.inputs[0], labels), labels.values[node.outputs[0].name]
    axis = int(node.attrs.get("axis", 0)) % len(data.shape)
    stays = axis_masks(data, classes, removed).get(axis)
    if stays is None:
        return None
    indices = np.asarray(node.constant(1))
    new = (np.cumsum(stays) - 1)[indices].astype(indices.dtype)
    masks = axis_masks(made, classes, removed)
    for place in range(indices.ndim):
        if axis + place in masks:
            new = np.compress(masks[axis + place], new, axis=place)
    return _set(node, 1, new)


def _tile(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    masks = axis_masks(labels.values[node.outputs[0].name], classes, removed)
    if not masks:
        return None
    new = np.array(node.constant(1))
    for axis, stays in masks.items():
        new[axis] = stays.sum()
    return _set(node, 1, new)


def _hidden(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    """Return the edit of a recurrent node's hidden size, which its recurrence weight has once it is cut."""

    def edit(model: Model) -> None:
        recurrence = node.constant(2)
        if "hidden_size" in node.attrs and recurrence is not None:
            node.attrs["hidden_size"] = int(recurrence.shape[2])

    return edit


def _split(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    data = _labels_of(node.inputs[0], labels)
    axis = int(node.attrs.get("axis", 0)) % len(data.shape)
    stays = axis_masks(data, classes, removed).get(axis)
    if stays is None:
        return None
    sizes = [labels.values[v.name].shape[axis] for v in node.outputs]
    ends = np.cumsum(sizes)
    new = np.array([stays[e - s : e].sum() for s, e in zip(sizes, ends, strict=True)], np.int64)

    def edit(model: Model) -> None:
        node.attrs.pop("num_outputs", None)
        if node.input(1) is None:
            model.graph.set_input(node, 1, model.graph.add_constant(f"{node.name}.split", new))
        else:
            model.graph.set_constant(node, 1, new)

    return edit


def _slice(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    data = _labels_of(node.inputs[0], labels)
    masks = axis_masks(data, classes, removed)
    bounds = slice_bounds(node, data.shape)
    axes_given = node.constant(3)
    axes = (
        [int(a) % len(data.shape) for a in np.ravel(axes_given)] if axes_given is not None else list(bounds)
    )
    if not masks.keys() & set(axes):
        return None
    starts, ends = (np.array(np.ravel(np.asarray(node.constant(index)))) for index in (1, 2))
    for place, axis in enumerate(axes):
        if axis in masks:
            start, end, _ = bounds[axis]
            starts[place] = masks[axis][:start].sum()
            ends[place] = masks[axis][: max(start, end)].sum()

    def edit(model: Model) -> None:
        model.graph.set_constant(node, 1, starts)
        model.graph.set_constant(node, 2, ends)

    return edit


def _pad(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    made = labels.values[node.outputs[0].name]
    masks = axis_masks(made, classes, removed)
    amounts = pad_amounts(node, len(made.shape))
    given = node.constant(3)
    axes = (
        [int(a) % len(made.shape) for a in np.ravel(given)]
        if given is not None
        else list(range(len(made.shape)))
    )
    new = np.array(node.constant(1))
    changed = False
    for place, axis in enumerate(axes):
        before, after = amounts[axis]
        if axis not in masks or (before, after) == (0, 0):
            continue
        new[place] = masks[axis][:before].sum()
        new[place + len(axes)] = masks[axis][len(masks[axis]) - after :].sum()
        changed = True
    return _set(node, 1, new) if changed else None


_REDERIVE: dict[str, Rederive] = {
    "group": _regroup,
    "norm-groups": _regroup_norm,
    "reshape": _reshape,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    "gather": _gather,
    "tile": _tile,
    "sizes": _target(3, axes=True),
    "expand": _target(1),
    "fill": _target(0),
    "hidden": _hidden,
}
