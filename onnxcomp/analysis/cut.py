"""Cutting: slicing every stored tensor along removed labels and re-deriving the constants that depend on sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxcomp.analysis.labels import LabelMap, Labels
from onnxcomp.analysis.moves import pad_amounts, slice_bounds, target_places
from onnxcomp.analysis.views import Classes, Mask, removed_at
from onnxcomp.ir.graph import Array, Constant, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.shapes import ValueType, infer_types

__all__ = ["axis_masks", "cut", "mask_consumers"]


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


def cut(model: Model, labels: LabelMap, classes: Classes, removed: Mask) -> None:
    """Remove all positions whose class is marked in `removed` from `model` (a clone of the analysed one), in place.

    Names of constants stay. The new arrays are computed before the first edit, so that a failure leaves `model` whole.
    """
    new: dict[str, Array] = {}
    done: set[tuple[str, int]] = set()
    for use in labels.uses:
        key = (use.constant.name, use.axis)
        stays = ~removed_at(classes, removed, use.ids)
        if key not in done and not stays.all():
            array = new.get(use.constant.name, use.constant.values)
            new[use.constant.name] = np.compress(stays, array, axis=use.axis)
            done.add(key)
    for name, (constant, spread) in labels.spread.items():
        for axis, stays in axis_masks(spread, classes, removed).items():
            new[name] = np.compress(stays, new.get(name, constant.values), axis=axis)
    nodes = {node.name: node for node in model.graph.nodes}
    edits = [
        edit
        for node, kind in dict.fromkeys(labels.rederive)
        if (edit := _REDERIVE[kind](nodes[node.name], labels, classes, removed)) is not None
    ]
    for name, array in new.items():
        model.graph.constants[name].values = _frozen(array)
    for edit in edits:
        edit(model)


def mask_consumers(model: Model, labels: LabelMap, classes: Classes, removed: Mask) -> None:
    """Zero removed channels where they are contracted: in the weights that do, and before products. Edits `model` in place.

    What the model computes then is what `cut` must compute exactly: the oracle of every structural edit. Zeroing where
    channels are consumed, not where they are made, is right for any operator in between, also where f(0) is not 0. Where
    two computed values are contracted there is no weight: both are multiplied with a mask just before. Shapes stay.
    """
    for use in labels.uses:
        gone = removed_at(classes, removed, use.ids)
        if use.role == "consumes" and gone.any():
            constant = model.graph.constants[use.constant.name]
            array = np.array(constant.values)
            np.moveaxis(array, use.axis, 0)[gone] = 0
            constant.values = _frozen(array)
    nodes = {node.name: node for node in model.graph.nodes}
    types = infer_types(model) if labels.products else {}
    for node, index in labels.products:
        gone = removed_at(classes, removed, labels.values[node.inputs[index].name].ids)
        if gone.any():
            _mask_before(model, nodes[node.name], index, ~gone, types)


def _mask_before(model: Model, node: Node, index: int, stays: Mask, types: Mapping[str, ValueType]) -> None:
    """Multiply input `index` of `node` with a mask, in the type of that value."""
    value = node.inputs[index]
    mask = model.graph.add_constant(f"{value.name}.mask", _frozen(stays.astype(types[value.name].dtype)))
    masked = Variable(model.graph.fresh_name(f"{value.name}.masked"))
    name = model.graph.fresh_name(f"{node.name}.mask{index}")
    model.graph.insert(Node("Mul", name, {}, [value, mask], [masked]), node)
    model.graph.set_input(node, index, masked)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


Edit = Callable[[Model], None]


def _labels_of(value: Value, labels: LabelMap) -> Labels:
    return labels.spread[value.name][1] if isinstance(value, Constant) else labels.values[value.name]


def _set(node: Node, index: int, values: Array) -> Edit:
    def edit(model: Model) -> None:
        model.graph.set_constant(node, index, values)

    return edit


def _regroup(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    """Return the edit of a depthwise convolution's `group` attribute: as many as input channels stay."""
    data = _labels_of(node.inputs[0], labels)
    masks = axis_masks(data, classes, removed)
    if 1 not in masks:
        return None
    count = int(masks[1].sum())

    def edit(model: Model) -> None:
        node.attrs["group"] = count

    return edit


def _reshape(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    made, data = labels.values[node.outputs[0].name], _labels_of(node.inputs[0], labels)
    masks, before = (axis_masks(of, classes, removed) for of in (made, data))
    places = target_places(node, 1, labels)
    if not masks or places is None:
        return None
    new: dict[tuple[Node, int], Array] = {}
    for axis, place in enumerate(places):
        size = int(masks[axis].sum()) if axis in masks else made.shape[axis]
        if place is None:
            continue
        maker, index, position = place
        target = new.setdefault((maker, index), np.array(maker.constant(index)))
        if target[position] == 0 and not node.attrs.get("allowzero"):
            copied = int(before[axis].sum()) if axis in before else data.shape[axis]
            if copied != size:
                target[position] = size
        elif target[position] != -1 and axis in masks:
            target[position] = size

    return _retarget(new)


def _retarget(new: Mapping[tuple[Node, int], Array]) -> Edit:
    """Return the edit that stores new parts of a shape, by the node and input that they belong to."""

    def edit(model: Model) -> None:
        for (maker, index), target in new.items():
            if not np.array_equal(target, np.asarray(maker.constant(index))):
                model.graph.set_constant(maker, index, target)

    return edit


def _fill(node: Node, labels: LabelMap, classes: Classes, removed: Mask) -> Edit | None:
    """Return the edit of the last size that a ConstantOfShape is given."""
    made = labels.values[node.outputs[0].name]
    last = axis_masks(made, classes, removed).get(len(made.shape) - 1)
    places = target_places(node, 0, labels)
    if last is None or places is None or places[-1] is None:
        return None
    maker, index, position = places[-1]
    target = np.array(maker.constant(index))
    target[position] = last.sum()
    return _retarget({(maker, index): target})


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


_REDERIVE: dict[str, Callable[[Node, LabelMap, Classes, Mask], Edit | None]] = {
    "group": _regroup,
    "reshape": _reshape,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    "fill": _fill,
    "hidden": _hidden,
}
