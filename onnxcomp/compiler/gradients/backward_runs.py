"""Runs back through a network: outputs picked, the graph of derivatives built, directions drawn, samples run batch by batch.

All that is read off derivatives of the outputs (the sensitivity of values and of channels, the curvature) is a sum over
these runs. What differs between them is in `RunSettings`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np

from onnxcomp.analysis.selection import selected_values
from onnxcomp.compiler.gradients.reverse import PREFIX, Backward, backward
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.errors import PreconditionError
from onnxcomp.ir.graph import Value
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import RESHAPING, SATURATES
from onnxcomp.ir.segment import with_outputs
from onnxcomp.numerics.arrays import Array, Shapes
from onnxcomp.runtime.data.samples import Samples
from onnxcomp.runtime.inputs import PIECE_LIMIT
from onnxcomp.runtime.overlap import in_order, share, workers
from onnxcomp.runtime.session import Session, SessionError

__all__ = [
    "LEAST",
    "BackwardBatch",
    "BackwardRuns",
    "GradientError",
    "RunSettings",
    "Unit",
    "note_stops",
    "open_runs",
    "own_size",
    "size_between",
]

LEAST = 24
"""Fewer samples hardly show what is rare, and ranges would cut it off."""

MEASURED = 16
"""Samples that tell how large the outputs usually are."""

NAMED = 6
"""Values, and operators, that a note names."""

Part = TypeVar("Part")

Unit: TypeAlias = Callable[[str, Array], Array]
"""Returns the size of a unit of the direction for an output by name `[n, ...]`, sample by sample `[n, 1, ...]`."""


class GradientError(PreconditionError):
    """A network of which no derivatives can be had; the message says why."""


@dataclass(frozen=True)
class RunSettings:
    """How a network is run back.

    Attributes:
        unit: makes the unit of directions from a session of the network, the samples that run back and the outputs.
        samples: how many samples run back at most, by the bytes of values and derivatives that one of them holds.
        batch_bytes: aim of values and derivatives held at once.
        batch: samples that are run together at most.
        least: fewer samples than this say nothing.
        unsaturated: whether outputs are taken before a Softmax or Sigmoid flattens them.
        overlapped: whether several batches are worked on at once.
        what: the work in words, for progress.
    """

    unit: Callable[[Session, Samples, Sequence[str]], Unit]
    samples: Callable[[int], int]
    batch_bytes: int
    batch: int = 32
    least: int = LEAST
    unsaturated: bool = True
    overlapped: bool = False
    what: str = "output sensitivity"


class BackwardBatch:
    """Values and derivatives of `count` samples; each array can be had once, so that it need not be held any longer."""

    def __init__(self, count: int, arrays: dict[str, Array]) -> None:
        self.count = count
        self._arrays = arrays

    def value(self, number: int) -> Array:
        """Return value `number` of `BackwardRuns.values`, `[n, ...]`."""
        return self._arrays.pop(f"{PREFIX}value.{number}")

    def gradient(self, number: int) -> Array:
        """Return the derivative of the direction by value `number`, `[n, ...]`."""
        return self._arrays.pop(f"{PREFIX}grad.{number}")


@dataclass(frozen=True)
class BackwardRuns:
    """The runs back through one network, opened by `open_runs`.

    Attributes:
        back: the graph of derivatives; its `values` are those that derivatives are known by, in order.
        outputs: names of the values that directions are drawn for.
        samples: those that run back.
        batch: how many of them are run together.
        together: how many batches are worked on at once.
    """

    back: Backward
    outputs: tuple[str, ...]
    samples: Samples
    batch: int
    together: int
    _plain: bytes
    _settings: RunSettings
    _context: Context

    @property
    def values(self) -> tuple[str, ...]:
        """The values that derivatives are known by, in the order of their numbers."""
        return self.back.values

    def run(self, reduce: Callable[[BackwardBatch], Part]) -> Iterator[tuple[int, Part]]:
        """Yield the number of samples of each batch, in order, and what `reduce` makes of it.

        Raises:
            GradientError: where onnxruntime does not run the graph.
        """
        threads = self._context.threads
        threads = share(threads) if self.together > 1 else threads
        done = 0
        try:
            session = self._context.session(self.back.model, threads=threads)
            work = partial(_run, session, reduce)
            for count, part in in_order(work, self._feeds(), self.together):
                yield count, part
                done += count
                self._context.progress(self._settings.what, done, len(self.samples))
        except SessionError as problem:
            # A fixed size, or an operator at an odd version.
            reason = str(problem).splitlines()[0]
            raise GradientError(f"onnxruntime does not run the graph of derivatives: {reason}") from problem

    def _feeds(self) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield the number of samples in each feed, and the feed with a random direction for each output."""
        plain = self._context.session(self._plain, arena=False)
        unit = self._settings.unit(plain, self.samples, self.outputs)
        done = 0
        for feed in self.samples.batches(self.batch):
            found = plain.run(feed, self.outputs)
            count = len(next(iter(feed.values())))
            seeds = {
                f"{PREFIX}seed.{k}": _direction(
                    self._context.seed, done, k, found[name], unit(name, found[name])
                )
                for k, name in enumerate(self.outputs)
            }
            yield count, {**feed, **seeds}
            done += count


