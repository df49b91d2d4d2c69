"""Rules about the pairs of a quantized file: what a target would object to in their numbers and their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from onnxcomp.compiler.target.facts import INTEGERS, Format, Target
from onnxcomp.compiler.target.qdq_view import (
    Parameters,
    dequantizer,
    parameters,
    quantizers,
    stored_inputs,
    stored_values,
)
from onnxcomp.ir.graph import Array, Constant, Graph, Node, Value
from onnxcomp.ir.ops import LINEAR

__all__ = ["PAIR_RULES", "Found"]

Found: TypeAlias = Iterator[tuple[str, str, str]]
"""What a rule yields: where, what, advice."""


# --- numbers of pairs ------------------------------------------------------------------------------------------------
def _grids(graph: Graph) -> Iterator[Node]:
    """Yield a node for every pair and every stored tensor: the DQ node, or the Q node that has none."""
    for node in graph.nodes:
        read = node.output.consumers if node.op == "QuantizeLinear" else []
        if node.op == "DequantizeLinear" or (read and all(r.op != "DequantizeLinear" for r in read)):
            yield node


def _weights(graph: Graph, target: Target) -> Found:
    wanted = target.weights
    for stored in stored_inputs(graph):
        found = parameters(stored.dequantizer)
        if stored.axis is None or found is None or found.blocked:
            continue
        where = stored.node.name
        yield from _format(where, "weight", found, wanted)
        if found.per_channel and not wanted.per_channel:
            yield where, "the weight has a scale per channel", "quantize with granularity per-tensor"
        elif found.per_channel and found.axis % stored.values.ndim != stored.axis:
            what = f"the weight's scales lie along axis {found.axis}, its output channels along {stored.axis}"
            yield where, what, f"quantize along axis {stored.axis}"
        if stored.values.dtype.kind in "iu" and found.dtype == wanted.dtype:
            yield from _outside(where, stored.values, wanted)


def _outside(where: str, values: Array, wanted: Format) -> Found:
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    if least < wanted.low or most > wanted.high:
        what = f"the weight holds {least} to {most}, wanted is {wanted.low} to {wanted.high}"
        yield where, what, "quantize again for this target"


def _coarse_weights(graph: Graph, target: Target) -> Found:
    if not target.weights.per_channel:
        return
    for stored in stored_inputs(graph):
        found = parameters(stored.dequantizer)
        if stored.axis is None or found is None or found.per_channel or found.blocked:
            continue
        if stored.values.shape[stored.axis] > 1:
            what = "the weight has one scale for all channels, the target takes one per channel"
            yield stored.node.name, what, "quantize with granularity per-channel"


def _activations(graph: Graph, target: Target) -> Found:
    for node in quantizers(graph):
        found = parameters(node)
        if found is None:
            yield node.name, "scale and zero point are computed at run time", "quantize statically"
        elif found.per_channel:
            yield node.name, "an activation has several scales", "quantize activations per tensor"
        else:
            yield from _format(node.name, "activation", found, target.activations)


def _second_choice(graph: Graph, target: Target) -> Found:
    wanted = target.activations
    for node in quantizers(graph):
        found = parameters(node)
        if found is not None and found.dtype != wanted.dtype and found.dtype in wanted.accepts:
            what = f"the activation is {found.dtype}; {wanted.dtype} is the better choice here"
            yield node.name, what, f"quantize activations as {wanted.dtype}"


def _format(where: str, kind: str, found: Parameters, wanted: Format) -> Found:
    """Yield what is wrong with type and symmetry; a type that is taken but not the first choice is another rule's."""
    if found.dtype not in wanted.accepts:
        what = f"the {kind} is {found.dtype}, taken is {' or '.join(wanted.accepts)}"
        yield where, what, f"quantize {kind}s as {wanted.dtype}"
    elif wanted.symmetric and not found.symmetric:
        what = f"the {kind}'s zero point is {_numbers(found.zero)}, wanted is a symmetric grid"
        yield where, what, f"quantize {kind}s symmetrically"


def _zero_points(graph: Graph, target: Target) -> Found:
    if target.zero_point == "any":
        return
    for node in _grids(graph):
        found = parameters(node)
        if found is not None and found.zero.any():
            what = f"the zero point is {_numbers(found.zero)}, only 0 is taken"
            yield node.name, what, "quantize symmetrically as int8"


def _positive_scales(graph: Graph, _: Target) -> Found:
    for node in _grids(graph):
        found = parameters(node)
        if found is not None and not (np.isfinite(found.scale).all() and (found.scale > 0).all()):
            yield (
                node.name,
                f"the scale is {_numbers(found.scale)}, not positive",
                "quantize this value again",
            )


