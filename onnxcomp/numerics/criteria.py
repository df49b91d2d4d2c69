"""Importance of channels by the criteria of the pruning literature: scores from arrays, higher = keep.

Scores of filters are one function; scores of activations are statistics that take batch after batch, `[n, c, ...]` with
the samples first and the channels second, and end in one score per channel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.arrays import Array, Array64, Mask

__all__ = [
    "BINS",
    "MeanRank",
    "MeanSquare",
    "NonZeros",
    "PooledEntropy",
    "Statistic",
    "distances_to_others",
    "entropy",
    "mean_per_unit",
    "norm_per_unit",
    "scaled_sum",
    "unit_filters",
]

Units = NDArray[np.int64]

BINS = 100
"""Bins of a histogram of pooled activations. The paper leaves the number open; a few hundred samples fill so many."""


# --- from positions to units -----------------------------------------------------------------------------------------
def mean_per_unit(scores: Array64, units: Units, count: int) -> Array64:
    """Return the mean `[count]` of `scores` over the positions of each unit, NaN for units without a position.

    `units` has the unit of each position, -1 for none.
    """
    held = units >= 0
    number = np.bincount(units[held], minlength=count)
    total = np.bincount(units[held], scores[held], minlength=count)
    mean: Array64 = np.full(count, np.nan)
    np.divide(total, number, out=mean, where=number > 0)
    return mean


def norm_per_unit(weight: Array, units: Units, count: int) -> Array64:
    """Return the Frobenius norm `[count]` of the slices of `weight` along axis 0 that belong to each unit."""
    squares = (weight.reshape(len(weight), -1).astype(np.float64) ** 2).sum(1)
    held = units >= 0
    return np.sqrt(np.bincount(units[held], squares[held], minlength=count))


def unit_filters(weight: Array, units: Units, count: int) -> tuple[Array64, Units]:
    """Return what each unit has of `weight` as one row, and which unit each row is.

    Slices along axis 0 that belong to one unit (equal places of the blocks of a grouped convolution) stand one after
    another; a unit with fewer of them than others ends in zeros. Units without any have no row.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    number = np.bincount(units[units >= 0], minlength=count)
    found: Array64 = np.zeros((count, int(number.max(initial=0)), flat.shape[1]))
    taken = np.zeros(count, np.int64)
    for position, unit in enumerate(units):
        if unit >= 0:
            found[unit, taken[unit]] = flat[position]
            taken[unit] += 1
    rows = np.flatnonzero(number)
    return found[rows].reshape(len(rows), -1), rows


def scaled_sum(parts: Sequence[Array64], count: int) -> tuple[Array64, Mask]:
    """Return the sum `[count]` of `parts`, each scaled to mean 1, and the mask of the units that any part knows.

    A part is `[count]`, NaN where it says nothing of a unit. The scale makes layers that share a residual stream weigh
    alike, as in `norms`.
    """
    total, known = np.zeros(count), np.zeros(count, bool)
    for part in parts:
        held = ~np.isnan(part)
        mean = float(part[held].mean()) if held.any() else 0.0
        total[held] += part[held] / (mean if mean > 0 else 1.0)
        known |= held
    return total, known


# --- scores of filters -----------------------------------------------------------------------------------------------
def distances_to_others(filters: Array64) -> Array64:
    """Return the sum `[n]` of Euclidean distances from each row of `filters` `[n, d]` to all rows.

    The filters with the least sum lie nearest to the geometric median and are those that the others can stand in for
    (He, Liu, Wang, Hu, Yang 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", section 3.3: the median is sought among the filters themselves).
    """
    rows = filters - filters.mean(0)
    squares = (rows**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0))
    # The distance to itself is zero; what rounding leaves there is not.
    np.fill_diagonal(distances, 0.0)
    total: Array64 = distances.sum(1)
    return total


# --- scores of activations -------------------------------------------------------------------------------------------
class Statistic(ABC):
    """A score per channel from batches of values."""

    @abstractmethod
    def add(self, values: Array) -> None:
        """Take a batch `[n, c, ...]`."""

    @abstractmethod
    def scores(self) -> Array64:
        """Return the score `[c]` of each channel, over everything added."""


class NonZeros(Statistic):
    """The share of values that are not zero, which is 1 - APoZ.

    APoZ is the average percentage of zeros of a channel after its activation, over samples and positions (Hu, Peng, Tai,
    Tang 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", section
    3.1, equation 1).
    """

    def __init__(self) -> None:
        self._found: Array64 | None = None
        self._number = 0

    def add(self, values: Array) -> None:
        """Take a batch `[n, c, ...]`."""
        found = np.count_nonzero(_flat(values), axis=(0, 2)).astype(np.float64)
        self._found = found if self._found is None else self._found + found
        self._number += values.size // values.shape[1]

    def scores(self) -> Array64:
        """Return the share of non-zeros `[c]`."""
        assert self._found is not None, "a statistic is read after something was added"
        return self._found / max(1, self._number)


