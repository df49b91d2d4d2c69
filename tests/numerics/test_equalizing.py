"""Factors between layers: balanced in the weights, or of the least noise; within their limits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.equalizing import Between, Layer, balanced, fill_powers, quietest
from onnxcomp.numerics.splitting import split_outliers

RNG = np.random.default_rng(5)
FIRST = np.abs(RNG.standard_normal((1, 6, 4))) * np.geomspace(0.01, 3, 6)[None, :, None]
SECOND = np.abs(RNG.standard_normal((6, 1, 1)))
THIRD = np.abs(RNG.standard_normal((1, 5, 6)))


def test_two_layers_come_to_see_each_channel_equally_large() -> None:
    (factor,) = balanced([Layer(FIRST, makes=0), Layer(THIRD, reads=0)], [Between(6)])
    ratio = FIRST.max(2)[0] * factor / (THIRD.max(1)[0] / factor)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_three_layers_settle_together() -> None:
    layers = [Layer(FIRST, makes=0), Layer(SECOND, reads=0, makes=1), Layer(THIRD, reads=1)]
    f, g = balanced(layers, [Between(6), Between(6)])
    between = SECOND[:, 0, 0] * g / f
    for ratio in (FIRST.max(2)[0] * f / between, between / (THIRD.max(1)[0] / g)):
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-2)


def test_limits_hold_and_channels_that_are_held_keep_their_scale() -> None:
    held = np.array([False, True, False, False, True, False])
    most = np.array([1.1, 1.0, 2.0, np.inf, 1.0, 1.5])
    layers = [
        Layer(FIRST, makes=0, power=np.ones((1, 1)), gain=np.ones((1, 6))),
        Layer(THIRD, reads=0, power=np.ones((1, 6)), gain=np.ones((1, 5))),
    ]
    between = [Between(6, most, held, np.ones(6), np.ones(6))]
    for factors in (balanced(layers, between)[0], quietest(layers, between)[0]):
        assert (factors[held] == 1).all()
        assert (factors <= most * (1 + 1e-12)).all()
        assert np.abs(np.log(factors)).max() > 0.1


def test_where_nothing_is_held_limits_shift_all_channels_alike() -> None:
    layers = [Layer(FIRST, makes=0), Layer(THIRD, reads=0)]
    (free,) = balanced(layers, [Between(6)])
    (limited,) = balanced(layers, [Between(6, np.full(6, 1.2))])
    assert limited.max() == pytest.approx(1.2)
    np.testing.assert_allclose(limited / limited[0], free / free[0], rtol=1e-3)


def test_channels_without_weights_and_endless_ones_stay_finite() -> None:
    first, third = FIRST.copy(), THIRD.copy()
    first[0, 2], third[0, :, 4], first[0, 5] = 0, 0, 1e-30
    (factor,) = balanced([Layer(first, makes=0), Layer(third, reads=0)], [Between(6)])
    assert np.isfinite(factor).all() and (factor > 0).all()


def test_the_least_noise_is_where_no_single_factor_makes_less() -> None:
    rng = np.random.default_rng(2)
    layers = [
        Layer(FIRST, makes=0, power=np.full((1, 1), 0.7), gain=rng.random((1, 6)) + 0.1),
        Layer(SECOND, reads=0, makes=1, power=rng.random((6, 1)) + 0.1, gain=rng.random((6, 1)) + 0.1),
        Layer(THIRD, reads=1, power=rng.random((1, 6)) + 0.1, gain=np.ones((1, 5))),
    ]
    between = [Between(6, tops=rng.random(6) + 0.5, gain=rng.random(6) + 0.1) for _ in range(2)]

    def noise(factors: list[NDArray[np.float64]]) -> float:
        f, g = factors
        total = 0.0
        for weights, layer, reads, makes in (
            (FIRST * f[None, :, None], layers[0], np.ones(1), f),
            (SECOND * (g / f)[:, None, None], layers[1], f[:, None], g[:, None]),
            (THIRD / g, layers[2], g, np.ones(1)),
        ):
            assert layer.power is not None and layer.gain is not None
            power, gain = (layer.power * reads**2).sum(1), (layer.gain / makes**2).sum(1)
            total += (weights.max() / 127) ** 2 * float((power * gain).sum())
        for b, x in zip(between, factors, strict=True):
            assert b.tops is not None and b.gain is not None
            total += ((b.tops * x).max() / 255) ** 2 * float((b.gain / x**2).sum())
        return float(total)

    found = quietest(layers, between)
    best = noise(found)
    assert best < 0.75 * noise([np.ones(6), np.ones(6)])
    for number in range(2):
        for channel in range(6):
            for part in (0.9, 1.1):
                moved = [f.copy() for f in found]
                moved[number][channel] *= part
                assert noise(moved) > 0.97 * best


def test_where_steps_are_powers_of_two_grids_are_filled() -> None:
    layers = [
        Layer(np.full((1, 4, 2), 1.0), makes=0, power=np.ones((1, 1)), gain=np.full((1, 4), 1e-9)),
        Layer(np.full((1, 3, 4), 1.0), reads=0, power=np.full((1, 4), 1e-9), gain=np.ones((1, 3))),
    ]
    between = [Between(4, tops=np.full(4, 127 * 1.1), gain=np.ones(4), levels=127)]
    (unit,) = fill_powers(layers, between, [np.ones(4)])
    assert 1.1 * unit <= 2 < 1.1 * unit * 1.06
    full = [Between(4, tops=np.full(4, 127.0), gain=np.ones(4), levels=127)]
    assert fill_powers(layers, full, [np.ones(4)]) == [1.0]


# --- outliers --------------------------------------------------------------------------------------------------------
def test_split_channels_add_up_to_what_they_were_and_the_largest_is_halved() -> None:
    weights = np.random.default_rng(3).standard_normal((3, 5, 2))
    weights[1, 3, 0] = 9.0
    sources, split = split_outliers(weights, 2, 127)
    assert sources[:5].tolist() == [0, 1, 2, 3, 4] and sources[5] == 3 and len(sources) == 7
    added = np.stack([split[:, sources == channel].sum(1) for channel in range(5)], 1)
    np.testing.assert_allclose(added, weights, atol=1e-12)
    assert np.abs(split).max() < 0.51 * 9.0


def test_halves_round_to_what_the_whole_rounds_to() -> None:
    weights = np.random.default_rng(3).uniform(-1, 1, (40, 3, 5))
    weights[:, 1] *= 2
    sources, split = split_outliers(weights, 1, 127)
    step = max(np.abs(weights[:, [0, 2]]).max(), np.abs(weights[:, 1]).max() / 2) / 127
    halves = np.rint(split[:, sources == 1] / step).sum(1)
    np.testing.assert_array_equal(halves, np.rint(weights[:, 1] / step))


def test_a_channel_far_above_all_others_is_split_more_than_once() -> None:
    weights = np.full((1, 4, 1), 0.1)
    weights[0, 2, 0] = 8.0
    sources, split = split_outliers(weights, 3, 127)
    assert (sources == 2).sum() == 4
    assert split[0, sources == 2].sum() == pytest.approx(8.0)
    assert np.abs(split).max() == pytest.approx(2.0, rel=0.01)
