"""Replacing linear nodes by cheaper forms: which node by what, how far, and what is told about it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from onnxcomp.analysis.cost import Cost, model_cost
from onnxcomp.compiler.cost.budget import Goal, fits_exactly, pipeline_cost
from onnxcomp.compiler.cost.latency import measured_ratio
from onnxcomp.compiler.cost.latency_search import meet_latency
from onnxcomp.compiler.factorization.candidates import (
    Alternative,
    Curve,
    Place,
    curves_of,
    find_places,
    with_metrics,
)
from onnxcomp.compiler.factorization.chain import Layout, possible
from onnxcomp.compiler.factorization.install import Repair, carry_out, install
from onnxcomp.compiler.factorization.selection import PlaceTrial, Plan, by_budget, by_rule, damages, trial_of
from onnxcomp.compiler.factorization.timing import BLOCK, FormTimes
from onnxcomp.compiler.gradients.output_curvature import output_weights
from onnxcomp.compiler.options import in_range
from onnxcomp.compiler.passbase import Context, PassLog, PassResult
from onnxcomp.compiler.repair.sites import biases_to_come
from onnxcomp.errors import UsageError
from onnxcomp.ir.files import check_finite
from onnxcomp.ir.model import Model
from onnxcomp.numerics.forms import Form

__all__ = ["Accept", "Replacing", "check_replacing", "replace_nodes"]

Accept: TypeAlias = Literal["macs", "latency", "size"]
"""What a replacement must save to be taken."""


FASTER = 0.99
"""What a model must take of the time it took for replacements accepted by time to be kept: the clock's doubt is 1 %."""


@dataclass(frozen=True)
class Replacing:
    """What a pass replaces, by which forms, how far, and how it repairs."""

    ops: Collection[str]
    forms: tuple[str, ...]
    goal: Goal
    accept: Accept
    min_saving: float
    layout: Layout | Literal["auto"]
    align: int
    repair: Literal["sequential", "one-shot", "none"]
    sweeps: int


def check_replacing(settings: Replacing, name: str) -> None:
    """Raise UsageError, in the name of the pass `name`, where options that passes share are out of range or contradict."""
    in_range(name, "min-saving", settings.min_saving, 0, 1, open_high=True)
    for option, number in (("align", settings.align), ("sweeps", settings.sweeps)):
        if number < 1:
            raise UsageError(f"{name}: {option}={number} is out of range; it is at least 1")
    if settings.goal.what == "latency" and settings.accept == "size":
        raise UsageError(
            f"{name}: a budget of latency takes what saves time; leave out accept=size, or give params= instead"
        )
    if settings.repair != "sequential" and settings.sweeps > 1:
        raise UsageError(f"{name}: sweeps needs repair=sequential, not {settings.repair}")


def replace_nodes(settings: Replacing, model: Model, context: Context) -> PassResult:
    """Replace nodes of `model` as `settings` say, repair what follows, and return the result."""
    check_finite(model)
    run = _Run(settings, model, context)
    plan = run.plan()
    if not plan:
        return run.log.result(model)
    changed, errors = run.carry_out(plan)
    for name, alternative in plan.items():
        run.tell(run.places[name], alternative, errors.get(name))
    _tell_worst(errors, run.log)
    return run.log.result(changed)


