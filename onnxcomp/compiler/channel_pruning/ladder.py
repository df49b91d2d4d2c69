"""Which units go under a budget: the same share from every channel group, filled up to the budget's edge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroup
from onnxcomp.analysis.cutcost import Keep
from onnxcomp.numerics.arrays import Mask

__all__ = ["Ladder", "Limits", "uniform_keep"]

CLOSE = 0.002
"""A budget counts as filled when no more than this share of the whole is left of it: shares stay nearly equal."""

Cost = Callable[[Keep], float]


@dataclass(frozen=True)
class Limits:
    """What every group must keep: multiples of `align`, at least `min_channels`, at most the share `max_ratio` removed."""

    align: int = 1
    min_channels: int = 1
    max_ratio: float = 1.0


@dataclass(frozen=True)
class Ladder:
    """The order in which units of one group (or of one tier of a stream) can be spared.

    Attributes:
        group: the group's name.
        units: how many units the tier has.
        order: units in the order of removal; may end early where the rest must stay.
        costs: what each removal adds to the relative error of the group's readers.
    """

    group: str
    units: int
    order: tuple[int, ...]
    costs: tuple[float, ...] = field(default=())

    def counts(self, limits: Limits) -> list[int]:
        """Return the numbers of removed units that the limits allow, ascending from 0."""
        floor = max(limits.min_channels, int(np.ceil(self.units * (1 - limits.max_ratio) - 1e-9)), 1)
        return [
            removed
            for removed in range(len(self.order) + 1)
            if removed == 0 or (self.units - removed >= floor and (self.units - removed) % limits.align == 0)
        ]


def tiers(group: ChannelGroup) -> list[NDArray[np.int64]]:
    """Return the units of `group` by the set of axes they lie on.

    Where a stream grows (option-A shortcuts pad channels on), later stages have units that earlier ones lack; each tier
    gives its own share, or the narrow stages would be untouched.
    """
    signature = np.zeros((group.units, len(group.spans)), bool)
    for column, span in enumerate(group.spans):
        signature[span, column] = True
    found: dict[bytes, list[int]] = {}
    for unit in range(group.units):
        found.setdefault(signature[unit].tobytes(), []).append(unit)
    return [np.array(units, np.int64) for units in found.values()]


def keep_of(groups: Mapping[str, int], ladders: Sequence[Ladder], removed: Sequence[int]) -> dict[str, Mask]:
    """Return the masks of kept units when each ladder has lost its first `removed` units; `groups` are sizes by name."""
    keep: dict[str, Mask] = {}
    for ladder, count in zip(ladders, removed, strict=True):
        mask = keep.setdefault(ladder.group, np.ones(groups[ladder.group], bool))
        mask[list(ladder.order[:count])] = False
    return {name: mask for name, mask in keep.items() if not mask.all()}


def at_share(ladder: Ladder, share: float, limits: Limits) -> int:
    """Return how many units `ladder` loses at the removed `share`: rounded towards removing where alignment decides."""
    wanted = share * ladder.units
    allowed = ladder.counts(limits)
    enough = [count for count in allowed if count >= wanted - 1e-9]
    return enough[0] if enough else allowed[-1]


def uniform_keep(
    sizes: Mapping[str, int],
    tiers_inner: Sequence[Ladder],
    tiers_streams: Sequence[Ladder],
    cost: Cost,
    target: float,
    limits: Limits,
    *,
    fill: bool = True,
) -> tuple[dict[str, Mask], bool]:
    """Return the units to keep so that `cost` falls to `target` or just below, and whether it did.

    The inner ladders lose the smallest common share that fits; residual streams follow with a share of their own only
    where the inner ones alone do not suffice. What rounding then leaves of the budget is given back unit by unit, the
    dearest removal first; without `fill` nothing is given back, so that no filled plan removes more from any ladder.
    """
    inner, streams = list(tiers_inner), list(tiers_streams)
    ladders = inner + streams

    def counts(inner_share: float, stream_share: float) -> list[int]:
        return [at_share(x, inner_share, limits) for x in inner] + [
            at_share(x, stream_share, limits) for x in streams
        ]

    def fits(removed: Sequence[int]) -> bool:
        return cost(keep_of(sizes, ladders, removed)) <= target

    if not fits(counts(1.0, 1.0)):
        return keep_of(sizes, ladders, counts(1.0, 1.0)), False
    if fits(counts(1.0, 0.0)):
        share = _smallest(lambda s: fits(counts(s, 0.0)))
        removed = counts(share, 0.0)
    else:
        # Streams and inner channels share the burden from here on, so that neither is emptied.
        share = _smallest(lambda s: fits(counts(s, s)))
        removed = counts(share, share)
    if not fill:
        return keep_of(sizes, ladders, removed), True
    while True:
        spared = _give_back(ladders, removed, fits, limits)
        keep = keep_of(sizes, ladders, spared)
        if spared == removed or cost(keep) >= target - CLOSE * cost({}):
            return keep, True
        removed = spared


def _smallest(fits: Callable[[float], bool]) -> float:
    """Return the smallest share in [0, 1] that fits, to 1e-4, given that 1 fits."""
    low, high = 0.0, 1.0
    if fits(low):
        return low
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _give_back(
    ladders: Sequence[Ladder], removed: list[int], fits: Callable[[Sequence[int]], bool], limits: Limits
) -> list[int]:
    """Take back the dearest last removals while the budget still holds, at most one step from each ladder."""
    removed = list(removed)
    steps = []
    for index, ladder in enumerate(ladders):
        smaller = [count for count in ladder.counts(limits) if count < removed[index]]
        if smaller:
            gain = sum(ladder.costs[smaller[-1] : removed[index]]) if ladder.costs else 0.0
            steps.append((gain, index, smaller[-1]))
    for _, index, count in sorted(steps, key=lambda step: (-step[0], step[1])):
        trial = [*removed[:index], count, *removed[index + 1 :]]
        if fits(trial):
            removed = trial
    return removed
