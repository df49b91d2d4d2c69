"""Budgets: what a pass may leave of the pipeline's input, counted or timed, and what the input costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from onnxcomp.analysis.cost import Cost, model_cost
from onnxcomp.compiler.context import Context
from onnxcomp.compiler.cost.latency import measured_ratio
from onnxcomp.compiler.pass_options import BudgetOptions
from onnxcomp.ir.model import Model

__all__ = ["Budget", "Counted", "CountedBudget", "TimeBudget", "budget_of", "fits_exactly"]

Counted = Literal["macs", "params"]
"""What can be counted exactly without running anything."""


@dataclass(frozen=True)
class CountedBudget:
    """The share of the multiply-accumulates or parameters of the pipeline's input that may remain."""

    unit: Counted
    share: float

    def __str__(self) -> str:
        return f"{self.unit}={self.share:g}"

    def whole(self, context: Context) -> int:
        """Return what the pipeline's input costs."""
        return self.count(model_cost(context.original, context.shapes(context.original)))

    def count(self, cost: Cost) -> int:
        """Return what a model of that `cost` takes of the budget."""
        return (cost.macs or 0) if self.unit == "macs" else cost.parameters


@dataclass(frozen=True)
class TimeBudget:
    """The share of the measured time of the pipeline's input that may remain: batch 1, one thread, this machine."""

    unit: ClassVar[Literal["latency"]] = "latency"
    share: float

    def __str__(self) -> str:
        return f"{self.unit}={self.share:g}"

    def measure(self, model: Model, context: Context) -> float:
        """Return the time of `model` as a share of that of the pipeline's input."""
        return measured_ratio(context.original, model, context)


Budget: TypeAlias = CountedBudget | TimeBudget
"""What a pass may leave of the whole model, counted or timed."""


def budget_of(step: BudgetOptions) -> Budget | None:
    """Return the budget that the options of `step` set, or None where its goal is a rule for each place alone.

    Raises:
        UsageError: unless exactly one goal is given.
    """
    field, value = step.goal()
    if field == "latency":
        return TimeBudget(value)
    if field == "macs":
        return CountedBudget("macs", value)
    return CountedBudget("params", value) if field == "params" else None


def fits_exactly(achieved: float, target: float, whole: float) -> bool:
    """Return whether `achieved` is within the budget and at most 1 % of `whole` below it."""
    return target - 0.01 * whole <= achieved <= target
