"""The plan of a quantization: the settings it follows, what was observed, and what is to become integers on which scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnxcomp.compiler.quantization.formats import Formats
from onnxcomp.compiler.quantization.placement import Placement
from onnxcomp.compiler.quantization.ranges import Chosen, Observed, RangeRule, range_rule
from onnxcomp.compiler.quantization.weight_rounding import Rounding
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Shapes

__all__ = ["QuantizationPlan", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How to quantize; see the options of the pass `insert-qdq`.

    `rule` chooses ranges. `only` says why a node is not among those to quantize, None where it is. Without `rewrite` the
    model stays as it is where no integers compute it.
    """

    rule: RangeRule = field(default_factory=range_rule)
    rounding: Rounding = "gptq"
    correct: bool = True
    edges: Literal["auto", "integers"] = "auto"
    only: Callable[[Node], str | None] = lambda node: None
    given: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tied: bool = True
    rewrite: bool = True


@dataclass(frozen=True)
class QuantizationPlan:
    """What is to become integers, on which scales, and what was found out on the way.

    Attributes:
        model: the float model that it is about.
        formats: how values and weights are stored.
        placement: what is stored and computed in integers.
        chosen: the scales.
        shapes: those of all values for one sample.
        observed: histograms of the values, and the output sensitivity to them.
        kept: why nodes stay float, by name.
        rule: what chose the ranges.
        notes: what the user should know of the observations.
        seconds: how long observing the values took.
    """

    model: Model
    formats: Formats
    placement: Placement
    chosen: Chosen
    shapes: Shapes
    observed: Observed
    kept: Mapping[str, str]
    rule: RangeRule
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
