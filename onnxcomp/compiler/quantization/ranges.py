"""From what values are to the scales they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from onnxcomp.compiler.quantization.formats import Formats
from onnxcomp.compiler.quantization.placement import Placement
from onnxcomp.numerics.affine import Affine, range_affine
from onnxcomp.numerics.arrays import Array
from onnxcomp.numerics.observers import Effect, Histogram, Observer, choose_range, search_range

__all__ = ["Chosen", "RangeObserver", "choose_ranges"]

RangeObserver: TypeAlias = Literal["output", "mse", "minmax", "percentile", "entropy", "moving-average"]
"""How a range is chosen: like an Observer, or by its effect on the outputs of the network."""

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


def choose_ranges(
    placement: Placement,
    formats: Formats,
    seen: Mapping[str, Histogram],
    effects: Mapping[str, Effect],
    inputs: Mapping[str, Array],
    *,
    observer: RangeObserver = "output",
    percentile: float = 99.999,
    given: Mapping[str, tuple[float, float]] | None = None,
) -> Chosen:
    """Return the scales of all values of `placement`.

    `seen` are histograms by value, `effects` what is known of the effect on the outputs, `inputs` some samples of graph
    inputs by name, `given` ranges that are taken as they are. With `observer=output` a value of which no effect is known
    gets the range of least mean squared error.
    """
    affines: dict[str, Affine] = {}
    costs: dict[str, float] = {}
    for root, members in placement.sources.items():
        grid = formats.grid(root, any(name in inputs for name in members))
        told = [given[name] for name in members if given and name in given]
        known = [effects[name] for name in members if name in effects]
        histograms = [seen[name] for name in members if name in seen and seen[name].count]
        if told:
            affine = range_affine(min(low for low, _ in told), max(high for _, high in told), grid)
        else:
            whole = histograms[0].merged(histograms[1:]) if len(histograms) > 1 else histograms[0]
            exact = _on_grid(members, inputs, whole, formats)
            if exact is not None:
                affine, known = exact, []
            elif observer == "output" and known:
                affine = range_affine(*search_range(whole.low, whole.high, grid, partial(_cost, known)), grid)
            else:
                plain: Observer = "mse" if observer == "output" else observer
                affine = range_affine(*choose_range(whole, grid, plain, percentile), grid)
        affines.update(dict.fromkeys(members, affine))
        if known:
            costs[root] = _cost(known, affine)
    return Chosen(affines, costs)


def _cost(effects: Sequence[Effect], affine: Affine) -> float:
    return sum(effect.cost(affine) for effect in effects)


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
