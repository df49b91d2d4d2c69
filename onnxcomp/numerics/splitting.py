"""Outlier channels split in two.

(Zhao 2019, "Improving neural network quantization without retraining using outlier channel splitting".)

A channel that is there twice is read with half the weight each time: the sum stays, the largest weight goes, and the step of
a grid with one scale becomes shorter for all others.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["split_outliers"]

Array64: TypeAlias = NDArray[np.float64]


def split_outliers(weights: Array64, count: int, levels: int) -> tuple[NDArray[np.intp], Array64]:
    """Return `(sources, split)`: which channel each of `c + count` channels is, and their weights `[o, c + count, k]`.

    `weights` `[o, c, k]` are those from each channel; the first `c` channels keep their places. One after the other the
    channel with the largest weight is halved, as often as it takes. Halves of a weight `w` are `w / 2` a quarter of a step
    up and down: `round(a / 2 - 1/4) + round(a / 2 + 1/4)` is `round(a)`, so that splitting adds no error of rounding. The
    step is that of a symmetric grid of `levels` to each side which holds all weights.
    """
    channels = weights.shape[1]
    largest = np.abs(weights).max((0, 2))
    sources, parts = np.arange(channels), np.ones(channels)
    sizes = largest.copy()
    for _ in range(count):
        worst = int(sizes.argmax())
        sources = np.append(sources, sources[worst])
        parts[worst] /= 2
        parts = np.append(parts, parts[worst])
        sizes[worst] /= 2
        sizes = np.append(sizes, sizes[worst])
    split = weights[:, sources] * parts[None, :, None]
    step = float(sizes.max(initial=0.0)) / levels
    for channel in range(channels):
        twins = np.flatnonzero(sources == channel)
        # Copies of a channel that was split once come in pairs; of more, those of equal size do.
        for a, b in zip(twins[0::2], twins[1::2], strict=False):
            if parts[a] == parts[b]:
                split[:, a] -= step / 4
                split[:, b] += step / 4
    return sources, split