def _powers_of_two(graph: Graph, target: Target) -> Found:
    if target.scale != "pow2":
        return
    for node in _grids(graph):
        found = parameters(node)
        if found is not None and not _power_of_two(found.scale):
            what = f"the scale {_numbers(found.scale)} is no power of two"
            yield node.name, what, "quantize with scale pow2"


def _power_of_two(scale: Array) -> bool:
    return bool(np.all(np.frexp(scale)[0] == 0.5))


def _numbers(values: Array) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:3])
    return shown if values.size <= 3 else f"{shown}, ..."


def _float_biases(graph: Graph, target: Target) -> Found:
    if target.bias != "int32":
        return
    for stored in stored_inputs(graph):
        node = stored.node
        if stored.index == 1 and node.input(2) is not None:
            found = _parameters_of(node, 2)
            if found is None or found.dtype != "int32":
                yield node.name, "the bias is not int32", "quantize biases as int32"


def _bias_scales(graph: Graph, _: Target) -> Found:
    for stored in stored_inputs(graph):
        node = stored.node
        found = _parameters_of(node, 2) if stored.index == 2 else None
        given, made = _parameters_of(node, 0), _parameters_of(node, 1)
        if found is None or found.dtype != "int32" or given is None or made is None:
            continue
        wanted = given.scale * made.scale
        fits = found.scale.size in (1, wanted.size) or wanted.size == 1
        if found.zero.any() or not fits or not np.allclose(found.scale, wanted, rtol=1e-3, atol=0.0):
            what = (
                "the int32 bias is not on the grid input scale x weight scale, on which integers are summed"
            )
            yield node.name, what, "quantize the bias again"


def _parameters_of(node: Node, index: int) -> Parameters | None:
    maker = dequantizer(node.input(index))
    return None if maker is None else parameters(maker)


# --- places of pairs -------------------------------------------------------------------------------------------------
def _boundary(graph: Graph, target: Target) -> Found:
    if target.outputs_quantized:
        for value in graph.outputs:
            if _is_float(value) and dequantizer(value) is None:
                yield value.name, "the output is not quantized", "quantize graph outputs, too"
    if not target.inputs_symmetric:
        return
    for value in graph.inputs:
        for node in value.consumers:
            found = parameters(node) if node.op == "QuantizeLinear" else None
            if found is not None and not found.symmetric:
                what = f"the zero point of input {value.name} is {_numbers(found.zero)}"
                yield node.name, what, "quantize graph inputs symmetrically"


def _is_float(value: Value) -> bool:
    return value.dtype is None or np.dtype(value.dtype).kind == "f"


def _all_inputs(graph: Graph, target: Target) -> Found:
    for node in graph.nodes:
        if node not in target.all_inputs:
            continue
        operands = [v for v in node.inputs if v.name]
        makers = [dequantizer(v) for v in operands]
        # A weight alone in integers is stored, not computed with.
        computed = [m for m in makers if m is not None and stored_values(m) is None]
        if computed and None in makers:
            bare = operands[makers.index(None)].name
            yield (
                node.name,
                f"one side of {node.op} is quantized, {bare} is not",
                "quantize all of its inputs",
            )


def _output_pair(graph: Graph, target: Target) -> Found:
    for node in graph.nodes:
        if node not in target.output_pair or not _reads_integers(node):
            continue
        if not _ends_in_pair(graph, node.output, target):
            what = f"no pair stands behind {node.op}, which is computed in float without one"
            yield node.name, what, "quantize its output"


def _reads_integers(node: Node) -> bool:
    makers = [dequantizer(v) for v in node.inputs if v.name]
    return any(m is not None and stored_values(m) is None for m in makers)


def _ends_in_pair(graph: Graph, value: Value, target: Target) -> bool:
    """Return whether every reader of `value` quantizes it, at once or behind an activation that melts into its maker."""
    if graph.is_output(value):
        return False
    readers = value.consumers
    if len(readers) == 1 and readers[0] in target.absorbs:
        return _ends_in_pair(graph, readers[0].output, target)
    return bool(readers) and all(r.op == "QuantizeLinear" for r in readers)


def _pair_in_front(graph: Graph, target: Target) -> Found:
    for node in graph.nodes:
        made = _product_before(node.inputs[0], target) if node in target.pair_in_front else None
        if made is not None and _reads_integers(made):
            what = f"no pair stands between {made.op} {made.name} and {node.op}, which is computed wrongly without one"
            yield node.name, what, f"quantize the output of {made.name}, or keep it in float"


