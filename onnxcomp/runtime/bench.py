"""How long models take, measured side by side in one process.

The candidates take turns: one round runs each of them, the next one in reverse order, so that a machine that slows down
or speeds up in the meantime does so for all of them alike. Sessions never spin (see Session), else the idle threads of
one candidate would take the cores from the next; one thread is the default, because only that says something about
another machine. Absolute times are what they are; the ratios to the first candidate are what can be claimed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Shapes
from onnxcomp.runtime.inputs import noise
from onnxcomp.runtime.session import Session, SessionError

__all__ = [
    "Benchmark",
    "Latency",
    "Runner",
    "Turns",
    "batch_feeds",
    "batch_shapes",
    "bench_models",
    "measure_latency",
]

Feeds = Mapping[str, Array]
Clock = Callable[[], float]


class Runner(Protocol):
    """What can be timed: a Session, or anything that runs feeds."""

    def run(self, feeds: Feeds) -> object:
        """Run once."""


@dataclass(frozen=True)
class Turns:
    """How often candidates run: `rounds` of `repeats` timed runs each, after `warmup` runs that are not timed."""

    rounds: int = 20
    repeats: int = 5
    warmup: int = 3


@dataclass(frozen=True)
class Latency:
    """What one candidate took for a batch of `batch` samples, in seconds per run of the whole batch.

    `minimum`, `median` and `p95` are of the wall clock over all `runs`; `cpu_median` is of the calling thread's CPU time,
    None with several threads, whose work it does not see. Ratios are to the first candidate at the same batch size:
    of the medians, of the minima, of the CPU medians; `ratio_paired` is the median over rounds of the ratio of the
    two medians within a round, which a load that comes and goes disturbs least.
    """

    name: str
    batch: int
    runs: int
    minimum: float
    median: float
    p95: float
    cpu_median: float | None
    ratio_median: float
    ratio_minimum: float
    ratio_paired: float
    ratio_cpu: float | None


@dataclass(frozen=True)
class Benchmark:
    """The latencies of all candidates at all batch sizes, in the order given, and how they were measured."""

    latencies: tuple[Latency, ...]
    threads: int
    rounds: int
    repeats: int
    warmup: int

    def at(self, name: str, batch: int) -> Latency:
        """Return the latency of the candidate `name` at `batch`.

        Raises:
            KeyError: where that was not measured.
        """
        for latency in self.latencies:
            if (latency.name, latency.batch) == (name, batch):
                return latency
        raise KeyError(f"{name} at batch {batch}")


def bench_models(
    models: Mapping[str, Model],
    turns: Turns = Turns(),
    *,
    shapes: Shapes | None = None,
    batches: Sequence[int] = (1,),
    threads: int = 1,
    seed: int = 0,
    custom_op_libs: Sequence[str] = (),
) -> Benchmark:
    """Measure `models` by name on the same noise, with the optimizations that onnxruntime makes by default.

    `shapes` gives the sizes of free axes by input (see `batch_shapes`); the noise of `seed` fits the inputs of the first
    model. `threads=0` means all cores. See `measure_latency` for the rest.

    Raises:
        UsageError: where there is nothing to measure, inputs differ, a size is missing or contradicts the model.
        SessionError: where a model does not load or run, naming it.
    """
    if not models:
        raise UsageError("there is no model to measure; give one or more")
    first_name, first = next(iter(models.items()))
    wanted = {value.name for value in first.graph.inputs}
    for name, model in models.items():
        if {value.name for value in model.graph.inputs} != wanted:
            raise UsageError(
                f"{name} and {first_name} have different inputs; only models of the same inputs can be compared"
            )
    feeds = batch_feeds(first, batches, shapes, seed)
    sessions: dict[str, Runner] = {}
    for name, model in models.items():
        try:
            sessions[name] = Session(model, threads=threads, custom_op_libs=custom_op_libs)
        except SessionError as problem:
            raise SessionError(f"{name}: {problem}") from problem
    return measure_latency(sessions, feeds, turns, threads=threads)


def batch_feeds(
    model: Model, batches: Sequence[int], shapes: Shapes | None = None, seed: int = 0
) -> dict[int, dict[str, Array]]:
    """Return one feed of noise for each size in `batches`; see `batch_shapes` for what raises UsageError."""
    return {batch: noise(model, batch_shapes(model, batch, shapes), seed) for batch in batches}


def batch_shapes(model: Model, batch: int, shapes: Shapes | None = None) -> dict[str, tuple[int, ...]]:
    """Return the concrete sizes of all inputs of `model` for `batch` samples.

    The batch axes are the first axis of the first input where it is free, and every axis that bears the same name. Other
    free axes take their size from `shapes`, `{input: sizes}`, and an input that declares no shape takes all of them. A
    free first axis of another name that `shapes` does not give is the batch, too: exporters name them as they please.

    Raises:
        UsageError: where `batch` is below 1 or not what the model fixes, or sizes are missing or contradict the model.
    """
    if batch < 1:
        raise UsageError(f"batches of {batch} samples are none; give 1 or more")
    declared = {value.name: value.shape for value in model.graph.inputs}
    for name in shapes or {}:
        if name not in declared:
            raise UsageError(f"the model has no input '{name}'; its inputs are {', '.join(declared)}")
    leading = [shape[0] for shape in declared.values() if shape]
    if leading and all(isinstance(size, int) for size in leading) and batch not in leading:
        raise UsageError(
            f"the model fixes its batch size at {leading[0]}; {batch} cannot be measured, give {leading[0]}"
        )
    symbol = leading[0] if leading and isinstance(leading[0], str) else None
    given = shapes or {}
    return {name: _sizes(name, shape, batch, symbol, given.get(name)) for name, shape in declared.items()}


def _sizes(
    name: str,
    shape: Sequence[int | str | None] | None,
    batch: int,
    symbol: str | None,
    given: Sequence[int] | None,
) -> tuple[int, ...]:
    """Return the sizes of one input, from what it declares and what was `given` for it."""
    if shape is None:
        if given is None:
            raise UsageError(f"input '{name}' declares no shape; give its sizes with --set-shape {name}=...")
        return tuple(given)
    if given is not None and len(given) != len(shape):
        raise UsageError(f"input '{name}' has {len(shape)} axes; {len(given)} sizes are given")
    sizes: list[int] = []
    for axis, declared in enumerate(shape):
        if isinstance(declared, int):
            if given is not None and axis and given[axis] != declared:
                raise UsageError(
                    f"axis {axis} of input '{name}' is {declared}; it cannot be set to {given[axis]}"
                )
            sizes.append(declared)
        elif (axis == 0) if symbol is None else (declared == symbol):
            sizes.append(batch)
        elif given is not None:
            sizes.append(given[axis])
        elif axis == 0:
            sizes.append(batch)
        else:
            raise UsageError(
                f"axis {axis} of input '{name}' is free ({declared or 'unnamed'}); "
                f"give its size with --set-shape {name}=..."
            )
    return tuple(sizes)


def measure_latency(
    sessions: Mapping[str, Runner],
    feeds: Mapping[int, Feeds],
    turns: Turns = Turns(),
    *,
    threads: int = 1,
    wall: Clock = time.perf_counter,
    cpu: Clock = time.thread_time,
) -> Benchmark:
    """Time `sessions` by name on `feeds` by batch size; ratios are to the first.

    At each batch size every candidate first runs `turns.warmup` times, untimed. Then, in each of `turns.rounds`, each candidate in its
    turn runs `turns.repeats` times, every run timed on its own; odd rounds go backwards. `threads` is what the sessions were
    opened with. The clocks `wall` and `cpu` return seconds.

    Raises:
        UsageError: where there is nothing to measure.
        SessionError: where a candidate does not run, naming it.
    """
    for what, number in (("rounds", turns.rounds), ("repeats", turns.repeats)):
        if number < 1:
            raise UsageError(f"{number} {what} measure nothing; give 1 or more")
    if not sessions or not feeds:
        raise UsageError("there is nothing to measure; give a model and a batch size")
    latencies: list[Latency] = []
    for batch, feed in feeds.items():
        for name, session in sessions.items():
            with _named(name):
                for _ in range(turns.warmup):
                    session.run(feed)
        times: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in sessions}
        for name in _turns(list(sessions), turns.rounds):
            with _named(name):
                times[name].append([_time(sessions[name], feed, wall, cpu) for _ in range(turns.repeats)])
        tables = {name: np.array(rows) for name, rows in times.items()}
        latencies += [_latency(name, batch, tables, threads) for name in sessions]
    return Benchmark(tuple(latencies), threads, turns.rounds, turns.repeats, turns.warmup)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put `name` in front of what is said of a session that does not run."""
    try:
        yield
    except SessionError as problem:
        raise SessionError(f"{name}: {problem}") from problem


