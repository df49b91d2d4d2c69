"""Measured curves: what cutting one group of channels alone, to each of a few levels, does to the network's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups
from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.budget import Ladder, Limits
from onnxcomp.compiler.divergence import Reference
from onnxcomp.compiler.gathering import NEIGHBOURS
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.repair import RIDGE
from onnxcomp.compiler.trials import BATCH, JUDGES, Judging, Trial, first_change, run_trials
from onnxcomp.ir.model import Model
from onnxcomp.numerics.moments import Moments, ridge

__all__ = ["BATCH", "JUDGES", "Curve", "CutAlone", "measure_curves", "mend_readers", "nearest_counts"]

Array = NDArray[Any]
Array64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEVELS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares removed at which a curve is measured; between them it is interpolated."""


ENOUGH = 8
"""So many independent samples per input are enough for the least ridge."""

RUINED = 1e9
"""Damage of a cut after which outputs are not finite (half precision overflows early): beyond that of any other."""


@dataclass(frozen=True)
class Curve:
    """The damage of removing the first units of `ladder`, measured at `counts` (ascending, from 0).

    `damage` is the output's distance to the original's (see `divergence`) less that of the model before the cut.
    """

    ladder: Ladder
    counts: tuple[int, ...]
    damage: tuple[float, ...]

    def at(self, removed: Sequence[int]) -> Array64:
        """Return the damage at each number of `removed` units: monotone interpolation (Fritsch and Carlson 1980)."""
        if len(self.counts) == 1:
            return np.zeros(len(removed))
        # Takes longer to import than most models to read.
        from scipy.interpolate import PchipInterpolator

        finite = np.nan_to_num(self.damage, nan=RUINED, posinf=RUINED)
        rising = np.maximum.accumulate(np.maximum(finite, 0.0))
        spline = PchipInterpolator(self.counts, rising, extrapolate=True)
        return np.maximum(np.asarray(spline(np.asarray(removed, np.float64)), np.float64), 0.0)


def measured_counts(ladder: Ladder, limits: Limits, levels: Sequence[float] = LEVELS) -> list[int]:
    """Return the numbers of removed units at which the curve of `ladder` is measured, ascending, without 0."""
    allowed = [count for count in ladder.counts(limits) if count]
    if not allowed:
        return []
    return sorted({*nearest_counts(ladder, limits, levels), allowed[-1]})


def nearest_counts(ladder: Ladder, limits: Limits, levels: Sequence[float]) -> list[int]:
    """Return the numbers of removed units nearest to the shares `levels`, ascending, without 0 and each once."""
    allowed = [count for count in ladder.counts(limits) if count]
    if not allowed:
        return []
    return sorted({min(allowed, key=lambda count: abs(count - share * ladder.units)) for share in levels})


def measure_curves(
    model: Model,
    groups: ChannelGroups,
    ladders: Sequence[Ladder],
    moments: Mapping[str, Moments],
    reference: Reference | None,
    context: Context,
    limits: Limits,
    judging: Judging | None = None,
    levels: Sequence[float] = LEVELS,
) -> tuple[list[Curve], Reference]:
    """Return a curve for every ladder, and the outputs they were judged by.

    Each candidate is `model` with the removed units zeroed where they are consumed and their readers refitted once from
    `moments` (by reader's name; readers without any are only zeroed). Only the nodes from the first reader on run again.
    `reference` are the original's outputs for the same samples; None where `model` is the original. `judging` says on how
    many; `levels` are the shares removed at which it is measured, and the most that can go is another.
    """
    steps = [
        (index, count) for index, x in enumerate(ladders) for count in measured_counts(x, limits, levels)
    ]
    alone = [CutAlone(model, groups, ladder, moments) for ladder in ladders]
    trials = [alone[index].trial(count) for index, count in steps]
    verdicts, reference = run_trials(
        model, trials, reference, context, "measuring curves", judging or Judging()
    )
    found: list[tuple[list[int], list[float]]] = [([0], [0.0]) for _ in ladders]
    for (index, count), verdict in zip(steps, verdicts, strict=True):
        found[index][0].append(count)
        found[index][1].append(verdict.damage)
    curves = [Curve(x, tuple(n), tuple(d)) for x, (n, d) in zip(ladders, found, strict=True)]
    return curves, reference


