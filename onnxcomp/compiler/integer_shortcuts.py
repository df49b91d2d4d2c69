"""Shortcuts without weights (Slice over space, zeros for the new channels) as strided 1x1 convolutions with a 0/1 kernel.

A convolution of stride `s` takes positions `0, s, 2s, ...`, as a Slice with step `s` that starts at 0 and runs to the end does;
and a row of its kernel takes one channel, or none. So any chain of such Slices, of Pads that add channels of zeros and of
Concats with zeros is one convolution, which runs on integers between others that do.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.affine import Refusal, Types
from onnxcomp.analysis.padding import zero_pads
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.ir.edits import remove_dead_nodes
from onnxcomp.ir.graph import Array, Node, Value
from onnxcomp.ir.liveness import dead_nodes
from onnxcomp.ir.model import Model

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
    """What a chain takes of its source: for each channel the one it is (or `_ZEROS`), and every how manieth position."""

    channels: NDArray[np.int64]
    strides: tuple[int, ...]


def shortcut_forms(desk: Desk) -> None:
    """Make a convolution of every chain that adds channels of zeros, in place.

    The last node of a chain becomes the convolution and keeps its name; the others are gone.
    """
    for node in reversed(list(desk.model.graph.nodes)):
        # A node may have become part of a later one since the list was made.
        if not node.outputs or node.name in desk.left_alone or not node.is_op("Pad", "Concat"):
            continue
        source = _data(desk, node)
        if source is None or not _adds_channels(desk, node, source):
            continue
        refusal = _rewrite(desk, _chain(desk, node))
        if refusal is not None:
            desk.log.skip(node.name, refusal.reason)


def _data(desk: Desk, node: Node) -> Value | None:
    """Return what a Slice or Pad reads, or the only input of a Concat along the channels that is not zeros."""
    if node.is_op("Slice", "Pad"):
        return node.input(0)
    rank = desk.rank(node.output)
    if not node.is_op("Concat") or rank is None or int(node.attrs["axis"]) % rank != 1:
        return None
    others = [value for value in node.inputs if _zero_channels(desk, value) is None]
    return others[0] if len(others) == 1 else None


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


def _adds_channels(desk: Desk, node: Node, source: Value) -> bool:
    """Return whether a Pad or Concat makes more channels; a Pad that does so in a way of its own is worth a word."""
    rank = desk.rank(source)
    if rank is None or rank < 3 or not desk.is_float32(source):
        return False
    if node.is_op("Concat"):
        return len(node.inputs) > 1
    amounts = node.constant(1)
    if amounts is None:
        return False
    pads = zero_pads(node, rank)
    if pads is not None:
        return bool(pads[1] or pads[rank + 1])
    if node.input(3) is None and amounts.size == 2 * rank and (amounts[1] > 0 or amounts[rank + 1] > 0):
        desk.log.skip(node.name, "it fills new channels with something other than zeros, and runs in float")
    return False


# --- the chain -------------------------------------------------------------------------------------------------------
def _chain(desk: Desk, last: Node) -> list[Node]:
    """Return the nodes that can be one with `last`, in order of computation: each is all that reads the one before."""
    graph = desk.model.graph
    chain = [last]
    while True:
        value = _data(desk, chain[0])
        before = value.producer if value is not None else None
        if (
            before is None
            or value is None
            or graph.sole_use(value) is not chain[0]
            or not _fits(desk, before)
        ):
            break
        chain.insert(0, before)
    while True:
        after = graph.sole_use(chain[-1].output)
        if after is None or not after.is_op("Slice") or after.inputs[0] is not chain[-1].output:
            break
        if not _fits(desk, after):
            break
        chain.append(after)
    return chain


def _fits(desk: Desk, node: Node) -> bool:
    """Return whether `node` does what a convolution can do, if it comes to that alone."""
    if node.name in desk.left_alone or not node.is_op("Slice", "Pad", "Concat"):
        return False
    source = _data(desk, node)
    if source is None:
        return False
    start = _untouched(desk, source)
    return not isinstance(start, Refusal) and not isinstance(_after(desk, node, start), Refusal)


def _untouched(desk: Desk, source: Value) -> _Pick | Refusal:
    rank, count = desk.rank(source), desk.size(source, 1)
    if rank is None or rank < 3 or not count or not desk.is_float32(source):
        return Refusal(f"{source.name!r} is not known to be an image of so many channels; it runs in float")
    return _Pick(np.arange(count), (1,) * (rank - 2))


def _after(desk: Desk, node: Node, pick: _Pick) -> _Pick | Refusal:
    """Return what is taken of the source behind `node`, before which it was `pick`."""
    rank = len(pick.strides) + 2
    if node.is_op("Slice"):
        return _sliced(desk, node, pick)
    if node.is_op("Pad"):
        pads = zero_pads(node, rank)
        if pads is None or any(amount for place, amount in enumerate(pads) if place % rank != 1):
            return Refusal("it does more than add channels of zeros, and runs in float")
        return _Pick(_joined(pads[1], pick.channels, pads[rank + 1]), pick.strides)
    counts = [_zero_channels(desk, value) for value in node.inputs]
    place = counts.index(None)
    ahead, behind = counts[:place], counts[place + 1 :]
    return _Pick(_joined(sum(filter(None, ahead)), pick.channels, sum(filter(None, behind))), pick.strides)


def _joined(ahead: int, channels: NDArray[np.int64], behind: int) -> NDArray[np.int64]:
    return np.concatenate([np.full(ahead, _ZEROS), channels, np.full(behind, _ZEROS)])


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
    return _Pick(channels, tuple(strides)) if channels.size else Refusal("it takes no channel")


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
def _rewrite(desk: Desk, chain: list[Node]) -> Refusal | None:
    """Make the last node of `chain` do what all of it does, in place; return why that is not possible."""
    source = _data(desk, chain[0])
    pick = Refusal("it reads nothing") if source is None else _untouched(desk, source)
    count = 0 if isinstance(pick, Refusal) else pick.channels.size
    for node in chain:
        if isinstance(pick, Refusal):
            return pick
        pick = _after(desk, node, pick)
    if isinstance(pick, Refusal) or source is None:
        return pick if isinstance(pick, Refusal) else None
    kernel = _kernel(pick, count)
    graph, last = desk.model.graph, chain[-1]
    spared = {*dead_nodes(graph), *(n for n in graph.nodes if n.name in desk.left_alone)}
    graph.set_input(last, 0, source)
    graph.drop_trailing_inputs(last, 1)
    graph.set_input(last, 1, graph.add_constant(f"{last.name}.weight", kernel))
    was = " and ".join(dict.fromkeys(node.op for node in chain))
    last.op, last.attrs = "Conv", {"kernel_shape": [1] * len(pick.strides), "strides": list(pick.strides)}
    for node in chain[:-1]:
        desk.model.rename_node(node.name, last.name)
    # What computed zeros goes as well, but nothing that was dead before.
    gone = remove_dead_nodes(desk.model, keep=spared)
    desk.log.change(
        last.name,
        f"{was} became a 1x1 convolution with stride {'x'.join(map(str, pick.strides))} that copies "
        f"{int((pick.channels >= 0).sum())} channels and adds {int((pick.channels < 0).sum())} of zeros",
        parameters=int(kernel.size),
        removed=gone,
    )
    return None


def _kernel(pick: _Pick, count: int) -> Array:
    """Return the weight `[channels, count, 1, ...]` that takes `pick` of `count` channels."""
    kernel = np.zeros((pick.channels.size, count), np.float32)
    taken = np.flatnonzero(pick.channels != _ZEROS)
    kernel[taken, pick.channels[taken]] = 1
    return kernel.reshape(*kernel.shape, *[1] * len(pick.strides))