def _turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield whose turn it is: forth and back, so that nobody always follows the same one."""
    for number in range(rounds):
        yield from reversed(names) if number % 2 else names


def _time(session: Runner, feed: Feeds, wall: Clock, cpu: Clock) -> tuple[float, float]:
    """Return the seconds of one run on the wall clock and of the calling thread."""
    worked, start = cpu(), wall()
    session.run(feed)
    end = wall()
    return end - start, cpu() - worked


def _latency(name: str, batch: int, tables: Mapping[str, Array], threads: int) -> Latency:
    """Return the figures of one candidate; `tables` are `[rounds, repeats, 2]` seconds, wall and CPU, by name."""
    first = next(iter(tables.values()))
    wall, reference = tables[name][..., 0], first[..., 0]
    cpu, cpu_reference = (float(np.median(table[..., 1])) for table in (tables[name], first))
    alone = threads == 1
    pairs = zip(_by_round(wall), _by_round(reference), strict=True)
    return Latency(
        name=name,
        batch=batch,
        runs=int(wall.size),
        minimum=float(wall.min()),
        median=float(np.median(wall)),
        p95=float(np.quantile(wall, 0.95)),
        cpu_median=cpu if alone else None,
        ratio_median=_ratio(float(np.median(wall)), float(np.median(reference))),
        ratio_minimum=_ratio(float(wall.min()), float(reference.min())),
        ratio_paired=float(np.median([_ratio(a, b) for a, b in pairs])),
        ratio_cpu=_ratio(cpu, cpu_reference) if alone else None,
    )


def _by_round(seconds: Array) -> list[float]:
    return [float(median) for median in np.median(seconds, axis=1)]


def _ratio(mine: float, reference: float) -> float:
    """Return mine / reference, 1 where a clock is too coarse to tell either from zero."""
    if reference == 0:
        return 1.0 if mine == 0 else float("inf")
    return mine / reference
