"""Times of forms: what is timed, that the rest is drawn between, and that what was timed once is not timed again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.factorization.candidates import Place, find_places
from onnxcomp.compiler.factorization.timing import COPIES, FormTimes
from onnxcomp.compiler.passbase import PassLog
from onnxcomp.errors import UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.timings import Timings
from tests.support.pruning import context_for, noise
from tests.support.replacing import Clock, conv
from tests.support.text import net


class Watched(Clock):
    """A clock that keeps what it was given."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.models: list[Model] = []

    def __call__(self, models: Sequence[Model], *rest: Any, **more: Any) -> list[float]:
        self.models += models
        return super().__call__(models, *rest, **more)


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched()
    monkeypatch.setattr("onnxcomp.compiler.factorization.timing.clock", made)
    return made


def of(model: Model, **given: Any) -> tuple[FormTimes, list[Place]]:
    shapes = default_shapes(model)
    found = find_places(
        model, ("Conv", "ConvTranspose", "Gemm", "MatMul"), lambda name: None, shapes, PassLog()
    )
    context = context_for(model, noise(model, 2), **given)
    return FormTimes(model, context, shapes), found


def wide() -> Model:
    return parse_model(
        net(
            "(float[1,64,10,10] x) => (float[1,64,10,10] y)",
            "float[64,64,3,3] w, float[64] b, float[64,64,3,3] v",
            "h = Conv<pads=[1,1,1,1]>(x, w, b) y = Conv<pads=[1,1,1,1]>(h, v)",
        )
    )


@pytest.mark.parametrize(
    ("form", "ranks"),
    [
        ("channel", (16, 32, 48)),
        ("first", (16, 32, 48)),
        ("vertical", (32, 64, 80)),
        ("tucker", (32, 40, 48)),
        ("cp", (48, 100, 160)),
        ("depthwise", (1, 2, 3, 4)),
        ("pointwise", (1, 2, 3, 4)),
    ],
)
def test_shares_of_time_are_those_of_work_where_work_is_all_that_counts(
    form: str, ranks: tuple[int, ...], clock: Watched
) -> None:
    times, (place, _) = of(wide())
    for rank in ranks:
        layout: Any = "sum" if form in ("depthwise", "pointwise") and rank > 1 else "plain"
        made = place.form(form, (rank, rank) if form == "tucker" else (rank,))
        alternative = place.alternative(made, layout, 0.0)
        # The core of tucker grows with the square of the ranks, and is drawn straight all the same.
        near = 0.1 if form == "tucker" else 0.01
        assert times.of(place, alternative) == pytest.approx(alternative.macs / place.macs, rel=near)
    least = place.alternative(place.form(form, (1, 1) if form == "tucker" else (1,)), "plain", 0.0)
    assert times.of(place, least) >= 0.999 * least.macs / place.macs, (
        "less than was timed is not promised to be faster"
    )


def test_few_ranks_are_timed_and_none_twice(clock: Watched) -> None:
    times, (place, twin) = of(wide())
    for rank in range(8, 57, 8):
        assert 0 < times.of(place, place.alternative(place.form("channel", (rank,)), "plain", 0.0)) < 2
    asked = len(clock.models)
    assert 0 < asked <= 4 * 3
    clock.stopped = True
    times.of(place, place.alternative(place.form("channel", (17,)), "plain", 0.0))
    # The second lacks the bias, which is no part of what decides about time.
    times.of(twin, twin.alternative(twin.form("channel", (40,)), "plain", 0.0))
    assert len(clock.models) == asked


def test_more_ranks_never_take_less_time_beyond_what_was_timed(clock: Watched) -> None:
    times, (place, _) = of(wide())
    found = [
        times.of(place, place.alternative(place.form("channel", (r,)), "plain", 0.0)) for r in range(4, 65, 4)
    ]
    assert all(b >= a - 1e-9 for a, b in pairwise(found))


@pytest.mark.parametrize("kind", ["conv", "spread", "gemm", "matmul", "left"])
def test_what_is_timed_is_the_layer_on_its_own_sizes_several_times_over(kind: str, clock: Watched) -> None:
    model = {
        "conv": conv("strides=[2,1], pads=[1,1,1,1]"),
        "spread": conv("strides=[2,2]", kind="ConvTranspose", shape="8,12,3,3"),
        "gemm": parse_model(
            net(
                "(float[N,40] x) => (float[N,48] y)",
                "float[48,40] w, float[48] b",
                "y = Gemm<transB=1, alpha=0.5>(x, w, b)",
            )
        ),
        "matmul": parse_model(
            net("(float[N,7,40] x) => (float[N,7,48] y)", "float[40,48] w", "y = MatMul(x, w)")
        ),
        "left": parse_model(
            net("(float[N,40,7] x) => (float[N,48,7] y)", "float[48,40] w", "y = MatMul(w, x)")
        ),
    }[kind]
    times, (place,) = of(model)
    form = place.form("channel", (4,))
    assert times.of(place, place.alternative(form, "plain", 0.0)) > 0
    shape = default_shapes(model)[place.node.input]
    for made in clock.models:
        session = Session(made, threads=1)
        found = session.run({v.name: np.zeros(shape, np.float32) for v in made.graph.inputs})
        (value,) = found.values()
        assert value.shape == tuple(default_shapes(model)[place.node.output])
    one, four, short, long = clock.models[:4]
    ops = [sum(linear_node(n) is not None for n in m.graph.nodes) for m in (one, four, short, long)]
    assert ops == [1, 1 + COPIES, 2, 2 * (1 + COPIES)]


def test_the_fastest_layout_is_found_and_kept(clock: Watched) -> None:
    times, (place, _) = of(wide())
    form = place.form("depthwise", (2,))
    first = times.layout(place, form, ("concat", "sum", "plain"))
    clock.stopped = True
    assert times.layout(place, form, ("concat", "sum", "plain")) == first


def test_shares_of_a_network_are_those_of_its_work(clock: Watched) -> None:
    times, found = of(wide())
    shares = times.share(found)
    assert set(shares) == {"h", "y"}
    assert sum(shares.values()) == pytest.approx(1.0, abs=0.02)
    assert shares["h"] == pytest.approx(0.5, abs=0.01)


def test_a_replay_asks_no_clock_and_lacks_nothing(clock: Watched) -> None:
    taken = Timings()
    times, (place, _) = of(wide(), timings=taken)
    wanted = place.alternative(place.form("channel", (20,)), "plain", 0.0)
    first, shares = times.of(place, wanted), times.share([place])
    assert all(" for Conv " in key or key.startswith("share of Conv ") for key in taken.used)
    clock.stopped = True
    again, (place, _) = of(wide(), timings=Timings(taken.used, strict=True))
    assert again.of(place, wanted) == first
    assert again.share([place]) == shares
    with pytest.raises(UsageError, match="--timings lacks 'vertical"):
        again.of(place, place.alternative(place.form("vertical", (16,)), "plain", 0.0))


def test_real_times_are_positive_numbers() -> None:
    times, (place, _) = of(wide())
    ratio = times.of(place, place.alternative(place.form("channel", (16,)), "plain", 0.0))
    assert 0 < ratio < 5
