"""Cutting: slicing every stored tensor along removed labels and re-deriving the constants that depend on sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcomp.analysis.labels import AxisUse, LabelMap
from onnxcomp.analysis.rederive import axis_masks, edits
from onnxcomp.analysis.views import Classes, Mask, removed_at
from onnxcomp.ir.graph import Array, Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.shapes import ValueType, infer_types

__all__ = ["axis_masks", "cut", "mask_consumers"]


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
    changes = edits(model, labels, classes, removed)
    for name, array in new.items():
        model.graph.constants[name].values = _frozen(array)
    for edit in changes:
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
            np.moveaxis(array, use.axis, 0)[gone] = _zero(use, array)[gone]
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


def _zero(use: AxisUse, array: Array) -> Array:
    """Return what stands for zero at every element of a tensor, with the cut axis first."""
    if use.zero is None:
        return np.broadcast_to(np.zeros((), array.dtype), np.moveaxis(array, use.axis, 0).shape)
    constant, along = use.zero
    layout = [1] * array.ndim
    if constant.values.size > 1:
        layout[along] = -1
    return np.moveaxis(np.broadcast_to(constant.values.reshape(layout), array.shape), use.axis, 0)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
