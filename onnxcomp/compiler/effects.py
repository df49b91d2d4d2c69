"""How much the outputs suffer from what is done to inner values, from one run back through the network.

An error `d` of a value moves the outputs by `J d`, to the first order. For a random direction `r` of the outputs, one run
back gives `J^T r` for all values at once, and the mean of `(r . J d)^2` over directions is `|J d|^2`. As the error that
storage makes of an element depends on the element alone, sums of derivatives by the size of the elements are all that is
needed to know the effect of any range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.compiler.adjoint import PREFIX, backward
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.graph import Value
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import RESHAPING, SATURATES
from onnxcomp.ir.segment import with_outputs
from onnxcomp.numerics.observers import Effect, Histogram
from onnxcomp.runtime.data import Samples
from onnxcomp.runtime.inputs import PIECE_LIMIT
from onnxcomp.runtime.session import Session, SessionError

__all__ = ["output_effects"]

Array = NDArray[Any]
Array64 = NDArray[np.float64]
Shapes = Mapping[str, tuple[int, ...]]

BINS = 256
"""Bins of derivatives: they tell what is cut off, for which an eighth of a step is fine enough."""

SAMPLES = 128
"""Samples that run back at most. Clipping is rare, so few samples cut off too much."""

MEASURED = 16
"""Samples that tell how large the outputs usually are."""

BATCH_BYTES = 96 * 2**20
"""Aim of values and derivatives held at once."""


def output_effects(
    model: Model, names: Sequence[str], seen: Mapping[str, Histogram], context: Context, shapes: Shapes
) -> dict[str, Effect]:
    """Return the effect of each value of `names` on the float outputs of `model`; values nothing is known of are absent.

    `seen` holds the histograms of the values, `shapes` all shapes for one sample.
    """
    samples = context.calibration
    outputs = [
        name
        for v in model.graph.outputs
        if (name := _unsaturated(v)) in shapes and (v.dtype is None or np.dtype(v.dtype) == np.float32)
    ]
    if samples is None or not outputs or model.weight_bytes > PIECE_LIMIT:
        return {}
    back = backward(model, names, outputs, shapes)
    if not back.values:
        return {}
    held = sum(8 * math.prod(shapes.get(name, (1,))) for name in back.values)
    batch = int(max(1, min(32, BATCH_BYTES // max(1, held))))
    gathered = _Gathered(back.values, seen)
    try:
        plain = Session(
            with_outputs(model, outputs), threads=context.threads, custom_op_libs=context.custom_op_libs
        )
        session = Session(back.model, threads=context.threads, custom_op_libs=context.custom_op_libs)
        done = 0
        usual = _usual_sizes(plain, samples.take(MEASURED), outputs)
        for feed in samples.take(SAMPLES).batches(batch):
            found = plain.run(feed, outputs)
            seeds = {
                f"{PREFIX}seed.{k}": _direction(context.seed, done, k, found[name], usual[name])
                for k, name in enumerate(outputs)
            }
            count = len(next(iter(feed.values())))
            gathered.add(session.run({**feed, **seeds}), count)
            done += count
            context.progress("effects on the output", done, min(SAMPLES, len(samples)))
    except SessionError:
        # A graph that cannot run back (a fixed size, an operator at an odd version) is one of which nothing is known.
        return {}
    return gathered.effects()


def _unsaturated(output: Value) -> str:
    """Return the name of the value that says what `output` says before a Softmax or Sigmoid flattens it.

    Behind those the derivatives of confident answers vanish, and with them what is known of the effects.
    """
    value = output
    while value.producer is not None and value.producer.is_op(*RESHAPING, "Identity", "Transpose"):
        value = value.producer.inputs[0]
    maker = value.producer
    if maker is not None and maker.is_op(*SATURATES) and maker.inputs[0].producer is not None:
        return str(maker.inputs[0].name)
    return output.name


def _usual_sizes(session: Session, samples: Samples, outputs: Sequence[str]) -> dict[str, float]:
    """Return the root mean square over samples of the size (2-norm) of each output."""
    squares = dict.fromkeys(outputs, 0.0)
    count = 0
    for feed in samples.batches(1):
        for name, values in session.run(feed, outputs).items():
            squares[name] += float(np.square(values, dtype=np.float64).sum())
        count += 1
    return {name: math.sqrt(total / max(1, count)) for name, total in squares.items()}


def _direction(seed: int, first: int, output: int, values: Array, usual: float) -> Array:
    """Return random numbers in the shape of `values`, the same for a sample in whichever batch.

    Their unit lies halfway between the size of the sample's own output and the `usual` one: errors relative to each sample
    are what keeps classes apart, errors relative to all samples are what SQNR counts.
    """
    rows = [
        np.random.default_rng([seed, first + i, output]).standard_normal(values[i : i + 1].shape, np.float32)
        for i in range(len(values))
    ]
    axes = tuple(range(1, values.ndim))
    size = np.sqrt(np.square(values, dtype=np.float64).sum(axes, keepdims=True))
    unit = np.sqrt(np.maximum(size, 1e-3 * usual) * usual)
    direction: Array = (np.concatenate(rows) / np.maximum(unit, 1e-30)).astype(np.float32)
    return direction


class _Gathered:
    """Sums of derivatives by bins, value by value."""

    def __init__(self, names: Sequence[str], seen: Mapping[str, Histogram]) -> None:
        self.names = names
        self.edges = {name: np.linspace(*_ends(seen[name]), BINS + 1) for name in names}
        self.sums: dict[str, list[Array]] = {name: [] for name in names}
        self.squares: dict[str, Array64] = {name: np.zeros(BINS) for name in names}
        self.count = 0

    def add(self, found: Mapping[str, Array], count: int) -> None:
        """Take in the values and derivatives of `count` samples."""
        for number, name in enumerate(self.names):
            value, grad = found[f"{PREFIX}value.{number}"], found[f"{PREFIX}grad.{number}"]
            edges = self.edges[name]
            place = (value.reshape(count, -1) - np.float32(edges[0])) * np.float32(
                BINS / (edges[-1] - edges[0])
            )
            index = np.clip(place.astype(np.int32), 0, BINS - 1)
            grads = grad.reshape(count, -1)
            for row, weights in zip(index, grads, strict=True):
                self.sums[name].append(np.bincount(row, weights, BINS).astype(np.float32))
            self.squares[name] += np.bincount(index.reshape(-1), np.square(grads).reshape(-1), BINS)
        self.count += count

    def effects(self) -> dict[str, Effect]:
        """Return what was gathered."""
        return {
            name: Effect(
                self.edges[name][:-1],
                self.edges[name][1:],
                np.array(self.sums[name]),
                self.squares[name] / max(1, self.count),
            )
            for name in self.names
        }


def _ends(seen: Histogram) -> tuple[float, float]:
    """Return the extremes of a value, apart from each other."""
    return (seen.low, seen.high) if seen.high > seen.low else (seen.low - 0.5, seen.low + 0.5)
