"""Measured curves: what cutting one group of channels alone, to each of a few levels, does to the network's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.interpolate
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups
from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.budget import Ladder, Limits
from onnxcomp.compiler.divergence import Reference
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.repair import RIDGE
from onnxcomp.ir.model import Model
from onnxcomp.numerics.moments import Moments, ridge
from onnxcomp.runtime.capture import Frontier, Spool

__all__ = ["Curve", "measure_curves", "mend_readers"]

Array = NDArray[Any]
Array64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEVELS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares removed at which a curve is measured; between them it is interpolated."""

JUDGES = 128
"""Samples on which curves are measured: differences of damage are far larger than what more samples would tell."""

BATCH = 32


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
        rising = np.maximum.accumulate(np.maximum(self.damage, 0.0))
        spline = scipy.interpolate.PchipInterpolator(self.counts, rising, extrapolate=True)
        return np.maximum(np.asarray(spline(np.asarray(removed, np.float64)), np.float64), 0.0)


def measured_counts(ladder: Ladder, limits: Limits) -> list[int]:
    """Return the numbers of removed units at which the curve of `ladder` is measured, ascending, without 0."""
    allowed = [count for count in ladder.counts(limits) if count]
    if not allowed:
        return []
    nearest = {min(allowed, key=lambda count: abs(count - share * ladder.units)) for share in LEVELS}
    return sorted(nearest | {allowed[-1]})


def measure_curves(
    model: Model,
    groups: ChannelGroups,
    ladders: Sequence[Ladder],
    moments: Mapping[str, Moments],
    reference: Reference | None,
    context: Context,
    limits: Limits,
) -> tuple[list[Curve], Reference]:
    """Return a curve for every ladder, and the outputs they were judged by.

    Each candidate is `model` with the removed units zeroed where they are consumed and their readers refitted once from
    `moments` (by reader's name; readers without any are only zeroed). Only the nodes behind the first reader run again.
    `reference` are the original's outputs for the same samples; None where `model` is the original.
    """
    samples = context.calibration
    assert samples is not None, "the driver's preflight supplies calibration samples"
    order = {node.name: place for place, node in enumerate(model.graph.nodes)}
    outputs = [v.name for v in model.graph.outputs]
    first_reader = {
        ladder.group: min(groups[ladder.group].consumers, key=order.__getitem__, default=None)
        for ladder in ladders
    }
    nodes = {node.name: node for node in model.graph.nodes}
    found: dict[int, Curve] = {}
    with Spool() as spool:
        count = 0
        for feed in samples.take(JUDGES).batches(BATCH):
            for name, array in feed.items():
                spool.write(name, array)
            count += 1
        frontier = Frontier(
            model, spool, count, threads=context.threads, custom_op_libs=context.custom_op_libs
        )
        base = list(frontier.preview(model, outputs))
        if reference is None:
            reference = Reference(base)
        floor = reference.distance(base)
        steps = sorted(
            (order.get(first_reader[ladder.group] or "", len(order)), index)
            for index, ladder in enumerate(ladders)
        )
        done, total = 0, sum(len(measured_counts(ladder, limits)) for ladder in ladders)
        for _, index in steps:
            ladder = ladders[index]
            reader = first_reader[ladder.group]
            counts, damage = [0], [0.0]
            if reader is not None:
                for _ in frontier.advance(frontier.live_before(nodes[reader])):
                    pass
            for level in measured_counts(ladder, limits):
                candidate = _candidate(model, groups, ladder, level, moments)
                made = frontier.preview(candidate, outputs)
                counts.append(level)
                damage.append(reference.distance(made) - floor)
                done += 1
                context.progress("measuring curves", done, total)
            found[index] = Curve(ladder, tuple(counts), tuple(damage))
    return [found[index] for index in range(len(ladders))], reference


def _candidate(
    model: Model, groups: ChannelGroups, ladder: Ladder, level: int, moments: Mapping[str, Moments]
) -> Model:
    group = groups[ladder.group]
    keep = np.ones(group.units, bool)
    keep[list(ladder.order[:level])] = False
    candidate = model.clone()
    groups.mask(candidate, {group.name: keep})
    mend_readers(model, candidate, group, keep, moments)
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
        new[:, :, S] = ridge(H[:, S[:, None], S], W @ H[:, :, S], W[:, :, S], RIDGE)
    return new


def reader_columns(group: ChannelGroup, node: LinearNode) -> NDArray[np.int64] | None:
    """Return the unit of every column `[d]` of a reader's blocks, -1 for columns of other groups."""
    member = next((m for m in group.members if m.node == node.node.name and m.role == "consumes"), None)
    if member is None:
        return None
    return np.repeat(member.units, node.matrix().shape[2] // len(member.units))
