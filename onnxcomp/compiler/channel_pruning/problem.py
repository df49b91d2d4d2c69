"""What a choice of channels starts from: a model, its open channel groups, and in which order their units can be spared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.blocks import Block, drop_block
from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups, channel_groups
from onnxcomp.analysis.cutcost import CutCost, Keep
from onnxcomp.compiler.channel_pruning.criteria import SCORED, score_groups
from onnxcomp.compiler.channel_pruning.ladder import Ladder, Limits
from onnxcomp.compiler.channel_pruning.ranking import (
    blank_ladders,
    obs_waves,
    ranked_ladders,
    statistics_waves,
)
from onnxcomp.compiler.cost.budget import Counted
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.sites import biases_to_come
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Mask, Shapes
from onnxcomp.numerics.moments import Moments

__all__ = ["Drop", "Plan", "Price", "Scene", "count_price", "open_scene"]

Depths = Mapping[str, Sequence[int]]
Price = Callable[[Keep], float]
"""What a model costs with only the given units kept."""


@dataclass(frozen=True)
class Drop:
    """A residual block that goes whole, the mean of its branch that stays behind, and that mean's axis of channels."""

    block: Block
    mean: NDArray[Any]
    axis: int


@dataclass(frozen=True)
class Plan:
    """Which units stay, by group, and which residual blocks go whole; whether the budget is met.

    `keep` never empties a group: those inside a block that goes are not in it.

    `estimate` is the damage foretold, as a distance of outputs (see `divergence`); None where nothing was measured.
    `measured` is the real price of the cut model as a share of the original's, where prices are estimates.
    """

    keep: dict[str, Mask]
    reached: bool
    estimate: float | None = None
    drops: tuple[Drop, ...] = ()
    measured: float | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing goes."""
        return not self.keep and not self.drops

    def priced(self, groups: ChannelGroups) -> dict[str, Mask]:
        """Return the masks whose price is that of the plan: a block that goes counts as one without channels."""
        inside = {name: groups[name].units for drop in self.drops for name in drop.block.groups}
        return {**self.keep, **{name: np.zeros(units, bool) for name, units in inside.items()}}

    def cut(self, model: Model, groups: ChannelGroups) -> None:
        """Edit `model`, the one that `groups` were found in or a clone of it, as planned."""
        groups.take(model, self.keep)
        for drop in self.drops:
            stays = groups.kept_along(drop.block.branch, drop.axis, self.keep)
            # The mean may be broadcast along its axis, where the branch has one channel there.
            mean = drop.mean.compress(stays, drop.axis) if drop.mean.shape[drop.axis] > 1 else drop.mean
            drop_block(model, drop.block, mean)


@dataclass(frozen=True)
class Scene:
    """A model with its channel groups as one round of choosing sees it; `open` are the groups that may lose units."""

    model: Model
    groups: ChannelGroups
    open: tuple[ChannelGroup, ...]
    shapes: Shapes
    limits: Limits
    criterion: str
    context: Context
    log: PassLog

    @property
    def sizes(self) -> dict[str, int]:
        """Units of every open group by name."""
        return {group.name: group.units for group in self.open}

    def blank(self) -> dict[str, list[Ladder]]:
        """Return the ladders of every open group in no particular order: how many units of each tier can go."""
        return {group.name: blank_ladders(group) for group in self.open}

    def ordered(self, depths: Depths) -> list[Ladder]:
        """Return the ladders in the criterion's order; `depths` says how many units of each tier are to be ordered."""
        if self.criterion == "obs":
            waves = obs_waves(self.model, self.open, depths, self.context, self.shapes)
            return [ladder for ladders, _ in waves for ladder in ladders]
        return self._ranked(self.open, depths)

    def ordered_waves(self, depths: Depths) -> Iterator[tuple[list[Ladder], dict[str, Moments]]]:
        """Yield the ladders a portion at a time, with the input statistics of their readers by node name."""
        if self.criterion == "obs":
            yield from obs_waves(self.model, self.open, depths, self.context, self.shapes)
            return
        made: dict[str, list[Ladder]] = {}
        for ladder in self._ranked(self.open, depths):
            made.setdefault(ladder.group, []).append(ladder)
        for wave, moments, _ in statistics_waves(self.model, self.open, depths, self.context, self.shapes):
            yield [ladder for group in wave for ladder in made[group.name]], moments

    def _ranked(self, groups: Sequence[ChannelGroup], depths: Depths) -> list[Ladder]:
        scored = None
        if self.criterion in SCORED:
            cut = [group for group in groups if any(depths[group.name])]
            scored = score_groups(self.model, self.groups, cut, self.criterion, self.context, self.shapes)
            for note in scored.notes():
                self.log.note(note)
        seed = self.context.seed
        return [
            ladder
            for group in groups
            for ladder in ranked_ladders(
                self.model, group, list(depths[group.name]), self.criterion, seed, scored
            )
        ]


def open_scene(
    model: Model,
    excluded: Mapping[str, str],
    limits: Limits,
    criterion: str,
    context: Context,
    log: PassLog,
    *,
    quiet: bool = False,
) -> Scene:
    """Return the scene of `model`; what cannot go is recorded in `log` as skipped, unless `quiet`."""
    shapes = context.shapes(model)
    groups = channel_groups(model, shapes, excluded=excluded)
    found: list[ChannelGroup] = []
    skips: list[tuple[str, str]] = []
    for group in groups:
        if group.blocked:
            skips.append((group.name, f"{group.units} channels stay: {group.blocked}"))
        elif group.units == 1:
            skips.append((group.name, "it has one channel only"))
        else:
            found.append(group)
            for reason in sorted({r for r in group.reasons if r}):
                count = sum(r == reason for r in group.reasons)
                skips.append((group.name, f"{count} of {group.units} channels stay: {reason}"))
    for where, reason in skips if not quiet else ():
        log.skip(where, reason)
    return Scene(model, groups, tuple(found), shapes, limits, criterion, context, log)


def count_price(scene: Scene, what: Counted, *, refitted: bool) -> Price:
    """Return the exact count of `what` as a price; `refitted` counts the biases that a refit will add."""
    biases = biases_to_come(scene.model) if refitted else []
    cutcost = CutCost(scene.model, scene.groups, scene.shapes, biases)
    place = 1 if what == "macs" else 0
    # Where nothing is cut nothing is refitted.
    untouched = CutCost(scene.model, scene.groups, scene.shapes).count({})[place]
    return lambda keep: cutcost.count(keep)[place] if keep else untouched
