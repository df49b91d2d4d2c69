"""Streamed second-order statistics and the ridge solves on them.

All repair mathematics needs of a layer only the count, the means and the second moments of its inputs x and of its
wanted outputs y. Products are taken in float32 by BLAS, sums over batches in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

__all__ = ["Moments", "ridge"]

Array = NDArray[Any]
Array64 = NDArray[np.float64]


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
        if not self.count:
            groups, width = x.shape[:2]
            self.sum_x = np.zeros((groups, width))
            self.sum_xx = np.zeros((groups, width, width))
            if y is not None:
                self.sum_y = np.zeros(y.shape[:2])
                self.sum_yx = np.zeros((groups, y.shape[1], width))
                self.sum_yy = np.zeros(y.shape[:2])
        self.count += x.shape[2]
        self.sum_x += x.sum(2, dtype=np.float64)
        for block, sample in enumerate(x):
            # The product of a matrix with its own transpose runs as a symmetric rank-k update: half the work.
            self.sum_xx[block] += sample @ sample.T
        if y is not None:
            self.add_target(x, y)

    def retargeted(self) -> Moments:
        """Return moments with the same inputs (shared, not copied) and no targets yet; `add_target` supplies them."""
        assert self.sum_y is not None and self.sum_yx is not None, "collected without y"
        zeros = np.zeros_like
        return Moments(
            self.count, self.sum_x, self.sum_xx, zeros(self.sum_y), zeros(self.sum_yx), zeros(self.sum_y)
        )

    def add_target(self, x: Array, y: Array) -> None:
        """Add new targets `y` `[g, o, n]` for inputs `x` `[g, d, n]` that `add` has seen before."""
        assert self.sum_y is not None and self.sum_yx is not None and self.sum_yy is not None, (
            "not retargeted"
        )
        self.sum_y += y.sum(2, dtype=np.float64)
        self.sum_yx += y @ x.transpose(0, 2, 1)
        self.sum_yy += np.einsum("gon,gon->go", y, y, dtype=np.float64)

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
