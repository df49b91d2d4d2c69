"""One run of a factorizing pass: its settings, the model with the nodes that could be replaced, and what they cost."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from onnxcomp.analysis.cost import Cost, model_cost
from onnxcomp.compiler.cost.budget import Budget
from onnxcomp.compiler.factorization.candidates import (
    Curve,
    CurveSearch,
    Place,
    curves_of,
    find_places,
    with_metrics,
)
from onnxcomp.compiler.factorization.chain import Layout
from onnxcomp.compiler.factorization.prices import Layouts, prices_of
from onnxcomp.compiler.factorization.selection import Rule
from onnxcomp.compiler.factorization.timing import FormTimes
from onnxcomp.compiler.pass_options import Accept, RepairName
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.mode import repair_mode
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array

__all__ = ["FactorizationProblem", "Replacing"]


@dataclass(frozen=True)
class Replacing:
    """What a pass replaces, by which forms, how far, and how it repairs."""

    ops: Collection[str]
    forms: tuple[str, ...]
    goal: Budget | Rule
    accept: Accept
    min_saving: float
    layout: Layout | Literal["auto"]
    align: int
    repair: RepairName
    sweeps: int

    @property
    def refits(self) -> bool:
        """Whether factors are fitted to samples."""
        return repair_mode(self.repair).refits


class FactorizationProblem:
    """What is known of the model before anything is chosen; what is declined on the way goes into `log`."""

    def __init__(self, settings: Replacing, model: Model, context: Context) -> None:
        self.settings, self.original, self.context, self.log = settings, model.clone(), context, PassLog()
        self.shapes = context.shapes(model)
        self._left_alone = context.left_alone(self.original)
        self.cost: Cost = model_cost(model, self.shapes)
        found = find_places(self.original, settings.ops, self.left_alone, self.shapes, self.log)
        self.places: dict[str, Place] = {place.name: place for place in found}
        self.times = FormTimes(self.original, context, self.shapes)
        self.prices = prices_of(settings.accept, settings.goal, self.times)

    def left_alone(self, name: str) -> str | None:
        """Return why the node `name` must keep its weights, None where it need not."""
        return self._left_alone.get(name)

    def waves(self, outputs: Mapping[str, Array]) -> Iterable[list[Place]]:
        """Yield the places, some at a time, with the statistics that forms are fitted under.

        `outputs` says what errors of the outputs weigh, `[g, o, o]` by the node's name.
        """
        places = list(self.places.values())
        if not self.settings.refits:
            return [places] if places else []
        return with_metrics(self.original, places, outputs, self.context, self.shapes)

    def curves(self, places: list[Place], rank: int | None = None) -> list[Curve]:
        """Return the alternatives of every place that save enough, at all ranks or at `rank` alone."""
        settings, prices = self.settings, self.prices
        align = prices.align if settings.align == 1 else settings.align
        layouts = Layouts(settings.layout, prices)
        search = CurveSearch(settings.forms, prices.of, layouts, settings.min_saving, align, rank)
        return curves_of(places, search, self.context, self.log)
