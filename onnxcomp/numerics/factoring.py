"""Fitting the factors of a form to weights, so that the outputs, not the weights, are close.

The squared error of the outputs of `V` in place of `W`, on inputs of covariance `H` and with the outputs weighed by `F`, is
`tr(F (V - W) H (V - W)')`. For one matrix product its least is known in closed form (reduced-rank regression; Izenman 1975,
with `F` and `H` as metrics on either side). For forms of more structure the error is lowered from a whitened start along
all factors at once by a limited-memory quasi-Newton method: alternating least squares, one factor at a time, needs many
times the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize

from onnxcomp.numerics.arrays import Array
from onnxcomp.numerics.forms import Channel, Factors, Form

__all__ = ["Fit", "Metric", "balanced", "fit"]


EXACT = 1e-11
"""Relative error from which on nothing is left to gain in float32."""

MEMORY = 12
"""Steps that the quasi-Newton method remembers."""

LEAST_GAIN = 3e-5
"""Share of the error below which the gain of one step ends a fit: going on takes half as long again for 0.1 % of it."""

_FLATTEST = 1e-3
"""Variances of channels below this share of their mean count as this."""


@dataclass(frozen=True)
class Metric:
    """What an error weighs: `inputs` is the covariance `[d, d]` of the inputs, `outputs` `[o, o]` or None for all alike."""

    inputs: Array
    outputs: Array | None = None

    def of(self, E: Array) -> float:
        """Return the weight of the weights' error `E` `[o, d]`."""
        through = E @ self.inputs
        return float(np.vdot(through, E if self.outputs is None else self.outputs @ E))


@dataclass(frozen=True)
class Fit:
    """Factors of `form`, their product `[o, d]`, and the squared error as a share of what the weights themselves make."""

    form: Form
    factors: Factors
    product: Array
    error: float


def fit(form: Form, W: Array, metric: Metric, steps: int, start: Factors | None = None) -> Fit:
    """Return the factors of `form` that come nearest to `W` `[o, d]` under `metric` after at most `steps` steps.

    `start` are factors to go on from. What is returned is never worse than the start. Where the weights make nothing
    (they, the variance of the inputs, or what errors weigh, are zero) the start itself is returned.
    """
    whole = metric.of(W)
    if not whole > 0:
        factors = start or form.start(W, np.eye(form.width))
        return Fit(form, factors, form.expand(factors), 0.0)
    if isinstance(form, Channel):
        return _judged(form, _reduced_rank(form, W, metric), W, metric, whole)
    mix, back = _channel_roots(form, metric.inputs)
    size = np.linalg.norm(W_inside := _on_channels(W, mix)) / np.sqrt(W.size)
    mix, back, W_inside = mix / size, back * size, W_inside / size
    inside = _inside(metric, back, whole)
    first = form.mixed(start, mix) if start else form.start(W_inside, inside.inputs.astype(np.float64))
    factors = _descend(form, W_inside.astype(np.float32), inside, balanced(first), steps)
    ends = (_judged(form, form.mixed(each, back), W, metric, whole) for each in (factors, first))
    # In float32 the last steps towards an exact product may go astray.
    return min(ends, key=lambda end: end.error)


def balanced(factors: Factors) -> Factors:
    """Return the factors with the same product and equal norms.

    Descent moves what is small far and what is large hardly at all, and half precision and integers like no extremes.
    """
    norms = [float(np.linalg.norm(factor)) for factor in factors]
    if not all(norm > 0 for norm in norms):
        return factors
    common = math.exp(sum(map(math.log, norms)) / len(norms))
    return tuple(factor * (common / norm) for factor, norm in zip(factors, norms, strict=True))


def _judged(form: Form, factors: Factors, W: Array, metric: Metric, whole: float) -> Fit:
    product = form.expand(factors)
    return Fit(form, factors, product, max(0.0, metric.of(product - W) / whole))


def _inside(metric: Metric, back: Array, whole: float) -> Metric:
    """Return `metric` for weights whose channels `back` `[c, c]` turns back, where what weighed `whole` weighs 1; float32."""
    inputs = _on_channels(_on_channels(metric.inputs, back.T).T, back.T)
    if metric.outputs is None:
        return Metric((inputs / whole).astype(np.float32))
    mean = float(np.trace(metric.outputs)) / len(metric.outputs)
    return Metric((inputs * (mean / whole)).astype(np.float32), (metric.outputs / mean).astype(np.float32))


def _on_channels(M: Array, mix: Array) -> Array:
    """Return `M` `[n, c * s]` with its channels multiplied by `mix` `[c, c]`."""
    made: Array = mix.T @ M.reshape(len(M), len(mix), -1)
    return made.reshape(M.shape)


def _channel_roots(form: Form, H: Array) -> tuple[Array, Array]:
    """Return the root of the covariance `[c, c]` of the channels, and its inverse: with it the slopes of a fit are even.

    Where the form keeps channels apart it is that of their variances. None is far below the others.
    """
    c, s = form.channels, form.taps
    between = np.einsum("csds->cd", H.reshape(c, s, c, s))
    if form.apart:
        between = np.diag(np.diag(between))
    values, vectors = np.linalg.eigh(between)
    roots = np.sqrt(np.maximum(values, _FLATTEST * float(values.mean())))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _reduced_rank(form: Form, W: Array, metric: Metric) -> Factors:
    """Return the best factors of one product: an eigenvalue problem on the outputs.

    With `F = R R'`, `A = R'^-1 U` and `B = U' R' W` for the leading eigenvectors `U` of `R' W H W' R`.
    """
    rank = form.ranks[0]
    o = len(W)
    R = np.eye(o) if metric.outputs is None else _root(metric.outputs)
    weighed = R.T @ W
    _, U = np.linalg.eigh(weighed @ metric.inputs @ weighed.T)
    U = U[:, ::-1][:, :rank]
    A, B = np.linalg.solve(R.T, U), U.T @ weighed
    missing = max(0, rank - o)
    return np.pad(A, ((0, 0), (0, missing))), np.pad(B, ((0, missing), (0, 0)))


def _root(F: Array) -> Array:
    values, vectors = np.linalg.eigh(F)
    values = np.maximum(values, 1e-6 * max(float(values[-1]), 1e-30))
    root: Array = vectors * np.sqrt(values)
    return root


def _descend(form: Form, W: Array, metric: Metric, start: Factors, steps: int) -> Factors:
    shapes = [array.shape for array in start]
    cuts = np.cumsum([array.size for array in start])[:-1]

    def unpack(x: Array) -> Factors:
        parts = np.split(x, cuts)
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    def error(x: Array) -> tuple[float, Array]:
        """Return the error in units of `EXACT`: the optimizer takes a gain as a share of what is above 1."""
        factors = unpack(x.astype(np.float32))
        E = form.expand(factors) - W
        slope = E @ metric.inputs
        slope = slope if metric.outputs is None else metric.outputs @ slope
        return float(np.vdot(E, slope)) / EXACT, _pack(form.slopes(factors, slope)) * (2 / EXACT)

    x = _pack(start)
    if error(x)[0] < 1:
        return start
    options: Any = {"maxiter": steps, "maxfun": 3 * steps, "maxcor": MEMORY, "ftol": LEAST_GAIN, "gtol": 0.0}
    found = scipy.optimize.minimize(error, x, jac=True, method="L-BFGS-B", options=options)
    return unpack(found.x)


def _pack(factors: Sequence[Array]) -> Array:
    return np.concatenate([np.asarray(array, np.float64).reshape(-1) for array in factors])
