"""Gathering the columns of linear nodes batch by batch, several batches at once, and the sums over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.linear import Linear, LinearNode
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Array64
from onnxcomp.numerics.moments import Moments, Part, Target
from onnxcomp.runtime.capture import batch_size, stream_values
from onnxcomp.runtime.overlap import in_order, workers

__all__ = [
    "POSITIONS",
    "Columns",
    "Gathered",
    "Sampled",
    "collect_moments",
    "forgiven",
    "independent_samples",
    "sample",
    "sample_positions",
]

Rows = NDArray[np.int64]
Values = Mapping[str, Array]

NEIGHBOURS = 8
"""So many neighbouring output positions tell about as much as one: with fewer truly independent samples than inputs the
weights lean on what they were. Cross-validated strengths on ResNet-20 followed `inputs / independent samples`."""

POSITIONS = 256
"""Output positions taken of each sample: neighbours say nearly the same, and statistics cost by the position."""

TOGETHER = 1024
"""Columns of several batches that are multiplied together."""

TOGETHER_BYTES = 8 * 2**20
"""Values and columns of several batches that are held for that at most."""

KEPT_BYTES = 64 * 2**20
"""Columns kept between passes over the samples; those of further batches are gathered anew at each."""


@dataclass(frozen=True)
class Sampled:
    """Values of one batch from the original and from the compressed network, and the output positions to look at.

    `independent` is about how many independent samples the batch is worth at a node, `columns` how many columns it makes, of
    `nbytes` together.
    """

    was: Values
    now: Values
    positions: Rows | None
    independent: float
    columns: int
    nbytes: int


@dataclass(frozen=True)
class Columns:
    """Columns of one batch: input x, wanted output y, and what a residual addition adds to the output."""

    x: Array
    y: Array
    added: Array

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.x.nbytes + self.y.nbytes + self.added.nbytes


def sample_positions(total: int, rng: np.random.Generator, most: int = POSITIONS) -> Rows | None:
    """Return `most` of `total` output positions, ascending, or None for all where there are no more."""
    if total <= most:
        return None
    return np.sort(rng.choice(total, most, replace=False))


def independent_samples(count: int, positions: float) -> float:
    """Return about how many independent samples `count` samples of so many output positions are worth."""
    return count * max(1.0, positions / NEIGHBOURS)


def sample(
    values: Iterable[tuple[Values, Values]],
    node: Linear,
    rng: np.random.Generator,
    most: int = POSITIONS,
) -> Iterator[Sampled]:
    """Yield the batches `values` with at most `most` positions of `node` a sample, drawn in their order."""
    groups, _, width = node.matrix().shape
    for was, now in values:
        x = now[node.input]
        total = node.positions(x)
        positions = sample_positions(total, rng, most)
        columns = len(x) * (total if positions is None else len(positions))
        size = 4 * columns * groups * width
        yield Sampled(was, now, positions, independent_samples(len(x), total), columns, size)


def _together(batches: Iterable[Sampled]) -> Iterator[list[Sampled]]:
    """Yield lists of consecutive batches that make a fair number of columns: a product of few costs as much as one of many."""
    held: list[Sampled] = []
    columns = size = 0
    for batch in batches:
        held.append(batch)
        columns += batch.columns
        size += batch.nbytes + sum(a.nbytes for values in (batch.was, batch.now) for a in values.values())
        if columns >= TOGETHER or size > TOGETHER_BYTES:
            yield held
            held, columns, size = [], 0, 0
    if held:
        yield held


class Gathered:
    """The columns of one node: gathered by `columns`, with `keep` held in memory as far as `KEPT_BYTES` go."""

    def __init__(self, columns: Callable[[Sampled], Columns], threads: int, *, keep: bool) -> None:
        self._columns = columns
        self._workers = workers(threads)
        self._room = KEPT_BYTES if keep else 0
        self._kept: list[Columns] = []
        self._positions: list[Rows | None] = []

    @property
    def held(self) -> int:
        """How many batches, from the first on, need not be read again."""
        return len(self._kept)

    def first(self, batches: Iterable[Sampled]) -> tuple[Moments, float]:
        """Return the moments over all batches, and how many independent samples they are worth."""

        def work(some: Sequence[Sampled]) -> tuple[list[Columns], Part, Sequence[Sampled]]:
            columns = [self._columns(batch) for batch in some]
            x, y = (np.concatenate(parts, 2) for parts in zip(*((c.x, c.y) for c in columns), strict=True))
            return columns, Part.of(x, y), some

        moments, independent = Moments(), 0.0
        for columns, part, some in in_order(work, _together(batches), self._workers):
            moments.merge(part)
            for gathered, batch in zip(columns, some, strict=True):
                independent += batch.independent
                self._room -= gathered.nbytes
                if self._room > 0:
                    self._kept.append(gathered)
                else:
                    self._positions.append(batch.positions)
        return moments, independent

    def retargeted(
        self, moments: Moments, rest: Iterable[tuple[Values, Values]], target: Callable[[Columns], Array]
    ) -> Moments:
        """Return the moments with new targets `[g, o, n]` made of each batch's columns; `rest` follows those held."""
        again = moments.retargeted()

        def work(batch: Columns | Sampled) -> Target:
            columns = self._columns(batch) if isinstance(batch, Sampled) else batch
            return again.target_of(columns.x, target(columns))

        unkept = (
            Sampled(was, now, positions, 0.0, 0, 0)
            for (was, now), positions in zip(rest, self._positions, strict=True)
        )
        batches: Iterator[Columns | Sampled] = chain(self._kept, unkept)
        for part in in_order(work, batches, self._workers):
            again.merge_target(part)
        return again


