"""Quantizing a model, step by step: rewrite, place, observe, choose ranges, round weights on the walk, insert pairs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxcomp.analysis.cost import node_macs
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.gradients.value_sensitivity import value_sensitivity
from onnxcomp.compiler.integer_rewrites.embedding_tables import store_tables, tables
from onnxcomp.compiler.integer_rewrites.float_reasons import stored_floats
from onnxcomp.compiler.integer_rewrites.operators import integer_forms
from onnxcomp.compiler.integer_rewrites.stored_weights import fold_stored
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.convert import round_weights
from onnxcomp.compiler.quantization.formats import Formats
from onnxcomp.compiler.quantization.placement import Placement, place
from onnxcomp.compiler.quantization.plan import QuantizationPlan, Settings
from onnxcomp.compiler.quantization.ranges import Chosen, HistogramRange, Observed, choose_ranges, tried_out
from onnxcomp.compiler.quantization.shared_scales import tie_additions
from onnxcomp.compiler.target.facts import Target
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Shapes
from onnxcomp.runtime.range_files import check_ranges
from onnxcomp.runtime.ranges import observe_values

__all__ = ["apply_plan", "plan", "replan"]


EDGE_COST = 0.2
"""A first layer may stay float where storing the network's input makes more than this share of all error ..."""

EDGE_MACS = 0.1
"""... and where it does no more than this share of the network's multiply-accumulates."""

EDGE_WIDENS = 8
"""A first layer in float pays for converting what it makes: not more than so many times what it reads. Measured in
onnxruntime 1.31 beside the same network all in integers: ResNet-20 (5.3 times) 0.985, VGG-9 (10.7 times) 1.12."""

TRIED_INPUTS = 8
"""Samples of the graph inputs that are searched for a grid on which they lie."""


def plan(
    model: Model, formats: Formats, settings: Settings, context: Context, log: PassLog
) -> QuantizationPlan | None:
    """Return the plan for `model`, which is rewritten into forms that can be computed in integers; None for nothing to do."""
    kept = context.left_alone(model)
    for node in model.graph.nodes:
        reason = settings.only(node)
        if reason is not None:
            kept.setdefault(node.name, reason)
    if settings.rewrite:
        fold_stored(model, kept, log)
        integer_forms(model, context.shapes(model), kept, log)
    shapes = context.shapes(model)
    check_ranges(model, settings.given)
    placement = place(model, context.target, shapes, lambda node: kept.get(node.name))
    if not placement.nodes:
        _report_float(model, placement, kept, context, log)
        return None
    start = time.perf_counter()
    findings = PassLog()
    names = {v.name for v in model.graph.inputs} & placement.values.keys()
    observed = _observe(model, placement, settings, context, findings)
    observed = replace(observed, inputs=_some_inputs(context, names))
    chosen = _choose(model, placement, formats, observed, settings, context.target)
    notes = tuple(findings.notes)
    first = QuantizationPlan(model, formats, placement, chosen, shapes, observed, kept, settings.rule, notes)
    if settings.edges == "auto":
        found = _edges(model, placement, chosen, shapes)
        first = replan(first, settings, context, kept=found) if found else first
    if settings.rule.weighs_outputs and first.placement.values:
        first = _tried(first, settings, context, log)
    for note in first.notes:
        log.note(note)
    return replace(first, seconds=time.perf_counter() - start)


def _tried(found: QuantizationPlan, settings: Settings, context: Context, log: PassLog) -> QuantizationPlan:
    """Return `found`, with the ranges of least error of the values themselves where those turn out much better."""
    rule = HistogramRange("mse")
    other = _choose(
        found.model,
        found.placement,
        found.formats,
        found.observed,
        replace(settings, rule=rule),
        context.target,
    )
    chosen, first, second = tried_out(found.model, found.chosen, other, context, set(found.placement.nodes))
    if chosen is other:
        log.note(
            f"ranges by output sensitivity leave {first:.1f} dB, by the error of the values alone {second:.1f} dB "
            "(chosen)"
        )
        return replace(found, chosen=other, rule=rule)
    return found


def replan(
    found: QuantizationPlan,
    settings: Settings,
    context: Context,
    *,
    kept: Mapping[str, str] | None = None,
    formats: Formats | None = None,
) -> QuantizationPlan:
    """Return the plan `found` with more nodes `kept` in float, by name with the reason, and with other `formats`."""
    everything = {**found.kept, **(kept or {})}
    placement = place(found.model, context.target, found.shapes, lambda node: everything.get(node.name))
    formats = formats or found.formats
    observed, notes = found.observed, found.notes
    unseen = placement.values.keys() - observed.seen.keys() - settings.given.keys()
    if unseen:
        # What floats now make at the border was inside before.
        findings = PassLog()
        more = _observe(found.model, placement, settings, context, findings)
        observed = replace(
            observed,
            seen={**more.seen, **observed.seen},
            sensitivity={**more.sensitivity, **observed.sensitivity},
        )
        notes = tuple(dict.fromkeys([*notes, *findings.notes]))
    settings = replace(settings, rule=found.rule)
    chosen = _choose(found.model, placement, formats, observed, settings, context.target)
    return replace(
        found,
        formats=formats,
        placement=placement,
        chosen=chosen,
        observed=observed,
        kept=everything,
        notes=notes,
    )


