"""Short words for tests about channel groups."""

from __future__ import annotations

from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups

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