def forgiven(columns: Columns, matrix: Array64, bias: Array64, bounds: tuple[float, float]) -> Array:
    """Return targets that forgive what the following activation cuts off, for the weights `[g, o, d]` and bias `[o]` now.

    Where the original's sum lies beyond a bound, any output beyond it is as good: the target is the output itself there,
    or the bound where the output lies inside. Minimising the squared distance to these targets, again and again, never
    increases the error after the activation (majorisation; compare Zhang 2015, "Accelerating very deep convolutional
    networks", section 3.2 on the nonlinear case).
    """
    low, high = bounds
    made: Array = matrix.astype(np.float32) @ columns.x
    made += bias.reshape(*matrix.shape[:2], 1).astype(np.float32)
    made += columns.added
    goal: Array = columns.y + columns.added
    below = goal <= low
    if high < np.inf:
        np.copyto(goal, np.maximum(made, high), where=goal >= high)
    np.copyto(goal, np.minimum(made, low, out=made), where=below)
    goal -= columns.added
    return goal


def collect_moments(
    model: Model,
    nodes: Sequence[LinearNode],
    context: Context,
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    channelwise: Mapping[str, int] | None = None,
) -> dict[str, Moments]:
    """Return the input moments of `nodes` in `model` on the calibration samples, from one streamed run.

    For nodes named in `channelwise` they are those of that many channels, not of all columns that a channel has.
    """
    samples = context.samples
    found = {node.node.name: Moments() for node in nodes}
    names = list(dict.fromkeys(node.input for node in nodes))
    size = batch_size(shapes, names)
    total = len(samples)
    rng = np.random.default_rng(context.seed)
    stream = stream_values(
        model,
        names,
        samples,
        size,
        **context.runtime,
        progress=lambda done: context.progress(what, done, total),
    )

    def jobs() -> Iterator[tuple[str, Callable[[], Array]]]:
        """Yield what to gather; positions are drawn here, in order, and not where several threads are at work."""
        for values in stream:
            for node in nodes:
                x, channels = values[node.input], (channelwise or {}).get(node.node.name)
                if channels is None:
                    chosen = sample_positions(node.positions(x), rng)
                    yield node.node.name, partial(node.columns_in, x, chosen)
                else:
                    columns = node.channels_in(x, channels, rng)
                    yield node.node.name, partial(np.asarray, columns)
            del values

    def work(job: tuple[str, Callable[[], Array]]) -> tuple[str, Part]:
        name, gather = job
        return name, Part.of(gather())

    for name, part in in_order(work, jobs(), workers(context.threads)):
        found[name].merge(part)
    return found
