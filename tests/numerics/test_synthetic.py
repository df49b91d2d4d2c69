"""Images made from random numbers: their colours, their spectrum, and the descent on statistics."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.numerics.synthetic import (
    Colours,
    Descent,
    Family,
    Moment,
    fit_colours,
    make_images,
    mismatch,
    paint,
    pull,
    smooth,
)

LEAVES = Family("leaves", 20, texture=0.1)
NOISE = Family("noise", 0, spectrum=2.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("family", [LEAVES, NOISE])
def test_images_come_normalised_uncorrelated_and_the_same_by_seed(family: Family) -> None:
    images = make_images(family, 40, 3, (12, 16), rng())
    assert images.shape == (40, 3, 12, 16)
    flat = images.swapaxes(0, 1).reshape(3, -1)
    np.testing.assert_allclose(flat @ flat.T / flat.shape[1], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(flat.mean(1), 0, atol=1e-9)
    np.testing.assert_array_equal(images, make_images(family, 40, 3, (12, 16), rng()))
    assert not np.array_equal(images, make_images(family, 40, 3, (12, 16), rng(1)))


def test_leaves_have_edges_and_flat_places_and_noise_has_not() -> None:
    def kurtosis(family: Family) -> float:
        images = make_images(family, 40, 1, (32, 32), rng())
        steps = np.diff(images, axis=3)
        return float((steps**4).mean() / (steps**2).mean() ** 2)

    assert kurtosis(Family("leaves", 20)) > 10 > kurtosis(NOISE) > 2


def test_the_spectrum_of_noise_falls_as_it_is_told() -> None:
    images = make_images(Family("noise", 0, spectrum=2.0), 400, 1, (32, 32), rng())
    power = (np.abs(np.fft.rfft2(images)) ** 2).mean((0, 1))
    assert power[0, 2] / power[0, 8] == pytest.approx(16, rel=0.2)


def test_smoothing_divides_waves_by_their_frequency() -> None:
    x = np.arange(32)
    waves = [np.cos(2 * np.pi * k * x / 32) * np.ones((1, 1, 32, 1)) for k in (2, 8)]
    low, high = (float(np.abs(smooth(w.astype(np.float32))).max()) for w in waves)
    assert low / high == pytest.approx(4, rel=1e-4)


def test_paint_gives_pixels_their_colours() -> None:
    covariance = np.array([[2.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, 1.0]])
    painted = paint(make_images(LEAVES, 40, 3, (12, 12), rng()), Colours(np.array([1.0, -2, 5]), covariance))
    assert painted.dtype == np.float32
    flat = painted.swapaxes(0, 1).reshape(3, -1)
    np.testing.assert_allclose(np.cov(flat, bias=True), covariance, atol=1e-4)
    np.testing.assert_allclose(flat.mean(1), [1, -2, 5], atol=1e-5)


def convolved(images: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The valid convolution `[o, n * places]`."""
    kernel = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(images, kernel, axis=(2, 3))
    made: np.ndarray = np.einsum("nchwij,ocij->onhw", windows, weight, optimize=True).reshape(len(weight), -1)
    return made


def test_colours_are_found_again_from_what_a_convolution_saw() -> None:
    truth = Colours(np.array([0.3, -1.0, 2.0]), np.array([[2.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, 1.0]]))
    images = make_images(LEAVES, 200, 3, (24, 24), rng())
    weight = rng(1).standard_normal((16, 3, 3, 3))
    seen = convolved(paint(images, truth), weight)
    found = fit_colours(images, weight, seen.mean(1), seen.var(1))
    # Single channels of so few images have spectra of their own, where the fit goes by their mean.
    np.testing.assert_allclose(found.mean, truth.mean, atol=0.1)
    np.testing.assert_allclose(found.covariance, truth.covariance, atol=0.4)
    again = convolved(paint(images, found), weight)
    assert abs(np.log(again.var(1) / seen.var(1))).max() < 0.2


