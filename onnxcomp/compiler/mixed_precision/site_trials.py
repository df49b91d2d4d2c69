"""Trials of single places: a network of floats in which one value, one weight or one node alone is in integers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.evaluation.trials import Trial
from onnxcomp.compiler.mixed_precision.sites import Place
from onnxcomp.compiler.quantization.plan import QuantizationPlan
from onnxcomp.compiler.quantization.qdq import quantize_values
from onnxcomp.compiler.quantization.weight_rounding import weight_affine
from onnxcomp.ir.graph import Constant, Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.affine import Affine

__all__ = ["node_trial", "place_trial"]


def place_trial(found: QuantizationPlan, place: Place) -> Trial:
    """Return the trial of the model of a plan with nothing but `place` in integers.

    Weights are rounded to the nearest: what propagated errors and biases make good is not known before the others are
    rounded.
    """
    if place.kind == "weight":
        return Trial(place.name, partial(_with_weight, found, place.name))
    affines = {name: found.chosen.affines[name] for name in place.values}
    return Trial(_first_user(found.model, affines), partial(_with_values, found, affines))


def node_trial(found: QuantizationPlan, node: Node) -> Trial:
    """Return the trial of the model of a plan with nothing but `node` in integers: what it reads, and its weight."""
    return Trial(node.name, partial(_with_node, found, node.name))


def _first_user(model: Model, affines: Mapping[str, Affine]) -> str | None:
    """Return the first node that makes one of the values, or reads one that is a graph input."""
    for node in model.graph.nodes:
        inputs = [v.name for v in node.inputs if isinstance(v, Variable) and v.producer is None]
        if any(name in affines for name in (*inputs, *(v.name for v in node.outputs))):
            return node.name
    return None


def _with_values(found: QuantizationPlan, affines: Mapping[str, Affine]) -> Model:
    result = found.model.clone()
    quantize_values(result, affines, set(found.placement.nodes))
    return result


def _with_weight(found: QuantizationPlan, name: str) -> Model:
    result = found.model.clone()
    _round(found, result, next(node for node in result.graph.nodes if node.name == name))
    return result


def _round(found: QuantizationPlan, model: Model, node: Node) -> None:
    """Round the stored weight of `node` of `model`, in place."""
    linear = linear_node(node)
    assert linear is not None, f"{node.name} has no stored weight"
    matrix = linear.matrix()
    even = np.zeros((len(matrix), matrix.shape[2]))
    affine = weight_affine(matrix, even, found.formats.weights, found.formats.per_channel)
    rounded = affine.round_trip(matrix.reshape(-1, matrix.shape[2]), 0)
    linear.install(model, rounded.reshape(matrix.shape).astype(np.float64), None, "rounded")


def _with_node(found: QuantizationPlan, name: str) -> Model:
    """Return a clone of the model in which `name` reads stored values; other readers of them go on with floats."""
    model = found.model.clone()
    graph = model.graph
    node = next(node for node in graph.nodes if node.name == name)
    linear = linear_node(node)
    if any(site.node == name for site in found.placement.weights):
        _round(found, model, node)
    for index, value in enumerate(list(node.inputs)):
        affine = found.chosen.affines.get(value.name)
        if affine is None or isinstance(value, Constant) or (linear is not None and index != linear.data):
            continue
        parameters = [
            graph.add_constant(graph.fresh_name(f"{value.name}__scale"), affine.scale),
            graph.add_constant(graph.fresh_name(f"{value.name}__zero"), affine.zero),
        ]
        stored = Variable(graph.fresh_name(f"{value.name}__q"), np.dtype(affine.grid.dtype), value.shape)
        real = Variable(graph.fresh_name(f"{value.name}__dq"), value.dtype, value.shape)
        make = Node("QuantizeLinear", graph.fresh_name("quantize"), {}, [value, *parameters], [stored])
        back = Node("DequantizeLinear", graph.fresh_name("dequantize"), {}, [stored, *parameters], [real])
        graph.set_input(node, index, real)
        graph.insert(make, before=node)
        graph.insert(back, before=node)
    return model
