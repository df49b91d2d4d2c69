"""Factorization of linear nodes: they are replaced by cheaper forms as planned, repaired, and reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxcomp.compiler.factorization.candidates import Alternative
from onnxcomp.compiler.factorization.install import Repair, carry_out
from onnxcomp.compiler.factorization.planning import planner_of
from onnxcomp.compiler.factorization.problem import FactorizationProblem, Replacing
from onnxcomp.compiler.passbase import Context, PassLog, PassResult
from onnxcomp.compiler.repair.mode import repair_mode
from onnxcomp.ir.files import check_finite
from onnxcomp.ir.model import Model

__all__ = ["replace_nodes"]


def replace_nodes(settings: Replacing, model: Model, context: Context) -> PassResult:
    """Replace nodes of `model` as `settings` say, repair what follows, and return the result."""
    check_finite(model)
    problem = FactorizationProblem(settings, model, context)
    planner = planner_of(problem)
    plan = planner.plan()
    if not plan:
        return problem.log.result(model)
    repair = Repair(repair_mode(settings.repair), settings.sweeps, planner.outputs, problem.left_alone)
    changed, errors = carry_out(
        problem.original, plan, problem.places, repair, context, problem.shapes, problem.log
    )
    for name, alternative in plan.items():
        _report(problem, name, alternative, errors.get(name))
    _report_worst(errors, problem.log)
    return problem.log.result(changed)


def _report(problem: FactorizationProblem, name: str, alternative: Alternative, error: float | None) -> None:
    """Record what became of the node `name`."""
    place = problem.places[name]
    timed = problem.prices.details(place, alternative)
    details: dict[str, Any] = {
        "form": alternative.form.name,
        "ranks": list(alternative.form.ranks),
        "layout": alternative.layout,
        "macs_before": place.macs,
        "macs_after": alternative.macs,
        "parameters_before": place.parameters,
        "parameters_after": alternative.parameters,
        **timed,
    }
    words = f"{alternative}, {alternative.macs / max(1, place.macs):.2f} of its MACs"
    words += "".join(f", {share:.2f} of its {what}" for what, share in timed.items())
    if error is not None:
        details["error"] = round(error, 5)
        words += f", {error:.1%} of its output missed"
    problem.log.change(name, words, **details)


def _report_worst(errors: Mapping[str, float], log: PassLog) -> None:
    worst = sorted(errors.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{name} {error:.1%}" for name, error in worst)
    if told:
        count = f"{len(errors)} nodes" if len(errors) > 1 else "one node"
        log.note(f"{count} fitted; largest relative errors: {told}")