class _Run:
    """One run of a replacing pass: what it found out about the model, and what is to be told."""

    def __init__(self, settings: Replacing, model: Model, context: Context) -> None:
        self.settings, self.original, self.context, self.log = settings, model.clone(), context, PassLog()
        self.shapes = context.shapes(model)
        self.cost: Cost = model_cost(model, self.shapes)
        found = find_places(self.original, settings.ops, self._left_alone, self.shapes, self.log)
        self.places: dict[str, Place] = {place.name: place for place in found}
        self.timed = settings.accept == "latency" or settings.goal.what == "latency"
        self.times = FormTimes(self.original, context, self.shapes)
        nodes = [place.node for place in found]
        weigh = settings.repair != "none" and settings.goal.is_budget
        self.outputs = output_weights(self.original, nodes, context, self.shapes) if weigh else {}

    def _left_alone(self, name: str) -> bool:
        return self.context.is_excluded(self.original, name)

    # --- prices ------------------------------------------------------------------------------------------------------
    def price(self, place: Place, alternative: Alternative) -> float:
        """Return what `alternative` costs as a share of what the node costs, in the unit that decides about accepting."""
        if self.timed:
            return self.times.of(place, alternative)
        if self.settings.accept == "size":
            return alternative.bytes / max(1, place.bytes)
        if self.settings.goal.what == "params":
            return alternative.parameters / max(1, place.elements)
        return alternative.macs / max(1, place.macs)

    def layout(self, place: Place, form: Form) -> Layout:
        """Return how `form` stands in the graph at `place`."""
        if form.name not in ("depthwise", "pointwise") or form.ranks[0] == 1:
            return "plain"
        wanted = self.settings.layout
        if wanted != "auto" and possible(form.name, place.node, wanted) is None:
            return wanted
        usual: tuple[Layout, ...] = (
            ("concat", "sum", "plain") if form.name == "depthwise" else ("sum", "plain")
        )
        if self.timed:
            return self.times.layout(place, form, usual)
        # Of a convolution in blocks the results of each block would have to be joined apart.
        return "sum" if place.node.group > 1 else usual[0]

    # --- planning ----------------------------------------------------------------------------------------------------
    def plan(self) -> Plan:
        """Return what takes the place of which node; what stays is in the log."""
        goal = self.settings.goal
        if goal.is_budget and self._met():
            self.log.note(f"the budget {goal.what}={goal.value:g} is met without replacing anything")
            return {}
        curves, trials, ruled = self._curves()
        if not goal.is_budget:
            return self._faster(ruled)
        if not curves:
            self._tell_short()
            return {}
        scales = self._scales(curves, trials)
        plan = self._within(curves, scales)
        for curve in curves:
            if curve.place.name not in plan:
                self.log.skip(curve.place.name, "the budget is met at less damage without it")
        # A budget of time is held by the clock of the whole model as it is.
        return plan if goal.what == "latency" else self._faster(plan)

    def _faster(self, plan: Plan) -> Plan:
        """Return what of `plan` makes the whole model faster, where time decides about accepting.

        What is faster alone may be slower among its neighbours, whose layouts it breaks up.
        """
        if self.settings.accept != "latency" or not plan:
            return plan
        shares = self.times.share([self.places[name] for name in plan])
        gains = {n: shares[n] * (1 - self.times.of(self.places[n], a)) for n, a in plan.items()}
        order = sorted(plan, key=lambda name: -gains[name])
        count = len(order)
        while count:
            kept = {name: plan[name] for name in order[:count]}
            ratio = measured_ratio(self.original, install(self.original, kept, self.places)[0], self.context)
            self.log.note(
                f"with {count} of {len(order)} replacements the model takes {ratio:.3f} of its time"
            )
            if ratio < FASTER:
                break
            count //= 2
        for name in order[count:]:
            self.log.skip(name, f"{plan[name]}, together with others, does not make the whole model faster")
        if count < len(order) and self.settings.goal.is_budget:
            self.log.shortfall = "what meets the budget does not make the model faster, and was taken back"
        return {name: plan[name] for name in order[:count]}

    def _met(self) -> bool:
        goal = self.settings.goal
        if goal.what == "latency":
            return measured_ratio(self.context.original, self.original, self.context) <= goal.value
        return self._count(self.cost) <= goal.value * pipeline_cost(self.context, _counted(goal))

    def _curves(self) -> tuple[list[Curve], list[PlaceTrial], Plan]:
        """Return the alternatives of every place, and one trial for each, or the plan where a rule makes it."""
        settings = self.settings
        align = BLOCK if self.timed and settings.align == 1 else settings.align
        curves: list[Curve] = []
        trials: list[PlaceTrial] = []
        ruled: Plan = {}
        middle = min(0.8, settings.goal.value)
        for wave in self._waves():
            found = curves_of(
                wave,
                settings.forms,
                self.price,
                self.layout,
                settings.min_saving,
                align,
                self.context,
                self.log,
                int(settings.goal.value) if settings.goal.what == "rank" else None,
            )
            if not settings.goal.is_budget:
                plan, stays = by_rule(found, settings.goal, self.price)
                ruled |= plan
                for name, reason in stays.items():
                    self.log.skip(name, reason)
            if settings.goal.is_budget and settings.repair != "none":
                trials += [trial_of(self.original, curve, middle, self.price) for curve in found]
            curves += [Curve(self.places[curve.place.name], curve.alternatives) for curve in found]
        return curves, trials, ruled

    def _waves(self) -> Iterable[list[Place]]:
        places = list(self.places.values())
        if self.settings.repair == "none":
            return [places] if places else []
        return with_metrics(self.original, places, self.outputs, self.context, self.shapes)

    def _scales(self, curves: list[Curve], trials: list[PlaceTrial]) -> Mapping[str, float]:
        if not trials:
            return {curve.place.name: 1.0 for curve in curves}
        scales, told = damages(self.original, trials, self.context)
        worst = sorted(told, key=lambda item: -item[2])[:3]
        self.log.note(
            "effects on the output measured one by one; the largest: "
            + ", ".join(f"{name} as {what} {damage:.3g}" for name, what, damage in worst)
        )
        return scales

    def _within(self, curves: list[Curve], scales: Mapping[str, float]) -> Plan:
        goal = self.settings.goal
        if goal.what == "latency":
            return self._within_time(curves, scales)
        whole = pipeline_cost(self.context, _counted(goal))

        def cost(place: Place, alternative: Alternative | None) -> float:
            if goal.what == "macs":
                return place.macs if alternative is None else alternative.macs
            return place.elements if alternative is None else alternative.parameters

        rest = self._count(self.cost) - sum(cost(curve.place, None) for curve in curves)
        plan, reached = by_budget(curves, scales, cost, goal.value * whole - rest)
        left = rest + sum(cost(curve.place, plan.get(curve.place.name)) for curve in curves)
        if not reached:
            self._tell_short(left / whole)
        elif not fits_exactly(left, goal.value * whole, whole):
            self.log.note(
                f"{goal.what} fall to {left / whole:.4f}, more than asked for: ranks in steps of {self.settings.align} "
                "and forms that come in whole multiples allow nothing between"
            )
        return plan

    def _within_time(self, curves: list[Curve], scales: Mapping[str, float]) -> Plan:
        goal = self.settings.goal
        shares = self.times.share([curve.place for curve in curves])
        now = measured_ratio(self.context.original, self.original, self.context)

        def cost(place: Place, alternative: Alternative | None) -> float:
            return (
                now * shares[place.name] * (1.0 if alternative is None else self.times.of(place, alternative))
            )

        rest = now - sum(cost(curve.place, None) for curve in curves)

        def plan_for(target: float) -> Plan:
            return by_budget(curves, scales, cost, target - rest)[0]

        def measure(plan: Plan) -> float:
            made, _ = install(self.original, plan, self.places)
            return measured_ratio(self.context.original, made, self.context)

        plan, measured, notes = meet_latency(plan_for, measure, goal.value)
        for note in notes:
            self.log.note(note)
        if measured > goal.value:
            self._tell_short(measured)
        return plan

    def _count(self, cost: Cost) -> int:
        """Return what a budget counts of the model as it is, with the biases that a refit will add."""
        if self.settings.goal.what != "params":
            return cost.macs or 0
        stored = self.original.graph.constants
        biases = biases_to_come(self.original) if self.settings.repair != "none" else []
        return cost.parameters + sum(int(stored[name].values.shape[axis]) for name, axis in biases)

    def _tell_short(self, left: float | None = None) -> None:
        goal = self.settings.goal
        reasons = "; ".join(list(dict.fromkeys(f"{s.where}: {s.reason}" for s in self.log.skips))[:5])
        least = f"{left:.4f} is the least" if left is not None else "there is nothing to replace"
        self.log.shortfall = f"{goal.what}={goal.value:g} cannot be reached; {least}" + (
            f" with min-saving={self.settings.min_saving:g}; left alone are {reasons}" if reasons else ""
        )

    # --- doing -------------------------------------------------------------------------------------------------------
    def carry_out(self, plan: Plan) -> tuple[Model, dict[str, float]]:
        """Return the model with the plan carried out, and the relative error of each place."""
        repair = Repair(self.settings.repair, self.settings.sweeps, self.outputs, self._left_alone)
        return carry_out(self.original, plan, self.places, repair, self.context, self.shapes, self.log)

    def tell(self, place: Place, alternative: Alternative, error: float | None) -> None:
        """Record what became of `place`."""
        ranks = list(alternative.form.ranks)
        details: dict[str, Any] = {
            "form": alternative.form.name,
            "ranks": ranks,
            "layout": alternative.layout,
            "macs_before": place.macs,
            "macs_after": alternative.macs,
            "parameters_before": place.elements,
            "parameters_after": alternative.parameters,
        }
        words = f"{alternative}, {alternative.macs / max(1, place.macs):.2f} of its MACs"
        if self.timed:
            details["time"] = round(self.times.of(place, alternative), 3)
            words += f", {details['time']:.2f} of its time"
        if error is not None:
            details["error"] = round(error, 5)
            words += f", {error:.1%} of its output missed"
        self.log.change(place.name, words, **details)


def _counted(goal: Goal) -> Literal["macs", "params"]:
    return "params" if goal.what == "params" else "macs"


def _tell_worst(errors: Mapping[str, float], log: PassLog) -> None:
    worst = sorted(errors.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{name} {error:.1%}" for name, error in worst)
    if told:
        count = f"{len(errors)} nodes" if len(errors) > 1 else "one node"
        log.note(f"{count} fitted; largest relative errors: {told}")
