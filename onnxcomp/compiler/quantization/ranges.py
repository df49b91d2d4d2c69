"""Ranges: from observed values, and the output sensitivity to them, to the scales they get."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.quantization.formats import Formats
from onnxcomp.compiler.quantization.placement import Placement
from onnxcomp.compiler.quantization.qdq import quantize_values
from onnxcomp.ir.model import Model
from onnxcomp.numerics.affine import Affine, Grid, range_affine
from onnxcomp.numerics.arrays import Array
from onnxcomp.numerics.observers import Histogram, Observer, ValueSensitivity, choose_range, search_range
from onnxcomp.runtime.session import SessionError

__all__ = [
    "MARGIN_DB",
    "TRIED",
    "Chosen",
    "HistogramRange",
    "LeastDisturbance",
    "Observed",
    "RangeObserver",
    "RangeRule",
    "choose_ranges",
    "range_rule",
    "tried_out",
]

RangeObserver: TypeAlias = Literal["output", "mse", "minmax", "percentile", "entropy", "moving-average"]
"""The words for a rule: an Observer, or `output` for the least disturbance of the outputs of the network."""

EXACT = 1e-2
"""Share of the error of random rounding below which the samples count as lying on the grid."""


@dataclass(frozen=True)
class Chosen:
    """Scales by value, and the share of the outputs' energy that storing each is expected to disturb, as far as known.

    `tied` is the number of streams of additions with one scale.
    """

    affines: Mapping[str, Affine]
    costs: Mapping[str, float] = field(default_factory=dict)
    tied: int = 0

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """What each value's scale reaches from and to."""
        return {name: affine.bounds() for name, affine in self.affines.items()}


@dataclass(frozen=True)
class Observed:
    """What was observed of the values to be stored.

    `seen` are histograms by value, `sensitivity` that of the outputs to each value where it is known, `inputs` some samples
    of the graph inputs by name.
    """

    seen: Mapping[str, Histogram] = field(default_factory=dict)
    sensitivity: Mapping[str, ValueSensitivity] = field(default_factory=dict)
    inputs: Mapping[str, Array] = field(default_factory=dict)


class RangeRule(ABC):
    """How the range of a value is read from what was observed of it."""

    weighs_outputs: ClassVar[bool] = False
    """Whether the rule asks for the output sensitivity, which takes runs back through the network."""

    @abstractmethod
    def range(
        self, seen: Histogram, sensitivity: Sequence[ValueSensitivity], grid: Grid
    ) -> tuple[float, float]:
        """Return the lowest and the highest number that a value is to reach on `grid`.

        `seen` counts the elements of all values that share the scale, `sensitivity` is known of some of them.
        """


@dataclass(frozen=True)
class HistogramRange(RangeRule):
    """The range that an observer reads from the elements of the value itself, see `choose_range`."""

    observer: Observer = "mse"
    percentile: float = 99.999

    def range(
        self, seen: Histogram, sensitivity: Sequence[ValueSensitivity], grid: Grid
    ) -> tuple[float, float]:
        """Return what the observer reads from `seen`."""
        return choose_range(seen, grid, self.observer, self.percentile)


@dataclass(frozen=True)
class LeastDisturbance(RangeRule):
    """The range that disturbs the outputs least; where their sensitivity is unknown, that of another rule."""

    weighs_outputs = True

    otherwise: RangeRule = field(default_factory=HistogramRange)

    def range(
        self, seen: Histogram, sensitivity: Sequence[ValueSensitivity], grid: Grid
    ) -> tuple[float, float]:
        """Return the range of least cost by `sensitivity`."""
        if not sensitivity:
            return self.otherwise.range(seen, sensitivity, grid)
        return search_range(seen.low, seen.high, grid, partial(_cost, sensitivity))


def range_rule(observer: RangeObserver = "output", percentile: float = 99.999) -> RangeRule:
    """Return the rule that the options `observer` and `percentile` name."""
    return LeastDisturbance() if observer == "output" else HistogramRange(observer, percentile)


