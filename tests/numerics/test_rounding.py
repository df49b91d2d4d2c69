"""Rounding of weights with errors propagated: never worse for the outputs than rounding to the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.numerics.affine import Affine, Grid, channel_affine
from onnxcomp.numerics.rounding import BLOCK, PARTS, fit_limits, propagate

GRID = Grid("int8", True, True)


def case(seed: int, groups: int = 1, outputs: int = 6, width: int = 24) -> tuple[Any, Any]:
    """Return weights `[g, o, d]` and second moments `[g, d, d]` of correlated inputs."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((groups, outputs, width)) * rng.uniform(0.1, 2, (groups, outputs, 1))
    mix = rng.standard_normal((groups, width, max(2, width // 3)))
    inputs = rng.standard_normal((groups, 200, mix.shape[2])) @ mix.swapaxes(1, 2)
    inputs += 0.1 * rng.standard_normal(inputs.shape)
    return matrix, inputs.swapaxes(1, 2) @ inputs / 200


def grid_of(matrix: Any, bits: int | None = None, whole: bool = False) -> Affine:
    rows = np.abs(matrix.reshape(-1, matrix.shape[2]))
    return channel_affine(rows.max() if whole else rows.max(1), Grid("int8", True, True, bits))


def nearest(matrix: Any, affine: Affine) -> Any:
    return affine.quantize(matrix.reshape(-1, matrix.shape[2]).astype(np.float32), 0).reshape(matrix.shape)


def damage(matrix: Any, stored: Any, affine: Affine, H: Any) -> float:
    """Return the energy that rounding adds to the outputs, `tr(dW H dW^T)` summed over the groups."""
    real = affine.dequantize(stored.reshape(-1, matrix.shape[2]), 0).reshape(matrix.shape)
    gap = real.astype(np.float64) - matrix
    return float(np.einsum("god,gde,goe->", gap, H, gap))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("groups", [1, 5])
def test_outputs_suffer_less_than_from_rounding_to_the_nearest(
    groups: int, bits: int | None, whole: bool
) -> None:
    better, ratios = 0, []
    for seed in range(40):
        matrix, H = case(seed, groups)
        affine = grid_of(matrix, bits, whole)
        ours = damage(matrix, propagate(matrix, H, affine), affine, H)
        plain = damage(matrix, nearest(matrix, affine), affine, H)
        better += ours <= plain
        ratios.append(ours / plain)
    assert better >= 38
    assert np.median(ratios) < 0.6


def test_inputs_that_have_nothing_to_do_with_each_other_are_rounded_to_the_nearest() -> None:
    for seed in range(10):
        matrix, _ = case(seed, 2)
        H = np.stack([np.diag(np.random.default_rng(seed + k).uniform(0.1, 9, 24)) for k in range(2)])
        affine = grid_of(matrix)
        np.testing.assert_array_equal(propagate(matrix, H, affine), nearest(matrix, affine))


def test_groups_know_nothing_of_each_other() -> None:
    matrix, H = case(3, 4)
    affine = grid_of(matrix)
    together = propagate(matrix, H, affine)
    for group in range(4):
        rows = slice(group * 6, group * 6 + 6)
        own = Affine(affine.scale[rows], affine.zero[rows], affine.grid)
        np.testing.assert_array_equal(
            propagate(matrix[group : group + 1], H[group : group + 1], own)[0], together[group]
        )


def test_wide_matrices_are_rounded_across_their_blocks() -> None:
    matrix, H = case(5, 1, 4, 2 * BLOCK + 17)
    affine = grid_of(matrix, 4)
    whole = propagate(matrix, H, affine)
    assert damage(matrix, whole, affine, H) < 0.5 * damage(matrix, nearest(matrix, affine), affine, H)


def test_blocks_only_save_time(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, H = case(6, 2, 4, 40)
    affine = grid_of(matrix, 4)
    whole = propagate(matrix, H, affine)
    monkeypatch.setattr("onnxcomp.numerics.rounding.BLOCK", 7)
    np.testing.assert_array_equal(propagate(matrix, H, affine), whole)


def test_inputs_that_never_vary_leave_their_weights_at_the_nearest() -> None:
    matrix, H = case(7)
    dead = np.array([2, 9, 23])
    H[:, dead] = 0
    H[:, :, dead] = 0
    affine = grid_of(matrix)
    found = propagate(matrix, H, affine)
    np.testing.assert_array_equal(found[..., dead], nearest(matrix, affine)[..., dead])
    np.testing.assert_array_equal(propagate(matrix, np.zeros_like(H), affine), nearest(matrix, affine))


@pytest.mark.parametrize("grid", [GRID, Grid("uint8", True), Grid("int16", True, True), Grid("int8", True)])
def test_weights_on_the_grid_stay(grid: Grid) -> None:
    rng = np.random.default_rng(8)
    _, H = case(8)
    stored = rng.integers(grid.low, grid.high + 1, (1, 6, 24)).astype(grid.dtype)
    zero = np.full(6, grid.middle, grid.dtype)
    affine = Affine(rng.uniform(0.01, 1, 6).astype(np.float32), zero, grid)
    matrix = affine.dequantize(stored[0], 0)[None].astype(np.float64)
    np.testing.assert_array_equal(propagate(matrix, H, affine), stored)
    np.testing.assert_array_equal(nearest(matrix, affine), stored)


def test_rounded_weights_stay_on_the_grid_where_errors_pile_up() -> None:
    matrix, H = case(9)
    affine = channel_affine(np.abs(matrix[0]).max(1) / 4, GRID)
    found = propagate(matrix, H, affine)
    assert found.min() >= -127
    assert found.max() <= 127


def test_limits_are_the_best_of_all_parts_and_never_above_the_largest_weight() -> None:
    rng = np.random.default_rng(10)
    matrix = rng.standard_t(3, (12, 50))
    variance = rng.uniform(0, 4, (12, 50))
    limits = fit_limits(matrix, variance, 7)

    def loss(row: int, limit: float) -> float:
        step = limit / 7
        rounded = np.clip(np.rint(matrix[row] / step), -7, 7) * step
        return float(variance[row] @ np.square(matrix[row] - rounded))

    for row in range(12):
        largest = np.abs(matrix[row]).max()
        tried = [loss(row, largest * part) for part in PARTS]
        assert loss(row, limits[row]) <= min(tried) * (1 + 1e-6)
        assert limits[row] <= largest
    assert (limits < np.abs(matrix).max(1)).any()


def test_limits_of_rows_of_zeros_are_zero() -> None:
    assert fit_limits(np.zeros((2, 5)), np.ones(5), 127).tolist() == [0, 0]
