"""Which way measured shares should lean, found out by carrying plans out quickly and measuring the real thing.

A curve tells what a cut does before anything behind it has been repaired. The repair walk mends early damage in every
layer that follows, and pairs of convolutions better than residual streams, so that the sum of the curves is right about
neighbours and wrong about ends: two numbers, fitted to the network at hand, put that right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.compiler.channel_pruning.problem import Plan
from onnxcomp.compiler.passbase import PassLog

__all__ = ["AS_MEASURED", "Lean", "find_lean"]

LATE = (2.0, 4.0)
"""Steps of the search towards sparing late layers: factors of 7 and 55 between the first and the last."""

STREAMS = (4.0, 16.0)
"""Steps of the search towards sparing residual streams."""

GROUP = 2.0
"""Step of the search at single groups, up and down."""


@dataclass(frozen=True)
class Lean:
    """How curves are weighed: damage at the depth `p` in [0, 1] counts `exp(late * p)`-fold, in streams `streams`-fold.

    `groups` are further factors by the name of a channel group.
    """

    late: float = 0.0
    streams: float = 1.0
    groups: tuple[tuple[str, float], ...] = ()

    def weight(self, group: str, depth: float, *, stream: bool) -> float:
        """Return the factor for a cut of `group`, whose readers lie at `depth`."""
        return (
            math.exp(self.late * depth)
            * (self.streams if stream else 1.0)
            * dict(self.groups).get(group, 1.0)
        )

    def times(self, group: str, factor: float) -> Lean:
        """Return this lean with the damage of one group counting `factor` times as much."""
        factors = dict(self.groups)
        factors[group] = factors.get(group, 1.0) * factor
        return replace(self, groups=tuple(sorted(factors.items())))

    def __str__(self) -> str:
        parts = [f"late layers spared by {self.late:g}"] if self.late else []
        parts += [f"streams by {self.streams:g}"] if self.streams != 1 else []
        weighed = sum(factor != 1 for _, factor in self.groups)
        parts += [f"{weighed} {'group' if weighed == 1 else 'groups'} weighed"] if weighed else []
        return ", ".join(parts) or "as measured"


AS_MEASURED = Lean()
"""Curves count as they were measured."""


def find_lean(
    plan_for: Callable[[Lean], Plan],
    uniform: Plan | None,
    distance: Callable[[Plan], float],
    log: PassLog,
    groups: Sequence[str] = (),
    more: int = 0,
    *,
    brief: bool = False,
) -> Lean | None:
    """Return the lean whose plan comes nearest to the original after a quick repair; None where `uniform` does.

    `distance` carries a plan out and measures it. Steps are taken along one number, then along the other, for as long as
    the distance falls: at most six plans are carried out. Where plans are cheap, up to `more` are spent on single
    `groups`, one after the other; `brief` tries one step only, for networks of which a plan takes a minute.
    """
    tried: list[tuple[Plan, float]] = []

    def measured(plan: Plan) -> float:
        for earlier, found in tried:
            if _same(plan, earlier):
                return found
        tried.append((plan, distance(plan)))
        return tried[-1][1]

    best, least = AS_MEASURED, measured(plan_for(AS_MEASURED))
    told = [f"{best} {least:.3g}"]
    straight = least
    for late in LATE if not brief else LATE[-1:]:
        found = measured(plan_for(Lean(late)))
        if not found < least:
            break
        best, least = Lean(late), found
    for streams in STREAMS if not brief else ():
        aside = Lean(best.late, streams)
        found = measured(plan_for(aside))
        if not found < least:
            break
        best, least = aside, found
    most = len(tried) + more
    best, least = _group_by_group(plan_for, measured, best, least, groups, lambda: len(tried) < most)
    if least < straight:
        told.append(f"{best} {least:.3g}")
    chosen: Lean | None = best
    if uniform is not None and uniform.reached:
        found = measured(uniform)
        told.append(f"uniform {found:.3g}")
        if found < least:
            chosen = None
    if len(tried) == 1:
        return chosen
    log.note(
        f"shares by {len(tried)} quick repairs, distance of the outputs: {'; '.join(told)}; "
        f"taken: {'uniform' if chosen is None else chosen}"
    )
    return chosen


def _group_by_group(
    plan_for: Callable[[Lean], Plan],
    measured: Callable[[Plan], float],
    best: Lean,
    least: float,
    groups: Sequence[str],
    go_on: Callable[[], bool],
) -> tuple[Lean, float]:
    """Return the lean after steps at single groups, each kept where the distance falls, and that distance."""
    for name in groups:
        for factor in (GROUP, 1 / GROUP):
            if not go_on():
                return best, least
            trial = best.times(name, factor)
            found = measured(plan_for(trial))
            if found < least:
                best, least = trial, found
                break
    return best, least


def _same(first: Plan, second: Plan) -> bool:
    if first.keep.keys() != second.keep.keys() or len(first.drops) != len(second.drops):
        return False
    same = all(np.array_equal(mask, second.keep[name]) for name, mask in first.keep.items())
    return same and [d.block.name for d in first.drops] == [d.block.name for d in second.drops]
