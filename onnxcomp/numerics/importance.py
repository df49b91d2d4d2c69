"""Which channels matter: norms of weights, and greedy structured elimination on the consumers' covariance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reader", "eliminate", "norms"]

Array = NDArray[Any]
Array64 = NDArray[np.float64]
Units = NDArray[np.int64]

DAMPING = 1e-3
"""Added to the diagonal of a covariance, as a share of its mean: dead channels make it singular."""


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


class _State:
    """One consumer during the elimination; columns are sorted so that a unit's columns stand together."""

    def __init__(self, reader: Reader, count: int) -> None:
        self.columns = [np.flatnonzero(reader.units == unit) for unit in range(count)]
        self.count = count
        H = np.array(reader.H, np.float64)
        self.own = [H[np.ix_(c, c)] for c in self.columns]
        diagonal = np.einsum("ii->i", H)
        damp = DAMPING * float(diagonal.mean())
        diagonal += damp if damp > 0 else 1.0
        self.W = np.array(reader.weight, np.float64)
        variance = float(np.einsum("od,de,oe->", self.W, H, self.W, optimize=True))
        self.scale = 1.0 / variance if variance > 0 else 0.0
        self.inverse = np.linalg.inv(H)
        sizes = {len(c) for c in self.columns if len(c)}
        self.even = len(sizes) == 1

    def costs(self, alive: Array) -> Array64:
        """Return the cost `[count]` of removing each unit alone; 0 for units this consumer does not read."""
        found = np.zeros(self.count)
        live = [unit for unit in range(self.count) if alive[unit] and len(self.columns[unit])]
        if not live:
            return found
        if self.even:
            columns = np.stack([self.columns[unit] for unit in live])
            blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
            W = self.W[:, columns].transpose(1, 0, 2)
            refitted = np.einsum("uok,ukj,uoj->u", W, np.linalg.inv(blocks), W, optimize=True)
            own = np.stack([self.own[unit] for unit in live])
            found[live] = np.minimum(refitted, np.einsum("uok,ukj,uoj->u", W, own, W, optimize=True))
        else:
            for unit in live:
                c = self.columns[unit]
                W_c = self.W[:, c]
                block = np.linalg.inv(self.inverse[np.ix_(c, c)])
                found[unit] = min(np.einsum("ok,kj,oj->", W_c, way, W_c) for way in (block, self.own[unit]))
        return found * self.scale

    def remove(self, unit: int) -> None:
        """Remove a unit's columns and update the weights and the inverse of what stays."""
        c = self.columns[unit]
        if not len(c):
            return
        rows = self.inverse[c]
        solved = np.linalg.solve(rows[:, c], rows)
        self.W -= self.W[:, c] @ solved
        self.inverse -= rows.T @ solved
        # What was removed must not come back through rounding: exact zeros, and a unit diagonal to stay invertible.
        self.W[:, c] = 0.0
        self.inverse[c] = 0.0
        self.inverse[:, c] = 0.0
        self.inverse[c, c] = 1.0
        self.columns[unit] = np.zeros(0, np.int64)
