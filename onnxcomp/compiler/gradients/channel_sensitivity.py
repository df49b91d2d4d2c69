"""Output sensitivity of the channels of values: how much they vary, how large they are, and how errors count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from onnxcomp.analysis.linear import LinearNode
from onnxcomp.compiler.gradients.backward_runs import (
    BackwardBatch,
    GradientError,
    RunSettings,
    note_stops,
    open_runs,
    own_size,
)
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Array64, Shapes

__all__ = ["ChannelSensitivity", "channel_sensitivity"]


SAMPLES = 32
"""Samples that run back at most: sums over all positions of a channel need no more."""

BATCH_BYTES = 96 * 2**20
"""Aim of values and derivatives held at once."""

FALLBACK = "channels are equalized by the balance of weights instead"
"""What happens where the sensitivity of some channels is unknown."""

WORK = "output sensitivity of channels"
"""What is done, in words."""


@dataclass
class ChannelSensitivity:
    """What is known of values by name, channel by channel `[c]` (axis 1, or the last of two).

    `variance` is that of its elements, `tops` the largest magnitude, `sensitivity` what squared errors of all elements of
    the channel do to the outputs, as a share of the energy of these.
    """

    variance: dict[str, Array64] = field(default_factory=dict)
    tops: dict[str, Array64] = field(default_factory=dict)
    sensitivity: dict[str, Array64] = field(default_factory=dict)


def channel_sensitivity(
    model: Model, linears: Sequence[LinearNode], shapes: Shapes, context: Context, log: PassLog
) -> ChannelSensitivity | None:
    """Return what is known of inputs and outputs of `linears`; None where it is not known of all, with a note in `log`."""
    names = list(dict.fromkeys(name for linear in linears for name in (linear.input, linear.output)))
    settings = RunSettings(
        own_size, lambda held: SAMPLES, BATCH_BYTES, batch=16, least=1, unsaturated=False, what=WORK
    )
    sums: dict[str, Array64] = {}
    known = ChannelSensitivity()
    done = 0
    try:
        runs = open_runs(model, names, shapes, context, settings)
        note_stops(runs.back, FALLBACK, log)
        if set(runs.values) != set(names):
            missing = [name for name in names if name not in (*runs.values, *runs.back.blocked)]
            if missing:
                log.note(f"no output depends on {missing[0]!r} by a gradient; {FALLBACK}")
            return None
        for count, _ in runs.run(partial(_add_all, known, sums, names)):
            done += count
    except GradientError as problem:
        log.note(f"output sensitivity of channels is unknown ({problem}): {FALLBACK}")
        return None
    for name, moments in sums.items():
        mean, square = moments[1] / moments[0], moments[2] / moments[0]
        known.variance[name] = np.maximum(square - np.square(mean), 0)
        known.sensitivity[name] = known.sensitivity[name] / max(1, done)
    return known


def _add_all(
    known: ChannelSensitivity, sums: dict[str, Array64], names: Sequence[str], batch: BackwardBatch
) -> None:
    for number, name in enumerate(names):
        _add(known, sums, name, batch.value(number), batch.gradient(number))


def _add(known: ChannelSensitivity, sums: dict[str, Array64], name: str, value: Array, grad: Array) -> None:
    """Take in a batch of one value `[n, c, ...]` and its derivatives."""
    axes = tuple(axis for axis in range(value.ndim) if axis != 1)
    count = np.full(value.shape[1], value.size / value.shape[1])
    moments = np.stack(
        [count, value.sum(axes, dtype=np.float64), np.square(value, dtype=np.float64).sum(axes)]
    )
    squares = np.square(grad, dtype=np.float64).sum(axes)
    top = np.abs(value).max(axes).astype(np.float64)
    if name in sums:
        sums[name] += moments
        known.sensitivity[name] += squares
        known.tops[name] = np.maximum(known.tops[name], top)
    else:
        sums[name], known.sensitivity[name], known.tops[name] = moments, squares, top
