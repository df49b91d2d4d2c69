"""Streamed second-order statistics and the ridge solves on them.

All repair mathematics needs of a layer only the count, the means and the second moments of its inputs x and of its
wanted outputs y. Products are taken in float32 by BLAS, sums over batches in float64; those of several batches may be
taken at the same time and are merged in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from onnxcomp.numerics.arrays import Array, Array64

__all__ = ["Moments", "Part", "Target", "ridge"]


LARGE_MEAN = 8.0
"""Deviations from which on a mean counts as large: float32 products then lose the deviation's last two digits."""


@dataclass
class Moments:
    """Sums over samples of inputs x `[g, d]` and wanted outputs y `[g, o]` of `g` independent blocks.

    A dense layer has g = 1, a grouped convolution one block per group, a depthwise one a block per channel. `y` is
    optional: without it only the input statistics are kept.
    """

    count: int = 0
    sum_x: Array64 = field(default_factory=lambda: np.zeros((0, 0)))
    sum_xx: Array64 = field(default_factory=lambda: np.zeros((0, 0, 0)))
    sum_y: Array64 | None = None
    sum_yx: Array64 | None = None
    sum_yy: Array64 | None = None

    def add(self, x: Array, y: Array | None = None) -> None:
        """Add samples `x` `[g, d, n]` and `y` `[g, o, n]`, float32, one column a sample."""
        self.merge(Part.of(x, y))

    def merge(self, part: Part) -> None:
        """Add the sums of one batch."""
        if not self.count:
            self.sum_x = np.zeros(part.sum_x.shape)
            self.sum_xx = np.zeros(part.sum_xx.shape)
            if part.target is not None:
                self.sum_y = np.zeros(part.target.sum_y.shape)
                self.sum_yx = np.zeros(part.target.sum_yx.shape)
                self.sum_yy = np.zeros(part.target.sum_yy.shape)
        self.count += part.count
        self.sum_x += part.sum_x
        self.sum_xx += part.sum_xx
        if part.target is not None:
            self.merge_target(part.target)

    def retargeted(self) -> Moments:
        """Return moments with the same inputs (shared, not copied) and no targets yet; `add_target` supplies them."""
        assert self.sum_y is not None and self.sum_yx is not None, "collected without y"
        zeros = np.zeros_like
        return Moments(
            self.count, self.sum_x, self.sum_xx, zeros(self.sum_y), zeros(self.sum_yx), zeros(self.sum_y)
        )

    def add_target(self, x: Array, y: Array) -> None:
        """Add new targets `y` `[g, o, n]` for inputs `x` `[g, d, n]` that `add` has seen before."""
        self.merge_target(self.target_of(x, y))

    def target_of(self, x: Array, y: Array) -> Target:
        """Return the sums over one batch of targets `y` `[g, o, n]` for inputs `x` `[g, d, n]` seen before."""
        offset = _offset(self.sum_x, np.einsum("gdd->gd", self.sum_xx), self.count)
        x, offset = _without(x, offset)
        return Target.of(y, x, x.sum(2), offset)

    def merge_target(self, part: Target) -> None:
        """Add the sums of one batch of targets."""
        assert self.sum_y is not None and self.sum_yx is not None and self.sum_yy is not None, (
            "not retargeted"
        )
        self.sum_y += part.sum_y
        self.sum_yx += part.sum_yx
        self.sum_yy += part.sum_yy

    @property
    def mean_x(self) -> Array64:
        """Mean of x, `[g, d]`."""
        return self.sum_x / self.count

    @property
    def mean_y(self) -> Array64:
        """Mean of y, `[g, o]`."""
        assert self.sum_y is not None, "collected without y"
        return self.sum_y / self.count

    def covariance(self) -> Array64:
        """Return H = Cov(x), `[g, d, d]`."""
        mean = self.mean_x
        return self.sum_xx / self.count - mean[:, :, None] * mean[:, None, :]

    def cross(self) -> Array64:
        """Return G = Cov(y, x), `[g, o, d]`."""
        assert self.sum_yx is not None, "collected without y"
        return self.sum_yx / self.count - self.mean_y[:, :, None] * self.mean_x[:, None, :]

    def second(self) -> tuple[Array64, Array64]:
        """Return the raw second moments E[x x^T] and E[y x^T], for layers without a bias."""
        assert self.sum_yx is not None, "collected without y"
        return self.sum_xx / self.count, self.sum_yx / self.count

    def second_y(self) -> Array64:
        """Return the raw second moment E[y^2], `[g, o]`."""
        assert self.sum_yy is not None, "collected without y"
        return self.sum_yy / self.count

    def variance_y(self) -> Array64:
        """Return Var(y), `[g, o]`."""
        assert self.sum_yy is not None, "collected without y"
        return np.maximum(self.sum_yy / self.count - self.mean_y**2, 0.0)


