"""Shortcuts without weights (Slice over space, zeros for the new channels) as strided 1x1 convolutions with a 0/1 kernel.

A convolution of stride `s` takes positions `0, s, 2s, ...`, as a Slice with step `s` that starts at 0 and runs to the end does;
and a row of its kernel takes one channel, or none. So any chain of such Slices, of Pads that add channels of zeros and of
Concats with zeros is one convolution, which runs on integers between others that do.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.affine import Refusal, Types
from onnxcomp.analysis.padding import zero_pads
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.edits import remove_dead_nodes
from onnxcomp.ir.graph import Array, Node, Value
from onnxcomp.ir.liveness import dead_nodes
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import CHANNELS_FIRST, KEEPS_AXES

__all__ = ["Desk", "shortcut_forms"]

_ENDLESS = 2**31 - 1
"""Exporters write this, or something larger, for "to the end"."""

_ZEROS = -1
"""Stands for a channel of zeros where numbers of channels are meant."""


@dataclass(frozen=True)
class Desk:
    """What a rewrite works on: the model, types of its values, names of nodes that must not be touched, the log."""

    model: Model
    types: Types
    left_alone: Container[str]
    log: PassLog

    def rank(self, value: Value) -> int | None:
        """Return the number of axes of `value`, None where it is unknown."""
        kind = self.types.get(value.name)
        return None if kind is None or kind.shape is None else len(kind.shape)

    def size(self, value: Value, axis: int) -> int | None:
        """Return the size of `value` along `axis` where it is the same for every input, else None."""
        kind = self.types.get(value.name)
        if kind is None or kind.shape is None or axis >= len(kind.shape):
            return None
        size = kind.shape[axis]
        return size if isinstance(size, int) else None

    def is_float32(self, value: Value) -> bool:
        """Return whether `value` is known to be of type float32."""
        kind = self.types.get(value.name)
        return kind is not None and kind.dtype == np.float32


@dataclass(frozen=True)
class _Pick:
    """What a chain takes of a source of `count` channels: for each one it makes which it is (or `_ZEROS`), and the strides."""

    count: int
    channels: NDArray[np.int64]
    strides: tuple[int, ...]


def shortcut_forms(desk: Desk) -> None:
    """Make a convolution of every chain that adds channels of zeros, in place.

    The last node of a chain becomes the convolution and keeps its name; the others are gone.
    """
    for node in list(desk.model.graph.nodes):
        if node.is_op("Concat") and node.outputs and node.name not in desk.left_alone:
            _concat_to_pad(desk, node)
    for node in reversed(list(desk.model.graph.nodes)):
        # A node may have become part of a later one since the list was made.
        if not node.is_op("Pad") or not node.outputs or node.name in desk.left_alone:
            continue
        if _adds_channels(desk, node):
            refusal = _rewrite(desk, *_chain(desk, node))
            if refusal is not None:
                desk.log.skip(node.name, refusal.reason)


def _concat_to_pad(desk: Desk, node: Node) -> None:
    """Make a Pad of a Concat of one image and channels of zeros, in place; what computed the zeros is gone.

    Nothing is done unless the Pad is sure to become a convolution.
    """
    graph, rank = desk.model.graph, desk.rank(node.output)
    counts = [_zero_channels(desk, value) for value in node.inputs]
    if rank is None or int(node.attrs["axis"]) % rank != 1 or counts.count(None) != 1 or not any(counts):
        return
    place = counts.index(None)
    source = node.inputs[place]
    if isinstance(_untouched(desk, source), Refusal) or not _has_channels(desk, source):
        return
    ahead, behind = (sum(filter(None, side)) for side in (counts[:place], counts[place + 1 :]))
    amounts = np.zeros(2 * rank, np.int64)
    amounts[1], amounts[rank + 1] = ahead, behind
    spared = {*dead_nodes(graph), *(n for n in graph.nodes if n.name in desk.left_alone)}
    graph.set_input(node, 0, source)
    graph.drop_trailing_inputs(node, 1)
    graph.set_input(node, 1, graph.add_constant(f"{node.name}.pads", amounts))
    node.op, node.attrs = "Pad", {}
    # Zeros of the size of the image were computed from the image, which nobody else need read.
    remove_dead_nodes(desk.model, keep=spared)


def _zero_channels(desk: Desk, value: Value) -> int | None:
    """Return the number of channels of a value that holds nothing but zeros; None for any other value.

    Zeros are stored, filled in to a computed size, or what is left of anything finite that was multiplied by zero.
    """
    values: Array | None = getattr(value, "values", None)
    if values is not None:
        return values.shape[1] if values.ndim > 1 and not values.any() else None
    node = value.producer
    if node is None:
        return None
    if node.is_op("ConstantOfShape"):
        fill = node.attrs.get("value")
        zero = fill is None or (isinstance(fill, np.ndarray) and not fill.any())
    else:
        stored = [node.constant(index) for index in (0, 1)]
        zero = node.is_op("Mul") and any(a is not None and a.size and not a.any() for a in stored)
    return desk.size(value, 1) if zero else None


def _adds_channels(desk: Desk, node: Node) -> bool:
    """Return whether a Pad makes more channels; one that fills them with something of its own is worth a word."""
    rank, amounts = desk.rank(node.inputs[0]), node.constant(1)
    if rank is None or rank < 3 or amounts is None or not desk.is_float32(node.inputs[0]):
        return False
    if not _has_channels(desk, node.inputs[0]):
        return False
    pads = zero_pads(node, rank)
    if pads is not None:
        return bool(pads[1] or pads[rank + 1])
    if node.input(3) is None and amounts.size == 2 * rank and (amounts[1] > 0 or amounts[rank + 1] > 0):
        desk.log.skip(node.name, "it fills new channels with something other than zeros, and runs in float")
    return False


def _has_channels(desk: Desk, value: Value) -> bool:
    """Return whether axis 1 of `value` holds channels: of a graph input of four axes, or of what a convolution made.

    To add positions to a sequence of vectors by a dense product would be a waste.
    """
    waiting, seen = [value], set[Value]()
    while waiting:
        current = waiting.pop()
        node = current.producer
        if node is None and desk.rank(current) == 4 and any(v is current for v in desk.model.graph.inputs):
            return True
        if node is None or current in seen or not node.standard:
            continue
        if node.op in CHANNELS_FIRST:
            return True
        seen.add(current)
        if node.op in KEEPS_AXES:
            waiting.extend(node.inputs)
    return False


# --- the chain -------------------------------------------------------------------------------------------------------
def _chain(desk: Desk, last: Node) -> tuple[Value, list[Node]]:
    """Return the nodes that can be one with the Pad `last`, and what the first of them reads.

    They are in the order of computation, and each is all that reads the one before.
    """
    graph, chain = desk.model.graph, [last]
    source: Value = last.inputs[0]
    while (before := source.producer) is not None and graph.sole_use(source) is chain[0]:
        if not _is_joinable(desk, before):
            break
        chain.insert(0, before)
        source = before.inputs[0]
    while (after := graph.sole_use(chain[-1].output)) is not None:
        if not after.is_op("Slice") or not _is_joinable(desk, after):
            break
        chain.append(after)
    return source, chain


def _is_joinable(desk: Desk, node: Node) -> bool:
    """Return whether `node` is to be touched and does what a convolution can do."""
    if node.name in desk.left_alone or not node.is_op("Slice", "Pad"):
        return False
    start = _untouched(desk, node.inputs[0])
    return not isinstance(start, Refusal) and not isinstance(_after(desk, node, start), Refusal)


def _untouched(desk: Desk, source: Value) -> _Pick | Refusal:
    rank, count = desk.rank(source), desk.size(source, 1)
    if rank is None or rank < 3 or not count or not desk.is_float32(source):
        return Refusal(f"{source.name!r} is not known to be an image of so many channels; it runs in float")
    return _Pick(count, np.arange(count), (1,) * (rank - 2))


def _after(desk: Desk, node: Node, pick: _Pick) -> _Pick | Refusal:
    """Return what is taken of the source behind the Slice or Pad `node`, in front of which it was `pick`."""
    if node.is_op("Slice"):
        return _sliced(desk, node, pick)
    rank = len(pick.strides) + 2
    pads = zero_pads(node, rank)
    if pads is None or any(amount for place, amount in enumerate(pads) if place % rank != 1):
        return Refusal("it does more than add channels of zeros, and runs in float")
    ahead, behind = (np.full(pads[place], _ZEROS) for place in (1, rank + 1))
    return replace(pick, channels=np.concatenate([ahead, pick.channels, behind]))


def _sliced(desk: Desk, node: Node, pick: _Pick) -> _Pick | Refusal:
    rows = _columns(node)
    if rows is None:
        return Refusal("what it takes is computed")
    rank, channels, strides = len(pick.strides) + 2, pick.channels, list(pick.strides)
    for start, end, axis, step in rows:
        axis %= rank
        if step < 1:
            return Refusal("it runs backwards")
        if axis == 1:
            channels = channels[start:end:step]
            continue
        whole = _whole_stride(start, end, step, desk.size(node.inputs[0], axis))
        if not whole or (axis == 0 and step > 1):
            return Refusal("it takes other positions than a convolution with a stride")
        if axis > 1:
            strides[axis - 2] *= step
    if not channels.size:
        return Refusal("it takes no channel")
    return replace(pick, channels=channels, strides=tuple(strides))


def _columns(node: Node) -> list[tuple[int, int, int, int]] | None:
    """Return `(start, end, axis, step)` of a Slice with constant bounds, one for each axis it names."""
    stored = [node.constant(index) for index in range(1, 5)]
    if any(s is None and node.input(index) is not None for index, s in enumerate(stored, 1)):
        return None
    starts, ends, axes, steps = ([] if s is None else [int(v) for v in s.flat] for s in stored)
    count = len(starts)
    return list(zip(starts, ends, axes or range(count), steps or [1] * count, strict=True))


def _whole_stride(start: int, end: int, step: int, size: int | None) -> bool:
    """Return whether a Slice takes positions `0, step, 2 * step, ...` as far as there are any, of an axis of `size`."""
    if size is None:
        return start == 0 and end >= _ENDLESS
    return size > 0 and range(size)[start:end:step] == range(size)[::step]


# --- the edit --------------------------------------------------------------------------------------------------------
def _rewrite(desk: Desk, source: Value, chain: list[Node]) -> Refusal | None:
    """Make the last node of `chain` do what all of it does to `source`, in place; return why that is not possible."""
    pick = _untouched(desk, source)
    for node in chain:
        if isinstance(pick, Refusal):
            break
        pick = _after(desk, node, pick)
    if isinstance(pick, Refusal):
        return pick
    kernel = _kernel(pick)
    graph, last = desk.model.graph, chain[-1]
    graph.set_input(last, 0, source)
    graph.drop_trailing_inputs(last, 1)
    graph.set_input(last, 1, graph.add_constant(f"{last.name}.weight", kernel))
    last.op, last.attrs = "Conv", {"kernel_shape": [1] * len(pick.strides), "strides": list(pick.strides)}
    graph.remove_nodes(chain[:-1])
    for node in chain[:-1]:
        desk.model.rename_node(node.name, last.name)
    added = int((pick.channels == _ZEROS).sum())
    desk.log.change(
        last.name,
        f"became a 1x1 convolution with stride {'x'.join(map(str, pick.strides))} that copies "
        f"{pick.channels.size - added} channels and adds {added} of zeros",
        joined=[node.name for node in chain[:-1]],
        parameters=int(kernel.size),
    )
    return None


def _kernel(pick: _Pick) -> Array:
    """Return the weight `[channels made, channels read, 1, ...]` that does `pick`."""
    kernel = np.zeros((pick.channels.size, pick.count), np.float32)
    taken = np.flatnonzero(pick.channels != _ZEROS)
    kernel[taken, pick.channels[taken]] = 1
    return kernel.reshape(*kernel.shape, *[1] * len(pick.strides))
