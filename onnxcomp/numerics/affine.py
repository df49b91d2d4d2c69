"""Affine quantization of arrays: `real = scale * (stored - zero)` (ONNX QuantizeLinear, DequantizeLinear).

A :class:`Grid` says which integers may be stored, an :class:`Affine` what they mean. Rounding is to the nearest, halves to
even, and what lies outside is saturated: what onnxruntime does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["TINY", "Affine", "Grid", "along", "channel_affine", "range_affine"]

Array: TypeAlias = NDArray[Any]
Array64: TypeAlias = NDArray[np.float64]

TINY = 2.0**-100
"""Ranges below this are no ranges: the scale is then 1, so that it stays a normal number of type float32."""


@dataclass(frozen=True)
class Grid:
    """The integers that may be stored.

    Attributes:
        dtype: name of the integer type: uint8, int8, uint16 or int16.
        symmetric: whether the zero point is the middle of the type: 0 if signed, else half its size.
        narrow: whether the lowest integer of a signed type stays unused, so that both sides are equally long.
        bits: how many of the type's bits are used; None for all of them.
        pow2: whether scales are powers of two.
    """

    dtype: str = "uint8"
    symmetric: bool = False
    narrow: bool = False
    bits: int | None = None
    pow2: bool = False

    @property
    def signed(self) -> bool:
        """Whether the type has negative numbers."""
        return np.dtype(self.dtype).kind == "i"

    @property
    def low(self) -> int:
        """The lowest integer in use."""
        return -(1 << (self._bits - 1)) + self.narrow if self.signed else 0

    @property
    def high(self) -> int:
        """The highest integer in use."""
        return (1 << (self._bits - self.signed)) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric quantization."""
        return 0 if self.signed else 1 << (self._bits - 1)

    @property
    def _bits(self) -> int:
        return self.bits or 8 * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Affine:
    """What stored integers mean: `scale` float32 and `zero`, both `[]` for a whole tensor or `[n]` along an axis."""

    scale: Array
    zero: Array
    grid: Grid

    @property
    def per_axis(self) -> bool:
        """Whether there is one scale for each position of an axis."""
        return self.scale.ndim > 0

    def quantize(self, values: Array, axis: int = 0) -> Array:
        """Return `values` as stored integers; scales run along `axis` where there are several."""
        scale, zero = (along(part, axis, values.ndim) for part in (self.scale, self.zero))
        # Division as QuantizeLinear divides: a product with the inverse rounds differently now and then.
        stored = np.rint(values.astype(np.float32) / scale) + zero.astype(np.float32)
        integers: Array = np.clip(stored, self.grid.low, self.grid.high).astype(self.grid.dtype)
        return integers

    def dequantize(self, stored: Array, axis: int = 0) -> Array:
        """Return what `stored` means, float32."""
        scale, zero = (along(part, axis, stored.ndim) for part in (self.scale, self.zero))
        real: Array = (stored.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale
        return real

    def round_trip(self, values: Array, axis: int = 0) -> Array:
        """Return `values` as they come back from storage, float32."""
        return self.dequantize(self.quantize(values, axis), axis)

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest number that a whole tensor's parameters can say."""
        scale, zero = float(self.scale), int(self.zero)
        return (self.grid.low - zero) * scale, (self.grid.high - zero) * scale


def along(part: Array, axis: int, ndim: int) -> Array:
    """Return `part` `[n]` shaped to broadcast along `axis` of an array of `ndim` axes; scalars as they are."""
    if part.ndim == 0:
        return part
    shape = [1] * ndim
    shape[axis] = -1
    return part.reshape(shape)


def range_affine(low: float, high: float, grid: Grid) -> Affine:
    """Return the parameters with which `grid` reaches from `low` to `high`, both finite; zero is always inside.

    Zero is exactly representable, so that padding and what a Relu cuts off cost nothing. A range that is no wider than
    `TINY` gets the scale 1. Powers of two are rounded up: nothing between the bounds is cut off.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if grid.symmetric:
        # A type that is not narrow has one step more below zero than above.
        step = max(-low / (grid.middle - grid.low), high / (grid.high - grid.middle))
    else:
        step = (high - low) / (grid.high - grid.low)
    scale = _scale(step, grid)
    zero = (
        grid.middle if grid.symmetric else int(np.clip(np.rint(grid.low - low / scale), grid.low, grid.high))
    )
    return Affine(np.array(scale, np.float32), np.array(zero, grid.dtype), grid)


def channel_affine(limits: Array64, grid: Grid) -> Affine:
    """Return symmetric parameters that reach `limits` (`[n]` or `[]`, not negative) on both sides."""
    scale = np.vectorize(lambda limit: _scale(limit / (grid.high - grid.middle), grid), otypes=[np.float64])
    return Affine(
        np.asarray(scale(limits), np.float32), np.full(np.shape(limits), grid.middle, grid.dtype), grid
    )


def _scale(step: float, grid: Grid) -> float:
    """Return a scale that is finite, positive and a normal float32, a power of two where the grid wants one."""
    if not step > TINY:
        return 1.0
    return float(2.0 ** np.ceil(np.log2(step))) if grid.pow2 else float(np.float32(step))
