"""When a measurement is over and what it says; the clock is made, no real time is judged."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import UsageError
from onnxcomp.runtime.steady import Effort, Ratio, fastest, steady_ratio

FEED = {"x": np.zeros((1, 3))}


class Clock:
    """A clock that only runs while a made session does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs = 0

    def session(self, *seconds: float) -> Any:
        """Return a session that takes `seconds` in turn, the last of them for ever."""
        return _Session(self, chain(seconds, repeat(seconds[-1])))

    def ratio(self, first: Any, second: Any, **effort: float) -> Ratio:
        return steady_ratio(
            first, second, FEED, effort=Effort(**effort), wall=lambda: self.now, cpu=lambda: self.now
        )


class _Session:
    def __init__(self, clock: Clock, seconds: Any) -> None:
        self._clock = clock
        self._seconds = seconds
        self.runs = 0

    def run(self, feeds: Mapping[str, Any]) -> None:
        self._clock.now += next(self._seconds)
        self.runs += 1


def test_the_ratio_is_that_of_the_fastest_runs() -> None:
    clock = Clock()
    slow = [0.5] * 20
    found = clock.ratio(clock.session(*slow, 0.2), clock.session(*slow, 0.1), most=1000.0)
    assert found.ratio == pytest.approx(0.5)
    assert [found.reference, found.candidate] == pytest.approx([0.2, 0.1])
    assert found.settled
    assert found.spread == pytest.approx(0, abs=1e-9)


def test_steady_models_are_measured_for_the_least_time_only() -> None:
    clock = Clock()
    clock.ratio(clock.session(0.01), clock.session(0.01), least=2.0, most=100.0)
    assert 2.0 <= clock.now < 2.6


def test_a_single_stroke_of_luck_is_not_believed_before_it_was_repeated() -> None:
    clock = Clock()
    lucky = [0.01] * 10 + [0.005] + [0.01] * 200 + [0.005]
    first = clock.session(0.01)
    found = clock.ratio(first, clock.session(*lucky), least=0.1, most=100.0)
    assert found.settled
    assert found.ratio == pytest.approx(0.5)
    assert first.runs > 200


def test_a_machine_that_never_comes_to_rest_is_given_up_when_the_time_is_up() -> None:
    clock = Clock()
    falling = [0.02 * 0.99**number for number in range(400)]
    found = clock.ratio(clock.session(0.01), clock.session(*falling), least=0.1, most=3.0)
    assert not found.settled
    assert found.spread > 0.01
    assert 3.0 <= clock.now < 3.5


def test_a_clock_that_stands_still_is_refused() -> None:
    clock = Clock()
    with pytest.raises(UsageError, match="too fast for the clock"):
        clock.ratio(clock.session(0.0), clock.session(0.01))


def test_the_fastest_run_of_each_counts_and_the_first_does_not() -> None:
    clock = Clock()
    sessions = {"a": clock.session(0.001, 0.03, 0.02, 0.03), "b": clock.session(0.5)}
    found = fastest(sessions, {"a": FEED, "b": FEED}, seconds=0.0, cpu=lambda: clock.now)
    assert found == pytest.approx({"a": 0.02, "b": 0.5})
    assert [s.runs for s in sessions.values()] == [6, 6]


def test_fast_models_are_not_run_for_ever() -> None:
    clock = Clock()
    session = clock.session(1e-6)
    fastest({"a": session}, {"a": FEED}, seconds=100.0, most=50, cpu=lambda: clock.now)
    assert session.runs == 51
