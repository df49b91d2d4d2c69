"""Images and vectors made from nothing but random numbers, and their fit to statistics that a network holds.

Dead leaves (overlapping shapes of all sizes; Lee 2001, "Occlusion models for natural images") have the edges, the flat
places and the power spectrum of photographs. Their colours are chosen such that the first convolution sees the means and
variances that its normalization remembers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.numerics.arrays import Array, Array64

__all__ = [
    "Colours",
    "Descent",
    "Family",
    "Moment",
    "fit_colours",
    "make_images",
    "mismatch",
    "paint",
    "pull",
    "smooth",
]


LARGEST = 0.7
"""Radius of the largest shapes, as a share of the image."""

SQUARES = 0.4
"""Share of the shapes that have corners; the others are ellipses."""

LOUD = 0.02
"""Share of the median variance below which a filter is not listened to."""


@dataclass(frozen=True)
class Family:
    """How images are made: dead leaves with `texture` (deviation of noise on them), or noise alone.

    `leaves` shapes lie in an image of up to 63 pixels, in larger ones more by their size over 32, their radii with
    density `radius ** -fall`; 0 leaves make noise of amplitude `frequency ** (-spectrum / 2)`.
    """

    name: str
    leaves: int
    fall: float = 1.5
    texture: float = 0.0
    spectrum: float = 1.2


def make_images(
    family: Family, count: int, channels: int, size: tuple[int, int], rng: np.random.Generator
) -> Array64:
    """Return images `[count, channels, *size]`, each channel with mean 0 and deviation 1 over all, uncorrelated."""
    shape = (count, channels, *size)
    if family.leaves:
        images = _leaves(family, shape, rng)
        if family.texture:
            strength = family.texture * np.exp(0.5 * rng.standard_normal((count, 1, 1, 1)))
            images += strength * _noise(shape, family.spectrum, rng)
    else:
        images = _noise(shape, family.spectrum, rng) * np.exp(0.4 * rng.standard_normal((count, 1, 1, 1)))
    return _uncorrelated(images)


def _leaves(family: Family, shape: tuple[int, ...], rng: np.random.Generator) -> Array64:
    """Return images of shapes that lie upon each other, each with a colour and a gradient of its own."""
    count, channels, height, width = shape
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    images = np.broadcast_to(rng.standard_normal((count, channels, 1, 1)), shape).copy()
    power = 1 - family.fall
    low, high = 1.0, (LARGEST * max(height, width)) ** power
    for _ in range(family.leaves * max(1, max(height, width) // 32)):
        cy, cx, angle, draw, square, edge = rng.random((6, count, 1, 1))
        radius = (low + draw * (high - low)) ** (1 / power)
        aspect = np.exp(0.4 * rng.standard_normal((count, 1, 1)))
        dy, dx = yy - cy * height, xx - cx * width
        cos, sin = np.cos(angle * np.pi), np.sin(angle * np.pi)
        u, v = (cos * dx + sin * dy) / (radius * aspect), (cos * dy - sin * dx) * aspect / radius
        distance = np.where(square < SQUARES, np.maximum(abs(u), abs(v)), np.hypot(u, v))
        cover = np.clip((1 - distance) * radius / (0.15 + 0.5 * edge) + 0.5, 0, 1)[:, None]
        colour, along, across = rng.standard_normal((3, count, channels, 1, 1))
        shade = 0.5 * (along * np.clip(u, -2, 2)[:, None] + across * np.clip(v, -2, 2)[:, None])
        images += cover * (colour + shade - images)
    return images


def _noise(shape: tuple[int, ...], spectrum: float, rng: np.random.Generator) -> Array64:
    """Return noise with amplitude `frequency ** (-spectrum / 2)` and deviation 1."""
    height, width = shape[2:]
    amplitude = _frequency(height, width) ** (-spectrum / 2)
    half = (*shape[:3], width // 2 + 1)
    waves = (rng.standard_normal(half) + 1j * rng.standard_normal(half)) * amplitude
    images: Array64 = np.fft.irfft2(waves, s=(height, width))
    normalised: Array64 = images / images.std()
    return normalised


def _frequency(height: int, width: int) -> Array64:
    """Return the frequency of every wave of `rfft2`; that of the mean is a little below the lowest, not zero."""
    found: Array64 = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    found[0, 0] = 0.7 / max(height, width)
    return found


def _uncorrelated(images: Array64) -> Array64:
    channels = images.shape[1]
    flat = images.swapaxes(0, 1).reshape(channels, -1)
    flat = flat - flat.mean(1, keepdims=True)
    covariance = flat @ flat.T / flat.shape[1] + 1e-12 * np.eye(channels)
    flat = np.linalg.solve(np.linalg.cholesky(covariance), flat)
    return flat.reshape(channels, len(images), *images.shape[2:]).swapaxes(0, 1)


def smooth(gradient: Array) -> Array:
    """Return `gradient` `[n, c, h, w]` with its waves divided by their frequency, as those of photographs are.

    A step along it changes images in the way in which images differ, and not pixel by pixel.
    """
    height, width = gradient.shape[2:]
    waves = np.fft.rfft2(gradient) / _frequency(height, width)
    smoothed: Array = np.fft.irfft2(waves, s=(height, width)).astype(np.float32)
    return smoothed


# --- colours ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Colours:
    """Mean `[c]` and covariance `[c, c]` that the pixels of an image are given."""

    mean: Array64
    covariance: Array64


def paint(images: Array64, colours: Colours) -> Array:
    """Return `images` of uncorrelated channels with the given colours, float32."""
    values, vectors = np.linalg.eigh(colours.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    painted = np.einsum("cd,ndhw->nchw", root, images) + colours.mean[:, None, None]
    found: Array = painted.astype(np.float32)
    return found


def fit_colours(images: Array64, weight: Array, mean: Array64, variance: Array64) -> Colours:
    """Return the colours with which a convolution of `images` comes closest to `mean` and `variance` `[o]`.

    `images` have uncorrelated channels; `weight` is `[o, c, h, w]`. Both equations are linear: the mean is the sum of
    the kernel times the mean colour, the variance is `sum over taps t, s of w_t^T C w_s R(t - s)`, with the
    autocorrelation R of the images. Solved by least squares, relative to `variance`, and made positive definite.
    """
    # Dead filters, which many trained networks have, say nothing of the images.
    loud = variance >= LOUD * np.median(variance)
    kernel, mean, variance = weight[loud].astype(np.float64), mean[loud], variance[loud]
    deviation = np.sqrt(variance)
    sums = kernel.sum((2, 3)) / deviation[:, None]
    found_mean = np.linalg.lstsq(sums, mean / deviation, rcond=None)[0]
    channels = kernel.shape[1]
    taps = kernel.reshape(len(kernel), channels, -1)
    forms = np.einsum(
        "oct,ts,ods->ocd", taps, _autocorrelation(images, kernel.shape[2:]), taps, optimize=True
    )
    forms = forms / variance[:, None, None]
    rows, columns = np.triu_indices(channels)
    covariance = np.eye(channels)
    if len(rows) <= len(forms):
        terms = forms[:, rows, columns] * np.where(rows == columns, 1.0, 2.0)
        covariance[rows, columns] = covariance[columns, rows] = np.linalg.lstsq(
            terms, np.ones(len(forms)), rcond=None
        )[0]
        values, vectors = np.linalg.eigh(covariance)
        covariance = vectors * np.maximum(values, 0.01 * max(values.max(), 1e-12)) @ vectors.T
    made = np.maximum(np.einsum("ocd,cd->o", forms, covariance), 1e-12)
    return Colours(found_mean, covariance * float(np.exp(-np.median(np.log(made)))))


def _autocorrelation(images: Array64, kernel: tuple[int, ...]) -> Array64:
    """Return `E[x_t x_s]` `[taps, taps]` between the places that a kernel reads."""
    height, width = images.shape[2:]
    places = list(np.ndindex(*kernel))
    known: dict[tuple[int, int], float] = {}
    found = np.empty((len(places), len(places)))
    for i, first in enumerate(places):
        for j, second in enumerate(places):
            dy, dx = second[0] - first[0], second[1] - first[1]
            if dy < 0 or (dy == 0 and dx < 0):
                dy, dx = -dy, -dx
            if dy >= height or abs(dx) >= width:
                found[i, j] = 0.0
                continue
            if (dy, dx) not in known:
                left = images[:, :, : height - dy, max(0, -dx) : width - max(0, dx)]
                right = images[:, :, dy:, max(0, dx) : width - max(0, -dx)]
                known[dy, dx] = float((left * right).mean())
            found[i, j] = known[dy, dx]
    return found


# --- descent on statistics -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Moment:
    """Mean and variance per channel, `[c]` each."""

    mean: Array64
    variance: Array64


def mismatch(found: Moment, goal: Moment) -> tuple[float, float]:
    """Return how far the means are off, in deviations, and by what share the deviations are: root mean squares."""
    mean = np.mean((found.mean - goal.mean) ** 2 / goal.variance)
    spread = np.mean((0.5 * np.log(found.variance / goal.variance)) ** 2)
    return float(np.sqrt(mean)), float(np.sqrt(spread))


def pull(found: Moment, goal: Moment) -> tuple[Array64, Array64]:
    """Return `offset` and `slope` `[c]` with which the loss varies by a value y of each channel: `offset + slope * y`.

    The loss is the mean over channels of `(mean - goal)^2 / variance + log(variance / goal)^2`; the count of values,
    which divides both, is left out.
    """
    logs = np.log(found.variance / goal.variance)
    slope = 4 * logs / found.variance / len(logs)
    offset = 2 * (found.mean - goal.mean) / goal.variance / len(logs) - slope * found.mean
    return offset, slope


class Descent:
    """Adam (Kingma 2015) on one array: steps of about `rate` in every element, along the averaged gradient."""

    def __init__(self, like: Array, rate: float, *, first: float = 0.9, second: float = 0.99) -> None:
        self._rate, self._first, self._second = rate, first, second
        self._mean, self._square = np.zeros_like(like), np.zeros_like(like)
        self._steps = 0

    def step(self, gradient: Array) -> Array:
        """Return what is to be added, of the shape and type of `gradient`."""
        self._steps += 1
        self._mean = self._first * self._mean + (1 - self._first) * gradient
        self._square = self._second * self._square + (1 - self._second) * gradient**2
        mean = self._mean / (1 - self._first**self._steps)
        scale = np.sqrt(self._square / (1 - self._second**self._steps))
        tiny = np.finfo(np.float32).tiny
        moved: Array = (-self._rate * mean / (scale + tiny)).astype(gradient.dtype)
        return moved
