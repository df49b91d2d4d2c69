"""Bounds hold with confidence: limits against their definitions, and what too few samples cannot confirm."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxcomp.compiler.evaluation.bounds import Bounds, Judge, Outcome, check_bounds, drop_limit, share_limit
from onnxcomp.errors import PreconditionError, UsageError
from onnxcomp.ir.parse import parse_model
from tests.support.pruning import context_for, noise
from tests.support.text import net

LINEAR = net("(float[N, 4] x) => (float[N, 3] y)", "float[4, 3] a", "y = MatMul(x, a)")
IMAGES = net("(float[N, 2, 4, 4] x) => (float[N, 3, 4, 4] y)", "float[3, 2, 1, 1] a", "y = Conv(x, a)")


def test_the_limit_of_a_share_is_where_so_few_would_be_seen_in_a_tenth_of_all_cases() -> None:
    for count, total in ((0, 20), (3, 50), (17, 40)):
        limit = share_limit(count, total)
        seen = sum(math.comb(total, k) * limit**k * (1 - limit) ** (total - k) for k in range(count + 1))
        assert math.isclose(seen, 0.1, rel_tol=1e-6)
    assert share_limit(5, 5) == 1.0


def test_the_limit_of_accuracy_lost_holds_in_nine_cases_of_ten() -> None:
    """Drawn anew: the true loss lies above the limit in about a tenth of all draws, and in hardly more."""
    rng = np.random.default_rng(0)
    total, wrong, right = 200, 0.06, 0.02
    draws = rng.multinomial(total, [wrong, right, 1 - wrong - right], size=2000)
    above = np.mean([drop_limit(b - c, b + c, total) < wrong - right for b, c, _ in draws])
    assert 0.03 < above < 0.13


def outcome(before: np.ndarray, after: np.ndarray, labels: np.ndarray | None = None) -> Outcome:
    found = Outcome(labels)
    for part in np.array_split(np.arange(len(before)), 3):
        found.add({"y": before[part]}, {"y": after[part]})
    return found


def test_an_outcome_counts_what_was_decided_otherwise_and_what_was_lost() -> None:
    before = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    after = np.eye(4, dtype=np.float32)[[0, 1, 3, 2, 1]]
    found = outcome(before, after, np.array([0, 0, 2, 2, 0]))
    assert (found.samples, found.differing, found.lost) == (5, 3, 1)
    assert outcome(before, after).lost is None


def test_noise_is_a_share_of_energy_and_its_limit_grows_as_samples_differ() -> None:
    rng = np.random.default_rng(1)
    before = rng.standard_normal((60, 5)).astype(np.float32)
    even = outcome(before, before * np.float32(1.1))
    assert math.isclose(even.noise(), 0.01, rel_tol=1e-4)
    assert math.isclose(even.noise_limit(), even.noise(), rel_tol=1e-3)
    uneven = before.copy()
    uneven[:3] *= 2
    found = outcome(before, uneven)
    assert found.noise_limit() > 1.4 * found.noise()


def test_what_is_no_longer_finite_has_no_decibels_left() -> None:
    before = np.ones((6, 3), np.float32)
    after = before.copy()
    after[2, 1] = np.nan
    found = outcome(before, after)
    (reached,) = Bounds(min_sqnr=1.0).reached(found)
    assert not reached.met
    assert found.noise() == math.inf


def test_bounds_are_met_at_the_limit_and_not_at_what_was_seen() -> None:
    before = np.eye(3, dtype=np.float32)[np.arange(100) % 3]
    after = before.copy()
    after[0] = after[0][::-1]
    found = outcome(before, after, np.arange(100) % 3)
    seen, limit = 99.0, 100 - 100 * share_limit(1, 100)
    assert [r.met for r in Bounds(agreement=seen).reached(found)] == [False]
    assert [r.met for r in Bounds(agreement=limit - 0.01).reached(found)] == [True]
    dropped = 100 * drop_limit(1, 1, 100)
    assert dropped > 1
    assert [r.met for r in Bounds(max_drop=dropped + 0.01).reached(found)] == [True]
    assert [r.met for r in Bounds(max_drop=dropped - 0.01).reached(found)] == [False]


def test_too_few_samples_are_refused_with_the_number_that_would_do() -> None:
    model = parse_model(LINEAR)
    with pytest.raises(PreconditionError, match=r"agreement=99 takes at least 460 samples .* there are 48"):
        Judge(Bounds(agreement=99.0), context_for(model))
    enough = Judge(Bounds(agreement=99.0), context_for(model, noise(model, 460)))
    assert len(enough.held) == 230
    assert len(enough.rest) == 230
    (reached,) = enough.reached(model)
    assert reached.met


def test_bounds_about_decisions_are_refused_where_none_are_made() -> None:
    model = parse_model(IMAGES)
    judge = Judge(Bounds(max_drop=10.0), context_for(model, noise(model, 100)))
    with pytest.raises(PreconditionError, match="give min-sqnr"):
        judge.reached(model)


def test_more_samples_are_held_back_the_finer_the_bound() -> None:
    model = parse_model(LINEAR)
    held = [
        len(Judge(Bounds(agreement=bound), context_for(model, noise(model, 1000))).held)
        for bound in (50, 98, 99)
    ]
    assert held == [125, 342, 500]
    assert len(Judge(Bounds(min_sqnr=10.0), context_for(model, noise(model, 100))).held) == 25


@pytest.mark.parametrize(
    ("bounds", "mixed", "keep", "said"),
    [
        (Bounds(), True, "auto", "precision=mixed needs a bound"),
        (Bounds(min_sqnr=30.0), False, "auto", "min-sqnr=30 is for precision=mixed"),
        (Bounds(), False, "float", "keep=float is for precision=mixed"),
        (Bounds(agreement=101.0), True, "auto", "agreement=101 is out of range"),
        (Bounds(agreement=100.0), True, "auto", "no number of samples confirms agreement=100"),
        (Bounds(max_drop=0.0), True, "auto", "no number of samples confirms max-drop=0"),
        (Bounds(min_sqnr=-1.0), True, "auto", "min-sqnr=-1 is out of range"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(bounds: Bounds, mixed: bool, keep: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_bounds("insert-qdq", bounds, mixed=mixed, keep=keep)


def test_whole_numbers_have_no_noise() -> None:
    found = Outcome(None)
    floats = np.ones((4, 3), np.float32)
    found.add(
        {"y": floats, "index": np.zeros(4, np.int64)},
        {"y": floats * np.float32(1.1), "index": np.ones(4, np.int64)},
    )
    assert math.isclose(found.noise(), 0.01, rel_tol=1e-4)
    only = Outcome(None)
    only.add({"index": np.zeros(4, np.int64)}, {"index": np.ones(4, np.int64)})
    assert not only.judged


def test_a_batch_of_which_other_rows_were_selected_says_nothing() -> None:
    found = Outcome(None)
    found.add({"y": np.ones((4, 3), np.float32)}, {"y": np.ones((5, 3), np.float32)})
    assert (found.judged, found.samples, found.differing) == (False, 0, 0)