def _float_in_front(graph: Graph, target: Target) -> Found:
    for node in graph.nodes:
        if node not in target.float_in_front:
            continue
        maker = dequantizer(node.inputs[0])
        source = None if maker is None else maker.inputs[0].producer
        made = _product_before(node.inputs[0] if source is None else source.inputs[0], target)
        if made is not None and _reads_integers(made) and target.must_stay_float(made, node):
            what = (
                f"{made.op} {made.name} in front of {node.op} is in integers, which makes wrong numbers of it"
            )
            yield node.name, what, f"keep {made.name} in float"


def _product_before(value: Value, target: Target) -> Node | None:
    """Return the product that makes `value`, or what it is behind an activation that melts into the product."""
    maker = value.producer
    if maker is not None and maker in target.absorbs:
        maker = maker.inputs[0].producer
    return maker if maker is not None and maker.is_op(*LINEAR) else None


def _several_inputs(graph: Graph, target: Target) -> Found:
    for node in graph.nodes:
        if node in target.several_inputs and len(node.inputs) == 1 and _reads_integers(node):
            what = f"{node.op} of a single input stands between pairs"
            yield node.name, what, f"remove the {node.op}, which does nothing"


def _one_scale(graph: Graph, target: Target) -> Found:
    for node in graph.nodes:
        if node not in target.one_scale:
            continue
        around = _around(node)
        if len(around) > 1 and not all(p.same_as(around[0]) for p in around):
            yield node.name, f"values around {node.op} have different scales", "give them one scale"


def _same_scale(graph: Graph, target: Target) -> Found:
    for node in graph.nodes:
        if node not in target.same_scale or isinstance(node.inputs[0], Constant):
            continue
        reads = dequantizer(node.inputs[0])
        given = None if reads is None else parameters(reads)
        after = [p for p in _behind(node) if given is not None and not p.same_as(given)]
        if after:
            what = f"{node.op} only moves values, yet its output has another scale than its input"
            yield node.name, what, "let the output keep its input's scale"


def _around(node: Node) -> list[Parameters]:
    makers = [dequantizer(v) for v in node.inputs]
    before = [parameters(m) for m in makers if m is not None]
    return [*(p for p in before if p is not None), *_behind(node)]


def _behind(node: Node) -> list[Parameters]:
    found = [parameters(r) for v in node.outputs for r in v.consumers if r.op == "QuantizeLinear"]
    return [p for p in found if p is not None]


def _absorbs(graph: Graph, target: Target) -> Found:
    for node in graph.nodes:
        maker = dequantizer(node.inputs[0]) if node in target.absorbs else None
        source = None if maker is None else maker.inputs[0].producer
        before = None if source is None else source.inputs[0].producer
        if before is not None and before.is_op(*LINEAR, "Add") and _behind(node):
            what = f"a pair between {before.name} and {node.op} keeps them apart"
            yield node.name, what, f"quantize only behind {node.op}"


def _below_zero(graph: Graph, target: Target) -> Found:
    if target.activations.symmetric:
        return
    for node in graph.nodes:
        if not node.is_op("Relu") or node not in target.absorbs:
            continue
        for found in _behind(node):
            lowest = INTEGERS.get(found.dtype, (0, 0))[0]
            if (found.zero != lowest).any():
                what = f"the zero point behind Relu is {_numbers(found.zero)}, so that part of the grid lies idle"
                yield node.name, what, f"let the range begin at 0: zero point {lowest}"


PAIR_RULES: tuple[tuple[str, Callable[[Graph, Target], Found], bool | None], ...] = (
    ("weights", _weights, None),
    ("weights", _coarse_weights, False),
    ("activations", _activations, None),
    ("activations", _second_choice, False),
    ("zero-point", _zero_points, None),
    ("scale", _positive_scales, True),
    ("scale", _powers_of_two, None),
    ("bias", _float_biases, None),
    ("bias", _bias_scales, True),
    ("boundary", _boundary, None),
    ("placement", _all_inputs, None),
    ("placement", _output_pair, None),
    ("placement", _one_scale, None),
    ("placement", _pair_in_front, True),
    ("placement", _float_in_front, True),
    ("placement", _several_inputs, True),
    ("operators", _same_scale, None),
    ("operators", _absorbs, None),
    ("operators", _below_zero, False),
)
"""Table, rule, and whether what it finds is hard: None where the target says, True where no toolchain computes it right."""
