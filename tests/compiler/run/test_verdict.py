"""The verdict: thresholds, what decides for which outputs, what is said of noise and of results that never ran."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from onnxcomp.analysis.cost import Cost
from onnxcomp.compiler.run.verdict import Evidence, verdict_on
from onnxcomp.runtime.compare import Comparison, OutputDifference

BEFORE, AFTER = Cost(10, 1000, 4000, 800), Cost(10, 500, 2000, 400)
REAL, NOISE = Evidence("evaluation data e.npz"), Evidence("noise", noise=True)


def compared(
    decibels: float | None,
    agreement: float | None = None,
    accuracy: tuple[float, float] | None = None,
    *,
    finite: bool = True,
) -> Comparison:
    output = OutputDifference("y", False, finite, 1.0, 1.0, 0.1, decibels, 0.9)
    before, after = accuracy or (None, None)
    return Comparison(100, (output,), "y" if agreement is not None else None, agreement, before, after)


@pytest.mark.parametrize(
    ("comparison", "quality"),
    [
        (compared(math.inf), "kept"),
        (compared(25.0), "kept"),
        (compared(19.9), "noticeable"),
        (compared(10.1), "noticeable"),
        (compared(9.9), "ruined"),
        (compared(30.0, 99.5), "kept"),
        (compared(15.0, 98.5), "kept"),
        (compared(15.0, 91.0), "noticeable"),
        (compared(5.0, 85.0), "noticeable"),
        (compared(9.0, 79.0), "ruined"),
        (compared(0.3, 63.0), "ruined"),
        (compared(8.0, 91.0, (91.0, 90.5)), "kept"),
        (compared(8.0, 91.0, (91.0, 88.0)), "noticeable"),
        (compared(8.0, 70.0, (91.0, 65.0)), "ruined"),
        (compared(40.0, 100.0, finite=False), "ruined"),
        (compared(None), "kept"),
    ],
)
def test_the_most_telling_measure_decides(comparison: Comparison, quality: str) -> None:
    verdict = verdict_on(BEFORE, AFTER, comparison, REAL, ran=True)
    assert verdict.quality == quality
    assert bool(verdict.reason) == (quality != "kept")


def test_a_vector_whose_largest_element_means_nothing_is_judged_by_its_error() -> None:
    """Sentence embeddings at 25 dB often change their largest element, and are as good as they were."""
    assert verdict_on(BEFORE, AFTER, compared(25.0, 70.0), REAL, ran=True).quality == "kept"


def test_noise_condemns_nothing_but_what_is_not_finite() -> None:
    assert verdict_on(BEFORE, AFTER, compared(2.0, 40.0), NOISE, ran=True).quality == "unjudged"
    assert verdict_on(BEFORE, AFTER, compared(30.0, 99.0), NOISE, ran=True).quality == "kept"
    assert verdict_on(BEFORE, AFTER, compared(2.0, finite=False), NOISE, ran=True).quality == "ruined"


def test_what_was_never_run_is_unverified_and_told_how_to_run_it() -> None:
    for comparison, ran in ((None, True), (compared(40.0), False)):
        verdict = verdict_on(BEFORE, AFTER, comparison, None, ran=ran)
        assert verdict.quality == "unverified"
        assert "--set-shape" in str(verdict)


def test_the_sentence_says_what_was_gained_and_what_it_cost() -> None:
    text = str(verdict_on(BEFORE, AFTER, compared(25.5, 99.8, (91.0, 90.9)), REAL, ran=True))
    assert text.startswith("kept: 50.0 % of the bytes, 50.0 % of the MACs, 50.0 % of the parameters")
    for part in ("0.10 points of accuracy", "99.80 %", "25.5 dB", "100 samples of evaluation data e.npz"):
        assert part in text
    same = verdict_on(BEFORE, replace(BEFORE), compared(math.inf), REAL, ran=True)
    assert "nothing smaller" in same.gained
    assert "equal" in same.lost


def test_whole_numbers_alone_are_judged_by_how_many_are_equal() -> None:
    index = OutputDifference("index", False, True, 3.0, None, None, None, None, equal=60.0)
    for equal, quality in ((60.0, "ruined"), (90.0, "noticeable"), (99.9, "kept")):
        found = verdict_on(BEFORE, AFTER, Comparison(100, (index,), "index", equal), REAL, ran=True)
        assert found.quality == quality


def test_what_cannot_be_compared_is_unjudged() -> None:
    nothing = OutputDifference("s", False, True, None, None, None, None, None, note="it is no tensor")
    found = verdict_on(BEFORE, AFTER, Comparison(100, (nothing,)), REAL, ran=True)
    assert found.quality == "unjudged"
    assert "no tensor" in found.reason