@dataclass(frozen=True)
class Target:
    """Sums over one batch of wanted outputs y `[g, o, n]` and of their products with the inputs."""

    sum_y: Array
    sum_yx: Array
    sum_yy: Array

    @staticmethod
    def of(y: Array, x: Array, sum_x: Array, offset: Array | None) -> Target:
        """Return the sums of `y` for inputs `x + offset`, `offset` `[g, d]` or None; `sum_x` are those of `x` alone."""
        sum_y, sum_yy, count = y.sum(2), np.square(y).sum(2), y.shape[2]
        y, shift = _without(y, _offset(sum_y, sum_yy, count))
        sum_yx = y @ x.transpose(0, 2, 1)
        if shift is None and offset is None:
            return Target(sum_y, sum_yx, sum_yy)
        t = np.zeros(sum_y.shape) if shift is None else shift.astype(np.float64)
        s = np.zeros(sum_x.shape) if offset is None else offset.astype(np.float64)
        rest_y, rest_x = y.sum(2).astype(np.float64), sum_x.astype(np.float64)
        return Target(
            rest_y + count * t,
            sum_yx + t[:, :, None] * rest_x[:, None, :] + (rest_y + count * t)[:, :, None] * s[:, None, :],
            np.square(y).sum(2) + 2 * t * rest_y + count * t * t,
        )


@dataclass(frozen=True)
class Part:
    """Sums over one batch of inputs x `[g, d, n]` and, where there are any, of its wanted outputs.

    Where the mean of a row is large beside its deviation, float32 products would lose the deviation to rounding: these
    rows are summed without their mean, which is put back in float64.
    """

    count: int
    sum_x: Array
    sum_xx: Array
    target: Target | None

    @staticmethod
    def of(x: Array, y: Array | None = None) -> Part:
        """Return the sums over a batch `x` `[g, d, n]`, `y` `[g, o, n]`, float32, which are not written to."""
        count = x.shape[2]
        # The product of a matrix with its own transpose runs as a symmetric rank-k update: half the work.
        sum_x, sum_xx = x.sum(2), x @ x.transpose(0, 2, 1)
        x, offset = _without(x, _offset(sum_x, np.einsum("gdd->gd", sum_xx), count))
        if offset is None:
            return Part(count, sum_x, sum_xx, None if y is None else Target.of(y, x, sum_x, None))
        rest, s = x.sum(2).astype(np.float64), offset.astype(np.float64)
        whole = rest + count * s
        sum_xx = (
            x @ x.transpose(0, 2, 1) + s[:, :, None] * rest[:, None, :] + whole[:, :, None] * s[:, None, :]
        )
        return Part(count, whole, sum_xx, None if y is None else Target.of(y, x, x.sum(2), offset))


def _offset(total: Array, squares: Array, count: int) -> Array | None:
    """Return the means of the rows whose mean is too large beside their deviation, 0 for others; None if there are none."""
    mean = total / max(count, 1)
    large = mean**2 > LARGE_MEAN**2 * (squares / max(count, 1) - mean**2)
    return np.where(large, mean, 0).astype(np.float32) if (large & (mean != 0)).any() else None


def _without(x: Array, offset: Array | None) -> tuple[Array, Array | None]:
    return (x, None) if offset is None else (x - offset[:, :, None], offset)


def ridge(H: Array64, G: Array64, prior: Array64, strength: float) -> Array64:
    """Return the W that minimises `tr(W H W^T) - 2 tr(W G^T) + lam |W - prior|^2`, block by block.

    `H` is `[g, d, d]`, `G` and `prior` `[g, o, d]`; `lam = strength * mean(diag H)` of each block. With few samples the
    solution leans towards `prior` (the weights as they were), not towards zero. Blocks whose inputs never vary return
    `prior`.
    """
    out = np.array(prior, np.float64)
    width = H.shape[-1]
    for block in range(len(H)):
        scale = float(np.trace(H[block])) / width
        if not scale > 0:
            continue
        lam = strength * scale
        damped = H[block] + lam * np.eye(width)
        rhs = G[block] + lam * prior[block]
        try:
            factor = scipy.linalg.cho_factor(damped, lower=True, check_finite=False)
            out[block] = scipy.linalg.cho_solve(factor, rhs.T, check_finite=False).T
        except scipy.linalg.LinAlgError:
            # Rounding can leave H a hair below positive semidefinite; the eigenvalue form shrugs that off.
            values, vectors = scipy.linalg.eigh(damped)
            out[block] = (rhs @ vectors) / np.maximum(values, lam) @ vectors.T
    return out
