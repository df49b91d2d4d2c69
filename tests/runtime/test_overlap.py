"""Work on several batches at once: results come in order, mistakes at their place, and nothing runs on afterwards."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator

import pytest

from onnxcomp.runtime.overlap import MOST, in_order, share, workers


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_items_however_long_each_takes(count: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number * number

    assert list(in_order(work, range(20), count)) == [n * n for n in range(20)]
    assert list(in_order(work, [], count)) == []


def test_two_workers_are_inside_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=10)
    assert len(list(in_order(lambda _: meeting.wait(), range(4), 2))) == 4


def test_one_worker_is_the_callers_own_thread_and_does_one_item_when_it_is_asked_for() -> None:
    done: list[tuple[int, str]] = []
    results = in_order(lambda n: done.append((n, threading.current_thread().name)), range(3), 1)
    assert done == []
    next(results)
    assert done == [(0, threading.current_thread().name)]


def test_items_are_taken_by_the_callers_thread_and_few_are_held_at_a_time() -> None:
    taken: list[int] = []
    names: set[str] = set()

    def items() -> Iterator[int]:
        for number in range(50):
            names.add(threading.current_thread().name)
            taken.append(number)
            yield number

    for number in in_order(lambda n: n, items(), 2):
        assert len(taken) - number <= 3
    assert names == {threading.current_thread().name}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_the_work_raises_is_raised_at_its_place_and_no_other_work_begins(count: int) -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise ValueError("five")
        return number

    got = []
    with pytest.raises(ValueError, match="five"):
        for number in in_order(work, range(100), count):
            got.append(number)  # noqa: PERF402 - what came before the exception is the point
    assert got == [0, 1, 2, 3, 4]
    assert max(begun) <= 5 + count + 1
    settled = len(begun)
    time.sleep(0.02)
    assert len(begun) == settled


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_the_items_raise_comes_out_and_the_work_before_it_has_ended(count: int) -> None:
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from range(4)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(in_order(done.append, items(), count))
    settled = sorted(done)
    assert settled == list(range(len(settled)))
    time.sleep(0.02)
    assert len(done) == len(settled)


@pytest.mark.parametrize("count", [2, 3])
def test_a_caller_that_stops_early_waits_for_what_has_begun_and_closes_the_items(count: int) -> None:
    running = 0
    lock = threading.Lock()
    closed: list[bool] = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    def work(number: int) -> int:
        nonlocal running
        with lock:
            running += 1
        time.sleep(0.01)
        with lock:
            running -= 1
        return number

    source = items()
    results = in_order(work, source, count)
    assert next(results) == 0
    results.close()
    assert running == 0
    source.close()
    assert closed == [True]
    assert not [t for t in threading.enumerate() if t.name.startswith("onnxcomp")]


def test_workers_are_as_many_as_threads_are_allowed_and_never_many() -> None:
    assert workers(1) == 1
    assert workers(2) == 2
    assert workers(64) == MOST
    assert 1 <= workers(0) <= MOST
    assert [share(n) for n in (1, 2, MOST, 2 * MOST)] == [1, 1, 1, 2]
    assert workers(0) * share(0) <= (os.cpu_count() or 1)
