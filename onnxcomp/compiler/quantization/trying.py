"""Ranges tried out: what is expected of them is the first order of what happens, and not every network keeps to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.quantization.qdq import quantize_values
from onnxcomp.compiler.quantization.ranges import Chosen
from onnxcomp.ir.model import Model
from onnxcomp.numerics.affine import Affine
from onnxcomp.numerics.arrays import Array
from onnxcomp.runtime.session import Session, SessionError

__all__ = ["MARGIN_DB", "TRIED", "tried_out"]


TRIED = 4
"""Samples on which ranges are tried: enough to see that something is badly wrong."""

MARGIN_DB = 1.0
"""Decibels by which other ranges must be better to be taken instead."""


def tried_out(
    model: Model, first: Chosen, second: Chosen, context: Context, integers: Collection[str] | None = None
) -> tuple[Chosen, float, float]:
    """Return the better of two choices of ranges, and the decibels of both on a few samples.

    The values are stored as chosen for the nodes named in `integers` (None: all), and weights stay float. `second` must be better by `MARGIN_DB`. The decibels are those of the
    worst output; both are infinite where the model does not run so.
    """
    try:
        wanted = _outputs(model, {}, integers, context)
        reached = [
            _decibels(wanted, _outputs(model, each.affines, integers, context)) for each in (first, second)
        ]
    except SessionError:
        return first, math.inf, math.inf
    return (second if reached[1] > reached[0] + MARGIN_DB else first), reached[0], reached[1]


def _outputs(
    model: Model, affines: Mapping[str, Affine], integers: Collection[str] | None, context: Context
) -> list[dict[str, Array]]:
    """Return what `model` gives on the last samples when its values are stored with `affines`."""
    samples = context.calibration
    assert samples is not None
    stored = model.clone()
    quantize_values(stored, affines, integers)
    # As written: optimised, a graph with some float and some stored values need not be what it says.
    session = Session(stored, optimize=False, threads=context.threads, custom_op_libs=context.custom_op_libs)
    return [session.run(feed) for feed in samples.after(max(0, len(samples) - TRIED)).batches(1)]


def _decibels(wanted: list[dict[str, Array]], found: list[dict[str, Array]]) -> float:
    """Return 10 log10 of signal over error of the worst float output."""
    worst = math.inf
    for name, value in wanted[0].items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        pairs = [
            (a[name].astype(np.float64), b[name].astype(np.float64))
            for a, b in zip(wanted, found, strict=True)
        ]
        signal = sum(float(np.square(a).sum()) for a, _ in pairs)
        error = sum(float(np.square(a - b).sum()) for a, b in pairs if a.shape == b.shape)
        if error > 0 and signal > 0:
            worst = min(worst, 10 * math.log10(signal / error))
    return worst
