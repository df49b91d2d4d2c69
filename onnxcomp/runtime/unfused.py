"""Why onnxruntime leaves a node float that stands between DequantizeLinear and QuantizeLinear: read from the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.ir.ops import INTEGER_KERNELS, KEEPS_SCALE, LINEAR
from onnxcomp.ir.skim import SkimNode, SkimValue

__all__ = ["is_float", "is_narrow", "why_unfused"]

_BOUNDED = ("Clip", "Relu")
"""Activations that vanish where the numbers behind them cannot say anything else."""


def is_narrow(dtype: np.dtype[Any] | None) -> bool:
    """Return whether `dtype` is one that quantized numbers have: integers of 16 bits or less."""
    return dtype is not None and ("int" in dtype.name) and dtype.itemsize <= 2


def is_float(dtype: np.dtype[Any] | None) -> bool:
    """Return whether `dtype` is a floating-point type of any width."""
    return dtype is not None and "float" in dtype.name


def why_unfused(node: SkimNode) -> str:
    """Return one short reason why `node` of a quantized model stays float in onnxruntime, "" where it cannot be told."""
    if node.op not in INTEGER_KERNELS or node.domain:
        return f"onnxruntime has no integer kernel for {node.op}"
    if node.op == "Resize" and node.attrs.get("mode", "nearest") != "nearest":
        return f"Resize runs on integers with mode nearest only, not {node.attrs['mode']}"
    before = _dequantizers(node)
    return _objection_before(node, before) or _objection_behind(node, before)


def _dequantizers(node: SkimNode) -> list[SkimNode | None]:
    """Return the DequantizeLinear in front of each float input that counts, None where there is another thing."""
    values = (
        node.inputs[:1] if node.op in KEEPS_SCALE else node.inputs[:2] if node.op in LINEAR else node.inputs
    )
    floats = [v for v in values if v is not None and is_float(v.dtype)]
    return [
        v.producer if v.producer is not None and v.producer.op == "DequantizeLinear" else None for v in floats
    ]


def _objection_before(node: SkimNode, before: list[SkimNode | None]) -> str:
    floats = [v for v in node.inputs if v is not None and is_float(v.dtype)]
    for value, dequantizer in zip(floats, before, strict=False):
        if dequantizer is None:
            what = "constant" if value.stored else "input"
            return f"its {what} {value.name} is not quantized"
    types = [t for d in before if d is not None and (t := _type(d)) is not None]
    if any(t.itemsize == 2 for t in types):
        return "16-bit activations"
    first = before[0] if before else None
    if first is not None and not _is_scalar(first.input(1)):
        return "its input has a scale per channel; activations have one scale"
    return ""


def _objection_behind(node: SkimNode, before: list[SkimNode | None]) -> str:
    made, activation = node.outputs[0], None
    if len(made.readers) == 1 and made.readers[0].op in _BOUNDED and not made.leaves:
        activation = made.readers[0]
        made = activation.outputs[0]
    quantizers = [r for r in made.readers if r.op == "QuantizeLinear"]
    readers = len(made.readers) + made.leaves
    if not quantizers:
        if node.op == "MatMul" and any(r.op == "Add" for r in made.readers):
            return (
                "no QuantizeLinear behind it, and the Add behind it makes both a float Gemm; make it a Gemm"
            )
        return "no QuantizeLinear behind it" + (f" and its {activation.op}" if activation is not None else "")
    if readers > 1:
        others = "the output of the graph" if made.leaves else "other nodes"
        return f"its output is read by {others} beside QuantizeLinear"
    behind = quantizers[0]
    kind = behind.outputs[0].dtype
    if kind is not None and kind.itemsize == 2:
        return "16-bit activations"
    if activation is not None and (reason := _out_of_bounds(activation, behind)):
        return reason
    first = before[0] if before else None
    if first is None:
        return ""
    if node.op in KEEPS_SCALE and not _same_scale(first, behind):
        return f"scale or zero point change across it; {node.op} needs the same on both sides"
    return ""


def _type(node: SkimNode) -> np.dtype[Any] | None:
    value = node.input(0)
    return value.dtype if value is not None else None


def _is_scalar(value: SkimValue | None) -> bool:
    return value is None or value.array is None or value.array.size == 1


def _same_scale(first: SkimNode, second: SkimNode) -> bool:
    return all(_same(first.input(place), second.input(place)) for place in (1, 2))


def _same(a: SkimValue | None, b: SkimValue | None) -> bool:
    if a is b:
        return True
    mine, its = (np.zeros(1) if v is None else v.array for v in (a, b))
    return mine is not None and its is not None and np.array_equal(mine.ravel(), its.ravel())


def _out_of_bounds(activation: SkimNode, behind: SkimNode) -> str:
    """Return what to say where the numbers that `behind` makes reach beyond what `activation` lets through."""
    scale, zero = (_number(behind.input(place)) for place in (1, 2))
    kind = behind.outputs[0].dtype
    if scale is None or kind is None or kind not in (np.int8, np.uint8):
        return ""
    limits = np.iinfo(kind)
    low, high = ((edge - (zero or 0)) * scale for edge in (int(limits.min), int(limits.max)))
    least, most = _bounds(activation)
    # A step of float rounding is no reach.
    slack = 1e-6 * (high - low)
    if low < least - slack:
        return f"the range behind its {activation.op} begins at {low:.4g}, below {least:.4g}"
    if high > most + slack:
        return f"the range behind its {activation.op} ends at {high:.4g}, above {most:.4g}"
    return ""


def _bounds(activation: SkimNode) -> tuple[float, float]:
    if activation.op == "Relu":
        return 0.0, float("inf")
    least, most = (_number(activation.input(place)) for place in (1, 2))
    return (float("-inf") if least is None else least), (float("inf") if most is None else most)


def _number(value: SkimValue | None) -> float | None:
    """Return the only element of a stored `value`, None where it has another number of them or is not stored."""
    array = None if value is None else value.array
    return None if array is None or array.size != 1 else float(np.ravel(array)[0])
