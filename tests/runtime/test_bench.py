"""Turns, figures and sizes of a measurement; the clock is made, no real time is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError, fields
from itertools import cycle
from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import UsageError
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime import bench
from onnxcomp.runtime.bench import (
    Benchmark,
    Latency,
    Turns,
    batch_feeds,
    batch_shapes,
    bench_models,
    measure_latency,
)
from onnxcomp.runtime.session import Session, SessionError
from tests.support.text import net

RELU = parse_model(net("(float[N,3] x) => (float[N,3] y)", "", "y = Relu(x)"))
TWICE = parse_model(net("(float[N,3] x) => (float[N,3] y)", "", "h = Relu(x)  y = Sqrt(h)"))
FREE = parse_model(net("(float[N,3,H,W] x, int64[K,N] n) => (float[N,3,H,W] y)", "", "y = Relu(x)"))


class Bench:
    """Fake sessions on one made clock: a run takes what its script says next, and is written down."""

    def __init__(self) -> None:
        self.wall = 0.0
        self.cpu = 0.0
        self.ran: list[tuple[str, int]] = []

    def session(self, name: str, *seconds: float, share: float = 1.0) -> Any:
        """Return a session that takes `seconds` in turn, of which the thread works the given share."""
        return _Scripted(self, name, cycle(seconds), share)

    def measure(self, *sessions: _Scripted, **options: Any) -> Benchmark:
        feeds = options.pop("feeds", {1: {"x": np.zeros((1, 3))}})
        turns = Turns(
            **{name: options.pop(name) for name in ("rounds", "repeats", "warmup") if name in options}
        )
        return measure_latency(
            {s.name: s for s in sessions},
            feeds,
            turns,
            wall=lambda: self.wall,
            cpu=lambda: self.cpu,
            **options,
        )


class _Scripted:
    def __init__(self, owner: Bench, name: str, seconds: Iterator[float], share: float) -> None:
        self.name = name
        self._owner = owner
        self._seconds = seconds
        self._share = share

    def run(self, feeds: Mapping[str, Any]) -> None:
        seconds = next(self._seconds)
        self._owner.wall += seconds
        self._owner.cpu += seconds * self._share
        self._owner.ran.append((self.name, len(feeds["x"])))


def test_candidates_take_turns_and_every_other_round_goes_backwards() -> None:
    made = Bench()
    made.measure(made.session("a", 1), made.session("b", 1), made.session("c", 1), rounds=3, repeats=1)
    warm, timed = made.ran[:9], made.ran[9:]
    assert "".join(name for name, _ in warm) == "aaabbbccc"
    assert "".join(name for name, _ in timed) == "abccbaabc"


def test_a_turn_is_as_many_runs_as_repeats_and_each_is_timed_alone() -> None:
    made = Bench()
    result = made.measure(made.session("a", 1), made.session("b", 1), rounds=2, repeats=3, warmup=0)
    assert "".join(name for name, _ in made.ran) == "aaabbbbbbaaa"
    assert [(one.name, one.runs, one.median) for one in result.latencies] == [("a", 6, 1), ("b", 6, 1)]


def test_warm_up_runs_are_not_in_the_figures() -> None:
    made = Bench()
    slow_start = made.session("a", 100, 100, *[1] * 8)
    assert made.measure(slow_start, rounds=4, repeats=2, warmup=2).at("a", 1).p95 == 1


def test_every_batch_size_is_a_measurement_of_its_own() -> None:
    made = Bench()
    feeds = {1: {"x": np.zeros((1, 3))}, 8: {"x": np.zeros((8, 3))}}
    result = made.measure(
        made.session("a", 1), made.session("b", 2), feeds=feeds, rounds=1, repeats=1, warmup=1
    )
    assert made.ran == [(name, size) for size in (1, 8) for name in "abab"]
    assert [(one.name, one.batch) for one in result.latencies] == [("a", 1), ("b", 1), ("a", 8), ("b", 8)]
    with pytest.raises(KeyError, match="b at batch 2"):
        result.at("b", 2)


def test_minimum_median_and_tail_are_of_all_runs_and_ratios_are_to_the_first() -> None:
    made = Bench()
    first = made.session("first", *[4, 4, 4, 5])
    second = made.session("second", *[1, 2, 2, 9])
    result = made.measure(first, second, rounds=1, repeats=4, warmup=0)
    one = result.at("second", 1)
    assert (one.minimum, one.median) == (1, 2)
    assert one.p95 == pytest.approx(np.quantile([1, 2, 2, 9], 0.95))
    assert (one.ratio_median, one.ratio_minimum) == (2 / 4, 1 / 4)
    reference = result.at("first", 1)
    assert (reference.ratio_median, reference.ratio_minimum, reference.ratio_paired) == (1, 1, 1)


def test_paired_ratios_forgive_a_load_that_comes_and_goes() -> None:
    made = Bench()
    # In rounds 2 and 3 of 4 everything takes ten times as long, and the second round runs backwards.
    first = made.session("first", 2, 20, 20, 2)
    second = made.session("second", 1, 10, 10, 1)
    assert made.measure(first, second, rounds=4, repeats=1, warmup=0).at("second", 1).ratio_paired == 0.5
    uneven = made.session("uneven", 1, 30, 10, 1)
    one = made.measure(made.session("first", 2, 20, 20, 2), uneven, rounds=4, repeats=1, warmup=0)
    assert one.at("uneven", 1).ratio_paired == 0.5, "one bad round in four moves no median"


def test_thread_time_stands_beside_the_wall_clock_with_one_thread_only() -> None:
    made = Bench()
    sessions = made.session("a", 4, share=0.5), made.session("b", 2, share=0.75)
    one = made.measure(*sessions).at("b", 1)
    assert (one.cpu_median, one.ratio_cpu) == (1.5, 0.75)
    several = made.measure(*sessions, threads=2)
    assert several.threads == 2
    assert (several.at("b", 1).cpu_median, several.at("b", 1).ratio_cpu) == (None, None)


def test_clocks_too_coarse_to_see_a_run_give_no_division_by_zero() -> None:
    made = Bench()
    result = made.measure(made.session("a", 0), made.session("b", 0), made.session("c", 1))
    assert result.at("b", 1).ratio_median == 1
    assert result.at("c", 1).ratio_median == float("inf")


def test_results_are_frozen_plain_numbers() -> None:
    result = bench_models({"one": RELU, "two": TWICE}, Turns(2, 2, 1), batches=(1, 2))
    assert (result.threads, result.rounds, result.repeats, result.warmup) == (1, 2, 2, 1)
    assert [(one.name, one.batch, one.runs) for one in result.latencies] == [
        (name, batch, 4) for batch in (1, 2) for name in ("one", "two")
    ]
    for one in result.latencies:
        assert 0 < one.minimum <= one.median <= one.p95
        assert {type(getattr(one, f.name)) for f in fields(Latency)} == {str, int, float}
    with pytest.raises(FrozenInstanceError):
        result.latencies[0].batch = 3  # type: ignore[misc]


def test_models_run_optimized_on_one_thread_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []

    def opening(source: Any, **options: Any) -> Session:
        opened.append(options)
        return Session(source, **options)

    monkeypatch.setattr(bench, "Session", opening)
    bench_models({"one": RELU}, Turns(1, 1))
    bench_models({"one": RELU}, Turns(1, 1), threads=2)
    assert [options["threads"] for options in opened] == [1, 2]
    assert all(options.get("optimize", True) for options in opened)


def test_the_batch_is_the_free_first_axis_and_every_axis_of_its_name() -> None:
    shapes = {"x": (1, 3, 8, 6)}
    with pytest.raises(
        UsageError, match=r"axis 2 of input 'x' is free \(H\); give its size with --set-shape x="
    ):
        batch_shapes(FREE, 4)
    assert batch_shapes(FREE, 4, shapes) == {"x": (4, 3, 8, 6), "n": (4, 4)}
    steps = {**shapes, "n": (5, 1)}
    assert batch_shapes(FREE, 4, steps)["n"] == (5, 4), "a first axis of another name need not be the batch"
    feeds = batch_feeds(FREE, (1, 4), shapes, seed=2)
    assert {size: feed["x"].shape for size, feed in feeds.items()} == {1: (1, 3, 8, 6), 4: (4, 3, 8, 6)}
    again = batch_feeds(FREE, (4,), shapes, seed=2)
    np.testing.assert_array_equal(again[4]["x"], feeds[4]["x"])


@pytest.mark.parametrize(
    ("signature", "batch", "shapes", "message"),
    [
        ("(float[2,3] x)", 1, None, "the model fixes its batch size at 2; 1 cannot be measured, give 2"),
        ("(float[N,3] x)", 0, None, "batches of 0 samples are none; give 1 or more"),
        ("(float[N,3] x)", 1, {"y": (1, 3)}, "the model has no input 'y'; its inputs are x"),
        ("(float[N,3] x)", 1, {"x": (1, 3, 1)}, "input 'x' has 2 axes; 3 sizes are given"),
        ("(float[N,3] x)", 1, {"x": (1, 4)}, "axis 1 of input 'x' is 3; it cannot be set to 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    signature: str, batch: int, shapes: dict[str, tuple[int, ...]] | None, message: str
) -> None:
    model = parse_model(net(f"{signature} => {signature.replace('x', 'y')}", "", "y = Relu(x)"))
    with pytest.raises(UsageError) as problem:
        batch_shapes(model, batch, shapes)
    assert str(problem.value) == message


def test_a_fixed_batch_size_is_measured_as_it_is() -> None:
    model = parse_model(net("(float[2,3] x) => (float[2,3] y)", "", "y = Relu(x)"))
    assert batch_shapes(model, 2) == {"x": (2, 3)}


def test_nothing_to_measure_is_refused() -> None:
    made = Bench()
    with pytest.raises(UsageError, match="no model to measure; give one"):
        bench_models({})
    with pytest.raises(UsageError, match="nothing to measure; give a model"):
        made.measure()
    with pytest.raises(UsageError, match="nothing to measure; give a model and a batch size"):
        made.measure(made.session("a", 1), feeds={})
    for name in ("rounds", "repeats"):
        with pytest.raises(UsageError, match=f"0 {name} measure nothing; give 1 or more"):
            made.measure(made.session("a", 1), **{name: 0})


def test_models_of_other_inputs_cannot_be_compared() -> None:
    other = parse_model(net("(float[N,3] z) => (float[N,3] y)", "", "y = Relu(z)"))
    with pytest.raises(UsageError, match="two and one have different inputs"):
        bench_models({"one": RELU, "two": other})


def test_a_candidate_that_does_not_run_is_named() -> None:
    narrow = parse_model(net("(float[N,4] x) => (float[N,4] y)", "", "y = Relu(x)"))
    with pytest.raises(SessionError, match=r"^narrow: "):
        bench_models({"wide": RELU, "narrow": narrow})
