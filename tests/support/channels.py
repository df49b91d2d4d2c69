"""Short words for tests about channel groups."""

from __future__ import annotations

from typing import Any

from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups, channel_groups, default_shapes
from onnxcomp.analysis.cost import model_cost
from onnxcomp.analysis.cutcost import CutCost
from onnxcomp.ir.parse import ModelLike, as_model
from onnxcomp.runtime.observe import observe_shapes
from onnxcomp.testing import Cut, assert_cut_equals_masked, check_cut, made_feeds, random_keep

IMAGE = "(float[N,3,8,8] x) => (float[N,4,8,8] y)"
CLASSES = "(float[N,3,8,8] x) => (float[N,5] y)"
OUTPUT = "it reaches the graph output 'y'"


def free(groups: ChannelGroups) -> dict[str, int]:
    """The sizes of the groups that may be cut."""
    return {group.name: group.units for group in groups if not group.blocked}


def axes(group: ChannelGroup) -> set[tuple[str, int]]:
    """The axes of stored tensors that a group cuts."""
    return {(member.name, member.axis) for member in group.members}


def units(group: ChannelGroup, name: str, axis: int) -> list[int]:
    """The unit of each position along an axis of a stored tensor."""
    found = {tuple(m.units.tolist()) for m in group.members if (m.name, m.axis) == (name, axis)}
    (only,) = found
    return list(only)


def hold(text: ModelLike, seeds: int = 3, **options: Any) -> Cut:
    """Cut a model at random, several times, against its masked self, and foretell each time exactly what it then costs.

    Options are those of `check_cut`. Returns the cut of the first seed.
    """
    model = as_model(text)
    shapes = default_shapes(model)
    cuts = []
    for seed in range(seeds):
        cut = check_cut(model, seed, **options)
        after = model_cost(cut.pruned, default_shapes(cut.pruned))
        assert CutCost(model, cut.groups, shapes).count(cut.keep) == (after.parameters, after.macs)
        cuts.append(cut)
    return cuts[0]


def hold_as_run(text: ModelLike, seeds: int = 3) -> Cut:
    """Like `hold`, with the shapes that a run shows where shape inference does not know them."""
    model = as_model(text)
    feeds = made_feeds(model, "normal", batch=1)
    shapes = observe_shapes(model, feeds, threads=1)
    groups = channel_groups(model, shapes)
    cuts = []
    for seed in range(seeds):
        keep = random_keep(groups, seed)
        pruned, masked = model.clone(), model.clone()
        groups.take(pruned, keep)
        groups.mask(masked, keep)
        assert_cut_equals_masked(model, pruned, masked)
        after = model_cost(pruned, observe_shapes(pruned, feeds, threads=1))
        assert CutCost(model, groups, shapes).count(keep) == (after.parameters, after.macs)
        cuts.append(Cut(groups, keep, pruned, masked))
    return cuts[0]


def stays(text: ModelLike) -> dict[str, str]:
    """The reasons of the groups of which nothing may go."""
    return {group.name: group.blocked for group in channel_groups(as_model(text)) if group.blocked}


def stored(cut: Cut, name: str) -> tuple[int, ...]:
    """The shape of a stored tensor after a cut."""
    return tuple(cut.pruned.graph.constants[name].values.shape)


def left(cut: Cut, name: str) -> int:
    """How many units of a group stayed."""
    return int(cut.keep[name].sum())
