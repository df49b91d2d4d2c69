"""What the channels of values do to the outputs of a network: how much they vary, how large they are, and how errors count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.analysis.linear import LinearNode
from onnxcomp.compiler.gradients.reverse import PREFIX, Backward, backward
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Array64, Shapes
from onnxcomp.runtime.inputs import PIECE_LIMIT
from onnxcomp.runtime.session import SessionError

__all__ = ["Known", "gather"]


SAMPLES = 32
"""Samples that run back at most: sums over all positions of a channel need no more."""

BATCH_BYTES = 96 * 2**20
"""Aim of values and derivatives held at once."""


@dataclass
class Known:
    """What is known of values by name, channel by channel `[c]` (axis 1, or the last of two).

    `varies` is the variance, `tops` the largest magnitude, `felt` what squared errors of all elements of the channel do to
    the outputs, as a share of the energy of these.
    """

    varies: dict[str, Array64] = field(default_factory=dict)
    tops: dict[str, Array64] = field(default_factory=dict)
    felt: dict[str, Array64] = field(default_factory=dict)


def gather(model: Model, linears: Sequence[LinearNode], shapes: Shapes, context: Context) -> Known | None:
    """Return what is known of inputs and outputs of `linears`, None where anything of it is not."""
    samples = context.calibration
    outputs = [v.name for v in model.graph.outputs if v.name in shapes and v.dtype == np.float32]
    if samples is None or not outputs or model.weight_bytes > PIECE_LIMIT:
        return None
    names = list(dict.fromkeys(name for linear in linears for name in (linear.input, linear.output)))
    back = backward(model, names, outputs, shapes)
    if set(back.values) != set(names):
        return None
    held = sum(8 * math.prod(shapes.get(name, (1,))) for name in names)
    batch = int(max(1, min(16, BATCH_BYTES // max(1, held))))
    try:
        return _run(model, back, outputs, batch, context)
    except SessionError:
        # A graph that cannot run back (a fixed size, an operator at an odd version) is one of which nothing is known.
        return None


def _run(model: Model, back: Backward, outputs: Sequence[str], batch: int, context: Context) -> Known:
    plain = context.session(model)
    session = context.session(back.model)
    sums: dict[str, Array64] = {}
    known = Known()
    done, total = 0, min(SAMPLES, len(context.samples))
    for feed in context.samples.take(SAMPLES).batches(batch):
        found = plain.run(feed, outputs)
        seeds = {
            f"{PREFIX}seed.{k}": _direction(context.seed, done, k, found[name])
            for k, name in enumerate(outputs)
        }
        got = session.run({**feed, **seeds})
        for number, name in enumerate(back.values):
            _add(known, sums, name, got[f"{PREFIX}value.{number}"], got[f"{PREFIX}grad.{number}"])
        done += len(next(iter(feed.values())))
        context.progress("effects of channels", done, total)
    for name, moments in sums.items():
        mean, square = moments[1] / moments[0], moments[2] / moments[0]
        known.varies[name] = np.maximum(square - np.square(mean), 0)
        known.felt[name] = known.felt[name] / max(1, done)
    return known


def _direction(seed: int, first: int, output: int, values: Array) -> Array:
    """Return random numbers in the shape of `values`, in units of the size of each sample's."""
    rows = []
    for number, row in enumerate(values):
        size = max(float(np.linalg.norm(row.astype(np.float64))), 1e-30)
        draw = np.random.default_rng([seed, first + number, output])
        rows.append(draw.standard_normal(row.shape, np.float32) / np.float32(size))
    return np.array(rows, np.float32).reshape(values.shape)


def _add(known: Known, sums: dict[str, Array64], name: str, value: Array, grad: Array) -> None:
    """Take in a batch of one value `[n, c, ...]` and its derivatives."""
    axes = tuple(axis for axis in range(value.ndim) if axis != 1)
    count = np.full(value.shape[1], value.size / value.shape[1])
    moments = np.stack(
        [count, value.sum(axes, dtype=np.float64), np.square(value, dtype=np.float64).sum(axes)]
    )
    felt = np.square(grad, dtype=np.float64).sum(axes)
    top = np.abs(value).max(axes).astype(np.float64)
    if name in sums:
        sums[name] += moments
        known.felt[name] += felt
        known.tops[name] = np.maximum(known.tops[name], top)
    else:
        sums[name], known.felt[name], known.tops[name] = moments, felt, top