def choose_ranges(
    placement: Placement,
    formats: Formats,
    observed: Observed,
    rule: RangeRule,
    given: Mapping[str, tuple[float, float]] | None = None,
) -> Chosen:
    """Return the scales of all values of `placement`; ranges that are `given` are taken as they are."""
    affines: dict[str, Affine] = {}
    costs: dict[str, float] = {}
    seen, inputs = observed.seen, observed.inputs
    for root, members in placement.sources.items():
        grid = formats.grid(root, any(name in inputs for name in members))
        fixed = [given[name] for name in members if given and name in given]
        known = [observed.sensitivity[name] for name in members if name in observed.sensitivity]
        histograms = [seen[name] for name in members if name in seen and seen[name].count]
        if not fixed and not histograms:
            # Rows that data select may never have been there: nothing is known of them, and they stay as they are.
            continue
        if fixed:
            affine = range_affine(min(low for low, _ in fixed), max(high for _, high in fixed), grid)
        else:
            whole = histograms[0].merged(histograms[1:]) if len(histograms) > 1 else histograms[0]
            exact = _on_grid(members, inputs, whole, formats)
            if exact is not None:
                affine, known = exact, []
            else:
                affine = range_affine(*rule.range(whole, known, grid), grid)
        affines.update(dict.fromkeys(members, affine))
        if known:
            costs[root] = _cost(known, affine)
    return Chosen(affines, costs)


def _cost(sensitivity: Sequence[ValueSensitivity], affine: Affine) -> float:
    return sum(each.cost(affine) for each in sensitivity)


def _on_grid(
    members: Sequence[str], inputs: Mapping[str, Array], whole: Histogram, formats: Formats
) -> Affine | None:
    """Return the scale that holds the samples of a graph input exactly, None where there is none.

    Images of 256 levels that are scaled and shifted alike in all channels lie on the grid of their own extremes.
    """
    name = next((name for name in members if name in inputs), None)
    if name is None:
        return None
    affine = range_affine(whole.low, whole.high, formats.grid(name, True))
    values = inputs[name].astype(np.float32)
    error = float(np.mean(np.square(affine.round_trip(values) - values)))
    return affine if error <= EXACT * float(affine.scale) ** 2 / 12 else None


TRIED = 4
"""Samples on which ranges are tried: enough to see that something is badly wrong."""


MARGIN_DB = 1.0
"""Decibels by which other ranges must be better to be taken instead."""


def tried_out(
    model: Model, first: Chosen, second: Chosen, context: Context, integers: Collection[str] | None = None
) -> tuple[Chosen, float, float]:
    """Return the better of two choices of ranges, and the decibels of both on a few samples.

    The values are stored as chosen for the nodes named in `integers` (None: all), and weights stay float. `second` must be
    better by `MARGIN_DB`. The decibels are those of the worst output; both are infinite where the model does not run so.
    """
    try:
        wanted = _outputs(model, {}, integers, context)
        reached = [
            _decibels(wanted, _outputs(model, each.affines, integers, context)) for each in (first, second)
        ]
    except SessionError:
        return first, math.inf, math.inf
    return (second if reached[1] > reached[0] + MARGIN_DB else first), reached[0], reached[1]


def _outputs(
    model: Model, affines: Mapping[str, Affine], integers: Collection[str] | None, context: Context
) -> list[dict[str, Array]]:
    """Return what `model` gives on the last samples when its values are stored with `affines`."""
    samples = context.samples
    stored = model.clone()
    quantize_values(stored, affines, integers)
    # As written: optimised, a graph with some float and some stored values need not be what it says.
    session = context.session(stored, optimize=False)
    return [session.run(feed) for feed in samples.after(max(0, len(samples) - TRIED)).batches(1)]


def _decibels(wanted: list[dict[str, Array]], found: list[dict[str, Array]]) -> float:
    """Return 10 log10 of signal over error of the worst float output."""
    worst = math.inf
    for name, value in wanted[0].items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        pairs = [
            (a[name].astype(np.float64), b[name].astype(np.float64))
            for a, b in zip(wanted, found, strict=True)
        ]
        signal = sum(float(np.square(a).sum()) for a, _ in pairs)
        error = sum(float(np.square(a - b).sum()) for a, b in pairs if a.shape == b.shape)
        if error > 0 and signal > 0:
            worst = min(worst, 10 * math.log10(signal / error))
    return worst
