"""Streamed moments are those of the whole, and the ridge solve is the least-squares solution it claims to be."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.moments import Moments, Part, ridge

Array = NDArray[np.float32]
Array64 = NDArray[np.float64]


def samples(
    groups: int = 2, width: int = 5, out: int = 3, count: int = 400, seed: int = 0
) -> tuple[Array, Array]:
    """Correlated inputs `[g, d, n]` with a mean, and outputs `[g, o, n]` that depend on them."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((groups, width, width))
    x = mix @ rng.standard_normal((groups, width, count)) + rng.standard_normal((groups, width, 1))
    y = rng.standard_normal((groups, out, width)) @ x + 0.3 * rng.standard_normal((groups, out, count)) + 2.0
    return x.astype(np.float32), y.astype(np.float32)


def collected(x: Array, y: Array | None, sizes: list[int]) -> Moments:
    moments = Moments()
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        moments.add(x[:, :, part], None if y is None else y[:, :, part])
        start += size
    assert start == x.shape[2]
    return moments


# --- moments ---------------------------------------------------------------------------------------------------------
def test_moments_are_those_that_numpy_finds_block_by_block() -> None:
    x, y = samples()
    found = collected(x, y, [400])
    for block in range(2):
        joint = np.cov(x[block].astype(np.float64), y[block].astype(np.float64), bias=True)
        np.testing.assert_allclose(found.covariance()[block], joint[:5, :5], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.cross()[block], joint[5:, :5], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.variance_y()[block], joint.diagonal()[5:], rtol=1e-4)
    np.testing.assert_allclose(found.mean_x, x.mean(2), atol=1e-6)
    np.testing.assert_allclose(found.mean_y, y.mean(2), rtol=1e-6)


