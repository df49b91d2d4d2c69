"""The algebra of folding: what a scale and a shift per channel do to the weights beside them.

An affine step is `y[c] = scale[c] * x[c] + shift[c]` along one channel axis. Behind a linear node it changes the node's
output channels, in front of one its input channels. Everything is computed in float64 from arrays that are never written
to, and rounded once, by :func:`rounded`, to the type the weights are stored in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Affine",
    "batchnorm_affine",
    "batchnorm_parameters",
    "conv_after",
    "conv_before",
    "conv_transpose_after",
    "conv_transpose_before",
    "matrix_after",
    "matrix_before",
    "rounded",
]

Array: TypeAlias = NDArray[Any]
Array64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """`y = scale * x + shift`, with one `scale` and one `shift` per channel: both `[C]`, float64."""

    scale: Array64
    shift: Array64

    @property
    def shifts(self) -> bool:
        """Whether any channel is shifted at all."""
        return bool(self.shift.any())

    @property
    def finite(self) -> bool:
        """Whether every number is finite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def then(self, later: Affine) -> Affine:
        """Return the step that does this one first and `later` after it."""
        return Affine(later.scale * self.scale, later.scale * self.shift + later.shift)


def batchnorm_affine(scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float) -> Affine:
    """Return what BatchNormalization does in inference: `scale * (x - mean) / sqrt(variance + epsilon) + bias`.

    All arrays are `[C]`. A variance below `-epsilon` gives NaN.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return Affine(factor, bias - factor * mean.astype(np.float64))


def batchnorm_parameters(
    affine: Affine, mean: Array, variance: Array, epsilon: float
) -> tuple[Array64, Array64]:
    """Return `(scale, bias)`, `[C]` each, that make BatchNormalization with these statistics compute `affine`."""
    scale = affine.scale * np.sqrt(variance.astype(np.float64) + epsilon)
    return scale, affine.shift + affine.scale * mean.astype(np.float64)


def conv_after(weight: Array, bias: Array | None, step: Affine) -> tuple[Array64, Array64]:
    """Return weight and bias of a convolution that does `step` on its output channels.

    `weight` is `[O, I/group, ...]`, `bias` `[O]` or None for zeros, `step` has `O` channels; the results are shaped alike.
    """
    return _along(weight, 0, step.scale), _biased(bias, step)


def conv_before(
    weight: Array, bias: Array | None, step: Affine, groups: int
) -> tuple[Array64, Array64 | None]:
    """Return weight and bias of a convolution whose input channels go through `step` first.

    `weight` is `[O, I/groups, ...]`, `bias` `[O]` or None, `step` has `I` channels. A shift reaches every output position
    alike only where nothing is padded: the caller has checked that. The bias stays None where nothing is shifted.
    """
    parts = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    per_group = (groups, 1, weight.shape[1]) + (1,) * (weight.ndim - 2)
    scaled = (parts * step.scale.reshape(per_group)).reshape(weight.shape)
    if not step.shifts:
        return scaled, _double(bias)
    moved = (parts * step.shift.reshape(per_group)).reshape(weight.shape[0], -1).sum(axis=1)
    return scaled, moved if bias is None else moved + bias


def conv_transpose_after(
    weight: Array, bias: Array | None, step: Affine, groups: int
) -> tuple[Array64, Array64]:
    """Return weight and bias of a transposed convolution that does `step` on its output channels.

    `weight` is `[I, O/groups, ...]`, `bias` `[O]` or None, `step` has `O` channels.
    """
    parts = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    per_group = (groups, 1, weight.shape[1]) + (1,) * (weight.ndim - 2)
    return (parts * step.scale.reshape(per_group)).reshape(weight.shape), _biased(bias, step)


def conv_transpose_before(weight: Array, scale: Array64) -> Array64:
    """Return the weight `[I, O/groups, ...]` of a transposed convolution whose input channels are multiplied by `scale`.

    A shift has no such form: the positions of the output differ in how much of the kernel reaches them.
    """
    return _along(weight, 0, scale)


def matrix_after(weight: Array, bias: Array | None, step: Affine) -> tuple[Array64, Array64]:
    """Return weight and bias of `x @ weight + bias` followed by `step` on the columns.

    `weight` is `[K, N]`; `bias` is None or broadcasts to `[M, N]`, and keeps whatever rows it has.
    """
    return _along(weight, 1, step.scale), _biased(bias, step)


def matrix_before(weight: Array, bias: Array | None, step: Affine) -> tuple[Array64, Array64 | None]:
    """Return weight and bias of `x @ weight + bias` where the columns of `x` go through `step` first.

    `weight` is `[K, N]`, `step` has `K` channels; the bias stays None where nothing is shifted.
    """
    scaled = _along(weight, 0, step.scale)
    if not step.shifts:
        return scaled, _double(bias)
    moved = step.shift @ weight.astype(np.float64)
    return scaled, moved if bias is None else moved + bias


def rounded(values: Array64, dtype: np.dtype[Any]) -> Array | None:
    """Return `values` in `dtype`, or None where a finite number would overflow it."""
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    overflown = np.isfinite(values) & ~np.isfinite(stored.astype(np.float64))
    return None if overflown.any() else stored


def _along(weight: Array, axis: int, factors: Array64) -> Array64:
    shape = [1] * weight.ndim
    shape[axis] = -1
    product: Array64 = weight.astype(np.float64) * factors.reshape(shape)
    return product


def _biased(bias: Array | None, step: Affine) -> Array64:
    moved: Array64 = step.shift if bias is None else step.scale * bias.astype(np.float64) + step.shift
    return moved


def _double(bias: Array | None) -> Array64 | None:
    return None if bias is None else bias.astype(np.float64)
