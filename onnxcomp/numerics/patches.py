"""Convolution as a matrix product: the patches a kernel sees, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.arrays import Array

__all__ = ["Window", "at_positions", "patches", "resolve_pads", "spread_patches"]


@dataclass(frozen=True)
class Window:
    """Where a kernel reads: sizes per spatial axis; `pads` as `(before, after)` per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    def output_size(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial size of the output for an input of size `spatial`."""
        return tuple(
            (size + sum(pad) - (kernel - 1) * dilation - 1) // stride + 1
            for size, kernel, stride, dilation, pad in zip(
                spatial, self.kernel, self.strides, self.dilations, self.pads, strict=True
            )
        )

    def adjoint(self, spatial: tuple[int, ...]) -> dict[str, list[int]]:
        """Return the attributes of the ConvTranspose that is the adjoint of a Conv over an input of size `spatial`.

        `output_padding` makes up for what the strides leave over at the end (ONNX ConvTranspose-11).
        """
        left = [
            (size + sum(pad) - (kernel - 1) * dilation - 1) % stride
            for size, kernel, stride, dilation, pad in zip(
                spatial, self.kernel, self.strides, self.dilations, self.pads, strict=True
            )
        ]
        return {
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [pad[0] for pad in self.pads] + [pad[1] for pad in self.pads],
            "output_padding": left,
        }


def resolve_pads(
    mode: str,
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """Return the pads that `auto_pad` mode `SAME_UPPER`, `SAME_LOWER` or `VALID` means (ONNX Conv-11)."""
    if mode == "VALID":
        return ((0, 0),) * len(spatial)
    pads = []
    for size, k, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return tuple(pads)


def patches(x: Array, window: Window, group: int, positions: Array | None) -> Array:
    """Return the patches of `x` `[n, c, *spatial]` as columns `[group, c / group * taps, positions * n]`.

    Row order is that of `weight.reshape(o, -1)`; columns go position by position, within one sample by sample.
    `positions` are flat indices of output positions; None takes all.
    """
    spatial = x.shape[2:]
    where = _places(window.output_size(spatial), positions)
    axes = zip(where, window.strides, window.dilations, window.pads, strict=True)
    starts = [w * stride - pad[0] for w, stride, _, pad in axes]
    index = np.empty((int(np.prod(window.kernel)), len(where[0])), np.int64)
    for row, tap in zip(index, np.ndindex(*window.kernel), strict=True):
        at = [start + t * d for start, t, d in zip(starts, tap, window.dilations, strict=True)]
        row[:] = _flat_index(at, spatial)
    return _gather(x, index).reshape(group, x.shape[1] // group * len(index), -1)


def spread_patches(x: Array, window: Window, out_size: tuple[int, ...], positions: Array | None) -> Array:
    """Return what a transposed convolution reads of `x` `[n, c, *spatial]`, as columns `[1, c * taps, positions * n]`.

    An output position reads through tap t the input position p with `p * stride + t * dilation - pad` equal to it, and 0
    where there is none. Row order is that of `weight.swapaxes(0, 1).reshape(o, -1)`, columns go position by position.
    `positions` are flat indices of output positions, of size `out_size`; None takes all. The pads of `window` are those
    at the beginning.
    """
    where = _places(out_size, positions)
    index = np.empty((int(np.prod(window.kernel)), len(where[0])), np.int64)
    for row, tap in zip(index, np.ndindex(*window.kernel), strict=True):
        at, there = [], np.ones(len(where[0]), bool)
        for w, t, d, s, pad in zip(where, tap, window.dilations, window.strides, window.pads, strict=True):
            place, rest = np.divmod(w + pad[0] - t * d, s)
            there &= rest == 0
            at.append(place)
        row[:] = np.where(there, _flat_index(at, x.shape[2:]), -1)
    return _gather(x, index).reshape(1, x.shape[1] * len(index), -1)


def at_positions(y: Array, positions: Array | None) -> Array:
    """Return `y` `[n, c, *spatial]` as columns `[c, positions * n]`, float32, in the order of `patches`."""
    flat = y.reshape(*y.shape[:2], -1)
    if positions is not None:
        flat = flat.take(positions, axis=2)
    return np.ascontiguousarray(flat.transpose(1, 2, 0), np.float32).reshape(y.shape[1], -1)


def _places(size: tuple[int, ...], positions: Array | None) -> tuple[NDArray[np.intp], ...]:
    flat = np.arange(int(np.prod(size))) if positions is None else positions
    return np.unravel_index(flat, size)


def _flat_index(at: Sequence[Array], spatial: tuple[int, ...]) -> Array:
    """Return flat indices of the places `at` (one array per axis), -1 for those outside."""
    inside = np.ones(len(at[0]), bool)
    flat = np.zeros(len(at[0]), np.int64)
    for place, size in zip(at, spatial, strict=True):
        inside &= (place >= 0) & (place < size)
        flat = flat * size + place
    return np.where(inside, flat, -1)


def _gather(x: Array, index: Array) -> Array:
    """Return `x` `[n, c, *spatial]` at flat positions `index` `[taps, positions]` (-1: zero) as `[c, taps, positions, n]`."""
    count, channels = x.shape[:2]
    flat = x.reshape(count, channels, -1)
    size, wanted = flat.shape[2], index.reshape(-1)
    outside = np.flatnonzero(wanted < 0)
    if len(wanted) < size:
        out = flat.take(np.maximum(wanted, 0), axis=2)
        out[:, :, outside] = 0
        out = np.ascontiguousarray(out.transpose(1, 2, 0), np.float32)
    else:
        # With samples last, whole runs are copied instead of single numbers: two to four times as fast.
        turned = np.empty((channels, size + 1, count), np.float32)
        turned[:, :size] = flat.transpose(1, 2, 0)
        turned[:, size] = 0
        out = turned.take(np.where(wanted < 0, size, wanted), axis=1)
    return out.reshape(channels, *index.shape, count)
