"""Times that can be believed on a machine that does other things, too: of one thread's work, repeated until they agree.

A load that comes and goes lengthens some runs and shortens none, and takes the processor away more than it slows the
thread's own work. So what is measured is the CPU time of the calling thread; of a group of runs close together the
fastest counts, and between two models the ratio of the fastest of the same group.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.runtime.bench import Clock, Feeds, Runner, measure_latency

__all__ = ["Effort", "Ratio", "fastest", "steady_ratio"]


@dataclass(frozen=True)
class Effort:
    """How long to measure: until ratios agree within `within`, at least `least` and at most `most` seconds."""

    within: float = 0.01
    least: float = 0.5
    most: float = 20.0


@dataclass(frozen=True)
class Ratio:
    """The time of a candidate as a share of the reference's, and what both took, in seconds per run.

    `spread` is how far the ratio may be off: the half width of its 95 % interval, as a share of it. `settled` says
    whether that came down to what was wanted.
    """

    ratio: float
    reference: float
    candidate: float
    spread: float
    settled: bool


def fastest(
    sessions: Mapping[str, Runner],
    feeds: Mapping[str, Feeds],
    *,
    seconds: float,
    least: int = 5,
    most: int = 200,
    cpu: Clock = time.thread_time,
) -> dict[str, float]:
    """Return the least CPU seconds of one run of each session by name; they take turns on their `feeds`.

    There are at least `least` and at most `most` rounds, as many as fit into `seconds` in between; the first is not
    counted.
    """
    found = dict.fromkeys(sessions, float("inf"))
    start = cpu()
    for number in range(most + 1):
        for name, session in sessions.items():
            before = cpu()
            session.run(feeds[name])
            if number:
                found[name] = min(found[name], cpu() - before)
        if number >= least and cpu() - start >= seconds:
            break
    return found


def steady_ratio(
    reference: Runner,
    candidate: Runner,
    feed: Feeds,
    *,
    effort: Effort = Effort(),
    wall: Clock = time.perf_counter,
    cpu: Clock = time.thread_time,
) -> Ratio:
    """Return the time of `candidate` as a share of that of `reference`, one thread, both run on `feed` in turns.

    Groups of runs are taken until the median of their ratios is known within `effort.within`, or the time is up.
    """
    sessions = {"reference": reference, "candidate": candidate}
    start, rows = wall(), list[tuple[float, float]]()
    while True:
        made = measure_latency(
            sessions, {1: feed}, rounds=4, repeats=3, warmup=0 if rows else 5, wall=cpu, cpu=cpu
        )
        rows.append((made.at("reference", 1).minimum, made.at("candidate", 1).minimum))
        spent = wall() - start
        result = _ratio(rows, effort.within)
        if (spent >= effort.least and result.settled) or spent >= effort.most:
            return result


def _ratio(rows: Sequence[tuple[float, float]], within: float) -> Ratio:
    table = np.array(rows)
    if not (table > 0).all():
        raise UsageError("the model is too fast for the clock of this machine; use a budget of macs")
    ratios = table[:, 1] / table[:, 0]
    ratio = float(np.median(ratios))
    # The median absolute deviation, as a standard deviation (1.4826), of a median (sqrt(pi / 2)), to 95 % (1.96).
    deviation = 1.4826 * float(np.median(np.abs(ratios - ratio)))
    spread = 1.96 * 1.2533 * deviation / float(np.sqrt(len(rows))) / ratio
    first, second = table.min(axis=0)
    return Ratio(ratio, float(first), float(second), spread, len(rows) >= 6 and spread <= within)
