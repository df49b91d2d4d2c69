"""What values a model computes: histograms of many values at once, from one pass over the samples.

Every value is looked at one sample at a time, so that the result does not depend on how samples are put into batches: its
extremes are exact, its histogram counts at most `THINNED` of its elements, the same places in every sample.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.errors import DataError
from onnxcomp.ir.model import Model
from onnxcomp.ir.randomness import random_nodes
from onnxcomp.ir.segment import with_outputs
from onnxcomp.numerics.arrays import Array
from onnxcomp.numerics.observers import Histogram
from onnxcomp.runtime.overlap import in_order, share, workers
from onnxcomp.runtime.session import Session

if TYPE_CHECKING:
    from onnxcomp.runtime.data.samples import Samples

__all__ = ["Observed", "observe_values", "thinned"]


THINNED = 8192
"""Elements of one sample of one value that are counted: a few hundred samples make a million."""

BATCH_BYTES = 64 * 2**20
"""Aim of the values held at once."""


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
    inputs = {v.name for v in model.graph.inputs}
    made = [name for name in names if name not in inputs]
    held = max(1, sum(4 * math.prod(shapes.get(name, (1,))) for name in names))
    # Each of those who work at once holds its own values.
    several = max(1, min(workers(threads), BATCH_BYTES // held))
    if random_nodes(model):
        # Who comes first draws first.
        several = 1
    batch = int(max(1, min(32, BATCH_BYTES // (held * several))))
    session = Session(
        with_outputs(model, made),
        arena=False,
        threads=share(threads) if several > 1 else threads,
        custom_op_libs=custom_op_libs,
    )

    def look(feed: Mapping[str, Array]) -> dict[str, _Look]:
        values = session.run(feed, made)
        values.update((name, feed[name]) for name in names if name in inputs)
        return {name: _looked(values.pop(name), shapes.get(name, ())) for name in names}

    found = {name: Histogram() for name in names}
    first = 0
    for looks in in_order(look, samples.batches(batch), several):
        for name, seen in looks.items():
            _count(name, seen, found[name], first)
        first += max((len(seen.lows) for seen in looks.values()), default=0)
        if progress:
            progress(first)
    return Observed(found, time.perf_counter() - start)


@dataclass(frozen=True)
class _Look:
    """What one value is on a batch: `lows` and `highs` `[n]` of its samples, and some of the elements of each."""

    lows: Array
    highs: Array
    some: Array


def _looked(array: Array, shape: tuple[int, ...]) -> _Look:
    rows = _by_sample(array, shape)
    if not rows.size:
        return _Look(np.zeros(len(rows)), np.zeros(len(rows)), rows)
    # A copy, as a view would hold the whole value.
    return _Look(rows.min(1), rows.max(1), np.ascontiguousarray(thinned(rows)))


def _by_sample(array: Array, shape: tuple[int, ...]) -> Array:
    """Return `array` as one row per sample; one row where the first axis is no batch, or the data select rows."""
    even = array.ndim and shape and len(array) and len(array) % max(1, shape[0]) == 0
    if even and math.prod(shape) * len(array) == array.size * (shape[0] or 1):
        return array.reshape(len(array) // max(1, shape[0]), -1)
    return array.reshape(1, -1)


def _count(name: str, look: _Look, seen: Histogram, first: int) -> None:
    """Take a `look` at one value into `seen`; `first` is the number of the first sample."""
    if not look.some.size:
        return
    lows, highs = look.lows, look.highs
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        bad = first + int(np.flatnonzero(~(np.isfinite(lows) & np.isfinite(highs)))[0])
        raise DataError(
            f"the value {name!r} becomes NaN or infinite on calibration sample {bad}; remove the sample, or "
            "--exclude the node that makes it"
        )
    for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
        seen.follow(low, high)
    seen.add(look.some, float(lows.min()), float(highs.max()))


def thinned(rows: Array) -> Array:
    """Return at most `THINNED` elements of each row of `rows` `[n, m]`, evenly spread, at odd distances."""
    step = rows.shape[1] // THINNED
    # Channels and rows of images come in even numbers: an odd step meets all of them.
    return rows if step <= 1 else rows[:, :: step | 1]
