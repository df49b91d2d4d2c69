"""Techniques whose effect can be measured place by place: each yields candidates, a model with one place compressed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxcomp.analysis.cutcost import CutCost
from onnxcomp.compiler.channel_pruning.criteria import SCORED
from onnxcomp.compiler.channel_pruning.ladder import Limits
from onnxcomp.compiler.channel_pruning.problem import open_scene
from onnxcomp.compiler.channel_pruning.ranking import unmeasured
from onnxcomp.compiler.channel_pruning.sensitivity_curves import CutAlone, nearest_counts
from onnxcomp.compiler.evaluation.technique import Candidate, Technique
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.errors import UsageError, hint
from onnxcomp.ir.model import Model

__all__ = ["CRITERIA", "PruneChannels"]

CRITERIA = ("obs", "l1", "l2", *SCORED, "random")
"""What can decide which channels of a group go first; those of prune-filters."""


@dataclass(frozen=True)
class PruneChannels(Technique):
    """Channels removed from one group, those that `criterion` names first, and the group's readers refitted once.

    `levels` are shares removed; each group loses the nearest number of channels that it can.
    """

    name: ClassVar[str] = "prune-filters"

    levels: tuple[float, ...] = (0.25, 0.5, 0.75)
    criterion: str = "obs"

    def __post_init__(self) -> None:
        if not self.levels:
            raise UsageError("--levels is empty; give shares removed, such as 0.25,0.5,0.75")
        for level in self.levels:
            if not 0 < level < 1:
                raise UsageError(f"--levels: {level:g} is no share removed; give numbers above 0 and below 1")
        if self.criterion not in CRITERIA:
            raise UsageError(f"unknown criterion '{self.criterion}'{hint(self.criterion, CRITERIA)}")

    def candidates(self, model: Model, context: Context, log: PassLog) -> Iterator[Sequence[Candidate]]:
        """Yield candidates group by group and level by level, in the order in which groups are ranked."""
        excluded = context.left_alone(model)
        scene = open_scene(model, excluded, Limits(), self.criterion, context, log)
        cost = CutCost(model, scene.groups, scene.shapes)
        parameters, macs = cost.count({})
        blank = scene.blank()
        for group in scene.open:
            if self.criterion == "obs" and (reason := unmeasured(model, group)):
                log.note(f"{group.name}: {reason}; norms of filters chose its channels")
        depths = {name: [len(ladder.order) for ladder in ladders] for name, ladders in blank.items()}
        for ladders, moments in scene.ordered_waves(depths):
            portion, seen = [], Counter[str]()
            for ladder in ladders:
                seen[ladder.group] += 1
                tier = seen[ladder.group] if len(blank[ladder.group]) > 1 else None
                alone = CutAlone(model, scene.groups, ladder, moments)
                for count in nearest_counts(ladder, scene.limits, self.levels):
                    left = cost.count(alone.keep(count))
                    portion.append(
                        Candidate(
                            ladder.group,
                            tier,
                            count,
                            ladder.units,
                            macs - left[1],
                            parameters - left[0],
                            alone.trial(count),
                        )
                    )
            yield portion
