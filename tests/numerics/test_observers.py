"""Histograms do not depend on batches, and each way to read a range from one is held against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxcomp.numerics.affine import Affine, Grid, range_affine
from onnxcomp.numerics.observers import (
    BINS,
    SHRINK,
    Histogram,
    ValueSensitivity,
    choose_range,
    expected_error,
    search_range,
)

GRID = Grid("uint8")
VALUES = arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-(2.0**60), 2.0**60, allow_nan=False, width=32)
)


def seen(*parts: Any) -> Histogram:
    """Return the histogram of `parts`, taken in one after the other."""
    found = Histogram()
    for part in parts:
        array = np.asarray(part, np.float32)
        found.follow(float(array.min()), float(array.max()))
        found.add(array, float(array.min()), float(array.max()))
    return found


def filled(histogram: Histogram) -> dict[int, float]:
    """Return the counts of the bins that are not empty, by their number."""
    places = np.flatnonzero(histogram.counts)
    return {int(place) + histogram.start: float(histogram.counts[place]) for place in places}


def relu_data(seed: int = 0, count: int = 40000) -> Any:
    return np.maximum(np.random.default_rng(seed).standard_normal(count), 0).astype(np.float32)


@given(st.lists(VALUES, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_histogram_depends_on_the_values_and_not_on_their_batches_or_their_order(
    parts: list[Any], random: Any
) -> None:
    whole = seen(np.concatenate(parts))
    split = seen(*parts)
    random.shuffle(parts)
    shuffled = seen(*parts)
    for other in (split, shuffled):
        assert (other.low, other.high, other.count) == (whole.low, whole.high, whole.count)
        assert other.exponent == whole.exponent
        assert filled(other) == filled(whole)


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_extremes_are_exact_and_every_value_that_is_not_zero_is_counted(parts: list[Any]) -> None:
    found, values = seen(*parts), np.concatenate(parts)
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.counts.sum() == np.count_nonzero(values)
    assert found.count == values.size
    assert len(found.counts) <= 2 * BINS + 4
    lower, upper = found.edges
    assert (lower <= upper).all()


@given(VALUES)
def test_values_lie_in_the_bins_that_count_them(values: Any) -> None:
    found = seen(values)
    width = 2.0**found.exponent
    for place, count in filled(found).items():
        exact = values.astype(np.float64)
        inside = (exact >= place * width) & (exact < (place + 1) * width) & (exact != 0)
        assert np.count_nonzero(inside) == count


@given(VALUES, VALUES)
def test_merged_histograms_of_as_many_values_are_the_histogram_of_all(one: Any, two: Any) -> None:
    size = min(len(one), len(two))
    one, two = one[:size], two[:size]
    merged, whole = seen(one).merged([seen(two)]), seen(one, two)
    assert (merged.low, merged.high, merged.count) == (whole.low, whole.high, whole.count)
    assert merged.exponent == whole.exponent
    assert filled(merged) == pytest.approx(filled(whole))


def test_merging_weighs_all_alike_and_forgets_what_saw_nothing() -> None:
    few, many = seen(np.ones(10)), seen(np.full(1000, 3.0))
    merged = few.merged([Histogram(), many])
    assert merged.count == 20
    assert sorted(filled(merged).values()) == pytest.approx([10, 10])


def test_merged_averages_reach_as_far_as_any_of_them() -> None:
    merged = Histogram().merged([seen([-1, 2]), seen([-0.5, 5]), Histogram()])
    assert merged.average == (-1, 5)


def test_minmax_takes_the_extremes() -> None:
    assert choose_range(seen([-1, 2, 0.5], [3, -0.25]), GRID, "minmax") == (-1, 3)


def test_moving_average_follows_the_samples_in_their_order() -> None:
    found = choose_range(seen([-1, 2], [-3, 12]), GRID, "moving-average")
    assert found == pytest.approx((0.9 * -1 + 0.1 * -3, 0.9 * 2 + 0.1 * 12))


@pytest.mark.parametrize("share", [90.0, 99.0, 99.9])
def test_percentiles_are_those_of_the_values(share: float) -> None:
    values = np.random.default_rng(1).standard_normal(50000).astype(np.float32)
    low, high = choose_range(seen(values), GRID, "percentile", share)
    width = float(values.max() - values.min()) / 1000
    assert low == pytest.approx(np.percentile(values, 100 - share), abs=width)
    assert high == pytest.approx(np.percentile(values, share), abs=width)


def test_percentiles_count_zeros_where_they_lie() -> None:
    low, high = choose_range(seen(relu_data()), GRID, "percentile", 99)
    assert low == 0
    assert high == pytest.approx(np.percentile(relu_data(), 99), abs=0.01)
    mostly = np.zeros(1000, np.float32)
    mostly[:5] = [5, 6, 7, 8, -9]
    assert choose_range(seen(mostly), GRID, "percentile", 99)[1] < 0.1


def test_the_expected_error_is_that_of_the_values() -> None:
    values = np.random.default_rng(2).standard_normal(30000).astype(np.float32)
    for low, high in ((-4.5, 4.5), (-2, 2), (-1, 3)):
        affine = range_affine(low, high, GRID)
        error = float(np.mean(np.square(affine.round_trip(values) - values)))
        assert expected_error(seen(values), affine) == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("grid", [GRID, Grid("int8", True, True), Grid("uint8", bits=4)])
@pytest.mark.parametrize("kind", ["normal", "relu", "tailed"])
def test_mse_finds_a_range_as_good_as_any_that_brute_force_finds(grid: Grid, kind: str) -> None:
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.standard_normal(20000),
        "relu": np.maximum(rng.standard_normal(20000), 0),
        "tailed": rng.standard_t(3, 20000),
    }[kind].astype(np.float32)
    found = seen(values)

    def error(low: float, high: float) -> float:
        return float(np.mean(np.square(range_affine(low, high, grid).round_trip(values) - values)))

    low, high = choose_range(found, grid, "mse")
    tried = [
        error(found.low * a, found.high * b)
        for a in np.linspace(0.03, 1, 25)
        for b in np.linspace(0.03, 1, 25)
        if not grid.symmetric or a == b
    ]
    assert error(low, high) <= min(tried) * 1.03
    assert found.low <= low <= 0 <= high <= found.high or grid.symmetric


def test_the_search_keeps_the_widest_of_equals() -> None:
    assert search_range(-1, 2, GRID, lambda affine: 0.0) == (-1, 2)
    assert search_range(1, 2, GRID, lambda affine: 0.0) == (0, 2)
    assert search_range(-1, 2, Grid("int8", True), lambda affine: 0.0) == (-2, 2)


def test_the_search_finds_a_known_optimum_on_both_sides() -> None:
    def loss(affine: Affine) -> float:
        low, high = affine.bounds()
        return (low + 0.8) ** 2 + (high - 1.4) ** 2

    low, high = search_range(-1, 2, GRID, loss)
    assert low == pytest.approx(-0.8, abs=0.02)
    assert high == pytest.approx(1.4, abs=0.02)
    assert SHRINK[0] == 1


def test_entropy_cuts_off_outliers_of_a_relu_and_keeps_its_body() -> None:
    values = relu_data()
    clean = choose_range(seen(values), GRID, "entropy")
    assert clean[0] == 0
    assert np.percentile(values, 98) < clean[1] <= values.max()
    spoiled = np.concatenate([values, np.full(3, 60, np.float32)])
    low, high = choose_range(seen(spoiled), GRID, "entropy")
    assert low == 0
    assert np.percentile(values, 98) < high < 30


@pytest.mark.parametrize("observer", ["minmax", "mse", "entropy", "percentile", "moving-average"])
@pytest.mark.parametrize("value", [0.0, 1.5, -2.0, 1e-42, 3e37])
def test_constant_values_have_ranges_that_can_be_stored(observer: Any, value: float) -> None:
    found = seen(np.full(100, value), np.full(7, value))
    low, high = choose_range(found, GRID, observer)
    affine = range_affine(low, high, GRID)
    back = affine.round_trip(np.full(1, value, np.float32))[0]
    assert back == pytest.approx(np.float32(value) if abs(value) > 1e-30 else 0, rel=1e-6)


def test_a_range_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values were seen"):
        choose_range(Histogram(), GRID)


def test_the_cost_of_a_range_is_what_a_linear_network_really_suffers() -> None:
    rng = np.random.default_rng(5)
    samples, size, outputs = 300, 400, 6
    # What is cut off is large values, whose effects add up; zeros are exact. The network is y = x @ weights.
    values = np.maximum(rng.standard_normal((samples, size)), 0).astype(np.float32)
    weights = rng.standard_normal((size, outputs)) + 0.4
    energy = float(np.square(values @ weights).sum(1).mean())
    lows = np.linspace(0, values.max(), 257)
    places = np.clip(np.digitize(values, lows) - 1, 0, 255)
    sums, squares = [], np.zeros(256)
    for row in range(samples):
        for _ in range(8):
            slopes = weights @ rng.standard_normal(outputs) / np.sqrt(energy)
            slopes = slopes * (values[row] != 0)
            sums.append(np.bincount(places[row], slopes, 256))
            squares += np.bincount(places[row], slopes**2, 256) / (8 * samples)
    effect = ValueSensitivity(lows[:-1], lows[1:], np.array(sums), squares)
    for high in (4.5, 2.2, 1.2, 0.6):
        affine = range_affine(0, high, Grid("uint8", bits=5))
        gap = affine.round_trip(values) - values
        real = float(np.square(gap @ weights).sum(1).mean()) / energy
        assert effect.cost(affine) == pytest.approx(real, rel=0.15), high