def test_dead_filters_are_not_listened_to() -> None:
    images = make_images(LEAVES, 60, 3, (16, 16), rng())
    weight = rng(1).standard_normal((16, 3, 3, 3))
    seen = convolved(images, weight)
    mean, variance = seen.mean(1), seen.var(1)
    want = fit_colours(images, weight[4:], mean[4:], variance[4:])
    weight[:4] *= 1e-6
    variance[:4] = 1e-3 * np.median(variance)
    found = fit_colours(images, weight, mean, variance)
    np.testing.assert_allclose(found.covariance, want.covariance, rtol=1e-6)
    np.testing.assert_allclose(found.mean, want.mean, rtol=1e-6)


def test_larger_images_hold_more_shapes() -> None:
    def edges(size: int) -> float:
        """Edges that a line across the image meets."""
        images = make_images(Family("leaves", 20), 10, 1, (size, size), rng())
        return float((np.abs(np.diff(images, axis=3)) > 0.8).mean() * size)

    # The same number of shapes would leave fewer of them than in the small image (1.8 against 2.2).
    assert edges(128) > 1.2 * edges(32)


def test_too_few_filters_for_a_covariance_give_a_scale() -> None:
    images = make_images(LEAVES, 50, 4, (12, 12), rng())
    weight = rng(1).standard_normal((3, 4, 3, 3))
    seen = 100 * convolved(images, weight)
    found = fit_colours(images, weight, seen.mean(1), seen.var(1))
    np.testing.assert_allclose(found.covariance, found.covariance[0, 0] * np.eye(4))
    assert found.covariance[0, 0] == pytest.approx(1e4, rel=0.3)


def test_impossible_statistics_still_give_a_covariance() -> None:
    images = make_images(LEAVES, 30, 3, (12, 12), rng())
    weight = rng(1).standard_normal((12, 3, 3, 3))
    found = fit_colours(images, weight, np.zeros(12), np.exp(3 * rng(2).standard_normal(12)))
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_the_mismatch_is_nothing_where_moments_agree_and_counts_in_deviations() -> None:
    goal = Moment(np.array([0.0, 10.0]), np.array([1.0, 4.0]))
    assert mismatch(goal, goal) == (0.0, 0.0)
    mean, spread = mismatch(Moment(goal.mean + np.array([0.5, 1.0]), goal.variance * 4), goal)
    assert mean == pytest.approx(0.5)
    assert spread == pytest.approx(np.log(2))


def test_the_pull_is_the_derivative_of_the_loss() -> None:
    goal = Moment(np.array([0.2, 3.0]), np.array([0.5, 2.0]))
    values = rng().standard_normal((2, 50)) * np.array([[1.0], [3.0]])

    def loss(y: np.ndarray) -> float:
        miss = (y.mean(1) - goal.mean) ** 2 / goal.variance + np.log(y.var(1) / goal.variance) ** 2
        return float(miss.mean())

    offset, slope = pull(Moment(values.mean(1), values.var(1)), goal)
    for at in ((0, 3), (1, 40)):
        step = np.zeros_like(values)
        step[at] = 1e-5
        change = (loss(values + step) - loss(values - step)) / 2e-5
        assert (offset[at[0]] + slope[at[0]] * values[at]) / 50 == pytest.approx(change, rel=1e-4)


def test_the_descent_finds_the_bottom_and_begins_with_steps_of_its_rate() -> None:
    goal = np.array([3.0, -2.0, 0.5], np.float32)
    x = np.zeros(3, np.float32)
    descent = Descent(x, 0.1)
    for number in range(200):
        moved = descent.step(1e-3 * (x - goal))
        if not number:
            np.testing.assert_allclose(moved, [0.1, -0.1, 0.1], rtol=1e-4)
        x = x + moved
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, goal, atol=0.1)
    assert np.array_equal(Descent(x, 0.1).step(np.zeros(3, np.float32)), np.zeros(3))
