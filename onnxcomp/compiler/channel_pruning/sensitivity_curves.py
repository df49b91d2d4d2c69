"""Measured curves: what cutting one group of channels alone, to each of a few levels, does to the network's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.compiler.channel_pruning.ladder import Ladder, Limits
from onnxcomp.compiler.evaluation.divergence import RUINED, Reference
from onnxcomp.compiler.evaluation.trials import BATCH, JUDGES, Judging, Trial, first_change, run_trials
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.repair.refit import refit_readers
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array64, Mask
from onnxcomp.numerics.moments import Moments

__all__ = ["BATCH", "JUDGES", "Curve", "CurveSettings", "CutAlone", "measure_curves", "nearest_counts"]


LEVELS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares removed at which a curve is measured; between them it is interpolated."""


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


@dataclass(frozen=True)
class CurveSettings:
    """How curves are measured: within which limits, on how many samples, and at which shares removed."""

    limits: Limits
    judging: Judging = field(default_factory=Judging)
    levels: tuple[float, ...] = LEVELS


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
    settings: CurveSettings,
) -> tuple[list[Curve], Reference]:
    """Return a curve for every ladder, and the outputs they were judged by.

    Each candidate is `model` with the removed units zeroed where they are consumed and their readers refitted once from
    `moments` (by reader's name; readers without any are only zeroed). Only the nodes from the first reader on run again.
    `reference` are the original's outputs for the same samples; None where `model` is the original. Besides the
    levels of `settings`, the most that can go is measured.
    """
    steps = [
        (index, count)
        for index, x in enumerate(ladders)
        for count in measured_counts(x, settings.limits, settings.levels)
    ]
    alone = [CutAlone(model, groups, ladder, moments) for ladder in ladders]
    trials = [alone[index].trial(count) for index, count in steps]
    verdicts, reference = run_trials(model, trials, reference, context, "measuring curves", settings.judging)
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
        refit_readers(self.model, candidate, group, keep[group.name], self.moments)
        return candidate
