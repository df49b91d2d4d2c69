"""Values whose rows the data select: behind NonZero, Compress, NonMaxSuppression and their like.

How many rows such a value has, or which ones they are, follows from what a network computes: it differs between samples,
does not grow with the batch, and two networks that are almost equal may select different rows. Nothing that adds up over
samples, and nothing that holds one network's rows against another's, can be said of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxcomp.ir.graph import Constant, Node, Value
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import FILLS_FIRST_INPUT, SELECTS_ROWS, SIZE_QUESTIONS, SIZED_BY_INPUTS
from onnxcomp.ir.shapes import infer_types

__all__ = ["REASON", "behind_selection", "selected_values"]

REASON = "the number of its rows depends on the data"
"""Why a node that reads or makes such a value is left alone."""


def selected_values(
    model: Model, observe: Callable[[Model], Mapping[str, tuple[int, ...]]]
) -> frozenset[str]:
    """Return the names of the values of `model` whose rows depend on the data.

    `observe` gives the shapes of values for one sample, as far as they are known; models without an operator that could
    select are not observed.

    A value depends on the data where its elements follow from those of a graph input: sizes do not. TopK along the first
    axis selects among samples, and along others among what belongs to one.
    """
    if not any(_may_select(node) for node in model.graph.nodes):
        return frozenset()
    shapes = observe(model)
    types = infer_types(model, {v.name: shapes[v.name] for v in model.graph.inputs if v.name in shapes})
    floats = {name for name, kind in types.items() if kind.dtype is not None and kind.dtype.kind == "f"}
    depending = {v.name for v in model.graph.inputs}
    computed = depending & floats
    selected: set[str] = set()
    for node in model.graph.nodes:
        reads = [*(v.name for v in node.inputs if v.name), *node.captures]
        made = [v.name for v in node.outputs if v.name]
        behind = selected.intersection(_shaping(node, reads))
        if node.op in SIZE_QUESTIONS and node.standard:
            # Sizes are data only where data decide about them.
            depending.update(made if behind else ())
            computed.update(made if behind else ())
            continue
        if depending.isdisjoint(reads):
            continue
        depending.update(made)
        if not computed.isdisjoint(reads) or floats.intersection(made):
            computed.update(made)
        if behind or _selects(node, depending, computed, shapes):
            selected.update(made)
    return frozenset(selected)


def behind_selection(node: Node, selected: frozenset[str]) -> bool:
    """Return whether `node` reads or makes one of the values `selected`."""
    return any(v.name in selected for v in (*node.inputs, *node.outputs))


def _may_select(node: Node) -> bool:
    return node.standard and (node.op in SELECTS_ROWS or node.op in SIZED_BY_INPUTS)


def _shaping(node: Node, reads: list[str]) -> list[str]:
    """Return which of the values that `node` reads decide about the rows of what it makes."""
    return [node.inputs[0].name] if node.standard and node.op in FILLS_FIRST_INPUT else reads


def _selects(
    node: Node, depending: set[str], computed: set[str], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Return whether what the data say decides about the rows that `node` makes."""
    if not node.standard:
        return False
    if node.op in SELECTS_ROWS:
        return True
    sizes = [node.input(place) for place in SIZED_BY_INPUTS.get(node.op, ())]
    if any(_is_computed(value, computed) for value in sizes):
        return True
    return node.op == "TopK" and node.inputs[0].name in depending and _first_axis(node, shapes)


def _is_computed(value: Value | None, computed: set[str]) -> bool:
    return value is not None and not isinstance(value, Constant) and value.name in computed


def _first_axis(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    rank = len(shapes.get(node.inputs[0].name, ()))
    axis = int(np.asarray(node.attrs.get("axis", -1)))
    return axis == 0 or (axis < 0 and rank > 0 and axis + rank == 0)
