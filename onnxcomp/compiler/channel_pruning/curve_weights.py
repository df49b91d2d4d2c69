"""Depth and residual weighting of the sensitivity curves, found by trial refits whose divergence is measured.

A curve says what a cut does before anything behind it has been refitted. The refitting walk makes up for early cuts in
every layer that follows, and for those inside pairs of convolutions better than for those of residual streams, so that the
sum of the curves is right about neighbours and wrong about ends: two numbers, fitted to the network at hand, put that right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.compiler.channel_pruning.problem import Plan
from onnxcomp.compiler.passbase import PassLog

__all__ = ["AS_MEASURED", "CurveWeights", "search_weights"]

DEPTH = (2.0, 4.0)
"""Steps of the search along the depth weighting: factors of 7 and 55 between the first layer and the last."""

RESIDUAL = (4.0, 16.0)
"""Steps of the search along the residual weighting."""

GROUP = 2.0
"""Step of the search at single groups, up and down."""


@dataclass(frozen=True)
class CurveWeights:
    """Weights of the curves: divergence at depth `p` in [0, 1] counts `exp(depth * p)`-fold, in residual streams `residual`-fold.

    `groups` are further factors by the name of a channel group.
    """

    depth: float = 0.0
    residual: float = 1.0
    groups: tuple[tuple[str, float], ...] = ()

    def weight(self, group: str, depth: float, *, residual: bool) -> float:
        """Return the factor for a cut of `group`, whose readers lie at `depth`."""
        return (
            math.exp(self.depth * depth)
            * (self.residual if residual else 1.0)
            * dict(self.groups).get(group, 1.0)
        )

    def times(self, group: str, factor: float) -> CurveWeights:
        """Return these weights with the divergence of one group counting `factor` times as much."""
        factors = dict(self.groups)
        factors[group] = factors.get(group, 1.0) * factor
        return replace(self, groups=tuple(sorted(factors.items())))

    def __str__(self) -> str:
        parts = [f"depth {self.depth:g}"] if self.depth else []
        parts += [f"residual {self.residual:g}"] if self.residual != 1 else []
        weighed = sum(factor != 1 for _, factor in self.groups)
        parts += [f"{weighed} {'group' if weighed == 1 else 'groups'}"] if weighed else []
        return ", ".join(parts) or "as measured"


AS_MEASURED = CurveWeights()
"""Curves count as they were measured."""


def search_weights(
    plan_for: Callable[[CurveWeights], Plan],
    uniform: Plan | None,
    distance: Callable[[Plan], float],
    log: PassLog,
    groups: Sequence[str] = (),
    more: int = 0,
    *,
    brief: bool = False,
) -> CurveWeights | None:
    """Return the weights whose plan diverges least from the original after a trial refit; None where `uniform` does.

    `distance` applies a plan, refits and measures. Steps are taken along one number, then along the other, for as long as
    the divergence falls: at most six plans are tried. Where plans are cheap, up to `more` are spent on single
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
    straight = least
    for depth in DEPTH if not brief else DEPTH[-1:]:
        found = measured(plan_for(CurveWeights(depth)))
        if not found < least:
            break
        best, least = CurveWeights(depth), found
    for residual in RESIDUAL if not brief else ():
        aside = CurveWeights(best.depth, residual)
        found = measured(plan_for(aside))
        if not found < least:
            break
        best, least = aside, found
    most = len(tried) + more
    best, least = _group_by_group(plan_for, measured, best, least, groups, lambda: len(tried) < most)
    chosen: CurveWeights | None = best
    shared: float | None = None
    if uniform is not None and uniform.reached:
        shared = measured(uniform)
        if shared < least:
            chosen = None
    if len(tried) > 1:
        words = [_reported("as measured", straight, chosen=chosen == AS_MEASURED)]
        if least < straight:
            words.append(_reported("with weighted curves", least, str(best), chosen=chosen is not None))
        if shared is not None:
            words.append(_reported("uniform", shared, chosen=chosen is None))
        log.note(f"allocation search: {len(tried)} trial refits; divergence {', '.join(words)}")
    return chosen


def _reported(what: str, divergence: float, details: str = "", *, chosen: bool) -> str:
    marks = [part for part in (details, "chosen" if chosen else "") if part]
    return f"{divergence:.3g} {what}" + (f" ({'; '.join(marks)})" if marks else "")


def _group_by_group(
    plan_for: Callable[[CurveWeights], Plan],
    measured: Callable[[Plan], float],
    best: CurveWeights,
    least: float,
    groups: Sequence[str],
    go_on: Callable[[], bool],
) -> tuple[CurveWeights, float]:
    """Return the weights after steps at single groups, each kept where the divergence falls, and that divergence."""
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
