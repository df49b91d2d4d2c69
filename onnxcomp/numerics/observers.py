"""From values to ranges: histograms that are updated in place, and what is read from them.

Bins are as wide as a power of two and lie on its multiples. When values come that need more bins than there are, bins
are merged in pairs, which is exact: the histogram depends on the values, not on the batches they came in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.affine import Affine, Grid, range_affine

__all__ = [
    "BINS",
    "Histogram",
    "Observer",
    "ValueSensitivity",
    "choose_range",
    "expected_error",
    "search_range",
]

Array: TypeAlias = NDArray[Any]
Array64: TypeAlias = NDArray[np.float64]
Observer: TypeAlias = Literal["minmax", "percentile", "entropy", "mse", "moving-average"]
"""How a range is read from a histogram, see `choose_range`."""

BINS = 4096
"""Bins of a histogram: sixteen to each step of an 8-bit grid."""

FINEST = -120
"""Exponent of the narrowest bins: numbers below are zero for every purpose here."""

SHRINK = np.concatenate([np.linspace(1.0, 0.7, 31), np.geomspace(0.68, 0.02, 40)])
"""Parts of the whole range that the search for the least error tries on each side."""

AVERAGED = 0.9
"""Weight of what came before in a moving average of ranges."""


@dataclass
class Histogram:
    """Counts of values, and their exact extremes.

    `low` and `high` are the extremes of all values, `count` how many were counted (a thinned histogram counts fewer than
    there were), `average` the moving average of the extremes of samples, in the order they came. Zeros, which every
    grid holds exactly, are counted but lie in no bin: after a Relu they are half of all values.
    """

    low: float = np.inf
    high: float = -np.inf
    count: int = 0
    exponent: int = FINEST
    start: int = 0
    counts: Array64 = field(default_factory=lambda: np.zeros(0))
    average: tuple[float, float] | None = None

    def add(self, values: Array, low: float, high: float) -> None:
        """Count `values`, any shape, finite; `low` and `high` are the extremes of what they were taken from."""
        low, high = min(low, self.low), max(high, self.high)
        self._widen(low, high)
        self.low, self.high = low, high
        # In float32 the product of a tiny number would become zero, which lies in another bin than what is below zero.
        index = np.floor(np.multiply(values[values != 0], 2.0**-self.exponent, dtype=np.float64))
        self.counts += np.bincount(index.astype(np.int64) - self.start, minlength=len(self.counts))
        self.count += values.size

    def follow(self, low: float, high: float) -> None:
        """Let the moving average take in the extremes of one more sample."""
        if self.average is None:
            self.average = (low, high)
        else:
            a, b = self.average
            self.average = (AVERAGED * a + (1 - AVERAGED) * low, AVERAGED * b + (1 - AVERAGED) * high)

    @property
    def edges(self) -> tuple[Array64, Array64]:
        """Lower and upper edges of the bins, cut off at the extremes."""
        width = 2.0**self.exponent
        lower = (self.start + np.arange(len(self.counts))) * width
        return np.clip(lower, self.low, self.high), np.clip(lower + width, self.low, self.high)

    def merged(self, others: Sequence[Histogram]) -> Histogram:
        """Return one histogram of the values of this one and of `others`, each weighing the same.

        Its moving average reaches as far as any of theirs.
        """
        found = Histogram()
        for part in (self, *others):
            if not part.count:
                continue
            low, high = min(found.low, part.low), max(found.high, part.high)
            found._widen(low, high)
            found.low, found.high = low, high
            twin = Histogram(part.low, part.high, part.count, part.exponent, part.start, part.counts)
            # A wider range never has narrower bins.
            twin._coarsen(found.exponent - part.exponent)
            at = twin.start - found.start
            # Counts are whole numbers no longer: each part is as heavy as the first.
            found.counts[at : at + len(twin.counts)] += twin.counts * (self.count / part.count)
            found.count += self.count
            if part.average is not None:
                a, b = found.average or part.average
                found.average = (min(a, part.average[0]), max(b, part.average[1]))
        return found

    def _widen(self, low: float, high: float) -> None:
        """Make room for values from `low` to `high`."""
        exponent = max(self.exponent, _exponent(low, high))
        if len(self.counts):
            self._coarsen(exponent - self.exponent)
        self.exponent = exponent
        first, last = (int(np.floor(edge * 2.0**-exponent)) for edge in (low, high))
        if not len(self.counts):
            self.start, self.counts = first, np.zeros(last - first + 1)
            return
        before = max(0, self.start - first)
        behind = max(0, last - (self.start + len(self.counts) - 1))
        if before or behind:
            self.counts = np.pad(self.counts, (before, behind))
            self.start -= before

    def _coarsen(self, steps: int) -> None:
        """Merge bins in pairs, `steps` times."""
        for _ in range(steps):
            if not len(self.counts):
                break
            if self.start % 2:
                self.counts, self.start = np.pad(self.counts, (1, 0)), self.start - 1
            if len(self.counts) % 2:
                self.counts = np.pad(self.counts, (0, 1))
            self.counts = self.counts[0::2] + self.counts[1::2]
            self.start //= 2
        self.exponent += steps


def _exponent(low: float, high: float) -> int:
    """Return the exponent of the narrowest bins of which `BINS` reach from `low` to `high`."""
    span = max(high - low, abs(low), abs(high)) if high > low else max(abs(low), abs(high))
    exponent = (
        FINEST if span <= 0 else max(FINEST, int(np.floor(np.log2(max(high - low, span * 1e-6) / BINS))))
    )
    while np.floor(high * 2.0**-exponent) - np.floor(low * 2.0**-exponent) + 1 > BINS:
        exponent += 1
    return exponent


def choose_range(
    seen: Histogram, grid: Grid, observer: Observer = "mse", percentile: float = 99.999
) -> tuple[float, float]:
    """Return the range `(low, high)` that `observer` reads from `seen`, for storage on `grid`.

    `minmax` takes the extremes, `moving-average` the average of the samples' extremes, `percentile` cuts off
    `100 - percentile` percent of the values on each side, `entropy` keeps the distribution closest (Kullback-Leibler
    divergence, Migacz 2017, "8-bit inference with TensorRT"), `mse` makes the mean squared error least.

    Raises:
        ValueError: where nothing was seen.
    """
    if not seen.count:
        raise ValueError("no values were seen")
    if observer == "minmax" or seen.low == seen.high:
        return seen.low, seen.high
    if observer == "moving-average":
        assert seen.average is not None, "follow() was not called"
        return seen.average
    if observer == "percentile":
        return _percentile(seen, percentile)
    loss = _divergence if observer == "entropy" else expected_error
    return search_range(seen.low, seen.high, grid, lambda affine: loss(seen, affine))


def expected_error(seen: Histogram, affine: Affine) -> float:
    """Return the mean squared error of storing what was `seen` with the parameters `affine` of a whole tensor."""
    lower, upper = seen.edges
    centre = (lower + upper) / 2
    scale, zero, grid = float(affine.scale), int(affine.zero), affine.grid
    stored = np.clip(np.rint(centre / scale) + zero, grid.low, grid.high)
    gap = (stored - zero) * scale - centre
    return float(seen.counts @ np.square(gap) / seen.count)


def _percentile(seen: Histogram, percentile: float) -> tuple[float, float]:
    lower, upper = seen.edges
    counts = seen.counts.copy()
    if seen.low <= 0 <= seen.high:
        counts[min(int(np.searchsorted(lower, 0, "right")) - 1, len(counts) - 1)] += seen.count - counts.sum()
    share = np.cumsum(counts) / seen.count
    tail = (100 - percentile) / 100
    low = float(lower[int(np.searchsorted(share, tail, "right").clip(0, len(lower) - 1))])
    high = float(upper[int(np.searchsorted(share, 1 - tail, "left").clip(0, len(upper) - 1))])
    return low, high


def search_range(low: float, high: float, grid: Grid, loss: Callable[[Affine], float]) -> tuple[float, float]:
    """Return the range within `low` and `high` of least `loss`: one side after the other is drawn in, twice."""
    low, high = min(low, 0.0), max(high, 0.0)
    if grid.symmetric:
        span = max(-low, high)
        span = _drawn_in(span, lambda end: loss(range_affine(-end, end, grid)))
        return -span, span

    def ended(low: float, high: float) -> float:
        return loss(range_affine(low, high, grid))

    a, b = low, high
    for _ in range(2 if low < 0 < high else 1):
        b = _drawn_in(high, partial(ended, a))
        a = _drawn_in(low, partial(_second, ended, b))
    return a, b


def _second(loss: Callable[[float, float], float], high: float, low: float) -> float:
    return loss(low, high)


def _drawn_in(edge: float, loss: Callable[[float], float]) -> float:
    """Return the part of `edge` with the least loss; ties keep the widest."""
    return edge if edge == 0 else min((float(edge * part) for part in SHRINK), key=loss)


def _divergence(seen: Histogram, affine: Affine) -> float:
    """Return the Kullback-Leibler divergence of what was seen from what storage makes of it.

    What is cut off counts at the end of the range, where it comes back; within a step the stored mass is spread evenly over
    the bins that are not empty.
    """
    lower, upper = seen.edges
    centre = (lower + upper) / 2
    stored = np.rint(centre / float(affine.scale)) + int(affine.zero)
    inside = (stored >= affine.grid.low) & (stored <= affine.grid.high)
    first, last = (int(np.flatnonzero(inside)[i]) for i in (0, -1)) if inside.any() else (0, len(stored) - 1)
    kept = seen.counts[first : last + 1]
    p = kept.copy()
    p[0] += seen.counts[:first].sum()
    p[-1] += seen.counts[last + 1 :].sum()
    steps = np.clip(stored[first : last + 1], affine.grid.low, affine.grid.high).astype(np.int64)
    steps -= steps.min()
    filled = kept > 0
    mass, bins = np.bincount(steps, kept), np.bincount(steps, filled.astype(np.float64))
    q = np.where(filled, mass[steps] / np.maximum(bins[steps], 1), 0.0)
    p, q = p / max(p.sum(), 1e-300), q / max(q.sum(), 1e-300)
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


@dataclass
class ValueSensitivity:
    """Output sensitivity to a value: what changing it does to the outputs, to the first order, by the size of the value.

    `lows` and `highs` are edges of bins, `sums` `[n, bins]` the derivatives summed over the elements that lie in each, for
    each of `n` samples and a random direction of the outputs; `squares` `[bins]` their squares summed, averaged over the
    samples; `floor` `[bins]` the least that those squares are when all samples are counted that were seen. Elements that
    are zero are stored exactly and count nowhere. All are relative to the size of the outputs, so that costs are shares of
    the outputs' energy.
    """

    lows: Array64
    highs: Array64
    sums: Array
    squares: Array64
    floor: Array64 | None = None

    def cost(self, affine: Affine) -> float:
        """Return the share of the outputs' energy that storing the value with `affine` is expected to disturb.

        What is cut off disturbs the same way everywhere, so its errors are added before they are squared; what is rounded
        goes up and down at random, with a variance of a twelfth of the squared step. What is cut off in samples whose
        derivatives are not known disturbs at least as errors do that have nothing to do with each other (`floor`).
        """
        return self.clipped(affine) + self.rounded(affine)

    def clipped(self, affine: Affine) -> float:
        """Return the part of the cost that comes from what is cut off."""
        cut = self._cut(affine)
        if not cut.any():
            return 0.0
        seen = float(np.mean(np.square(self.sums @ cut.astype(self.sums.dtype))))
        return seen if self.floor is None else max(seen, float(self.floor @ np.square(cut)))

    def rounded(self, affine: Affine) -> float:
        """Return the part of the cost that comes from rounding what is not cut off."""
        inside = self._cut(affine) == 0
        return float(self.squares[inside].sum()) * float(affine.scale) ** 2 / 12

    def _cut(self, affine: Affine) -> Array64:
        """Return how far each bin is moved by being cut off."""
        centre = (self.lows + self.highs) / 2
        low, high = affine.bounds()
        half = float(affine.scale) / 2
        moved: Array64 = np.clip(centre, low - half, high + half) - centre
        return moved
