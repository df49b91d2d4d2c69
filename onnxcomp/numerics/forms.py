"""Ways to write the weights of a convolution as a product of smaller ones, and the shapes, slopes and starts of each.

Weights of one block are `W` `[o, c, s]`, with all taps of the kernel on the last axis. A form is multilinear in its
factors, so that the slope of any error by a factor is a contraction of the error with the others. Where a fit starts from
is a singular value decomposition of an unfolding of `W`, whitened by what is known of the inputs.

    name       factors                       product                             a convolution becomes
    channel    A [o,r]   B [r,c,s]           sum_r A_or B_rcs                    k x k to r, 1 x 1
    first      A [o,r,s] B [r,c]             sum_r A_ors B_rc                    1 x 1 to r, k x k
    vertical   A [o,r,w] B [r,c,h]           sum_r A_orw B_rch                   k x 1 to r, 1 x k
    horizontal A [o,r,h] B [r,c,w]           sum_r A_orh B_rcw                   1 x k to r, k x 1
    tucker     A [o,q]   K [q,r,s]  B [r,c]  sum_qr A_oq K_qrs B_rc              1 x 1 to r, k x k to q, 1 x 1
    cp         A [o,r]   U [r,s]    B [r,c]  sum_r A_or U_rs B_rc                1 x 1 to r, depthwise k x k, 1 x 1
    depthwise  P [o,c,j] D [c,j,s]           sum_j P_ocj D_cjs                   depthwise k x k, r times, 1 x 1
    pointwise  P [o,j,c] D [o,j,s]           sum_j P_ojc D_ojs                   1 x 1, r times, depthwise k x k

(vertical, horizontal: Jaderberg 2014, "Speeding up convolutional neural networks with low rank expansions"; tucker: Kim
2015, "Compression of deep convolutional neural networks for fast and low power mobile applications"; cp: Lebedev 2014,
"Speeding-up convolutional neural networks using fine-tuned CP-decomposition", with the taps as one axis; depthwise and
pointwise: Guo 2018, "Network decoupling".)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxcomp.numerics.arrays import Array

__all__ = ["FORMS", "Factors", "Form", "whitened_svd"]

Factors = tuple[Array, ...]
"""The factors of one block, in the order of the table."""

_TINY = 1e-9
"""Variances below this share of the mean count as this: an input that never varies has no scale of its own."""


@dataclass(frozen=True)
class Form(ABC):
    """A form for weights of `outputs` by `channels` by `kernel`, with its `ranks` chosen.

    `expand` and `slopes` take and return arrays of the dtype they are given.
    """

    outputs: int
    channels: int
    kernel: tuple[int, ...]
    ranks: tuple[int, ...]

    name: ClassVar[str] = ""
    apart: ClassVar[bool] = False
    """Whether the form, or its start, takes every channel for itself."""

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.kernel)

    @property
    def width(self) -> int:
        """Inputs of one output: channels times taps."""
        return self.channels * self.taps

    @abstractmethod
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the factors."""

    @abstractmethod
    def full(self) -> tuple[int, ...]:
        """Return the least ranks at which every weight can be written exactly."""

    @abstractmethod
    def expand(self, factors: Factors) -> Array:
        """Return the product of the factors, `[o, c * s]`."""

    @abstractmethod
    def slopes(self, factors: Factors, error: Array) -> Factors:
        """Return the slopes by each factor of a function whose slope by the product is `error` `[o, c * s]`."""

    @abstractmethod
    def start(self, W: Array, H: Array) -> Factors:
        """Return factors to start from: a singular value decomposition, for inputs of covariance `H` `[c * s, c * s]`."""

    @abstractmethod
    def mixed(self, factors: Factors, mix: Array) -> Factors:
        """Return factors whose product is that of `factors`, `[o, c, s]`, with its channels multiplied by `mix` `[c, c]`.

        Where channels are kept `apart`, the mix must be diagonal.
        """

    def elements(self) -> int:
        """Return the elements of all factors."""
        return sum(math.prod(shape) for shape in self.shapes())