def apply_plan(found: QuantizationPlan, settings: Settings, context: Context, log: PassLog) -> Model:
    """Return the model of `found` with its weights rounded and its pairs inserted; what was applied is in `log`."""
    model, errors = round_weights(found, settings, context, log)
    _report(found, errors, log)
    _report_float(found.model, found.placement, found.kept, context, log)
    store_tables(model, tables(model, context.target, found.kept), found.formats.weights, log)
    return model


def _observe(
    model: Model, placement: Placement, settings: Settings, context: Context, log: PassLog
) -> Observed:
    """Return histograms of the values to be stored, and the output sensitivity to them where the rule asks for it."""
    samples = context.samples
    names = [name for name in placement.values if name not in settings.given]
    if not names:
        return Observed()
    total, shapes = len(samples), context.shapes(model)
    seen = observe_values(
        model,
        names,
        samples,
        shapes,
        **context.runtime,
        progress=lambda done: context.progress("observing values", done, total),
    ).histograms
    if not settings.rule.weighs_outputs:
        return Observed(seen)
    return Observed(seen, value_sensitivity(model, names, seen, context, shapes, log))


def _choose(
    model: Model,
    placement: Placement,
    formats: Formats,
    observed: Observed,
    settings: Settings,
    target: Target,
) -> Chosen:
    chosen = choose_ranges(placement, formats, observed, settings.rule, settings.given)
    if not settings.rule.weighs_outputs or not settings.tied:
        return chosen
    return tie_additions(model, placement, formats, observed.sensitivity, chosen, target)


def _some_inputs(context: Context, names: Collection[str]) -> dict[str, Array]:
    """Return a few samples of the graph inputs `names`."""
    held: dict[str, list[Array]] = {name: [] for name in names}
    for feed in context.samples.take(TRIED_INPUTS).batches(1):
        for name in names:
            held[name].append(feed[name].reshape(-1))
    return {name: np.concatenate(parts) for name, parts in held.items() if parts}


def _edges(model: Model, placement: Placement, chosen: Chosen, shapes: Shapes) -> dict[str, str]:
    """Return the first layers that stay float, each with the reason."""
    total = sum(chosen.costs.values())
    whole = sum(node_macs(node, shapes) for node in model.graph.nodes)
    found: dict[str, str] = {}
    for value in model.graph.inputs:
        share = chosen.costs.get(placement.values.get(value.name, ""), 0.0) / max(total, 1e-300)
        readers = [node for node in value.consumers if node.name in placement.nodes]
        macs = sum(node_macs(node, shapes) for node in readers) / max(1, whole)
        made = sum(math.prod(shapes.get(node.output.name, ())) for node in readers)
        wide = made > EDGE_WIDENS * math.prod(shapes.get(value.name, (1,)))
        plain = any(linear_node(node) is None for node in readers)
        if share < EDGE_COST or macs > EDGE_MACS or wide or plain:
            continue
        for node in readers:
            found[node.name] = (
                f"storing {value.name!r} as integers would make {share:.0%} of all error, and the node does "
                f"{macs:.1%} of the multiply-accumulates; edges=integers quantizes it"
            )
    return found


def _report_float(
    model: Model, placement: Placement, kept: Mapping[str, str], context: Context, log: PassLog
) -> None:
    stored = {node.name for node in tables(model, context.target, kept)} if placement.nodes else set()
    reported = {*placement.nodes, *placement.reasons, *stored}
    found = stored_floats(model, context.target, kept, reported)
    for name, reason in {**placement.reasons, **found}.items():
        log.skip(name, f"it stays float: {reason}")


def _report(found: QuantizationPlan, errors: Mapping[str, float], log: PassLog) -> None:
    """Record what became of each node and value."""
    placement, chosen = found.placement, found.chosen
    nodes = {node.name: node for node in found.model.graph.nodes}
    costs = chosen.costs
    for site in placement.weights:
        details: dict[str, Any] = {"op": nodes[site.node].op, "weight": found.formats.weights.dtype}
        if site.node in errors:
            details["missed"] = round(errors[site.node], 6)
        log.change(site.node, f"{nodes[site.node].op} in integers", **details)
    read = Counter(nodes[site.node].inputs[site.index].name for site in placement.weights)
    shared = [name for name, count in read.items() if count > 1]
    if shared:
        log.note(
            f"weights that several nodes share ({', '.join(shared[:3])}) are stored once for each, "
            "rounded for what it reads"
        )
    weighted = {site.node for site in placement.weights}
    others = [name for name in placement.nodes if name not in weighted]
    ranges = {name: [low, high] for name, (low, high) in chosen.ranges.items()}
    expected = sum(costs.values())
    log.change(
        "graph",
        f"{len(placement.values)} values stored in integers, with {len(set(placement.values.values()))} scales",
        nodes=others,
        ranges=ranges,
        sensitivity={name: float(f"{cost:.4g}") for name, cost in costs.items()},
        calibration_seconds=round(found.seconds, 3),
    )
    for note in found.notes:
        log.note(note)
    if chosen.tied:
        log.note(f"{chosen.tied} streams of additions have one scale, so that they round nothing")
    if 0 < expected < math.inf:
        log.note(
            f"storing values is expected to leave {-10 * math.log10(expected):.1f} dB between outputs and error"
        )
