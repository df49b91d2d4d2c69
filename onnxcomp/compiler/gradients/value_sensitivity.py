"""How much the outputs suffer from what is done to inner values, from one run back through the network.

An error `d` of a value moves the outputs by `J d`, to the first order. For a random direction `r` of the outputs, one run
back gives `J^T r` for all values at once, and the mean of `(r . J d)^2` over directions is `|J d|^2`. As the error that
storage makes of an element depends on the element alone, sums of derivatives by the size of the elements are all that is
needed to know the effect of any range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxcomp.compiler.gradients.reverse import PREFIX, backward
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.graph import Value
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import RESHAPING, SATURATES
from onnxcomp.ir.segment import with_outputs
from onnxcomp.numerics.arrays import Array, Array64, Shapes
from onnxcomp.numerics.observers import Effect, Histogram
from onnxcomp.runtime.data.samples import Samples
from onnxcomp.runtime.inputs import PIECE_LIMIT
from onnxcomp.runtime.overlap import in_order, share, workers
from onnxcomp.runtime.session import Session, SessionError

__all__ = ["LEAST", "directed_feeds", "output_effects", "unsaturated"]


TAIL = 0.02
"""Share of the elements on either side of which every single one is looked at: no good range cuts off more."""

BINS = 256
"""Bins of derivatives in each tail: they tell what is cut off, for which an eighth of a step is fine enough."""

COARSE = 64
"""Bins between the tails, where elements are only rounded."""

THINNED = 2048
"""Elements between the tails that are looked at in each sample."""

SAMPLES = 64
"""Samples that run back at most. Clipping is rare, so what few samples say of it is held against all histograms."""

EFFORT_BYTES = 7 * 2**28
"""Aim of values and derivatives of all samples that run back: of large networks, half as many tell nearly the same
(EfficientNet-Lite0: 26.0 dB with 32, 26.1 with 64; ResNet-56: 30.9 and 31.8)."""

LEAST = 24
"""Fewer samples hardly show what is rare, and ranges would cut it off."""

MEASURED = 16
"""Samples that tell how large the outputs usually are."""

BATCH_BYTES = 64 * 2**20
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
        if (name := unsaturated(v)) in shapes and (v.dtype is None or np.dtype(v.dtype) == np.float32)
    ]
    if samples is None or not outputs or model.weight_bytes > PIECE_LIMIT or len(samples) < LEAST:
        return {}
    back = backward(model, [name for name in names if seen[name].count], outputs, shapes)
    if not back.values:
        return {}
    held = max(1, sum(8 * math.prod(shapes.get(name, (1,))) for name in back.values))
    several = max(1, min(workers(context.threads), BATCH_BYTES // held))
    batch = int(max(1, min(32, BATCH_BYTES // (held * several))))
    threads = share(context.threads) if several > 1 else context.threads
    bins = [_Bins.of(seen[name]) for name in back.values]
    found: list[list[_Part]] = [[] for _ in bins]
    samples = samples.take(max(SAMPLES // 2, min(SAMPLES, EFFORT_BYTES // held)))
    done = 0
    try:
        session = Session(back.model, threads=threads, custom_op_libs=context.custom_op_libs)
        feeds = directed_feeds(with_outputs(model, outputs), outputs, samples, batch, context)
        for count, parts in in_order(partial(_run, session, bins), feeds, several):
            for have, part in zip(found, parts, strict=True):
                have.append(part)
            done += count
            context.progress("effects on the output", done, len(samples))
    except SessionError:
        # A graph that cannot run back (a fixed size, an operator at an odd version) is one of which nothing is known.
        return {}
    return {
        name: each.effect(have, seen[name], done)
        for name, each, have in zip(back.values, bins, found, strict=True)
    }


def directed_feeds(
    model: bytes, outputs: Sequence[str], samples: Samples, batch: int, context: Context
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Yield the number of samples in each feed, and the feed with a random direction for each of `outputs`."""
    plain = context.session(model, arena=False)
    usual = _usual_sizes(plain, samples.take(MEASURED), outputs)
    done = 0
    for feed in samples.batches(batch):
        found = plain.run(feed, outputs)
        count = len(next(iter(feed.values())))
        seeds = {
            f"{PREFIX}seed.{k}": _direction(context.seed, done, k, found[name], usual[name])
            for k, name in enumerate(outputs)
        }
        yield count, {**feed, **seeds}
        done += count