@dataclass(frozen=True)
class _Pair(Form):
    """A form that is a matrix product once `W` is unfolded: `M = A B`, with `A` `[m, r]` and `B` `[r, n]`.

    `columns` are the axes of `[o, c, h, w]` that the columns of the unfolded weights run over.
    """

    columns: ClassVar[tuple[int, ...]] = ()

    @property
    def _axes(self) -> tuple[int, ...]:
        return (*(a for a in range(4) if a not in self.columns), *self.columns)

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Return the sizes of `[o, c, h, w]`; kernels of other than two axes have all taps on the third."""
        h, w = self.kernel if len(self.kernel) == 2 else (self.taps, 1)
        return self.outputs, self.channels, h, w

    def _sides(self) -> tuple[int, int]:
        sizes = self._sizes
        columns = math.prod(sizes[a] for a in self.columns)
        return math.prod(sizes) // columns, columns

    def _unfold(self, W: Array) -> Array:
        return W.reshape(self._sizes).transpose(self._axes).reshape(self._sides())

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        m, n = self._sides()
        return (m, self.ranks[0]), (self.ranks[0], n)

    def full(self) -> tuple[int, ...]:
        return (min(self._sides()),)

    def expand(self, factors: Factors) -> Array:
        folded: Array = (factors[0] @ factors[1]).reshape([self._sizes[a] for a in self._axes])
        return folded.transpose(np.argsort(self._axes)).reshape(self.outputs, self.width)

    def slopes(self, factors: Factors, error: Array) -> Factors:
        M = self._unfold(error)
        return M @ factors[1].T, factors[0].T @ M

    def start(self, W: Array, H: Array) -> Factors:
        _, c, h, w = self._sizes
        H = H.reshape(c, h, w, c, h, w)
        if 2 not in self.columns:
            H = np.einsum("chwdhx->cwdx", H)[:, None, :, :, None, :]
        if 3 not in self.columns:
            H = np.einsum("chwdiw->chdi", H)[:, :, None, :, :, None]
        n = self._sides()[1]
        return whitened_svd(self._unfold(W), H.reshape(n, n), self.ranks[0])

    def mixed(self, factors: Factors, mix: Array) -> Factors:
        A, B = factors
        return A, (mix.T @ B.reshape(len(B), self.channels, -1)).reshape(B.shape)


class Channel(_Pair):
    """All taps to r channels, then 1 x 1."""

    name = "channel"
    columns = (1, 2, 3)


class First(_Pair):
    """1 x 1 to r channels, then all taps."""

    name = "first"
    columns = (1,)


class Vertical(_Pair):
    """k x 1 to r channels, then 1 x k."""

    name = "vertical"
    columns = (1, 2)


class Horizontal(_Pair):
    """1 x k to r channels, then k x 1."""

    name = "horizontal"
    columns = (1, 3)


class Tucker(Form):
    """1 x 1 to r channels, all taps to q, 1 x 1; `ranks` are (q, r)."""

    name = "tucker"

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        q, r = self.ranks
        return (self.outputs, q), (q, r, self.taps), (r, self.channels)

    def full(self) -> tuple[int, ...]:
        return min(self.outputs, self.width), min(self.channels, self.outputs * self.taps)

    def expand(self, factors: Factors) -> Array:
        A, K, B = factors
        q, r = self.ranks
        inner = K.transpose(0, 2, 1).reshape(-1, r) @ B
        inner = inner.reshape(q, self.taps, self.channels).transpose(0, 2, 1).reshape(q, self.width)
        made: Array = A @ inner
        return made

    def slopes(self, factors: Factors, error: Array) -> Factors:
        A, K, B = factors
        q, r = self.ranks
        flat = K.transpose(0, 2, 1).reshape(-1, r)
        inner = (flat @ B).reshape(q, self.taps, self.channels).transpose(0, 2, 1).reshape(q, self.width)
        back = (
            (A.T @ error).reshape(q, self.channels, self.taps).transpose(0, 2, 1).reshape(-1, self.channels)
        )
        by_core = (back @ B.T).reshape(q, self.taps, r).transpose(0, 2, 1)
        return error @ inner.T, by_core, flat.T @ back

    def start(self, W: Array, H: Array) -> Factors:
        q, r = self.ranks
        floor = _TINY * float(np.trace(H)) / len(H)
        A = np.linalg.eigh(W @ H @ W.T + floor * (W @ W.T))[1][:, ::-1][:, :q]
        A = _widened(A, q, 1)
        _, B = First(self.outputs, self.channels, self.kernel, (r,)).start(W, H)
        inner = (A.T @ W).reshape(q, self.channels, self.taps).transpose(0, 2, 1).reshape(-1, self.channels)
        variance = np.einsum("csds->cd", H.reshape(self.channels, self.taps, self.channels, self.taps))
        variance = variance + _TINY * np.trace(variance) * np.eye(self.channels)
        # Least squares on the inputs that B leaves: inner V B' (B V B')^-1.
        V = variance @ B.T
        core = np.linalg.lstsq((B @ V).T, (inner @ V).T, rcond=None)[0].T
        return A, core.reshape(q, self.taps, r).transpose(0, 2, 1), B

    def mixed(self, factors: Factors, mix: Array) -> Factors:
        return factors[0], factors[1], factors[2] @ mix


class Cp(Form):
    """1 x 1 to r channels, all taps of each of them alone, 1 x 1."""

    name = "cp"
    apart = True

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        r = self.ranks[0]
        return (self.outputs, r), (r, self.taps), (r, self.channels)

    def full(self) -> tuple[int, ...]:
        o, c, s = self.outputs, self.channels, self.taps
        return (min(o * min(c, s), c * min(o, s), s * min(o, c)),)

    def _inner(self, U: Array, B: Array) -> Array:
        return (B[:, :, None] * U[:, None, :]).reshape(len(U), self.width)

    def expand(self, factors: Factors) -> Array:
        A, U, B = factors
        return A @ self._inner(U, B)

    def slopes(self, factors: Factors, error: Array) -> Factors:
        A, U, B = factors
        back = (A.T @ error).reshape(len(U), self.channels, self.taps)
        by_taps = (B[:, None, :] @ back)[:, 0]
        by_channels = (back @ U[:, :, None])[:, :, 0]
        return error @ self._inner(U, B).T, by_taps, by_channels

    def start(self, W: Array, H: Array) -> Factors:
        """Return the largest parts of the decompositions of each channel alone: a depthwise form, thinned."""
        o, c, s, r = self.outputs, self.channels, self.taps, self.ranks[0]
        T = W.reshape(o, c, s)
        sides = (T.transpose(1, 0, 2), T.transpose(0, 1, 2), T.transpose(2, 0, 1))
        counts = [min(side.shape[1:]) * len(side) for side in sides]
        # By channels is the best start by far. At the full rank the side that has least parts is exact.
        which = 0 if r < min(counts) else int(np.argmin(counts))
        if which == 0:
            # Along the directions in which channels vary together few parts say most: of wide layers a third of the error.
            turn, back = _directions(T, H)
            A, U, B = self._largest((T.transpose(0, 2, 1) @ turn).transpose(2, 0, 1), 0)
            parts: Factors = (A, U, B @ back)
        else:
            parts = self._largest(sides[which], which)
        return _widened(parts[0], r, 1), _widened(parts[1], r, 0), _widened(parts[2], r, 0)

    def _largest(self, side: Array, which: int) -> Factors:
        """Return the `r` largest parts of the decompositions of each `side[k]`; `which` axis of `[c, o, s]` is its first."""
        U, sizes, V = np.linalg.svd(side, full_matrices=False)
        order = np.argsort(-sizes, axis=None, kind="stable")[: self.ranks[0]]
        block, place = np.unravel_index(order, sizes.shape)
        root = np.cbrt(sizes[block, place])[:, None]
        left, right = U[block, :, place] * root, V[block, place] * root
        unit = np.zeros((len(order), len(side)))
        unit[np.arange(len(order)), block] = root[:, 0]
        if which == 0:
            return left.T, right, unit
        if which == 1:
            return unit.T, right, left
        return left.T, unit, right

    def mixed(self, factors: Factors, mix: Array) -> Factors:
        return factors[0], factors[1], factors[2] @ mix


class Depthwise(Form):
    """All taps of every channel alone, r times, then 1 x 1."""

    name = "depthwise"
    apart = True

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        c, r = self.channels, self.ranks[0]
        return (self.outputs, c, r), (c, r, self.taps)

    def full(self) -> tuple[int, ...]:
        return (min(self.outputs, self.taps),)

    def expand(self, factors: Factors) -> Array:
        P, D = factors
        return (P.transpose(1, 0, 2) @ D).transpose(1, 0, 2).reshape(self.outputs, self.width)

    def slopes(self, factors: Factors, error: Array) -> Factors:
        P, D = factors
        E = error.reshape(self.outputs, self.channels, self.taps).transpose(1, 0, 2)
        return (E @ D.transpose(0, 2, 1)).transpose(1, 0, 2), P.transpose(1, 2, 0) @ E

    def start(self, W: Array, H: Array) -> Factors:
        c, s = self.channels, self.taps
        within = np.einsum("csct->cst", H.reshape(c, s, c, s))
        parts = [
            whitened_svd(W.reshape(self.outputs, c, s)[:, k], within[k], self.ranks[0]) for k in range(c)
        ]
        return np.stack([p for p, _ in parts], 1), np.stack([d for _, d in parts])

    def mixed(self, factors: Factors, mix: Array) -> Factors:
        return factors[0] * np.diag(mix)[:, None], factors[1]


class Pointwise(Form):
    """1 x 1 to r times the outputs, then all taps of each of them alone."""

    name = "pointwise"

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        o, r = self.outputs, self.ranks[0]
        return (o, r, self.channels), (o, r, self.taps)

    def full(self) -> tuple[int, ...]:
        return (min(self.channels, self.taps),)

    def expand(self, factors: Factors) -> Array:
        P, D = factors
        return (P.transpose(0, 2, 1) @ D).reshape(self.outputs, self.width)

    def slopes(self, factors: Factors, error: Array) -> Factors:
        P, D = factors
        E = error.reshape(self.outputs, self.channels, self.taps)
        return D @ E.transpose(0, 2, 1), P @ E

    def start(self, W: Array, H: Array) -> Factors:
        c, s = self.channels, self.taps
        between = np.einsum("csds->cd", H.reshape(c, s, c, s))
        parts = [whitened_svd(w.reshape(c, s).T, between, self.ranks[0]) for w in W]
        return np.stack([p for _, p in parts]), np.stack([d.T for d, _ in parts])

    def mixed(self, factors: Factors, mix: Array) -> Factors:
        return factors[0] @ mix, factors[1]


FORMS: dict[str, type[Form]] = {
    form.name: form for form in (Channel, First, Vertical, Horizontal, Tucker, Cp, Depthwise, Pointwise)
}
"""All forms by name."""


def _directions(T: Array, H: Array) -> tuple[Array, Array]:
    """Return `turn` `[c, c]` to the directions of the inputs by what `T` `[o, c, s]` makes of them, and its inverse."""
    _, c, s = T.shape
    values, vectors = np.linalg.eigh(np.einsum("csds->cd", H.reshape(c, s, c, s)))
    roots = np.sqrt(np.maximum(values, _TINY * max(float(values.mean()), 1e-30)))
    root = vectors * roots
    flat = (T.transpose(0, 2, 1) @ root).reshape(-1, c)
    _, turned = np.linalg.eigh(flat.T @ flat)
    return root @ turned, (vectors / roots @ turned).T


def whitened_svd(M: Array, metric: Array, rank: int) -> tuple[Array, Array]:
    """Return `A` `[m, rank]` and `B` `[rank, n]` such that `A B` is nearest to `M` on inputs of covariance `metric`.

    With `metric = L L'` and `M L = U S V'`: `A = U S^1/2`, `B = S^1/2 V' L^-1` (Eckart and Young 1936, in the whitened
    space). Where `rank` exceeds what `M` has, zeros fill up.
    """
    mean = float(np.trace(metric)) / len(metric)
    values, vectors = np.linalg.eigh(metric)
    values = np.sqrt(np.maximum(values, _TINY * mean if mean > 0 else 1.0))
    U, S, V = np.linalg.svd((M @ vectors) * values, full_matrices=False)
    root = np.sqrt(S[:rank])
    A, B = U[:, :rank] * root, (root[:, None] * V[:rank] / values) @ vectors.T
    return _widened(A, rank, 1), _widened(B, rank, 0)


def _widened(array: Array, size: int, axis: int) -> Array:
    """Return `array` with zeros behind it, where it has less than `size` along `axis`."""
    missing = size - array.shape[axis]
    return np.pad(array, [(0, missing if a == axis else 0) for a in range(array.ndim)])
