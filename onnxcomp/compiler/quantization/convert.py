"""The step from a placement and its scales to a model of integers: pairs in, weights rounded on the walk, all stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.placement import Placement
from onnxcomp.compiler.quantization.plan import QuantizationPlan, Settings
from onnxcomp.compiler.quantization.qdq import Stored, quantize_values, store_constant
from onnxcomp.compiler.quantization.weight_rounding import Rounder, plain_weight
from onnxcomp.compiler.repair.refit import Site, too_wide
from onnxcomp.compiler.repair.walk import Walk, WalkSettings
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.numerics.affine import Affine, Grid, range_affine
from onnxcomp.numerics.arrays import Array64

__all__ = ["round_weights"]


POSITIONS = 64
"""Positions of each sample that rounding takes in: it needs the correlations of inputs, not their last digit."""

WALKED_BYTES = 1 << 30
"""Aim of all stored values of the samples that rounding walks over: more samples change nothing that can be measured
(EfficientNet-Lite0: 26.4 dB with 100, 26.2 with 40; ResNet-56: 31.8 with 300, 31.7 with 64)."""

LEAST_WALKED = 32
"""Samples that rounding walks over at least, where there are as many."""

MOST_BIAS = 2.0**29
"""Largest stored bias that is planned for, a quarter of what int32 holds: correction of the mean still moves it."""


def round_weights(
    plan: QuantizationPlan, settings: Settings, context: Context, log: PassLog
) -> tuple[Model, dict[str, float]]:
    """Return the model of `plan` in integers, and what each rounded node misses of its output, as a share of the variance.

    The model computes what it did, but the factors of its Gemms are put into their weights and biases.
    """
    model, placement, formats, affines = plan.model, plan.placement, plan.formats, plan.chosen.affines
    _settle_factors(model)
    result = model.clone()
    outputs = context.target.outputs_quantized
    quantize_values(result, affines, set(placement.nodes), outputs=outputs)
    nodes = {node.name: node for node in result.graph.nodes}
    for name, index in placement.constants:
        _store_uniform(result, nodes[name], index, formats.activations)
    floors = {site.node: _least_scales(model, site.node, affines) for site in placement.weights}
    grids = {site.node: formats.weights for site in placement.weights}
    rounder = Rounder(
        grids,
        dict.fromkeys(grids, formats.per_channel),
        floors,
        rounding=settings.rounding,
        correct=settings.correct,
    )
    errors: dict[str, float] = {}
    if rounder.walks:
        errors = _walked(plan, result, rounder, context, log)
    for site in placement.weights:
        linear = _linear(nodes[site.node])
        stored = rounder.stored.get(site.node) or plain_weight(
            linear, formats.weights, formats.per_channel, floors[site.node]
        )
        # onnxruntime fuses a Gemm whose output stays float only where its bias is an integer, too.
        final = linear.layout == "gemm" and linear.node.output.name not in placement.values
        if formats.bias == "int32" or final:
            _store_bias(result, linear, stored.affine, affines[_input_of(model, site.node)], log)
        store_constant(result, linear.node, site.index, stored)
    return result, errors


def _walked(
    plan: QuantizationPlan, result: Model, rounder: Rounder, context: Context, log: PassLog
) -> dict[str, float]:
    """Round the weights of `result` by `rounder` on the walk; return what each node misses of its output."""
    affines = plan.chosen.affines
    nodes = {node.name: node for node in result.graph.nodes}
    sites = [
        Site(site.node, np.arange(site.count))
        for site in plan.placement.weights
        if _can_be_walked(nodes[site.node], log)
    ]
    # Of a branch with both signs, a range may cut off what a Relu behind the addition cuts off anyway: that is no
    # loss to make up for.
    how = WalkSettings(
        rounds=0,
        positions=POSITIONS,
        corrects=lambda name: name not in affines or affines[name].bounds()[0] >= 0,
    )
    walk = Walk(plan.model, result, _fewer(context, plan.placement, plan.shapes), how)
    found = walk.visit(sites, rounder, "rounding weights")
    return {site.name: missed for site, missed in found}


def _fewer(context: Context, placement: Placement, shapes: Mapping[str, tuple[int, ...]]) -> Context:
    """Return `context` with as many samples as rounding needs."""
    samples = context.samples
    each = sum(4 * math.prod(shapes.get(name, (1,))) for name in placement.values)
    wanted = max(LEAST_WALKED, WALKED_BYTES // max(1, each))
    return replace(context, calibration=samples.take(wanted))


def _linear(node: Node) -> LinearNode:
    found = linear_node(node)
    assert found is not None, f"{node.name} has no stored weight"
    return found


def _input_of(model: Model, name: str) -> str:
    return _linear(next(node for node in model.graph.nodes if node.name == name)).input


def _can_be_walked(node: Node, log: PassLog) -> bool:
    reason = too_wide(_linear(node))
    if reason is not None:
        log.note(f"{node.name}: {reason}; its weights are rounded to the nearest")
    return reason is None


def _settle_factors(model: Model) -> None:
    """Put the factors of Gemm into its weight and bias, which are about to be stored without them."""
    for node in model.graph.nodes:
        linear = linear_node(node)
        if linear is None or linear.layout != "gemm":
            continue
        if float(node.attrs.get("alpha", 1.0)) != 1.0 or float(node.attrs.get("beta", 1.0)) != 1.0:
            bias = linear.bias() if node.input(2) is not None else None
            linear.install(model, linear.matrix(), bias, "scaled")
            node.attrs.pop("beta", None)


def _store_uniform(model: Model, node: Node, index: int, grid: Grid) -> None:
    """Store an operand that is the same number everywhere: its grid reaches exactly there."""
    values = node.constant(index)
    assert values is not None
    number = float(values.reshape(-1)[0])
    affine = range_affine(min(number, 0.0), max(number, 0.0), grid)
    store_constant(model, node, index, Stored(affine.quantize(values.astype(np.float32)), affine))


def _least_scales(model: Model, name: str, affines: Mapping[str, Affine]) -> Array64:
    """Return the least scale of each output channel at which the bias still fits into 32 bits, `[o]`."""
    linear = _linear(next(node for node in model.graph.nodes if node.name == name))
    step = float(affines[linear.input].scale)
    return np.abs(linear.bias()) / (MOST_BIAS * step)


def _store_bias(model: Model, linear: LinearNode, weight: Affine, data: Affine, log: PassLog) -> None:
    """Store the bias of a node as int32, on the grid of its products."""
    node = linear.node
    bias = node.constant(2) if linear.has_bias else None
    if bias is None:
        return
    values = linear.bias()
    scale = np.broadcast_to(weight.scale.astype(np.float64) * float(data.scale), values.shape).astype(
        np.float32
    )
    steps = np.rint(values / scale.astype(np.float64))
    if np.abs(steps).max(initial=0) >= 2.0**31:
        log.note(f"{node.name}: its bias does not fit into 32 bits and stays float")
        return
    grid = Grid("int32", symmetric=True)
    if weight.scale.ndim == 0:
        affine = Affine(scale.reshape(-1)[0], np.array(0, np.int32), grid)
    else:
        affine = Affine(scale, np.zeros(scale.shape, np.int32), grid)
    store_constant(model, node, 2, Stored(steps.astype(np.int32).reshape(bias.shape), affine))
