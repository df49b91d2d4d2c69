"""Fitting the factors of a form to weights, so that the outputs, not the weights, are close.

The squared error of the outputs of `V` in place of `W`, on inputs of covariance `H` and with the outputs weighed by `F`, is
`tr(F (V - W) H (V - W)')`. For one matrix product its least is known in closed form (reduced-rank regression; Izenman 1975,
with `F` and `H` as metrics on either side). For forms of more structure the error is lowered from a whitened start along
all factors at once by a limited-memory quasi-Newton method: alternating least squares, one factor at a time, needs many
times the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from onnxcomp.numerics.forms import Channel, Factors, Form

__all__ = ["Fit", "Metric", "fit"]

Array = NDArray[Any]

EXACT = 1e-11
"""Relative error from which on nothing is left to gain in float32."""

MEMORY = 12
"""Steps that the quasi-Newton method remembers."""


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

    `start` are factors to go on from. What is returned is never worse than the start.
    """
    whole = metric.of(W)
    if not whole > 0:
        factors = start or form.start(W, metric.inputs)
        return Fit(form, factors, form.expand(factors), 0.0)
    if isinstance(form, Channel):
        factors = _reduced_rank(form, W, metric)
        product = form.expand(factors)
        return Fit(form, factors, product, metric.of(product - W) / whole)
    scale = _spread(metric.inputs, form.taps)
    wide = np.repeat(scale, form.taps)
    inside = Metric(
        (metric.inputs / (wide[:, None] * wide * whole)).astype(np.float32),
        None if metric.outputs is None else metric.outputs.astype(np.float32),
    )
    W_inside = W * wide
    first = form.scaled(start, scale) if start else form.start(W_inside, inside.inputs.astype(np.float64))
    factors = _descend(form, W_inside.astype(np.float32), inside, first, steps)
    factors = form.scaled(factors, 1 / scale)
    product = form.expand(factors)
    return Fit(form, factors, product, max(0.0, metric.of(product - W) / whole))


def _spread(H: Array, taps: int) -> Array:
    """Return the standard deviation of every channel, never far below the others'."""
    variance = np.diag(H).reshape(-1, taps).mean(1)
    spread: Array = np.sqrt(np.maximum(variance, 1e-4 * max(float(variance.mean()), 1e-30)))
    return spread


def _reduced_rank(form: Form, W: Array, metric: Metric) -> Factors:
    """Return the best factors of one product: an eigenvalue problem on the outputs.

    With `F = R R'`, `A = R'^-1 U` and `B = U' R' W` for the leading eigenvectors `U` of `R' W H W' R`.
    """
    rank = form.ranks[0]
    o, d = W.shape
    R = np.eye(o) if metric.outputs is None else _root(metric.outputs)
    weighed = R.T @ W
    values, U = np.linalg.eigh(weighed @ metric.inputs @ weighed.T)
    U = U[:, ::-1][:, :rank]
    A, B = np.linalg.solve(R.T, U), U.T @ weighed
    missing = rank - A.shape[1]
    return (A, B) if missing <= 0 else (np.pad(A, ((0, 0), (0, missing))), np.pad(B, ((0, missing), (0, 0))))


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
        factors = unpack(x.astype(np.float32))
        E = form.expand(factors) - W
        slope = E @ metric.inputs
        slope = slope if metric.outputs is None else metric.outputs @ slope
        found = float(np.vdot(E, slope))
        return found, _pack(form.slopes(factors, 2 * slope))

    x = _pack(start)
    if error(x)[0] < EXACT:
        return start
    options: Any = {"maxiter": steps, "maxfun": 3 * steps, "maxcor": MEMORY, "ftol": 1e-7, "gtol": 0.0}
    found = scipy.optimize.minimize(error, x, jac=True, method="L-BFGS-B", options=options)
    return unpack(found.x)


def _pack(factors: Sequence[Array]) -> Array:
    return np.concatenate([np.asarray(array, np.float64).reshape(-1) for array in factors])