class MeanSquare(Statistic):
    """The mean square over samples and positions.

    Its root times the norm of the weights that read a channel is the score of Wanda for weights, `|W_ij| * ||x_j||`,
    taken for whole columns (Sun, Liu, Bair, Kolter 2023, "A Simple and Effective Pruning Approach for Large Language
    Models", section 3; the norm over samples becomes a mean, so that their number does not matter).
    """

    def __init__(self) -> None:
        self._squares: Array64 | None = None
        self._number = 0

    def add(self, values: Array) -> None:
        """Take a batch `[n, c, ...]`."""
        flat = _flat(values)
        squares = np.einsum("ncm,ncm->c", flat, flat, dtype=np.float64, casting="same_kind")
        self._squares = squares if self._squares is None else self._squares + squares
        self._number += values.size // values.shape[1]

    def scores(self) -> Array64:
        """Return the mean square `[c]`."""
        assert self._squares is not None, "a statistic is read after something was added"
        return self._squares / max(1, self._number)


class MeanRank(Statistic):
    """The mean rank of a channel's feature maps over samples.

    Lin, Ji, Wang, Zhang, Zhang, Tian, Shao 2020, "HRank: Filter Pruning using High-Rank Feature Map", section 3.2:
    maps of high rank hold more information, and the mean rank hardly depends on which images it is taken over. The rank
    is the number of singular values above `max(h, w) * eps` of the largest, as in the authors' code.
    """

    def __init__(self) -> None:
        self._ranks: Array64 | None = None
        self._number = 0

    def add(self, values: Array) -> None:
        """Take a batch of maps `[n, c, h, w]`; with more axes the last one counts as w and the others as h."""
        maps = np.asarray(values, np.float32).reshape(*values.shape[:2], -1, values.shape[-1])
        # Decomposing what is not finite fails; a map that overflowed has nothing to rank.
        ranks = np.linalg.matrix_rank(np.where(np.isfinite(maps), maps, 0)).sum(0).astype(np.float64)
        self._ranks = ranks if self._ranks is None else self._ranks + ranks
        self._number += len(values)

    def scores(self) -> Array64:
        """Return the mean rank `[c]`."""
        assert self._ranks is not None, "a statistic is read after something was added"
        return self._ranks / max(1, self._number)


class PooledEntropy(Statistic):
    """The entropy of a channel's mean over positions, across samples.

    Luo, Wu 2017, "An Entropy-based Pruning Method for CNN Compression", section 3.2: global average pooling makes one
    number per sample and channel, and the entropy of their histogram over the channel's own range says how much the
    channel tells samples apart. One number is kept per channel of every `stride`-th sample.
    """

    def __init__(self, stride: int = 1) -> None:
        self._stride = stride
        self._seen = 0
        self._pooled: list[Array64] = []

    def add(self, values: Array) -> None:
        """Take a batch `[n, c, ...]`."""
        first = -self._seen % self._stride
        self._seen += len(values)
        self._pooled.append(_flat(values[first :: self._stride]).mean(2, dtype=np.float64))

    def scores(self) -> Array64:
        """Return the entropy `[c]`, in nats."""
        return entropy(np.concatenate(self._pooled))


def entropy(samples: Array64, bins: int = BINS) -> Array64:
    """Return the entropy `[c]` in nats of each column of `samples` `[n, c]`, in a histogram of equal bins over its range.

    A column that is constant has entropy 0.
    """
    low, high = samples.min(0), samples.max(0)
    spread = np.where(high > low, high - low, 1.0)
    places = np.minimum(((samples - low) / spread * bins).astype(np.int64), bins - 1)
    count = samples.shape[1]
    flat = (places + bins * np.arange(count)).reshape(-1)
    shares = np.bincount(flat, minlength=bins * count).reshape(count, bins) / len(samples)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found: Array64 = -(shares * logs).sum(1)
    # Of a sure thing the formula leaves -0.0.
    return np.abs(found)


def _flat(values: Array) -> Array:
    """Return `values` `[n, c, ...]` as `[n, c, m]`, in at least single precision."""
    count = math.prod(values.shape[2:])
    flat = values.reshape(*values.shape[:2], count)
    return flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float32)
