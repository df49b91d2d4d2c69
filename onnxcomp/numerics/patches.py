"""Convolution as a matrix product: the patches a kernel sees, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "patches", "resolve_pads", "spread_patches"]

Array = NDArray[Any]


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
    """Return the patches of `x` `[n, c, *spatial]` as columns `[group, c / group * taps, n * positions]`.

    Row order is that of `weight.reshape(o, -1)`. `positions` are flat indices of output positions; None takes all.
    """
    count, channels = x.shape[:2]
    out_size = window.output_size(x.shape[2:])
    if any(any(pad) for pad in window.pads):
        x = np.pad(x, ((0, 0), (0, 0), *window.pads))
    taps = list(np.ndindex(*window.kernel))
    total = int(np.prod(out_size)) if positions is None else len(positions)
    out = np.empty((channels, len(taps), count, total), np.float32)
    where = None if positions is None else np.unravel_index(positions, out_size)
    by_channel = x.swapaxes(0, 1)
    for index, tap in enumerate(taps):
        offsets = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        if where is None:
            view = by_channel[
                (
                    slice(None),
                    slice(None),
                    *(
                        slice(o, o + (size - 1) * s + 1, s)
                        for o, size, s in zip(offsets, out_size, window.strides, strict=True)
                    ),
                )
            ]
            out[:, index] = view.reshape(channels, count, -1)
        else:
            at = tuple(w * s + o for w, s, o in zip(where, window.strides, offsets, strict=True))
            out[:, index] = by_channel[(slice(None), slice(None), *at)]
    return out.reshape(group, channels // group * len(taps), count * total)


def spread_patches(x: Array, window: Window, out_size: tuple[int, ...], positions: Array | None) -> Array:
    """Return what a transposed convolution reads of `x` `[n, c, *spatial]`, as columns `[1, c * taps, n * positions]`.

    An output position reads through tap t the input position p with `p * stride + t * dilation - pad` equal to it, and 0
    where there is none. Row order is that of `weight.swapaxes(0, 1).reshape(o, -1)`. `positions` are flat indices of
    output positions, of size `out_size`; None takes all. The pads of `window` are those at the beginning.
    """
    count, channels = x.shape[:2]
    flat = np.arange(int(np.prod(out_size))) if positions is None else positions
    where = np.unravel_index(flat, out_size)
    by_channel = x.swapaxes(0, 1)
    taps = list(np.ndindex(*window.kernel))
    out = np.zeros((channels, len(taps), count, len(flat)), np.float32)
    for index, tap in enumerate(taps):
        there = np.ones(len(flat), bool)
        at = []
        for w, t, d, s, pad, size in zip(
            where, tap, window.dilations, window.strides, window.pads, x.shape[2:], strict=True
        ):
            place, rest = np.divmod(w + pad[0] - t * d, s)
            there &= (rest == 0) & (place >= 0) & (place < size)
            at.append(place)
        chosen = np.flatnonzero(there)
        read = by_channel[(slice(None), slice(None), *(place[chosen] for place in at))]
        out[:, index][:, :, chosen] = read
    return out.reshape(1, channels * len(taps), count * len(flat))
