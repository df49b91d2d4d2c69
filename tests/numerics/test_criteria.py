"""Every criterion against its definition, worked out by hand or by brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.criteria import (
    BINS,
    MeanRank,
    MeanSquare,
    NonZeros,
    PooledEntropy,
    Statistic,
    distances_to_others,
    entropy,
    mean_per_unit,
    norm_per_unit,
    scaled_sum,
    unit_filters,
)

Array = NDArray[Any]


def scores(statistic: Statistic, *batches: Array) -> list[float]:
    for batch in batches:
        statistic.add(batch)
    return [float(score) for score in statistic.scores()]


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- from positions to units -----------------------------------------------------------------------------------------
def test_positions_of_a_unit_are_averaged_and_a_unit_without_any_is_unknown() -> None:
    found = mean_per_unit(np.array([1.0, 2.0, 5.0, 9.0]), np.array([0, 2, 0, -1]), 4)
    np.testing.assert_array_equal(found, [3, np.nan, 2, np.nan])


def test_the_norm_of_a_unit_is_that_of_all_its_slices_together() -> None:
    weight = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, -4.0], [9.0, 9.0]]).reshape(4, 1, 2)
    np.testing.assert_allclose(norm_per_unit(weight, np.array([0, 1, 0, -1]), 3), [5, 2**0.5, 0])


def test_the_filter_of_a_unit_is_its_slices_one_after_another() -> None:
    weight = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    filters, rows = unit_filters(weight, np.array([2, 0, 2, -1]), 4)
    assert rows.tolist() == [0, 2]
    np.testing.assert_array_equal(filters, [[3, 4, 0, 0], [1, 2, 5, 6]])


def test_parts_of_a_stream_weigh_alike_whatever_their_scale() -> None:
    nan = np.nan
    total, known = scaled_sum([np.array([1.0, 3.0, nan, nan]), np.array([300.0, nan, 100.0, nan])], 4)
    np.testing.assert_allclose(total, [0.5 + 1.5, 1.5, 0.5, 0])
    assert known.tolist() == [True, True, True, False]


def test_a_part_of_zeros_says_zero_and_nothing_at_all_is_known_of_no_parts() -> None:
    total, known = scaled_sum([np.array([0.0, np.nan])], 2)
    assert (total.tolist(), known.tolist()) == ([0, 0], [True, False])
    total, known = scaled_sum([], 2)
    assert (total.tolist(), known.tolist()) == ([0, 0], [False, False])


# --- fpgm ------------------------------------------------------------------------------------------------------------
def test_the_filter_in_the_middle_has_the_least_distance_to_the_others() -> None:
    filters = np.array([[0.0, 0.0], [3.0, 4.0], [-3.0, -4.0], [6.0, 8.0]])
    np.testing.assert_allclose(
        distances_to_others(filters), [5 + 5 + 10, 5 + 10 + 5, 5 + 10 + 15, 10 + 5 + 15]
    )


def test_distances_are_those_of_brute_force_even_far_from_zero() -> None:
    filters = 1e5 + noise(12, 7).astype(np.float64)
    filters[3] = filters[5] + 1e-5
    wanted = [sum(math.dist(a, b) for b in filters) for a in filters]
    np.testing.assert_allclose(distances_to_others(filters), wanted, rtol=1e-9)


# --- apoz ------------------------------------------------------------------------------------------------------------
def test_the_share_of_non_zeros_is_one_less_the_average_percentage_of_zeros() -> None:
    first = np.array([[[[0.0, 1.0], [0.0, 0.0]], [[2.0, 1.0], [3.0, 4.0]]]], np.float32)
    second = np.zeros((1, 2, 2, 2), np.float32)
    second[0, 1, 0, 0] = -5
    assert scores(NonZeros(), first, second) == [1 / 8, 5 / 8]


def test_batches_of_any_size_give_the_same_scores() -> None:
    """Also of two axes, of another type, and uneven."""
    for shape in ((7, 3, 5, 6), (7, 3), (7, 3, 4)):
        values = np.maximum(noise(*shape), 0)
        for make in (NonZeros, MeanSquare, PooledEntropy):
            whole = scores(make(), values)
            np.testing.assert_allclose(scores(make(), values[:2], values[2:3], values[3:]), whole, rtol=1e-6)
            half = scores(make(), values.astype(np.float16))
            if make is not PooledEntropy:
                np.testing.assert_allclose(half, whole, rtol=1e-2)
    maps = np.maximum(noise(7, 3, 5, 6), 0)
    assert scores(MeanRank(), maps) == scores(MeanRank(), maps[:2], maps[2:])


# --- activation ------------------------------------------------------------------------------------------------------
def test_the_mean_square_is_over_samples_and_positions() -> None:
    values = np.array([[[1.0, 7.0], [0.0, 0.0]], [[-5.0, 5.0], [0.0, 2.0]]], np.float32)
    np.testing.assert_allclose(scores(MeanSquare(), values), [25, 1])


def test_squares_of_half_precision_do_not_overflow() -> None:
    np.testing.assert_allclose(scores(MeanSquare(), np.full((2, 1, 4), 3e4, np.float16)), [9e8], rtol=1e-3)


# --- hrank -----------------------------------------------------------------------------------------------------------
def test_the_rank_is_the_mean_over_maps_of_known_rank() -> None:
    maps = np.zeros((2, 3, 6, 5), np.float32)
    for sample, ranks in enumerate([(0, 1, 5), (2, 4, 5)]):
        for channel, rank in enumerate(ranks):
            maps[sample, channel] = noise(6, rank, seed=rank) @ noise(rank, 5, seed=9)
    assert scores(MeanRank(), maps) == [1, 2.5, 5]


def test_a_map_of_three_axes_counts_its_last_against_the_others_and_overflow_counts_nothing() -> None:
    values = np.zeros((1, 2, 2, 3, 4), np.float32)
    values[0, 0] = np.eye(6, 4).reshape(2, 3, 4)
    values[0, 1] = np.inf
    assert scores(MeanRank(), values) == [4, 0]


# --- entropy ---------------------------------------------------------------------------------------------------------
def test_the_entropy_of_equal_shares_is_the_logarithm_of_their_number() -> None:
    columns = np.array([[0, 5, 0, 0], [1, 5, 0, 1], [2, 5, 0, 1], [3, 5, 1, 1]], np.float64)
    shares = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    np.testing.assert_allclose(entropy(columns, bins=4), [math.log(4), 0, shares, shares])
    assert not np.signbit(entropy(columns, bins=4)).any()


def test_bins_are_those_of_a_histogram_over_the_range_of_each_channel() -> None:
    samples = noise(300, 4).astype(np.float64) * [1, 100, 1e-3, 1] + [0, 5, 0, 1e3]
    for column, found in zip(samples.T, entropy(samples), strict=True):
        number, _ = np.histogram(column, bins=BINS)
        shares = number[number > 0] / 300
        assert found == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-3)


def test_what_is_pooled_is_the_mean_of_a_map() -> None:
    maps = noise(50, 3, 4, 5)
    np.testing.assert_allclose(scores(PooledEntropy(), maps), entropy(maps.mean((2, 3), dtype=np.float64)))
    spread = np.zeros((3, 1, 2), np.float32)
    spread[:, 0, 0], spread[:, 0, 1] = [1, 2, 3], [3, 2, 1]
    assert scores(PooledEntropy(), spread) == [0]


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 11), (5, 10)])
def test_with_a_stride_every_so_many_samples_count_however_they_come_in_batches(
    cuts: tuple[int, ...],
) -> None:
    values = noise(14, 2, 3)
    batches = np.split(values, cuts)
    np.testing.assert_allclose(
        scores(PooledEntropy(5), *batches), scores(PooledEntropy(), values[[0, 5, 10]])
    )
