"""Budget goals: what a pass may leave of the pipeline's input, counted or timed, and what the input costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from onnxcomp.analysis.cost import model_cost
from onnxcomp.compiler.options import in_range
from onnxcomp.compiler.passbase import Context, Pass
from onnxcomp.errors import UsageError

__all__ = [
    "Counted",
    "Goal",
    "fits_exactly",
    "goal_of",
    "pipeline_cost",
]


GoalName: TypeAlias = Literal["macs", "params", "latency", "rank", "energy", "max-error"]


@dataclass(frozen=True)
class Goal:
    """What decides how far every place goes: a budget for the whole model, or a rule for each place alone."""

    what: GoalName
    value: float

    @property
    def is_budget(self) -> bool:
        """Whether `value` is the share of the whole model that may remain."""
        return self.what in ("macs", "params", "latency")


_GOAL_NAMES: dict[str, GoalName] = {
    "macs": "macs",
    "params": "params",
    "latency": "latency",
    "rank": "rank",
    "multiplier": "rank",
    "energy": "energy",
    "max_error": "max-error",
}


def goal_of(step: Pass, fields: Sequence[str]) -> Goal:
    """Return the goal that the options `fields` of `step` set.

    Raises:
        UsageError: unless exactly one of them is given, and above 0; a budget is at most 1.
    """
    shown = [field.replace("_", "-") for field in fields]
    given = [field for field in fields if getattr(step, field) is not None]
    if len(given) != 1:
        said = (
            f"{' and '.join(f.replace('_', '-') for f in given)} are given"
            if given
            else "none of them is given"
        )
        raise UsageError(f"{step.name}: give one of {', '.join(shown[:-1])} and {shown[-1]}; {said}")
    field = given[0]
    name, value = field.replace("_", "-"), getattr(step, field)
    goal = Goal(_GOAL_NAMES[field], value)
    if goal.is_budget:
        in_range(step.name, name, value, 0, 1)
        if value == 0:
            raise UsageError(f"{step.name}: {name}=0 leaves nothing; give the share that may remain")
    elif goal.what in ("energy", "max-error") and not value > 0:
        raise UsageError(f"{step.name}: {name}={value:g} is out of range; 0 < {name} < 1")
    return goal


Counted = Literal["macs", "params"]
"""What can be counted exactly without running anything."""


def pipeline_cost(context: Context, what: Counted) -> int:
    """Return what the pipeline's input costs: budgets are shares of that."""
    cost = model_cost(context.original, context.shapes(context.original))
    return (cost.macs or 0) if what == "macs" else cost.parameters


def fits_exactly(achieved: float, target: float, whole: float) -> bool:
    """Return whether `achieved` is within the budget and at most 1 % of `whole` below it."""
    return target - 0.01 * whole <= achieved <= target
