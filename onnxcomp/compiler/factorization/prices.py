"""Prices of alternatives, counted or timed: what they are accepted by, and how forms of several branches are laid out for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onnxcomp.compiler.cost.budget import Budget, CountedBudget, TimeBudget
from onnxcomp.compiler.factorization.candidates import Alternative, Place
from onnxcomp.compiler.factorization.chain import Layout, possible
from onnxcomp.compiler.factorization.selection import Rule
from onnxcomp.compiler.factorization.timing import BLOCK, FormTimes
from onnxcomp.compiler.pass_options import Accept
from onnxcomp.numerics.forms import Form

__all__ = ["CountedPrices", "Layouts", "Prices", "TimedPrices", "prices_of"]


class Prices(ABC):
    """What alternatives cost as a share of what the node costs.

    `align` is what ranks are multiples of where the user leaves it to the pass, `timed` whether the clock decides.
    """

    align: ClassVar[int] = 1
    timed: ClassVar[bool] = False

    @abstractmethod
    def of(self, place: Place, alternative: Alternative) -> float:
        """Return the price of `alternative` as a share of that of the node at `place`."""

    def best_layout(self, place: Place, form: Form, usual: Sequence[Layout]) -> Layout:
        """Return the cheapest of the layouts `usual`, the first of which is mostly fastest."""
        # Of a convolution in blocks the results of each block would have to be joined apart.
        return "sum" if place.node.group > 1 else usual[0]

    def details(self, place: Place, alternative: Alternative) -> dict[str, Any]:
        """Return what the report says of the price of a chosen alternative beside its counts."""
        return {}


@dataclass(frozen=True)
class CountedPrices(Prices):
    """Prices by what can be counted: multiply-accumulates, parameters, or bytes of the file."""

    unit: Literal["macs", "parameters", "bytes"]

    def of(self, place: Place, alternative: Alternative) -> float:
        """Return the count of `alternative` as a share of that of the node at `place`."""
        return float(getattr(alternative, self.unit) / max(1, getattr(place, self.unit)))


@dataclass(frozen=True)
class TimedPrices(Prices):
    """Prices by the clock, beside the node on its own sizes."""

    times: FormTimes
    align = BLOCK
    timed = True

    def of(self, place: Place, alternative: Alternative) -> float:
        """Return the time of `alternative` as a share of that of the node at `place`."""
        return self.times.of(place, alternative)

    def best_layout(self, place: Place, form: Form, usual: Sequence[Layout]) -> Layout:
        """Return the fastest of the layouts `usual`."""
        return self.times.layout(place, form, usual)

    def details(self, place: Place, alternative: Alternative) -> dict[str, Any]:
        """Return the time as a share of the node's."""
        return {"time": round(self.of(place, alternative), 3)}


def prices_of(accept: Accept, goal: Budget | Rule, times: FormTimes) -> Prices:
    """Return the prices that decide about accepting: of time where `accept` or the goal say so, else the goal's unit."""
    if accept == "latency" or isinstance(goal, TimeBudget):
        return TimedPrices(times)
    if accept == "size":
        return CountedPrices("bytes")
    counts_params = isinstance(goal, CountedBudget) and goal.unit == "params"
    return CountedPrices("parameters" if counts_params else "macs")


@dataclass(frozen=True)
class Layouts:
    """How forms stand in the graph: as `wanted` where that is possible, else (or with `auto`) as `prices` prefer."""

    wanted: Layout | Literal["auto"]
    prices: Prices

    def __call__(self, place: Place, form: Form) -> Layout:
        """Return how `form` stands in the graph at `place`."""
        if form.name not in ("depthwise", "pointwise") or form.ranks[0] == 1:
            return "plain"
        if self.wanted != "auto" and possible(form.name, place.node, self.wanted) is None:
            return self.wanted
        usual: tuple[Layout, ...] = (
            ("concat", "sum", "plain") if form.name == "depthwise" else ("sum", "plain")
        )
        return self.prices.best_layout(place, form, usual)
