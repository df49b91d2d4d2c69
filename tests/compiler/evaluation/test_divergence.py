"""The distance of outputs: divergences by hand, temperatures, errors as shares of variance, and what adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.special
from numpy.typing import NDArray

from onnxcomp.compiler.evaluation.divergence import Reference

Array = NDArray[np.floating]

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((6, 5)).astype(np.float32)
OTHERS = (LOGITS + 0.3 * RNG.standard_normal((6, 5))).astype(np.float32)


def distance(wanted: Array, found: Array) -> float:
    return Reference([{"y": wanted}]).distance([{"y": found}])


def softmax(logits: Array) -> Array:
    return scipy.special.softmax(logits.astype(np.float64), axis=1)


def by_hand(wanted: Array, found: Array) -> float:
    """`T^2 / n * sum p (log p - log q)`, T the deviation of the wanted logits over classes."""
    z, w = wanted.astype(np.float64), found.astype(np.float64)
    t = float(np.sqrt(np.mean((z - z.mean(1, keepdims=True)) ** 2)))
    total = 0.0
    for row, other in zip(z, w, strict=True):
        p, q = np.exp(row / t) / np.exp(row / t).sum(), np.exp(other / t) / np.exp(other / t).sum()
        total += sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True))
    return t * t * total / len(z)


# --- class scores ----------------------------------------------------------------------------------------------------
def test_the_distance_of_two_class_outputs_is_the_divergence_by_hand() -> None:
    assert distance(LOGITS, OTHERS) == pytest.approx(by_hand(LOGITS, OTHERS), rel=1e-9)
    assert distance(LOGITS, OTHERS) > 1e-3
    wanted, found = np.array([[0.0, 0.0]]), np.array([[np.log(3), 0.0]])
    assert distance(wanted, found) == pytest.approx(0.5 * np.log(4 / 3)), "fair against 3 to 1, temperature 1"


def test_equal_outputs_have_no_distance_and_different_ones_have_some() -> None:
    assert distance(LOGITS, LOGITS) == 0
    for cell in np.ndindex(LOGITS.shape):
        other = LOGITS.copy()
        other[cell] += 0.01
        assert distance(LOGITS, other) > 1e-8


def test_a_constant_added_to_all_logits_of_a_sample_changes_nothing() -> None:
    shifted = LOGITS + np.arange(6, dtype=np.float32)[:, None]
    assert distance(LOGITS, shifted) == pytest.approx(0, abs=1e-9)
    assert distance(shifted, OTHERS) == pytest.approx(distance(LOGITS, OTHERS), rel=1e-5)


def test_the_same_network_is_as_far_off_by_its_probabilities_as_by_its_logits() -> None:
    logits = distance(LOGITS, OTHERS)
    assert distance(softmax(LOGITS), softmax(OTHERS)) == pytest.approx(logits, rel=1e-5)
    assert distance(np.log(softmax(LOGITS)), np.log(softmax(OTHERS))) == pytest.approx(logits, rel=1e-5)


def test_probabilities_are_told_from_the_original_alone() -> None:
    """A damaged network's outputs need not be distributions any more."""
    wanted = softmax(LOGITS)
    assert distance(wanted, 0.7 * softmax(OTHERS)) == pytest.approx(
        distance(wanted, softmax(OTHERS)), rel=1e-9
    )


def test_saturated_probabilities_have_a_finite_distance() -> None:
    sure = np.eye(4, dtype=np.float32)
    found = distance(sure, np.roll(sure, 1, 0))
    assert np.isfinite(found)
    assert found > 1
    assert distance(sure, sure) == 0


def test_a_network_that_is_sure_is_not_judged_milder_than_one_that_is_not() -> None:
    """Ten times the logits and ten times their error: with temperature 1 all would be hidden by saturation."""
    assert distance(10 * LOGITS, 10 * OTHERS) == pytest.approx(100 * distance(LOGITS, OTHERS), rel=1e-5)
    sure = 40 * np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 4, 0]]
    assert distance(sure, sure + 2 * LOGITS) > 0.1


def test_small_damages_grow_with_their_square() -> None:
    step = OTHERS - LOGITS
    assert distance(LOGITS, LOGITS + 0.02 * step) == pytest.approx(
        4 * distance(LOGITS, LOGITS + 0.01 * step), rel=0.02
    )


# --- other outputs ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 7, 2), (6,), (6, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_other_outputs_are_judged_by_their_squared_error_as_a_share_of_their_variance(
    shape: tuple[int, ...], scale: float
) -> None:
    wanted = (scale * (RNG.standard_normal(shape) + 3)).astype(np.float32)
    found = wanted + (0.1 * scale * RNG.standard_normal(shape)).astype(np.float32)
    gap = found.astype(np.float64) - wanted
    expected = float((gap**2).mean() / wanted.astype(np.float64).var())
    assert distance(wanted, found) == pytest.approx(expected, rel=1e-6)
    assert distance(wanted, np.full_like(wanted, wanted.astype(np.float64).mean())) == pytest.approx(
        1, rel=1e-5
    )


