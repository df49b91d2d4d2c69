"""Which channels matter: norms of weights, and greedy structured elimination on the consumers' covariance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcomp.numerics.arrays import Array, Array64

__all__ = ["Reader", "eliminate", "norms"]

Units = NDArray[np.int64]

DAMPING = 1e-3
"""Added to the diagonal of a covariance, as a share of its mean: dead channels make it singular."""


STRIP = 64
"""Rows of an inverse that are updated at once: they stay in the cache."""

SHRINK = 0.75
"""Share of columns still there from which on the others are left out of the arrays."""


@dataclass
class Reader:
    """What one consumer makes of a group's channels: `weight` `[o, d]`, covariance `H` `[d, d]`, unit of each column.

    `units[j]` is the unit that column j belongs to, -1 for columns of other groups.
    """

    weight: Array64
    H: Array64
    units: Units


def norms(parts: Sequence[tuple[Array, Units]], count: int, order: int) -> Array64:
    """Return the importance `[count]` of each unit as the l1 (`order=1`) or squared l2 (`order=2`) norm of its filters.

    `parts` are weights with the unit of each position along axis 0 (-1: none). Every part is scaled to mean 1 so that
    layers that share a stream weigh alike (Li 2017, "Pruning filters for efficient ConvNets", for a single layer).
    """
    total = np.zeros(count)
    for weight, units in parts:
        flat = np.abs(weight.reshape(len(weight), -1).astype(np.float64)) ** order
        score = np.zeros(count)
        held = units >= 0
        np.add.at(score, units[held], flat.sum(1)[held])
        mean = score[np.unique(units[held])].mean() if held.any() else 0.0
        total += score / mean if mean > 0 else score
    return total


def eliminate(
    readers: Sequence[Reader],
    count: int,
    allowed: Callable[[Array], Array],
    progress: Callable[[int], None] | None = None,
) -> tuple[list[int], list[float]]:
    """Return units in the order in which they can be spared, and the relative output error each removal adds.

    Greedy structured elimination, the block form of Optimal Brain Surgeon (Hassibi 1993; Frantar 2022, OBC): removing the
    columns c of a consumer costs `tr(W_c ((H^-1)_cc)^-1 W_c^T)` when all other columns are refitted, after which
    `W -= W_c ((H^-1)_cc)^-1 (H^-1)_c:` and `H^-1 -= (H^-1)_:c ((H^-1)_cc)^-1 (H^-1)_c:`. H is damped for this; as damping
    alone would keep a channel that never varies but has large weights, no cost is above that of removing the columns and
    refitting nothing, `tr(W_c H_cc W_c^T)` with H as it is. Costs of several consumers are added, each relative to its own
    output variance `tr(W H W^T)`.

    `allowed(alive)` maps the mask `[count]` of units still there to the mask of those that may go next; the elimination
    stops when none may.
    """
    states = [_State(reader, count) for reader in readers]
    alive = np.ones(count, bool)
    order: list[int] = []
    costs: list[float] = []
    while True:
        candidates = allowed(alive) & alive
        if not candidates.any():
            return order, costs
        total = np.zeros(count)
        for state in states:
            total += state.costs(alive)
        total[~candidates] = np.inf
        unit = int(total.argmin())
        for state in states:
            state.remove(unit)
        alive[unit] = False
        order.append(unit)
        costs.append(float(total[unit]))
        if progress:
            progress(len(order))


@dataclass
class _Class:
    """Units of which a consumer reads equally many columns: `columns` and their own covariance, by unit."""

    units: Units
    columns: Units
    own: Array64


class _State:
    """One consumer during the elimination: weights `[d, o]` and inverse covariance of the columns that are left."""

    def __init__(self, reader: Reader, count: int) -> None:
        H = np.array(reader.H, np.float64)
        self.classes = _classes(reader.units, count, H)
        diagonal = np.einsum("ii->i", H)
        damp = DAMPING * float(diagonal.mean())
        diagonal += damp if damp > 0 else 1.0
        self.W = np.array(reader.weight.T, np.float64, order="C")
        variance = float(np.sum((H @ self.W) * self.W))
        self.scale = 1.0 / variance if variance > 0 else 0.0
        self.inverse = _inverse(H)
        self.there = np.ones(len(H), bool)

    def costs(self, alive: Array) -> Array64:
        """Return the cost `[count]` of removing each unit alone; 0 for units this consumer does not read."""
        found = np.zeros(len(alive))
        for each in self.classes:
            live = alive[each.units]
            c = each.columns[live]
            W = self.W[c]
            squares = W @ W.transpose(0, 2, 1)
            blocks = self.inverse[c[:, :, None], c[:, None, :]]
            solved = 1 / blocks if c.shape[1] == 1 else np.linalg.inv(blocks)
            refitted, untouched = ((squares * way).sum((1, 2)) for way in (solved, each.own[live]))
            found[each.units[live]] = np.minimum(refitted, untouched)
        return found * self.scale

    def remove(self, unit: int) -> None:
        """Remove a unit's columns and update the weights and the inverse of what stays."""
        for each in self.classes:
            for c in each.columns[each.units == unit]:
                self._remove_columns(c)

    def _remove_columns(self, c: Units) -> None:
        rows = self.inverse[c]
        solved = np.linalg.solve(rows[:, c], rows)
        self.W -= solved.T @ self.W[c]
        for start in range(0, len(self.inverse), STRIP):
            strip = slice(start, start + STRIP)
            self.inverse[strip] -= rows[:, strip].T @ solved
        # What was removed must not come back through rounding: exact zeros, and a unit diagonal to stay invertible.
        self.W[c] = 0.0
        self.inverse[c] = 0.0
        self.inverse[:, c] = 0.0
        self.inverse[c, c] = 1.0
        self.there[c] = False
        if self.there.mean() < SHRINK:
            self._shrink()

    def _shrink(self) -> None:
        """Leave out the columns that are gone: updates cost by the square of what is held."""
        places = np.cumsum(self.there) - 1
        for each in self.classes:
            each.columns = places[each.columns]
        left = np.flatnonzero(self.there)
        self.W, self.inverse = self.W[left], self.inverse[np.ix_(left, left)]
        self.there = np.ones(len(left), bool)


def _classes(units: Units, count: int, H: Array64) -> list[_Class]:
    order = np.argsort(units, kind="stable")
    starts = np.searchsorted(units[order], np.arange(count + 1))
    sizes = np.diff(starts)
    found = []
    for size in np.unique(sizes[sizes > 0]):
        members = np.flatnonzero(sizes == size)
        columns = order[starts[members][:, None] + np.arange(size)]
        found.append(_Class(members, columns, H[columns[:, :, None], columns[:, None, :]]))
    return found


def _inverse(H: Array64) -> Array64:
    """Return the inverse of a damped covariance, by Cholesky where rounding has left it positive definite."""
    factor, failed = scipy.linalg.lapack.dpotrf(H, lower=0, clean=1)
    if failed:
        return np.asarray(np.linalg.inv(H), np.float64)
    inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=0)
    # Of the result only one triangle is written; the other holds the zeros of the factor.
    whole: Array64 = inverse + inverse.T
    whole[np.diag_indices(len(whole))] /= 2
    return np.ascontiguousarray(whole)
