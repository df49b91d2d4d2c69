"""Rounding weights to a grid so that the outputs, not the weights, stay close.

What the rounding of one column gets wrong is spread over the columns that are not rounded yet, as far as the inputs that they
multiply are correlated (Frantar 2022, "GPTQ", after the optimal brain surgeon).
"""

from __future__ import annotations

import numpy as np

from onnxcomp.numerics.affine import Affine
from onnxcomp.numerics.arrays import Array, Array64

__all__ = ["fit_limits", "propagate"]


DAMPING = 1e-2
"""Added to the diagonal of the covariance, as a share of its mean, so that it can be inverted."""

BLOCK = 128
"""Columns whose errors are spread among themselves first, and then over all later columns in one product."""

PARTS = (1.0, 0.98, 0.96, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5)
"""Parts of the largest weight that may be the end of the grid; what lies further out is cut off."""


def propagate(matrix: Array64, H: Array64, affine: Affine) -> Array:
    """Return `matrix` `[g, o, d]` as integers with the errors of rounding propagated, same shape.

    `H` `[g, d, d]` is the second moment (or the covariance, where a bias makes up for the mean) of each block's inputs.
    `affine` holds a scale for every row, `[g * o]`, or one, `[]`. Columns are rounded in the order of falling variance.
    Inputs that never vary are rounded to the nearest.
    """
    groups, outputs, width = matrix.shape
    scale = np.broadcast_to(affine.scale.astype(np.float64).reshape(-1, 1), (groups * outputs, 1))
    scale = np.ascontiguousarray(scale).reshape(groups, outputs)
    zero = float(affine.grid.middle)
    order = np.argsort(-np.einsum("gdd->gd", H), axis=1, kind="stable")
    back = np.argsort(order, axis=1)
    upper = _inverse_roots(
        np.take_along_axis(np.take_along_axis(H, order[:, :, None], 1), order[:, None, :], 2)
    )
    # What is rounded together lies together: [g, d, o].
    rest = np.take_along_axis(np.ascontiguousarray(matrix.swapaxes(1, 2)), order[:, :, None], 1)
    stored = np.empty(rest.shape, affine.grid.dtype)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        errors = np.empty((groups, end - start, outputs))
        for column in range(start, end):
            now = rest[:, column]
            found = np.clip(np.rint(now / scale) + zero, affine.grid.low, affine.grid.high)
            stored[:, column] = found
            error = (now - (found - zero) * scale) / upper[:, column, column, None]
            rest[:, column + 1 : end] -= upper[:, column, column + 1 : end, None] * error[:, None, :]
            errors[:, column - start] = error
        rest[:, end:] -= upper[:, start:end, end:].swapaxes(1, 2) @ errors
    integers: Array = np.take_along_axis(stored, back[:, :, None], 1).swapaxes(1, 2)
    return np.ascontiguousarray(integers)


def _inverse_roots(H: Array64) -> Array64:
    """Return for each block of `H` `[g, d, d]` the upper triangular U with `U^T U = inverse(H)`, `H` damped to have one."""
    width = H.shape[1]
    mean = np.einsum("gdd->g", H) / width
    # A block whose inputs never vary says nothing: its weights are rounded to the nearest.
    damping = np.where(mean > 0, DAMPING * mean, 1.0)
    damped = H.copy()
    np.einsum("gdd->gd", damped)[:] += damping[:, None]
    inverse = np.linalg.inv(damped)
    # Wide layers have matrices of ten megabytes and more: what has been used makes room.
    del damped
    inverse += inverse.swapaxes(1, 2).copy()
    inverse /= 2
    lower = np.linalg.cholesky(inverse)
    return np.asarray(lower.swapaxes(1, 2), np.float64)


def fit_limits(matrix: Array64, variance: Array64, levels: int) -> Array64:
    """Return for each row of `matrix` `[r, d]` the end of a symmetric grid of `levels` steps to each side, `[r]`.

    It is the part of the row's largest weight with the least `sum(variance * (w - rounded w)^2)`; `variance` is `[d]` or
    `[r, d]`, of the inputs that the weights multiply.
    """
    largest = np.abs(matrix).max(1)
    best = np.full(len(matrix), np.inf)
    found: Array64 = largest.copy()
    for part in PARTS:
        limit = largest * part
        step = np.where(limit > 0, limit / levels, 1.0)[:, None]
        rounded = np.clip(np.rint(matrix / step), -levels, levels) * step
        loss = (np.square(matrix - rounded) * variance).sum(1)
        better = loss < best * (1 - 1e-9)
        best, found = np.where(better, loss, best), np.where(better, limit, found)
    return found