def test_a_constant_output_is_judged_by_its_error_alone() -> None:
    assert distance(np.full((4, 1), 2.0), np.full((4, 1), 2.5)) == pytest.approx(4 * 0.25)


def test_outputs_add_up_and_integers_beside_them_do_not_count() -> None:
    image, other = RNG.standard_normal((6, 2, 3)), RNG.standard_normal((6, 2, 3))
    label, wrong = np.arange(6), np.zeros(6, np.int64)
    both = Reference([{"z": image, "y": LOGITS, "label": label}])
    found = both.distance([{"z": other, "y": OTHERS, "label": wrong}])
    assert found == pytest.approx(distance(LOGITS, OTHERS) + distance(image, other), rel=1e-9)


def test_a_network_with_labels_alone_is_judged_by_the_share_that_differ() -> None:
    reference = Reference([{"label": np.array([3, 1, 2])}, {"label": np.array([0, 0, 4, 4, 1])}])
    assert reference.distance([{"label": np.array([3, 1, 2])}, {"label": np.array([0, 0, 4, 4, 1])}]) == 0
    found = reference.distance([{"label": np.array([3, 0, 2])}, {"label": np.array([0, 0, 4, 2, 1])}])
    assert found == pytest.approx(2 / 8)


def test_an_output_without_axes_is_judged_too() -> None:
    reference = Reference([{"loss": np.array(2.0), "y": LOGITS}])
    found = reference.distance([{"loss": np.array(2.5), "y": OTHERS}])
    assert found == pytest.approx(0.25 + distance(LOGITS, OTHERS))


def test_half_precision_is_judged_in_double() -> None:
    wanted, found = LOGITS.astype(np.float16), OTHERS.astype(np.float16)
    assert distance(wanted, found) == pytest.approx(by_hand(wanted, found), rel=1e-9)
    large = np.full((4, 8), 30000, np.float16) * np.linspace(0.5, 1, 8, dtype=np.float16)
    image = large[:, :, None]
    assert distance(image, image / 2) == pytest.approx(
        float(((image.astype(np.float64) / 2) ** 2).mean() / image.astype(np.float64).var()), rel=1e-3
    )


# --- batches ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cuts", [[2], [1, 3], [4, 5]])
@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 2)])
def test_batches_are_judged_as_one(cuts: Sequence[int], shape: tuple[int, ...]) -> None:
    wanted = RNG.standard_normal(shape)
    found = wanted + 0.2 * RNG.standard_normal(shape)
    parts = [{"y": part} for part in np.split(wanted, cuts)]
    others = [{"y": part} for part in np.split(found, cuts)]
    assert Reference(parts).distance(others) == pytest.approx(distance(wanted, found), rel=1e-9)


def test_batches_that_are_missing_are_no_small_distance() -> None:
    reference = Reference([{"y": LOGITS}, {"y": LOGITS}])
    with pytest.raises(ValueError, match="shorter"):
        reference.distance([{"y": LOGITS}])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 2)])
def test_what_is_not_finite_is_infinitely_far(value: float, shape: tuple[int, ...]) -> None:
    wanted = RNG.standard_normal(shape)
    found = wanted.copy()
    found[(-1,) * len(shape)] = value
    assert distance(wanted, found) == np.inf


# --- agreement -------------------------------------------------------------------------------------------------------
def test_agreement_is_the_share_of_equal_choices() -> None:
    wanted = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    found = np.eye(4)[[0, 1, 2, 3, 0, 1, 0, 0]]
    reference = Reference([{"z": wanted[:3, :, None], "y": wanted[:3]}, {"z": wanted[3:], "y": wanted[3:]}])
    others = [{"z": found[:3, :, None], "y": found[:3]}, {"z": found[3:], "y": found[3:]}]
    assert reference.agreement(others) == 6 / 8
    assert Reference([{"z": wanted[:, :, None]}]).agreement([{"z": found[:, :, None]}]) is None


def test_rows_that_have_no_partner_count_as_if_nothing_were_known_of_them() -> None:
    rng = np.random.default_rng(0)
    batches = [{"y": rng.standard_normal((n, 5)).astype(np.float32)} for n in (0, 3, 7)]
    reference = Reference(batches)
    assert reference.distance(batches) == 0
    other = [batches[0], {"y": batches[1]["y"][:2]}, batches[2]]
    assert reference.distance(other) == pytest.approx(3 / 10)
    assert reference.agreement(other) == pytest.approx(7 / 10)
    assert Reference(batches[:1]).distance([{"y": np.ones((2, 5), np.float32)}]) > 0


def test_maps_of_scores_are_judged_as_the_rows_they_are() -> None:
    def batches(p: float) -> Any:
        return [{"y": [{0: p, 1: 1 - p}] * 3}]

    first, second = batches(0.25), batches(0.5)
    assert Reference(first).distance(second) > 0
    assert Reference(first).classes == ["y"]