def test_raw_second_moments_are_not_centred() -> None:
    x, y = samples()
    xx, yx = collected(x, y, [400]).second()
    np.testing.assert_allclose(xx, x @ x.transpose(0, 2, 1) / 400, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(yx, y @ x.transpose(0, 2, 1) / 400, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [[1] * 400, [7] * 57 + [1], [399, 1], [200, 0, 200], [0, 400]])
def test_the_split_into_batches_does_not_matter(sizes: list[int]) -> None:
    x, y = samples()
    whole, parts = collected(x, y, [400]), collected(x, y, sizes)
    assert parts.count == 400
    for name in ("covariance", "cross", "variance_y"):
        np.testing.assert_allclose(getattr(parts, name)(), getattr(whole, name)(), rtol=1e-4, atol=1e-4)


def test_sums_over_many_batches_do_not_lose_small_ones() -> None:
    """A float32 sum would stand still at 2^24."""
    moments = Moments()
    for _ in range(20):
        moments.add(np.full((1, 1, 1 << 20), 1.0, np.float32))
    assert moments.sum_x[0, 0] == moments.sum_xx[0, 0, 0] == 20 * (1 << 20)
    assert moments.covariance()[0, 0, 0] == 0


def test_inputs_alone_can_be_collected_and_then_targets_are_missing() -> None:
    moments = collected(samples()[0], None, [400])
    assert moments.covariance().shape == (2, 5, 5)
    for name in ("cross", "second", "variance_y"):
        with pytest.raises(AssertionError, match="collected without y"):
            getattr(moments, name)()


def test_new_targets_for_the_same_inputs_give_what_collecting_anew_would() -> None:
    x, y = samples()
    other = np.tanh(y)
    again = collected(x, y, [400]).retargeted()
    for part in (slice(0, 150), slice(150, 400)):
        again.add_target(x[:, :, part], other[:, :, part])
    fresh = collected(x, other, [400])
    np.testing.assert_allclose(again.cross(), fresh.cross(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again.variance_y(), fresh.variance_y(), rtol=1e-4)
    assert again.sum_xx is not fresh.sum_xx
    assert again.count == 400


def test_an_offset_of_ten_deviations_costs_no_precision_that_matters() -> None:
    x, _ = samples()
    shifted = (x + 10 * x.std()).astype(np.float32)
    exact = np.cov(shifted[0].astype(np.float64), bias=True)
    np.testing.assert_allclose(
        collected(shifted, None, [100] * 4).covariance()[0], exact, atol=1e-4 * exact.max()
    )


@pytest.mark.parametrize("offset", [30.0, 1e3, 1e5])
def test_a_mean_far_above_the_deviation_loses_no_digits_of_the_covariance(offset: float) -> None:
    """Only some rows are far off; inputs and targets alike, batch by batch and when targets are renewed."""
    x, y = (a.astype(np.float64) for a in samples(count=3000))
    x[:, [1, 4]] += offset
    y[:, 2] -= offset
    # What float32 itself leaves of the numbers is what they are.
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    x, y = x32.astype(np.float64), y32.astype(np.float64)
    found = collected(x32, y32, [1000] * 3)
    again = found.retargeted()
    for start in (0, 1000, 2000):
        again.add_target(x32[:, :, start : start + 1000], y32[:, :, start : start + 1000])
    for block in range(2):
        joint = np.cov(x[block], y[block], bias=True)
        for each in (found, again):
            np.testing.assert_allclose(each.covariance()[block], joint[:5, :5], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(each.cross()[block], joint[5:, :5], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(each.variance_y()[block], joint.diagonal()[5:], rtol=1e-4)
            np.testing.assert_allclose(each.mean_x[block], x[block].mean(1), rtol=1e-7, atol=1e-6)
            np.testing.assert_allclose(each.mean_y[block], y[block].mean(1), rtol=1e-7, atol=1e-6)


def test_parts_taken_apart_and_merged_are_what_adding_one_after_another_gives() -> None:
    x, y = samples()
    halves = [(x[:, :, part], y[:, :, part]) for part in (slice(0, 150), slice(150, 400))]
    parts, merged = [Part.of(*half) for half in halves], Moments()
    for part in parts:
        merged.merge(part)
    added = collected(x, y, [150, 250])
    for name in ("count", "sum_x", "sum_xx", "sum_y", "sum_yx", "sum_yy"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(added, name))


def test_adding_leaves_the_samples_alone() -> None:
    x, y = samples()
    x[:, 0] += 1000
    y[:, 0] += 1000
    copies = x.copy(), y.copy()
    collected(x, y, [400]).retargeted().add_target(x, y)
    np.testing.assert_array_equal(x, copies[0])
    np.testing.assert_array_equal(y, copies[1])


# --- ridge -----------------------------------------------------------------------------------------------------------
def penalised(x: Array64, y: Array64, prior: Array64, penalty: float) -> Array64:
    """min |W x - y|^2 / n + penalty |W - prior|^2, as one least-squares problem with more rows."""
    count, width = x.shape[1], len(x)
    rows = np.vstack([x.T / np.sqrt(count), np.sqrt(penalty) * np.eye(width)])
    wanted = np.vstack([y.T / np.sqrt(count), np.sqrt(penalty) * prior.T])
    solution: Array64 = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    return solution


@pytest.mark.parametrize("strength", [0.0, 1e-3, 1.0, 100.0])
def test_ridge_is_the_least_squares_solution_with_a_pull_towards_the_prior(strength: float) -> None:
    x, y = (a.astype(np.float64) for a in samples())
    prior = np.random.default_rng(1).standard_normal((2, 3, 5))
    x -= x.mean(2, keepdims=True)
    y -= y.mean(2, keepdims=True)
    H, G = x @ x.transpose(0, 2, 1) / 400, y @ x.transpose(0, 2, 1) / 400
    found = ridge(H, G, prior, strength)
    for block in range(2):
        penalty = strength * np.trace(H[block]) / 5
        np.testing.assert_allclose(
            found[block], penalised(x[block], y[block], prior[block], penalty), rtol=1e-8
        )


def test_ridge_on_collected_moments_equals_numpys_own_least_squares() -> None:
    x, y = samples()
    moments = collected(x, y, [100] * 4)
    found = ridge(moments.covariance(), moments.cross(), np.zeros((2, 3, 5)), 0.0)
    bias = moments.mean_y - np.einsum("god,gd->go", found, moments.mean_x)
    for block in range(2):
        rows = np.vstack([x[block], np.ones(400)]).T
        wanted = np.linalg.lstsq(rows, y[block].T, rcond=None)[0].T
        np.testing.assert_allclose(found[block], wanted[:, :5], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(bias[block], wanted[:, 5], rtol=1e-3, atol=1e-3)


def test_inputs_that_never_vary_keep_their_weights() -> None:
    prior = np.random.default_rng(2).standard_normal((1, 3, 4))
    np.testing.assert_array_equal(ridge(np.zeros((1, 4, 4)), np.zeros((1, 3, 4)), prior, 1e-3), prior)
    H = np.diag([1.0, 2.0, 0.0, 3.0])[None]
    G = np.random.default_rng(3).standard_normal((1, 3, 4)) * [1, 1, 0, 1]
    np.testing.assert_allclose(ridge(H, G, prior, 1e-3)[:, :, 2], prior[:, :, 2], rtol=1e-12)


def test_a_covariance_that_rounding_made_indefinite_is_survived() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 3, 2)) @ rng.standard_normal((1, 2, 50))
    H = x @ x.transpose(0, 2, 1) / 50
    H -= 1e-2 * np.linalg.norm(H) * np.eye(3)
    assert np.linalg.eigvalsh(H[0])[0] < 0
    found = ridge(H, rng.standard_normal((1, 2, 3)), np.zeros((1, 2, 3)), 1e-3)
    assert np.isfinite(found).all()


def test_ridge_leaves_its_arguments_alone() -> None:
    x, y = samples()
    moments = collected(x, y, [400])
    H, G, prior = moments.covariance(), moments.cross(), np.ones((2, 3, 5))
    copies = [np.array(a) for a in (H, G, prior)]
    ridge(H, G, prior, 1e-2)
    for array, copy in zip((H, G, prior), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
