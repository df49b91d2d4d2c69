"""Output sensitivity: how much errors of inner values disturb the outputs, from one run back through the network.

An error `d` of a value moves the outputs by `J d`, to the first order. For a random direction `r` of the outputs, one run
back gives `J^T r` for all values at once, and the mean of `(r . J d)^2` over directions is `|J d|^2`. As the error that
storage makes of an element depends on the element alone, sums of derivatives by the size of the elements are all that is
needed to know what any range does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxcomp.compiler.gradients.backward_runs import (
    BackwardBatch,
    GradientError,
    RunSettings,
    note_stops,
    open_runs,
    size_between,
)
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Array64, Shapes
from onnxcomp.numerics.observers import Histogram, ValueSensitivity

__all__ = ["value_sensitivity"]


TAIL = 0.02
"""Share of the elements on either side of which every single one counts: no good range cuts off more."""

BINS = 256
"""Bins of derivatives in each tail: they show what is cut off, for which an eighth of a step is fine enough."""

COARSE = 64
"""Bins between the tails, where elements are only rounded."""

THINNED = 2048
"""Elements between the tails that are taken of each sample."""

SAMPLES = 64
"""Samples that run back at most. Clipping is rare, so what few samples say of it is held against all histograms."""

EFFORT_BYTES = 7 * 2**28
"""Aim of values and derivatives of all samples that run back: of large networks, half as many say nearly the same
(EfficientNet-Lite0: 26.0 dB with 32, 26.1 with 64; ResNet-56: 30.9 and 31.8)."""

BATCH_BYTES = 64 * 2**20
"""Aim of values and derivatives held at once."""

FALLBACK = "their ranges have the least error of the values themselves"
"""What values get whose sensitivity is unknown."""


def value_sensitivity(
    model: Model,
    names: Sequence[str],
    seen: Mapping[str, Histogram],
    context: Context,
    shapes: Shapes,
    log: PassLog,
) -> dict[str, ValueSensitivity]:
    """Return the sensitivity of the float outputs of `model` to each value of `names`; where it is unknown, a note says why.

    `seen` holds the histograms of the values, `shapes` all shapes for one sample. Values of unknown sensitivity are absent.
    """
    try:
        runs = open_runs(model, [name for name in names if seen[name].count], shapes, context, _settings())
        note_stops(runs.back, FALLBACK, log)
        if not runs.values:
            return {}
        bins = [_Bins.of(seen[name]) for name in runs.values]
        found: list[list[_Part]] = [[] for _ in bins]
        done = 0
        for count, parts in runs.run(partial(_parts, bins)):
            for have, part in zip(found, parts, strict=True):
                have.append(part)
            done += count
    except GradientError as problem:
        log.note(f"output sensitivity of values is unknown ({problem}); {FALLBACK}")
        return {}
    return {
        name: each.sensitivity(have, seen[name], done)
        for name, each, have in zip(runs.values, bins, found, strict=True)
    }


def _settings() -> RunSettings:
    return RunSettings(
        size_between,
        lambda held: max(SAMPLES // 2, min(SAMPLES, EFFORT_BYTES // held)),
        BATCH_BYTES,
        overlapped=True,
    )


def _parts(bins: Sequence[_Bins], batch: BackwardBatch) -> list[_Part]:
    return [each.part(batch.value(k), batch.gradient(k), batch.count) for k, each in enumerate(bins)]


@dataclass(frozen=True)
class _Part:
    """Derivatives of some samples by bins: their sums `[n, bins]` and the sum of their squares `[bins]`."""

    sums: Array
    squares: Array64


@dataclass(frozen=True)
class _Bins:
    """Bins of one value: `edges` from its least number to its largest, fine ones below `low` and above `high`."""

    edges: Array64
    low: float
    high: float

    @classmethod
    def of(cls, seen: Histogram) -> _Bins:
        """Return the bins for what was `seen`; zero, which every range holds, is in the middle or at an end."""
        first, last = min(seen.low, 0.0), max(seen.high, 0.0)
        last = last if last > first else first + 1.0
        lower, upper = seen.edges
        below = np.cumsum(seen.counts) / seen.count
        above = np.cumsum(seen.counts[::-1])[::-1] / seen.count
        low = min([0.0, *lower[below > TAIL][:1]])
        high = max([0.0, *upper[above > TAIL][-1:]])
        low, high = max(float(low), first), min(float(high), last)
        edges = [np.linspace(low, high, COARSE + 1)] if high > low else [np.array([low])]
        if low > first:
            edges.insert(0, np.linspace(first, low, BINS + 1)[:-1])
        if last > high:
            edges.append(np.linspace(high, last, BINS + 1)[1:])
        return cls(np.concatenate(edges), low, high)

    def part(self, values: Array, grads: Array, count: int) -> _Part:
        """Return the derivatives `grads` by `values` of `count` samples, binned."""
        values, grads = values.reshape(count, -1), grads.reshape(count, -1)
        width = values.shape[1]
        step = max(1, width // THINNED) | 1
        heavier = width / max(1, len(range(0, width, step)))
        sums = np.zeros((count, len(self.edges) - 1))
        squares = np.zeros(len(self.edges) - 1)
        for row, (value, grad) in enumerate(zip(values, grads, strict=True)):
            tails = np.flatnonzero((value < self.low) | (value > self.high))
            some, found = value[::step], grad[::step]
            inner = (some >= self.low) & (some <= self.high) & (some != 0)
            for index, slopes, weight in (
                (self._index(value[tails]), grad[tails], 1.0),
                (self._index(some[inner]), found[inner], heavier),
            ):
                sums[row] += weight * np.bincount(index, slopes, len(squares))
                squares += weight * np.bincount(index, np.square(slopes), len(squares))
        return _Part(sums.astype(np.float32), squares)

    def _index(self, values: Array) -> Array:
        return np.clip(np.searchsorted(self.edges, values, "right") - 1, 0, len(self.edges) - 2)

    def sensitivity(self, parts: Sequence[_Part], seen: Histogram, count: int) -> ValueSensitivity:
        """Return what `parts` of `count` samples say together."""
        squares = np.sum([part.squares for part in parts], axis=0) / max(1, count)
        lower, upper = seen.edges
        share = np.histogram((lower + upper) / 2, self.edges, weights=seen.counts)[0] / seen.count
        sums = np.concatenate([part.sums for part in parts])
        return ValueSensitivity(self.edges[:-1], self.edges[1:], sums, squares, share * squares.sum())