def open_runs(
    model: Model, wanted: Sequence[str], shapes: Shapes, context: Context, settings: RunSettings
) -> BackwardRuns:
    """Return the runs back from the float outputs of `model` to the values `wanted`.

    `shapes` are those of all values for one sample; `model` is not edited.

    Raises:
        GradientError: where there are too few samples or no outputs to start from, or the network is too large.
    """
    samples = context.calibration
    if samples is None or len(samples) < settings.least:
        count = 0 if samples is None else len(samples)
        raise GradientError(f"{count} calibration samples are fewer than the {settings.least} it takes")
    outputs = _outputs(model, shapes, unsaturated=settings.unsaturated)
    if not outputs:
        raise GradientError("no output consists of floats for each sample")
    if model.weight_bytes > PIECE_LIMIT:
        raise GradientError("the network is too large to run back")
    back = backward(model, wanted, outputs, shapes)
    held = max(1, sum(8 * math.prod(shapes.get(name, (1,))) for name in back.values))
    several = 1
    if settings.overlapped:
        several = max(1, min(workers(context.threads), settings.batch_bytes // held))
    batch = int(max(1, min(settings.batch, settings.batch_bytes // (held * several))))
    return BackwardRuns(
        back,
        tuple(outputs),
        samples.take(settings.samples(held)),
        batch,
        several,
        with_outputs(model, outputs),
        settings,
        context,
    )


def note_stops(
    back: Backward, consequence: str, log: PassLog, labels: Mapping[str, str] | None = None
) -> None:
    """Note where derivatives stopped on the way to the values that were wanted, and which values that leaves unknown.

    `consequence` says what happens to those; `labels` gives the words for a value, by default its name.
    """
    if not back.blocked:
        return
    labels = labels or {}
    stops = dict.fromkeys(stop for found in back.blocked.values() for stop in found)
    unknown = [labels.get(name, name) for name in back.blocked if name not in back.values]
    partly = [labels.get(name, name) for name in back.blocked if name in back.values]
    words = f"gradients stop at {_listed(list(stops))}, which has no gradient rule"
    if unknown:
        words += f"; output sensitivity is unknown for {_listed([repr(n) for n in unknown])}: {consequence}"
    if partly:
        words += f"; it is known only along other paths for {_listed([repr(n) for n in partly])}"
    log.note(words)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _before_saturation(output: Value) -> str:
    """Return the name of the value that says what `output` says before a Softmax or Sigmoid flattens it.

    Behind those the derivatives of confident answers vanish, and with them the sensitivity of the outputs.
    """
    value = output
    while value.producer is not None and value.producer.is_op(*RESHAPING, "Identity", "Transpose"):
        value = value.producer.inputs[0]
    maker = value.producer
    if maker is not None and maker.is_op(*SATURATES) and maker.inputs[0].producer is not None:
        return str(maker.inputs[0].name)
    return output.name


def own_size(session: Session, samples: Samples, outputs: Sequence[str]) -> Unit:
    """Return the unit that is the size (2-norm) of each sample's own output."""

    def unit(name: str, values: Array) -> Array:
        sizes = [max(float(np.linalg.norm(row.astype(np.float64))), 1e-30) for row in values]
        return np.array(sizes, np.float32).reshape(-1, *(1,) * (values.ndim - 1))

    return unit


def size_between(session: Session, samples: Samples, outputs: Sequence[str]) -> Unit:
    """Return the unit that lies halfway between the size of the sample's own output and the usual one.

    Errors relative to each sample are what keeps classes apart, errors relative to all samples are what SQNR counts.
    """
    usual = _usual_sizes(session, samples.take(MEASURED), outputs)

    def unit(name: str, values: Array) -> Array:
        axes = tuple(range(1, values.ndim))
        size = np.sqrt(np.square(values, dtype=np.float64).sum(axes, keepdims=True))
        between: Array = np.sqrt(np.maximum(size, 1e-3 * usual[name]) * usual[name])
        return np.maximum(between, 1e-30)

    return unit


def _outputs(model: Model, shapes: Shapes, *, unsaturated: bool) -> list[str]:
    """Return the names of the values that stand for the float outputs of `model`, one row for each sample.

    Rows that the data select belong to no sample, and outputs of such rows are left out.
    """
    selected = selected_values(model, lambda observed: shapes)
    return [
        name
        for v in model.graph.outputs
        if v.name not in selected
        and shapes.get(name := _before_saturation(v) if unsaturated else v.name)
        and (v.dtype is None or np.dtype(v.dtype) == np.float32)
    ]


def _usual_sizes(session: Session, samples: Samples, outputs: Sequence[str]) -> dict[str, float]:
    """Return the root mean square over samples of the size (2-norm) of each output."""
    squares = dict.fromkeys(outputs, 0.0)
    count = 0
    for feed in samples.batches(1):
        for name, values in session.run(feed, outputs).items():
            squares[name] += float(np.square(values, dtype=np.float64).sum())
        count += 1
    return {name: math.sqrt(total / max(1, count)) for name, total in squares.items()}


def _direction(seed: int, first: int, output: int, values: Array, unit: Array) -> Array:
    """Return random numbers in the shape of `values`, the same for a sample in whichever batch, in units of `unit`."""
    rows = [
        np.random.default_rng([seed, first + i, output]).standard_normal(values[i : i + 1].shape, np.float32)
        for i in range(len(values))
    ]
    direction: Array = (np.concatenate(rows) / unit).astype(np.float32)
    return direction


def _run(
    session: Session, reduce: Callable[[BackwardBatch], Part], item: tuple[int, dict[str, Array]]
) -> tuple[int, Part]:
    count, feed = item
    return count, reduce(BackwardBatch(count, session.run(feed)))
