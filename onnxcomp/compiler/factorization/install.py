"""Putting chains in the place of nodes, and repairing what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from onnxcomp.analysis.linear import linear_node, not_refitted
from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.outputs import FEW, HELD_BACK, judge, outputs_on
from onnxcomp.compiler.factorization.candidates import Alternative, Place, with_metrics
from onnxcomp.compiler.factorization.chain import Chain
from onnxcomp.compiler.factorization.solver import FIRST_STEPS, FitChains
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.refit import Site, too_wide
from onnxcomp.compiler.repair.sites import shared_weight, teacher_of
from onnxcomp.compiler.repair.walk import walk
from onnxcomp.ir.edits import drop_orphans
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Shapes

__all__ = ["Repair", "carry_out", "install"]

Plan: TypeAlias = Mapping[str, Alternative]


@dataclass(frozen=True)
class Repair:
    """How replaced nodes get their weights: `mode`, how often the network is walked, and what errors of outputs weigh."""

    mode: Literal["sequential", "one-shot", "none"]
    sweeps: int
    outputs: Mapping[str, Array]
    left_alone: Callable[[str], bool]


def install(original: Model, plan: Plan, places: Mapping[str, Place]) -> tuple[Model, dict[str, Chain]]:
    """Return a clone of `original` with chains in the place of the planned nodes, at their starts, and the chains."""
    model = original.clone()
    before = {constant.name for constant in model.graph.constants.values() if not constant.consumers}
    chains = {}
    for name, alternative in plan.items():
        place = places[name]
        blocks = place.start(alternative.form)
        chains[name] = Chain.build(
            model, place.node, alternative.form, alternative.layout, blocks, place.spatial
        )
    drop_orphans(model, before)
    return model, chains


def carry_out(
    original: Model,
    plan: Plan,
    places: Mapping[str, Place],
    repair: Repair,
    context: Context,
    shapes: Shapes,
    log: PassLog,
) -> tuple[Model, dict[str, float]]:
    """Return `original` with the planned nodes replaced and repaired, and the relative error of each place, by name."""
    model, chains = install(original, plan, places)
    if repair.mode != "sequential":
        return model, _at_once(original, model, chains, places, repair, context, shapes, log)
    sites = _sites(original, plan, repair, log)
    count = len(context.calibration) if context.calibration is not None else 0
    if count < FEW:
        log.note(
            f"{count} calibration samples are few: fitted weights lean on what they were, and the errors told here "
            f"are of these samples alone; {FEW} or more are advised"
        )
    weights = {name: places[name].weight for name in plan}
    if repair.sweeps > 1 and count >= 2:
        return _swept(original, model, chains, sites, weights, repair, context, shapes, log)
    solver = FitChains(chains, weights, repair.outputs)
    teacher = teacher_of(original, [site.name for site in sites], context, shapes)
    errors = walk(
        original, model, sites, solver, context, shapes, "refitting", chains=chains, teacher=teacher
    )
    return model, {site.name: error for site, error in errors}


def _at_once(
    original: Model,
    model: Model,
    chains: Mapping[str, Chain],
    places: Mapping[str, Place],
    repair: Repair,
    context: Context,
    shapes: Shapes,
    log: PassLog,
) -> dict[str, float]:
    """Fit every chain once: to the original's values, or with `none` to the weights alone."""
    wanted = [places[name] for name in chains]
    if repair.mode == "none":
        log.note(
            "no repair: weights were split by singular values alone, blind to what the network does with them; "
            "with calibration samples and repair=sequential far less is lost"
        )
        waves = iter([[replace(place, metrics=(), means=None) for place in wanted]])
    else:
        waves = with_metrics(original, wanted, repair.outputs, context, shapes)
        log.note(f"{len(wanted)} nodes fitted once, to the original network's values")
    errors = {}
    for wave in waves:
        for place in wave:
            chain = chains[place.name]
            blocks, errors[place.name] = place.fitted(chain.form, FIRST_STEPS)
            chain.install_factors(model, blocks, place.shifted_bias(chain.form, blocks))
    return errors


def _sites(original: Model, plan: Plan, repair: Repair, log: PassLog) -> list[Site]:
    """Return what the walk visits: replaced nodes, and the linear nodes that read what follows from them."""
    dirty: set[str] = set()
    sites = []
    for node in original.graph.nodes:
        touched = any(v.name in dirty for v in node.inputs) or bool(dirty & set(node.captures))
        linear = linear_node(node)
        if node.name in plan or (touched and linear is not None):
            assert linear is not None
            reason = None
            if node.name not in plan:
                excluded = "it is excluded" if repair.left_alone(node.name) else None
                reason = excluded or shared_weight(original, linear) or too_wide(linear)
            if reason:
                log.skip(node.name, f"not refitted: {reason}")
            else:
                sites.append(Site(node.name, np.arange(linear.weight_array().shape[linear.out_axis])))
        elif touched and (reason := not_refitted(node)):
            log.skip(node.name, f"not refitted: {reason}")
        if touched or node.name in plan:
            dirty.update(v.name for v in node.outputs if v.name)
    return sites


def _swept(
    original: Model,
    model: Model,
    chains: dict[str, Chain],
    sites: list[Site],
    weights: Mapping[str, Array],
    repair: Repair,
    context: Context,
    shapes: Shapes,
    log: PassLog,
) -> tuple[Model, dict[str, float]]:
    """Walk several times, going on from the factors there are, as long as samples held back gain by it."""
    fitted, held = context.samples.split(HELD_BACK, context.seed)
    few = replace(context, calibration=fitted)
    teacher = teacher_of(original, [site.name for site in sites], context, shapes)
    reference = Reference(outputs_on(teacher, held, context))
    best, errors, distance = model, {}, np.inf
    seen: set[str] = set()
    for number in range(1, repair.sweeps + 1):
        trial = best.clone()
        nodes = {node.name: node for node in trial.graph.nodes}
        mine = {name: chain.within(nodes) for name, chain in chains.items()}
        solver = FitChains(mine, weights, repair.outputs, seen)
        found_errors = walk(
            original, trial, sites, solver, few, shapes, "refitting", chains=mine, teacher=teacher
        )
        found = judge(trial, reference, held, context)
        if number > 1:
            log.note(f"sweep {number}: distance on held-back samples {distance:.4g} -> {found:.4g}")
        if not found < distance:
            log.note(f"sweep {number} was taken back")
            break
        best, chains, distance = trial, mine, found
        errors = {site.name: error for site, error in found_errors}
    return best, errors
