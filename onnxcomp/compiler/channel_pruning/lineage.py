"""Which units of the first network are left after several cuts, each of which numbered the units anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcomp.analysis.channels import ChannelGroups, Member
from onnxcomp.compiler.repair.sites import kept_positions
from onnxcomp.numerics.arrays import Mask

__all__ = ["Lineage"]


class Lineage:
    """The units of `groups` that are still there; `keep` holds a mask for every group that has lost any."""

    def __init__(self, groups: ChannelGroups, keep: Mapping[str, Mask] | None = None) -> None:
        self.groups = groups
        self.keep: dict[str, Mask] = dict(keep or {})
        self._where: dict[tuple[str, int, str, int], list[tuple[str, Member]]] = {}
        for group in groups:
            for member in group.members:
                key = (member.node, member.axis, member.role, group.view)
                self._where.setdefault(key, []).append((group.name, member))

    def record(self, groups: ChannelGroups, keep: Mapping[str, Mask]) -> None:
        """Record a cut that kept `keep` of `groups`, which are those of the network as the last cut left it.

        Units are recognised by the rows of the weights that produce them, and by the view by which they went: a position
        of every head has rows in each head, and no head is lost with it. A cut can untie channels (filters in
        groups of one need no partners any more): a unit of the first network goes when all that is left of it goes.
        """
        stays = kept_positions(self.groups, self.keep)
        gone: dict[str, set[int]] = {}
        left: dict[str, set[int]] = {}
        for name, mask in keep.items():
            for member in groups[name].members:
                if member.role != "produces":
                    continue
                for first, original in self._where.get(
                    (member.node, member.axis, member.role, groups[name].view), ()
                ):
                    rows = stays.get((original.name, original.axis), np.arange(len(original.units)))
                    lost = (member.units >= 0) & ~mask[member.units]
                    units = original.units[rows]
                    gone.setdefault(first, set()).update(units[lost & (units >= 0)].tolist())
                    left.setdefault(first, set()).update(units[~lost].tolist())
        for name, lost_units in gone.items():
            if whole := sorted(lost_units - left[name]):
                old = self.keep.get(name, np.ones(self.groups[name].units, bool)).copy()
                old[whole] = False
                self.keep[name] = old
