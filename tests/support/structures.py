"""More blocks for random networks: decoders, normalisations, pixel moves, picks, repeats, sizes, wrapped weights.

They are built like those of `tests.support.graphs` and mixed with them. The image has a free first axis and fixed sizes
otherwise, so that sizes stored in the graph name the channels alone.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.ir.graph import Array, Value, Variable
from tests.support.graphs import BLOCKS, Block, Builder, Feature

__all__ = ["EVERY_BLOCK", "STRUCTURES"]

WIDEST = 24
"""Channels beyond which blocks that make more of them do nothing."""


def _int(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def _divisor(x: Feature, number: int) -> int:
    """A number of blocks of equal size: 2, 3 or 4 where the channels allow it, else 1."""
    return next((g for g in (2 + number % 3, 2, 3) if x.channels % g == 0), 1)


# --- transposed convolutions and pixels ------------------------------------------------------------------------------
def _deconv(b: Builder, x: Feature, number: int) -> None:
    group = _divisor(x, number) if number % 2 else 1
    each = 1 + number % 3
    operands = [x.value, b.weight(x.channels, each, 3, 3), *([b.weight(group * each)] if number % 5 else [])]
    b.add(b.node("ConvTranspose", *operands, group=group, pads=[1, 1, 1, 1]), group * each, x.size)


def _deconv_depthwise(b: Builder, x: Feature, number: int) -> None:
    each = 1 + number % 2 if x.channels <= 8 else 1
    made = b.node("ConvTranspose", x.value, b.weight(x.channels, each, 1, 1), group=x.channels)
    b.add(made, x.channels * each, x.size)


def _decoder(b: Builder, x: Feature, number: int) -> None:
    """Half the size and back, beside a skip connection."""
    if x.size % 2 or x.size < 4 or x.channels > 12:
        return
    inner = 2 + number % 4
    down = b.node("Conv", x.value, b.weight(inner, x.channels, 2, 2), strides=[2, 2])
    up = b.node("ConvTranspose", b.node("Relu", down), b.weight(inner, 3, 2, 2), strides=[2, 2])
    b.add(b.node("Concat", x.value, up, axis=1), x.channels + 3, x.size)


def _pixel_shuffle(b: Builder, x: Feature, number: int) -> None:
    if x.size % 2 or x.size < 4:
        return
    count = 2 + number % 3
    small = b.node("Conv", x.value, b.weight(4 * count, x.channels, 2, 2), strides=[2, 2])
    mode = ("DCR", "CRD")[number % 2]
    b.add(b.node("DepthToSpace", small, blocksize=2, mode=mode), count, x.size)


def _pixel_shuffle_in_parts(b: Builder, x: Feature, number: int) -> None:
    if x.size % 2 or x.size < 4:
        return
    count, half = 2 + number % 3, x.size // 2
    small = b.node("Conv", x.value, b.weight(4 * count, x.channels, 2, 2), strides=[2, 2])
    crd = number % 2
    wide = _int(0, count, 2, 2, half, half) if crd else _int(0, 2, 2, count, half, half)
    order = [0, 1, 4, 2, 5, 3] if crd else [0, 3, 4, 1, 5, 2]
    moved = b.node("Transpose", b.node("Reshape", small, wide), perm=order)
    b.add(b.node("Reshape", moved, _int(0, count, x.size, x.size)), count, x.size)


def _space_to_depth(b: Builder, x: Feature, number: int) -> None:
    if x.size % 2 == 0 and x.size > 2 and 4 * x.channels <= WIDEST:
        b.add(b.node("SpaceToDepth", x.value, blocksize=2), 4 * x.channels, x.size // 2)


def _resize(b: Builder, x: Feature, number: int) -> None:
    if x.size > 4:
        return
    mode = ("nearest", "linear")[number % 2]
    if number % 3 == 0:
        made = b.node("Resize", x.value, None, np.array([1, 1, 2, 2], np.float32), mode=mode)
    else:
        front = b.node("Slice", b.node("Shape", x.value), _int(0), _int(2)) if number % 3 == 1 else None
        part = b.node("Gather", b.node("Shape", x.value), _int(0)) if front is None else front
        rest = _int(2 * x.size, 2 * x.size) if front is not None else _int(x.channels, 2 * x.size, 2 * x.size)
        made = b.node("Resize", x.value, None, None, b.node("Concat", part, rest, axis=0), mode=mode)
    b.add(made, x.channels, 2 * x.size)


# --- normalisations --------------------------------------------------------------------------------------------------
def _instance_norm(b: Builder, x: Feature, number: int) -> None:
    if x.size > 1:
        vectors = [b.weight(x.channels) for _ in range(2)]
        b.add(b.node("InstanceNormalization", x.value, *vectors, epsilon=0.1), x.channels, x.size)


def _group_norm(b: Builder, x: Feature, number: int) -> None:
    """Opset 17 has no GroupNormalization: Reshape, InstanceNormalization, Reshape, scale and shift."""
    if x.size == 1:
        return
    group = _divisor(x, number)
    split = b.node("Reshape", x.value, _int(0, group, -1))
    ones, zeros = np.ones(group, np.float32), np.zeros(group, np.float32)
    normal = b.node("InstanceNormalization", split, ones, zeros, epsilon=0.1)
    back: Value | Array = b.node("Shape", x.value) if number % 2 else _int(0, x.channels, x.size, x.size)
    scaled = b.node("Mul", b.node("Reshape", normal, back), b.weight(x.channels, 1, 1))
    b.add(b.node("Add", scaled, b.weight(x.channels, 1, 1)), x.channels, x.size)


def _layer_norm(b: Builder, x: Feature, number: int) -> None:
    """Over the channels, which blocks them, or over the last axis, which does not."""
    if x.size == 1:
        return
    if number % 3 == 0:
        last = b.node("Transpose", x.value, perm=[0, 2, 3, 1])
        normal = b.node("LayerNormalization", last, b.weight(x.channels), epsilon=0.1)
        b.add(b.node("Transpose", normal, perm=[0, 3, 1, 2]), x.channels, x.size)
    else:
        b.add(b.node("LayerNormalization", x.value, b.weight(x.size), epsilon=0.1), x.channels, x.size)


def _other_norms(b: Builder, x: Feature, number: int) -> None:
    axis = 1 if number % 4 == 0 else 2
    if number % 2:
        b.add(b.node("Add", x.value, b.node("LpNormalization", x.value, axis=axis)), x.channels, x.size)
    elif x.size > 1:
        axes = [1] if number % 4 == 0 else [0, 2, 3]
        b.add(b.node("MeanVarianceNormalization", x.value, axes=axes), x.channels, x.size)


# --- picks and repeats -----------------------------------------------------------------------------------------------
def _pick(b: Builder, x: Feature, number: int) -> None:
    count = 1 + number % min(WIDEST, x.channels + 2)
    order = b.rng.integers(-x.channels, x.channels, count)
    b.add(b.node("Gather", x.value, order.astype(np.int64), axis=1), count, x.size)


def _permute(b: Builder, x: Feature, number: int) -> None:
    order = b.rng.permutation(x.channels).astype(np.int64)
    b.add(b.node("Gather", x.value, order, axis=1 if number % 2 else -3), x.channels, x.size)


def _tile(b: Builder, x: Feature, number: int) -> None:
    if 2 * x.channels <= WIDEST:
        b.add(b.node("Tile", x.value, _int(1, 2, 1, 1)), 2 * x.channels, x.size)


def _spread_mask(b: Builder, x: Feature, number: int) -> None:
    """A mask over space, repeated for every channel before it is used."""
    image = b.features[0]
    if image.size != x.size:
        return
    mask = (
        b.node("Sigmoid", b.conv(image, 1, 1)) if number % 2 else b.node("ReduceMean", image.value, axes=[1])
    )
    if number % 3 == 0:
        wide = b.node("Expand", mask, b.node("Shape", x.value))
    elif number % 3 == 1:
        wide = b.node("Expand", mask, _int(1, x.channels, x.size, x.size))
    else:
        wide = b.node("Tile", mask, _int(1, x.channels, 1, 1))
    b.add(b.node("Mul", *((wide, x.value) if number % 2 else (x.value, wide))), x.channels, x.size)


def _choose(b: Builder, x: Feature, number: int) -> None:
    limit = b.weight(x.channels, 1, 1) if number % 2 else np.zeros((), np.float32)
    asked = b.node("Greater", x.value, limit)
    others: list[Value | Array] = [
        b.node("ConstantOfShape", b.node("Shape", x.value)),
        b.weight(x.channels, 1, 1),
        b.conv(x, x.channels, 1),
        np.zeros((), np.float32),
    ]
    operands = (x.value, others[number % 4]) if number % 3 else (others[number % 4], x.value)
    b.add(b.node("Where", asked, *operands), x.channels, x.size)


def _limits(b: Builder, x: Feature, number: int) -> None:
    low = b.node("Max", x.value, b.weight(1, x.channels, 1, 1))
    b.add(b.node("Min", low, np.abs(b.weight(x.channels, 1, 1)) + 1), x.channels, x.size)


def _arg_max(b: Builder, x: Feature, number: int) -> None:
    axis = 1 if number % 5 == 0 else 2
    place = b.node("Cast", b.node("ArgMax", x.value, axis=axis), to=1)
    b.add(b.node("Add", x.value, b.node("Mul", place, np.array(0.1, np.float32))), x.channels, x.size)


def _computed_shuffle(b: Builder, x: Feature, number: int) -> None:
    """A channel shuffle whose sizes are taken from the value itself."""
    group = _divisor(x, number)
    shape = b.node("Shape", x.value)
    first, channels = (b.node("Gather", shape, _int(axis)) for axis in (0, 1))
    wide = b.node("Concat", first, _int(group, x.channels // group, x.size, x.size), axis=0)
    mixed = b.node("Transpose", b.node("Reshape", x.value, wide), perm=[0, 2, 1, 3, 4])
    back = b.node("Concat", first, channels, _int(x.size, -1), axis=0)
    b.add(b.node("Reshape", mixed, back), x.channels, x.size)


# --- wrapped weights -------------------------------------------------------------------------------------------------
def _quantized(b: Builder, x: Feature, number: int) -> None:
    filters = 2 + number % 5
    per_channel, depthwise = number % 2 == 1, number % 3 == 0
    filters = x.channels if depthwise else filters
    per_group = 1 if depthwise else x.channels
    stored = b.rng.integers(-100, 100, (filters, per_group, 3, 3)).astype(np.int8)
    count = (filters,) if per_channel else ()
    scale = np.asarray(b.rng.uniform(0.005, 0.015, count) / np.sqrt(per_group), np.float32)
    zero = np.asarray(b.rng.integers(-9, 9, count), np.int8)
    weight = b.node("DequantizeLinear", stored, scale, zero, axis=0)
    ints = b.rng.integers(-50, 50, filters).astype(np.int32)
    bias = b.node("DequantizeLinear", ints, scale, axis=0)
    group = x.channels if depthwise else 1
    b.add(b.node("Conv", x.value, weight, bias, group=group, pads=[1] * 4), filters, x.size)


def _quantized_values(b: Builder, x: Feature, number: int) -> None:
    """Activations quantized per channel, coarsely enough to show a wrong scale."""
    count = (x.channels,) if number % 2 else ()
    scale = b.rng.uniform(0.02, 0.1, count).astype(np.float32) if count else np.array(0.05, np.float32)
    zero = np.full(count, 128, np.uint8) if count else np.array(120, np.uint8)
    quantized = b.node("QuantizeLinear", x.value, scale, zero, axis=1)
    b.add(b.node("DequantizeLinear", quantized, scale, zero, axis=1), x.channels, x.size)


def _wrapped(b: Builder, x: Feature, number: int) -> None:
    filters = 2 + number % 5
    weight: Variable | Array = b.weight(filters, x.channels, 1, 1)
    if number % 3 == 0:
        weight = b.node("Cast", np.asarray(weight, np.float16), to=1)
    elif number % 3 == 1:
        weight = b.node(
            "Transpose", np.ascontiguousarray(np.asarray(weight).swapaxes(0, 1)), perm=[1, 0, 2, 3]
        )
    else:
        weight = b.node("Identity", weight)
    b.add(b.node("Conv", x.value, weight), filters, x.size)


def _shared_weight(b: Builder, x: Feature, number: int) -> None:
    """One kernel that two convolutions read, on the same value or one after the other."""
    kernel = b.graph.add_constant(f"kernel{len(b.graph.nodes)}", b.weight(x.channels, x.channels, 1, 1))
    first = b.node("Conv", x.value, kernel)
    second = b.node("Conv", b.node("Relu", first) if number % 2 else b.node("Tanh", x.value), kernel)
    b.add(b.node("Add", first, second), x.channels, x.size)


STRUCTURES: dict[str, Block] = {
    "deconv": _deconv,
    "deconv-depthwise": _deconv_depthwise,
    "decoder": _decoder,
    "pixel-shuffle": _pixel_shuffle,
    "pixel-shuffle-in-parts": _pixel_shuffle_in_parts,
    "space-to-depth": _space_to_depth,
    "resize": _resize,
    "instance-norm": _instance_norm,
    "group-norm": _group_norm,
    "layer-norm": _layer_norm,
    "other-norms": _other_norms,
    "pick": _pick,
    "permute": _permute,
    "tile": _tile,
    "spread-mask": _spread_mask,
    "choose": _choose,
    "limits": _limits,
    "arg-max": _arg_max,
    "computed-shuffle": _computed_shuffle,
    "quantized": _quantized,
    "quantized-values": _quantized_values,
    "wrapped": _wrapped,
    "shared-weight": _shared_weight,
}
"""The blocks of this file by name."""

EVERY_BLOCK: dict[str, Block] = {**BLOCKS, **STRUCTURES}
"""All blocks there are."""
