"""Times that can be believed on a machine that does other things, too: of one thread's work, repeated until they agree.

A load that comes and goes lengthens runs and shortens none, those of large models more than those of small ones: what
else runs takes their weights out of the caches. So what is measured is the CPU time of the calling thread, and what
counts is the fastest run, once it was not a single stroke of luck.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.errors import UsageError
from onnxcomp.runtime.bench import Clock, Feeds, Runner, Turns, measure_latency

__all__ = ["Effort", "Ratio", "fastest", "steady_ratio"]

_AGREE = 3
"""Groups of runs that have to agree before the fastest is believed."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: until times agree within `within`, at least `least` and at most `most` seconds."""

    within: float = 0.01
    least: float = 0.5
    most: float = 10.0


@dataclass(frozen=True)
class Ratio:
    """The time of a candidate as a share of the reference's, and what both took, in seconds per run.

    `spread` is by how much the third fastest group of runs lies above the fastest, as a share, of the model that is worse
    off; `settled` says whether that came down to what was wanted.
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

    Groups of runs are taken until the three fastest of each model agree within `effort.within`, or the time is up.

    Raises:
        UsageError: where the clock is too coarse to tell a run from nothing.
    """
    sessions = {"reference": reference, "candidate": candidate}
    start, rows = wall(), list[tuple[float, float]]()
    while True:
        turns = Turns(rounds=4, repeats=3, warmup=0 if rows else 5)
        made = measure_latency(sessions, {1: feed}, turns, wall=cpu, cpu=cpu)
        rows.append((made.at("reference", 1).minimum, made.at("candidate", 1).minimum))
        spent = wall() - start
        result = _ratio(rows, effort.within)
        if (spent >= effort.least and result.settled) or spent >= effort.most:
            return result


def _ratio(rows: Sequence[tuple[float, float]], within: float) -> Ratio:
    """Return what the fastest runs of each group say; `rows` are seconds of the reference and of the candidate."""
    table = np.sort(np.array(rows), axis=0)
    if not (table > 0).all():
        raise UsageError("the model is too fast for the clock of this machine; use a budget of macs")
    reference, candidate = (float(seconds) for seconds in table[0])
    spread = float((table[min(_AGREE, len(rows)) - 1] / table[0] - 1).max())
    return Ratio(
        candidate / reference, reference, candidate, spread, len(rows) >= _AGREE and spread <= within
    )
