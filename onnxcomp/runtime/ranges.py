"""What values a model computes: histograms of many values at once, from one pass over the samples.

Every value is looked at one sample at a time, so that the result does not depend on how samples are put into batches: its
extremes are exact, its histogram counts at most `THINNED` of its elements, the same places in every sample.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError
from onnxcomp.ir.model import Model
from onnxcomp.numerics.observers import Histogram
from onnxcomp.runtime.capture import stream_values

if TYPE_CHECKING:
    from onnxcomp.runtime.data import Samples

__all__ = ["Observed", "observe_values", "thinned"]

Array = NDArray[Any]

THINNED = 8192
"""Elements of one sample of one value that are counted: a few hundred samples make a million."""

BATCH_BYTES = 64 * 2**20
"""Aim of the values fetched in one run: these are all held at once."""


@dataclass(frozen=True)
class Observed:
    """Histograms by value name, and the seconds that taking them took."""

    histograms: Mapping[str, Histogram]
    seconds: float


def observe_values(
    model: Model,
    names: Collection[str],
    samples: Samples,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    threads: int = 0,
    custom_op_libs: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Observed:
    """Return what the values `names` of `model` are on `samples`; `shapes` are those for one sample.

    Raises:
        DataError: where a value becomes NaN or infinite, naming it and the sample.
    """
    start = time.perf_counter()
    wanted = [*names]
    held = sum(4 * math.prod(shapes.get(name, (1,))) for name in wanted)
    batch = int(max(1, min(32, BATCH_BYTES // max(1, held))))
    found = {name: Histogram() for name in wanted}
    first = 0
    for values in stream_values(
        model, wanted, samples, batch, threads=threads, custom_op_libs=custom_op_libs, progress=progress
    ):
        count = 1
        for name, array in values.items():
            rows = _by_sample(array, batch, shapes.get(name, ()))
            count = max(count, len(rows))
            _look(name, rows, found[name], first)
        first += count
    return Observed(found, time.perf_counter() - start)


def _by_sample(array: Array, batch: int, shape: tuple[int, ...]) -> Array:
    """Return `array` as one row per sample; values whose first axis is no batch are one row."""
    if array.ndim and shape and len(array) and math.prod(shape) * len(array) == array.size * (shape[0] or 1):
        return array.reshape(len(array) // max(1, shape[0]), -1)
    return array.reshape(1, -1)


def _look(name: str, rows: Array, seen: Histogram, first: int) -> None:
    """Take the `rows` of one value into `seen`; `first` is the number of the first sample."""
    if not rows.size:
        return
    lows, highs = rows.min(1), rows.max(1)
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        bad = first + int(np.flatnonzero(~(np.isfinite(lows) & np.isfinite(highs)))[0])
        raise DataError(
            f"the value {name!r} becomes NaN or infinite on calibration sample {bad}; remove the sample, or "
            "--exclude the node that makes it"
        )
    for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
        seen.follow(low, high)
    seen.add(thinned(rows), float(lows.min()), float(highs.max()))


def thinned(rows: Array) -> Array:
    """Return at most `THINNED` elements of each row of `rows` `[n, m]`, evenly spread, at odd distances."""
    step = rows.shape[1] // THINNED
    # Channels and rows of images come in even numbers: an odd step meets all of them.
    return rows if step <= 1 else rows[:, :: step | 1]