@dataclass(frozen=True)
class CutAlone:
    """Trials that cut the first units of `ladder` and nothing else; see `measure_curves`."""

    model: Model
    groups: ChannelGroups
    ladder: Ladder
    moments: Mapping[str, Moments]

    def keep(self, count: int) -> dict[str, Mask]:
        """Return which units stay without the first `count` of the ladder, by group name."""
        mask = np.ones(self.groups[self.ladder.group].units, bool)
        mask[list(self.ladder.order[:count])] = False
        return {self.ladder.group: mask}

    def trial(self, count: int) -> Trial:
        """Return the trial that removes the first `count` units."""
        return Trial(self._first, partial(self._build, count))

    @cached_property
    def _first(self) -> str | None:
        masked = self.model.clone()
        self.groups.mask(masked, self.keep(len(self.ladder.order)))
        return first_change(self.model, masked)

    def _build(self, count: int) -> Model:
        keep = self.keep(count)
        candidate = self.model.clone()
        self.groups.mask(candidate, keep)
        group = self.groups[self.ladder.group]
        mend_readers(self.model, candidate, group, keep[group.name], self.moments)
        return candidate


def mend_readers(
    model: Model, masked: Model, group: ChannelGroup, keep: Mask, moments: Mapping[str, Moments]
) -> None:
    """Refit the readers of `group` in `masked` from the statistics of the whole inputs, in place.

    With S the columns that stay, `W' = W H[:,S] (H[S,S] + lam)^-1`, zeros elsewhere, and `b' = b + (W - W') m`.
    """
    after = {node.name: node for node in masked.graph.nodes}
    for node in model.graph.nodes:
        if node.name not in group.consumers or node.name not in moments:
            continue
        was, now = linear_node(node), linear_node(after[node.name])
        columns = reader_columns(group, was) if was is not None else None
        if was is None or now is None or columns is None:
            continue
        stats = moments[node.name]
        if stats.sum_xx.shape[1] != was.matrix().shape[2]:
            continue
        stays = (columns < 0) | keep[columns]
        W = _solved(was, stats, stays)
        shift = np.einsum("god,gd->go", was.matrix() - W, stats.mean_x).reshape(-1)
        now.install(masked, W, was.bias() + shift if was.has_bias else None, "trial")


def _solved(node: LinearNode, stats: Moments, stays: Array) -> Array64:
    W, H = node.matrix(), stats.covariance()
    if not node.has_bias:
        H = H + stats.mean_x[:, :, None] * stats.mean_x[:, None, :]
    new = np.zeros_like(W)
    S = np.flatnonzero(stays)
    if len(S):
        strength = mending_strength(node, stats)
        new[:, :, S] = ridge(H[:, S[:, None], S], W @ H[:, :, S], W[:, :, S], strength)
    return new


def mending_strength(node: LinearNode, stats: Moments) -> float:
    """Return the ridge strength of a trial's refit, as a share of the mean variance of the inputs.

    As in the walk, with few independent samples for the inputs a refit must lean on the weights as they were, or it would
    learn the samples by heart.
    """
    independent = stats.count / (NEIGHBOURS if node.spatial else 1)
    share = node.matrix().shape[2] / max(1.0, independent)
    return RIDGE if share * ENOUGH < 1 else min(1.0, max(RIDGE, share))


def reader_columns(group: ChannelGroup, node: LinearNode) -> NDArray[np.int64] | None:
    """Return the unit of every column `[d]` of a reader's blocks, -1 for columns of other groups."""
    member = next((m for m in group.members if m.node == node.node.name and m.role == "consumes"), None)
    if member is None:
        return None
    return np.repeat(member.units, node.matrix().shape[2] // len(member.units))