def unsaturated(output: Value) -> str:
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


def _run(
    session: Session, bins: Sequence[_Bins], item: tuple[int, dict[str, Array]]
) -> tuple[int, list[_Part]]:
    count, feed = item
    found = session.run(feed)
    parts = [
        each.part(found.pop(f"{PREFIX}value.{k}"), found.pop(f"{PREFIX}grad.{k}"), count)
        for k, each in enumerate(bins)
    ]
    return count, parts


@dataclass(frozen=True)
class _Part:
    """Derivatives of some samples by bins: their sums `[n, bins]` and the sum of their squares `[bins]`."""

    sums: Array
    squares: Array64


@dataclass(frozen=True)
class _Bins:
    """Bins of one value: `edges` from its least number to its largest, fine ones below `low` and above `high`."""

    edges: Array64
    low: float
    high: float

    @classmethod
    def of(cls, seen: Histogram) -> _Bins:
        """Return the bins for what was `seen`; zero, which every range holds, is in the middle or at an end."""
        first, last = min(seen.low, 0.0), max(seen.high, 0.0)
        last = last if last > first else first + 1.0
        lower, upper = seen.edges
        below = np.cumsum(seen.counts) / seen.count
        above = np.cumsum(seen.counts[::-1])[::-1] / seen.count
        low = min([0.0, *lower[below > TAIL][:1]])
        high = max([0.0, *upper[above > TAIL][-1:]])
        low, high = max(float(low), first), min(float(high), last)
        edges = [np.linspace(low, high, COARSE + 1)] if high > low else [np.array([low])]
        if low > first:
            edges.insert(0, np.linspace(first, low, BINS + 1)[:-1])
        if last > high:
            edges.append(np.linspace(high, last, BINS + 1)[1:])
        return cls(np.concatenate(edges), low, high)

    def part(self, values: Array, grads: Array, count: int) -> _Part:
        """Return the derivatives `grads` by `values` of `count` samples, binned."""
        values, grads = values.reshape(count, -1), grads.reshape(count, -1)
        width = values.shape[1]
        step = max(1, width // THINNED) | 1
        heavier = width / max(1, len(range(0, width, step)))
        sums = np.zeros((count, len(self.edges) - 1))
        squares = np.zeros(len(self.edges) - 1)
        for row, (value, grad) in enumerate(zip(values, grads, strict=True)):
            tails = np.flatnonzero((value < self.low) | (value > self.high))
            some, found = value[::step], grad[::step]
            inner = (some >= self.low) & (some <= self.high) & (some != 0)
            for index, slopes, weight in (
                (self._index(value[tails]), grad[tails], 1.0),
                (self._index(some[inner]), found[inner], heavier),
            ):
                sums[row] += weight * np.bincount(index, slopes, len(squares))
                squares += weight * np.bincount(index, np.square(slopes), len(squares))
        return _Part(sums.astype(np.float32), squares)

    def _index(self, values: Array) -> Array:
        return np.clip(np.searchsorted(self.edges, values, "right") - 1, 0, len(self.edges) - 2)

    def effect(self, parts: Sequence[_Part], seen: Histogram, count: int) -> Effect:
        """Return what `parts` of `count` samples say together."""
        squares = np.sum([part.squares for part in parts], axis=0) / max(1, count)
        lower, upper = seen.edges
        share = np.histogram((lower + upper) / 2, self.edges, weights=seen.counts)[0] / seen.count
        sums = np.concatenate([part.sums for part in parts])
        return Effect(self.edges[:-1], self.edges[1:], sums, squares, share * squares.sum())
