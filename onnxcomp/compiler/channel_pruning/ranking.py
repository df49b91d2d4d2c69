"""In which order the channels of a group can be spared, by criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroup
from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.channel_pruning.criteria import Scored, producing_weights
from onnxcomp.compiler.channel_pruning.ladder import Ladder, tiers
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.repair.refit import WIDEST, too_wide
from onnxcomp.compiler.repair.walk import collect_moments
from onnxcomp.ir.model import Model
from onnxcomp.numerics.importance import Reader, eliminate, norms
from onnxcomp.numerics.moments import Moments

__all__ = ["blank_ladders", "obs_ladders", "obs_waves", "ranked_ladders", "statistics_waves", "unmeasured"]

Units = NDArray[np.int64]

MOMENT_BYTES = 512 * 2**20
"""Statistics held at once; consumers beyond that are served by another run over the samples."""


def blank_ladders(group: ChannelGroup) -> list[Ladder]:
    """Return a ladder per tier of `group` in no particular order, for planning how many units go."""
    ladders = []
    for units in tiers(group):
        free = [int(unit) for unit in units if group.free[unit]]
        ladders.append(
            Ladder(group.name, len(units), tuple(free[: len(free) - _kept_for_span(group, units, free)]))
        )
    return ladders


def _kept_for_span(group: ChannelGroup, units: Units, free: Sequence[int]) -> int:
    """Return 1 where removing all free units of a tier would empty a span, else 0."""
    gone = np.zeros(group.units, bool)
    gone[list(free)] = True
    return int(any(gone[span].all() for span in group.spans) and len(free) > 0)


def ranked_ladders(
    model: Model,
    group: ChannelGroup,
    depths: Sequence[int],
    criterion: str,
    seed: int,
    scored: Scored | None = None,
) -> list[Ladder]:
    """Return a ladder per tier of `group`, units of the least score first, `depths[i]` units deep.

    Scores are the norms of the filters (`l1`, `l2`), drawn at `random`, or for every other criterion those that
    `score_groups` found.

    Raises:
        ValueError: for another criterion without its scores.
    """
    if not any(depths):
        return [Ladder(group.name, len(units), ()) for units in tiers(group)]
    if criterion == "random":
        scores = np.random.default_rng([seed, *group.name.encode()]).random(group.units)
    elif criterion in ("l1", "l2"):
        scores = norms(producing_weights(model, group), group.units, 1 if criterion == "l1" else 2)
    elif scored is not None and scored.criterion == criterion:
        scores = scored.scores[group.name]
    else:
        raise ValueError(f"{criterion} ranks by the scores of score_groups")
    ladders = []
    for units, depth in zip(tiers(group), depths, strict=True):
        free = sorted((int(u) for u in units if group.free[u]), key=lambda u: (scores[u], u))
        chosen = free[:depth]
        ladders.append(Ladder(group.name, len(units), tuple(chosen), tuple(float(scores[u]) for u in chosen)))
    return ladders


def obs_ladders(
    model: Model,
    groups: Sequence[ChannelGroup],
    depths: Mapping[str, Sequence[int]],
    context: Context,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Ladder]:
    """Return ladders by structured elimination on the consumers' covariance, group after group, tier after tier.

    `depths[name]` says how many units of each tier of a group are to be eliminated.
    """
    return [x for ladders, _ in obs_waves(model, groups, depths, context, shapes) for x in ladders]


def obs_waves(
    model: Model,
    groups: Sequence[ChannelGroup],
    depths: Mapping[str, Sequence[int]],
    context: Context,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[list[Ladder], dict[str, Moments]]]:
    """Yield the ladders of `obs_ladders` with the statistics they come from, a portion of the groups at a time."""
    done = 0
    for wave, moments, wide in statistics_waves(model, groups, depths, context, shapes):
        made: list[Ladder] = []
        for group in wave:
            if unmeasured(model, group):
                made.extend(ranked_ladders(model, group, depths[group.name], "l2", context.seed))
                continue
            readers = [node for node in _consumers(model, group) if node.node.name in moments]
            made.extend(_eliminate(group, readers, moments, wide, depths))
            done += 1
            context.progress("selecting channels", done, sum(any(depths[g.name]) for g in groups))
        yield made, moments


def statistics_waves(
    model: Model,
    groups: Sequence[ChannelGroup],
    depths: Mapping[str, Sequence[int]],
    context: Context,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[list[ChannelGroup], dict[str, Moments], dict[str, int]]]:
    """Yield portions of the groups that are to lose units, with the input statistics of their readers by node name.

    The last mapping names the readers too wide for statistics of all columns: theirs are of that many channels.
    """
    for wave in _waves(model, [g for g in groups if any(depths[g.name])]):
        readers = {node.node.name: node for group in wave for node in _consumers(model, group)}
        wide = {name: n for name, node in readers.items() if (n := _channels_of(node, wave)) is not None}
        readers = {name: node for name, node in readers.items() if name in wide or not too_wide(node)}
        nodes = list(readers.values())
        moments = (
            collect_moments(model, nodes, context, shapes, "statistics", channelwise=wide) if nodes else {}
        )
        yield wave, moments, wide


def _consumers(model: Model, group: ChannelGroup) -> list[LinearNode]:
    nodes = {node.name: node for node in model.graph.nodes}
    found = (linear_node(nodes[name]) for name in group.consumers)
    return [node for node in found if node is not None]


def _waves(model: Model, groups: Sequence[ChannelGroup]) -> list[list[ChannelGroup]]:
    """Return the groups in portions whose statistics fit into memory together."""
    waves: list[list[ChannelGroup]] = [[]]
    held = 0
    for group in groups:
        need = sum(min(n.matrix().shape[2], WIDEST) ** 2 * 8 * n.group for n in _consumers(model, group))
        if waves[-1] and held + need > MOMENT_BYTES:
            waves.append([])
            held = 0
        waves[-1].append(group)
        held += need
    return [wave for wave in waves if wave]


def unmeasured(model: Model, group: ChannelGroup) -> str | None:
    """Return why no consumer of `group` has statistics, so that norms of filters must decide, or None where one has."""
    consumers = _consumers(model, group)
    if not consumers:
        return "no convolution and no product with a weight reads it"
    if all(too_wide(node) and _channels_of(node, [group]) is None for node in consumers):
        return "its readers are too wide for statistics"
    return None


def _channels_of(node: LinearNode, groups: Sequence[ChannelGroup]) -> int | None:
    """Return by how many channels a node too wide for its own covariance is judged, or None where it is not too wide.

    Possible where every channel has equally many neighbouring columns: a convolution, or a Gemm behind a Flatten.
    """
    if not too_wide(node):
        return None
    if node.layout == "conv":
        return int(node.weight_array().shape[1]) * node.group
    for group in groups:
        for member in group.members:
            if member.node == node.node.name and member.role == "consumes" and node.layout == "gemm":
                each = len(member.units) // group.units
                if np.array_equal(member.units, np.repeat(member.units[::each], each)):
                    return group.units
    return None


def _eliminate(
    group: ChannelGroup,
    consumers: Sequence[LinearNode],
    moments: Mapping[str, Moments],
    wide: Mapping[str, int],
    depths: Mapping[str, Sequence[int]],
) -> list[Ladder]:
    sets = tiers(group)
    depth = depths[group.name]
    tier_of = np.empty(group.units, np.int64)
    for number, units in enumerate(sets):
        tier_of[units] = number

    def allowed(alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        removed = np.bincount(tier_of[~alive], minlength=len(sets))
        may = group.free & (removed < np.asarray(depth))[tier_of]
        for span in group.spans:
            if alive[span].sum() == 1:
                may[span] = False
        return may

    readers = [
        r
        for node in consumers
        for r in _readers(group, node, moments[node.node.name], node.node.name in wide)
    ]
    order, costs = eliminate(readers, group.units, allowed)
    ladders = []
    for number, units in enumerate(sets):
        steps = [(u, c) for u, c in zip(order, costs, strict=True) if tier_of[u] == number]
        ladders.append(Ladder(group.name, len(units), tuple(u for u, _ in steps), tuple(c for _, c in steps)))
    return ladders


def _readers(group: ChannelGroup, node: LinearNode, moments: Moments, channelwise: bool) -> list[Reader]:
    member = next(m for m in group.members if m.node == node.node.name and m.role == "consumes")
    matrix, H = node.matrix(), moments.covariance()
    units, taps = member.units, matrix.shape[2] // len(member.units)
    if channelwise:
        if node.layout == "gemm":
            taps = len(units) // group.units
            units = units[::taps]
        blocks = matrix.reshape(len(matrix), matrix.shape[1], -1, taps)
        matrix = blocks.transpose(0, 1, 3, 2).reshape(len(matrix), matrix.shape[1] * taps, -1)
        taps = 1
    return [Reader(W, cov, np.repeat(units, taps)) for W, cov in zip(matrix, H, strict=True)]
