"""Tensors of sizes: which of their elements depend on numbers of channels, and which readers can live with that.

A Shape hands out numbers of channels. Where such a number comes back as a size (the target of a Reshape), it changes by
itself when channels go, or can be stored; whatever else reads it blocks the channels that were counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.analysis.flow import Blocked, Flow, Size, SizeArray
from onnxcomp.analysis.labels import LabelMap, Labels
from onnxcomp.ir.graph import Constant, Node, Value
from onnxcomp.ir.ops import SIZE_ARITHMETIC, SIZE_READERS

__all__ = ["Place", "block_counted", "follow_target", "target_places", "track"]

_LIMIT = 1024
"""Tensors of sizes are as long as a value has axes; whatever is longer holds something else."""

_INTEGERS = (6, 7)
"""ONNX element types of sizes: int32 and int64."""


# --- reading sizes ---------------------------------------------------------------------------------------------------
def track(flow: Flow, node: Node) -> None:
    """Record what is known of the sizes that `node` makes, and block the channels it counts where it is no size."""
    rule = _RULES.get(node.op) if node.standard else None
    data = node.inputs if node.is_op("Concat", *SIZE_ARITHMETIC) else node.inputs[:1]
    if rule is not None and (node.is_op("Shape", "Size") or any(v.name in flow.sizes for v in data)):
        try:
            made = rule(flow, node)
        except Blocked:
            made = None
        if made is not None and made.size <= _LIMIT:
            flow.sizes[node.output.name] = made
            return
    if node.is_op("Cast") and _freeze(flow, node):
        return
    for index, value in enumerate(node.inputs):
        if not (node.standard and (node.op, index) in SIZE_READERS):
            block_counted(flow, value)


def _freeze(flow: Flow, node: Node) -> bool:
    """Keep the numbers that a Cast turns into floats as they are now; return whether that can be done.

    What is computed from them is no size: the scale 1/sqrt(d) of attention, which a cut must not change.
    """
    sizes = flow.sizes.get(node.inputs[0].name)
    if sizes is None or any(size.copy is None or not size.leaves for size in _flat(sizes)):
        return False
    counted = tuple(size.copy[1:] for size in _flat(sizes) if size.copy is not None)
    numbers = np.array([flow.shapes[value][axis] for value, axis in counted], np.int64).reshape(sizes.shape)
    flow.map.frozen.append((node, numbers, counted))
    return True


def block_counted(flow: Flow, value: Value) -> None:
    """Block the channels whose number is read from `value`."""
    for size in _flat(flow.sizes.get(value.name)):
        _block(flow, size)


def _flat(sizes: SizeArray | None) -> list[Size]:
    found: list[Size] = [] if sizes is None else sizes.reshape(-1).tolist()
    return found


def _block(flow: Flow, size: Size) -> None:
    for shape, value, axis in size.leaves:
        flow.map.block_along(flow.map.values[value], axis, f"Shape {shape!r} reads the number of channels")


def _elements(flow: Flow, value: Value) -> SizeArray:
    """Return what is known of each element of `value`."""
    if value.name in flow.sizes:
        return flow.sizes[value.name]
    fixed = isinstance(value, Constant)
    shape = value.values.shape if isinstance(value, Constant) else flow.shapes[value.name]
    if math.prod(shape) > _LIMIT:
        raise Blocked("too many elements for sizes")
    made = np.empty(shape, object)
    made.fill(Size(fixed=fixed))
    return made


def _shape(flow: Flow, node: Node) -> SizeArray:
    axes, rank = _counted(flow, node)
    start, end, _ = slice(node.attrs.get("start"), node.attrs.get("end")).indices(rank)
    made = np.empty(max(0, end - start), object)
    for place, axis in enumerate(range(start, end)):
        leaf = (node.name, str(node.inputs[0].name), axis)
        made[place] = Size(frozenset({leaf}), leaf, True) if axis in axes else Size()
    return made


def _count(flow: Flow, node: Node) -> SizeArray:
    made = np.empty((), object)
    made[()] = Size(
        frozenset((node.name, str(node.inputs[0].name), axis) for axis in _counted(flow, node)[0])
    )
    return made


def _counted(flow: Flow, node: Node) -> tuple[tuple[int, ...], int]:
    """Return the axes with channels, and the rank, of what a Shape or Size reads; a stored tensor is kept whole."""
    value = node.inputs[0]
    if isinstance(value, Constant):
        flow.map.foreign.setdefault(value.name, f"{node.op} {node.name!r} reads its size")
        return (), value.values.ndim
    labels = flow.labels(value)
    return labels.axes, len(labels.shape)


def _gather(flow: Flow, node: Node) -> SizeArray | None:
    places = node.constant(1)
    data = _elements(flow, node.inputs[0])
    return (
        None
        if places is None or data.ndim != 1
        else np.asarray(data.take(places), object).reshape(places.shape)
    )


def _slice(flow: Flow, node: Node) -> SizeArray | None:
    data = _elements(flow, node.inputs[0])
    start, end, step = (node.constant(index) for index in (1, 2, 4))
    if data.ndim != 1 or start is None or end is None or (step is None and node.input(4) is not None):
        return None
    return data[int(start.item()) : int(end.item()) : 1 if step is None else int(step.item())]


def _concat(flow: Flow, node: Node) -> SizeArray:
    return np.concatenate([_elements(flow, value) for value in node.inputs])


def _reshaped(flow: Flow, node: Node) -> SizeArray:
    return _elements(flow, node.inputs[0]).reshape(flow.shape(node))


def _cast(flow: Flow, node: Node) -> SizeArray | None:
    return _elements(flow, node.inputs[0]) if node.attrs.get("to") in _INTEGERS else None


def _arithmetic(flow: Flow, node: Node) -> SizeArray:
    operands = np.broadcast_arrays(*(_elements(flow, value) for value in node.inputs))
    made = np.empty(operands[0].shape, object)
    for place in np.ndindex(made.shape):
        sizes: list[Size] = [operand.item(place) for operand in operands]
        leaves = frozenset(leaf for size in sizes for leaf in size.leaves)
        made[place] = Size(leaves, None, all(size.fixed for size in sizes))
    return made


_RULES: Mapping[str, Callable[[Flow, Node], SizeArray | None]] = {
    "Shape": _shape,
    "Size": _count,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Reshape": _reshaped,
    "Identity": lambda flow, node: _elements(flow, node.inputs[0]),
    "Cast": _cast,
    **dict.fromkeys(SIZE_ARITHMETIC, _arithmetic),
}


# --- targets ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Place:
    """Where an element of a target is written: input `index` of `node`, at `position`; None for a computed part."""

    node: Node
    index: int
    position: int | None


def target_places(node: Node, index: int, labels: LabelMap) -> list[Place | None] | None:
    """Return for each element of the sizes that `node` reads as input `index` where it is written.

    They are a stored tensor, or a Concat of stored and computed parts, which is how exporters write `x.view(n, -1)`. A
    computed part of several elements has no places (None in the result). Returns None where all of it is computed.
    """
    stored = node.constant(index)
    if stored is not None:
        return [Place(node, index, position) for position in range(stored.size)]
    maker = node.inputs[index].producer
    if maker is None or not maker.is_op("Concat"):
        return None
    places: list[Place | None] = []
    for part, value in enumerate(maker.inputs):
        array = maker.constant(part)
        if array is not None:
            places += [Place(maker, part, position) for position in range(array.size)]
        else:
            count = labels.values[value.name].shape[0]
            places += [Place(maker, part, None)] if count == 1 else [None] * count
    return places


def follow_target(flow: Flow, node: Node, index: int, made: Labels, elements: Mapping[int, int]) -> None:
    """See to it that the sizes which `node` reads as input `index` will be right whatever channels go.

    `made` are the labels of its output, `elements` maps axes of the output to elements of the sizes. A stored element
    is rewritten when channels go; a computed one that is the number of channels of some value ties both, and one that
    depends on numbers of channels alone is then replaced by a stored one. The node is declined for any other.
    """
    value = node.inputs[index]
    places = target_places(node, index, flow.map)
    sizes = np.full(len(elements), Size(), object) if isinstance(value, Constant) else _elements(flow, value)
    for axis, element in elements.items():
        place = places[element] if places is not None else None
        if axis not in made.axes:
            if place is None or place.position is None:
                _block(flow, sizes[element])
        elif place is not None and place.position is not None:
            continue
        elif sizes[element].copy is not None:
            _tie_to(flow, sizes[element], made, axis)
        elif place is not None and sizes[element].fixed and sizes[element].leaves:
            flow.map.counts.append((place.node, place.index, node.output.name, axis))
        else:
            block_counted(flow, value)
            raise Blocked(f"{node.op} {node.name!r} computes its shape; fold it first or fix the input shape")


def _tie_to(flow: Flow, size: Size, made: Labels, axis: int) -> None:
    """Tie the labels of `made` along `axis` to those that `size` counts, so that both lose as many positions."""
    assert size.copy is not None
    _, name, counted_axis = size.copy
    counted = flow.map.values[name]
    one, two = counted.along(counted_axis), made.along(axis)
    if one is not None and two is not None and np.array_equal(np.sort(one), np.sort(two)):
        # The same labels in another order (a shuffle) are as many whatever goes.
        return
    flat = flow.map.flatten(counted.ids, set(counted.axes) - {counted_axis})
    layout = [1] * len(made.shape)
    layout[axis] = made.shape[axis]
    flow.map.tie(np.broadcast_to(flat.reshape(-1), (made.shape[axis],)).reshape(layout), made.ids)
