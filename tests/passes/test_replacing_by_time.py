"""What passes that replace layers do with time: the clock is a made one."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from onnxcomp.compiler.passbase import Context, PassResult
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.passes.split_svd import SplitSvd
from onnxcomp.passes.substitute_depthwise import SubstituteDepthwise
from onnxcomp.runtime.timings import Timings
from onnxcomp.testing import fingerprint
from tests.support.replacing import Clock, conv, replaced
from tests.support.text import net


def small() -> Model:
    """Four convolutions, three of them alike."""
    widths = (3, 24, 24, 24, 24)
    pairs = list(itertools.pairwise(widths))
    stored = ", ".join(f"float[{o},{c},3,3] w{n}" for n, (c, o) in enumerate(pairs))
    body = " ".join(f"h{n} = Conv<pads=[1,1,1,1]>(x{n}, w{n}) x{n + 1} = Relu(h{n})" for n in range(4))
    signature = "(float[N,3,8,8] x0) => (float[N,24,1,1] y)"
    return parse_model(net(signature, stored, f"{body} y = GlobalAveragePool(x4)"))


def timed(model: Model, step: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, **given: Any) -> PassResult:
    monkeypatch.setattr("onnxcomp.compiler.factorization.timing.clock", clock)
    for asks in ("factorization.planning", "cost.budget"):
        monkeypatch.setattr(f"onnxcomp.compiler.{asks}.measured_ratio", clock.ratio)
    return replaced(model, step, **given)


def test_only_what_the_clock_finds_faster_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, step = conv(), SubstituteDepthwise(multiplier=1, accept="latency")
    (change,) = timed(model, step, Clock(), monkeypatch).changes
    assert change.details["time"] == pytest.approx(
        change.details["macs_after"] / change.details["macs_before"], 0.02
    )
    assert "of its time" in change.what
    slow = timed(model, step, Clock(depthwise=50), monkeypatch)
    assert not slow.changed
    assert slow.skips[0].reason.startswith("nothing saves 10%: the cheapest, ")
    split = SplitSvd(macs=0.6, accept="latency")
    forms = {c.details["form"] for c in timed(model, split, Clock(depthwise=50), monkeypatch).changes}
    assert forms
    assert "cp" not in forms, "whose middle is depthwise"


@pytest.mark.parametrize("slower", [1, 10**6])
def test_what_does_not_make_the_whole_model_faster_is_taken_back(
    slower: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Together(Clock):
        """Alone every replacement is faster; of the whole model, more than one is slower by far."""

        def ratio(self, before: Model, after: Model, context: Context) -> float:
            added = len(after.graph.nodes) - len(before.graph.nodes)
            return super().ratio(before, after, context) * (slower if added > 1 else 1)

    step = SubstituteDepthwise(multiplier=1, accept="latency", repair="none", order="depthwise")
    result = timed(small(), step, Together(), monkeypatch)
    back = [skip for skip in result.skips if skip.reason.endswith("does not make the whole model faster")]
    assert (len(result.changes) > 1) == (slower == 1)
    assert bool(back) == (slower > 1)
    assert result.shortfall is None, "a rule for each layer is no budget"


def test_the_layout_that_the_clock_finds_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Taste(Clock):
        """Takes longer for whatever joins."""

        def _time(self, model: Model) -> float:
            return super()._time(model) + 5.0 * sum(n.is_op("Concat") for n in model.graph.nodes)

    model = conv()
    step = SubstituteDepthwise(multiplier=2, accept="latency", order="depthwise")
    (change,) = timed(model, step, Taste(), monkeypatch).changes
    assert change.details["layout"] != "concat"
    forced = dataclasses.replace(step, layout="concat")
    assert not timed(model, forced, Taste(), monkeypatch).changed


def test_a_replay_of_times_needs_no_clock_and_gives_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = Clock(), Timings()
    model, step = small(), SubstituteDepthwise(macs=0.6, accept="latency", repair="none")
    first = timed(model, step, clock, monkeypatch, timings=taken)
    assert first.changed
    assert any(key.startswith("depthwise 1 plain for Conv ") for key in taken.used)
    clock.stopped = True
    again = Timings(taken.used, strict=True)
    second = timed(model, step, clock, monkeypatch, timings=again)
    assert fingerprint(second.model) == fingerprint(first.model)
    assert again.used == taken.used


@pytest.mark.parametrize("kind", [SplitSvd, SubstituteDepthwise])
def test_a_budget_of_time_holds_by_what_is_measured_of_the_whole(
    kind: type[SplitSvd | SubstituteDepthwise], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slower(Clock):
        """Of the whole network, 0.2 of the time is never saved, which no table of layers knows."""

        def ratio(self, before: Model, after: Model, context: Context) -> float:
            return 0.2 + 0.8 * super().ratio(before, after, context)

    clock, model = Slower(), small()
    result = timed(model, kind(latency=0.7, repair="none"), clock, monkeypatch)
    assert result.shortfall is None
    first, last = (clock([each])[0] for each in (model, result.model))
    assert 0.64 <= 0.2 + 0.8 * last / first <= 0.7001
    assert sum(note.startswith("latency estimated") for note in result.notes) > 1, (
        "the first estimate was wrong"
    )


def test_a_budget_of_time_beyond_reach_is_told_with_the_best_there_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stubborn(Clock):
        """Never gets below nine tenths."""

        def ratio(self, before: Model, after: Model, context: Context) -> float:
            return 0.9 + 0.1 * super().ratio(before, after, context)

    clock, model = Stubborn(), small()
    result = timed(model, SubstituteDepthwise(latency=0.5, repair="none"), clock, monkeypatch)
    assert result.shortfall is not None
    told = float(result.shortfall.split("reached; ")[1].split(" ")[0])
    first, last = (clock([each])[0] for each in (model, result.model))
    assert told == pytest.approx(0.9 + 0.1 * last / first, abs=0.002)
    assert result.changed
