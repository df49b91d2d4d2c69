from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numerics.affine_fold import (
    Affine,
    batchnorm_affine,
    batchnorm_parameters,
    conv_before,
    conv_transpose_before,
    matrix_after,
    matrix_before,
    rounded,
)

Array64 = NDArray[np.float64]


def drawn(seed: int, *shape: int) -> Array64:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def step(seed: int, channels: int) -> Affine:
    return Affine(drawn(seed, channels), drawn(seed + 1, channels))


def test_batchnorm_is_what_the_operator_says() -> None:
    scale, bias, mean = (drawn(i, 3) for i in range(3))
    variance = np.array([0.0, 1.0, 4.0])
    affine = batchnorm_affine(scale, bias, mean, variance, 0.25)
    x = drawn(9, 5, 3)
    expected = (x - mean) / np.sqrt(variance + 0.25) * scale + bias
    np.testing.assert_allclose(affine.scale * x + affine.shift, expected, rtol=1e-12)


def test_batchnorm_parameters_give_the_step_back() -> None:
    mean, variance, wanted = drawn(0, 3), np.abs(drawn(1, 3)), step(2, 3)
    scale, bias = batchnorm_parameters(wanted, mean, variance, 0.1)
    got = batchnorm_affine(scale, bias, mean, variance, 0.1)
    np.testing.assert_allclose(got.scale, wanted.scale, rtol=1e-12)
    np.testing.assert_allclose(got.shift, wanted.shift, rtol=1e-12, atol=1e-12)


def test_a_negative_variance_is_not_finite() -> None:
    one = np.ones(1)
    assert not batchnorm_affine(one, one, one, -one, 1e-5).finite
    assert not batchnorm_affine(one, one, one, np.zeros(1), 0.0).finite


@given(seed=st.integers(0, 1000))
def test_then_is_the_order_in_which_steps_are_done(seed: int) -> None:
    first, second, x = step(seed, 4), step(seed + 7, 4), drawn(seed, 6, 4)
    both = first.then(second)
    np.testing.assert_allclose(
        both.scale * x + both.shift, second.scale * (first.scale * x + first.shift) + second.shift, rtol=1e-9
    )


@pytest.mark.parametrize("bias", [None, drawn(5, 3), drawn(5, 2, 1)])
def test_a_matrix_product_takes_a_step_on_either_side(bias: Array64 | None) -> None:
    x, weight = drawn(1, 2, 4), drawn(2, 4, 3)
    plain = x @ weight + (0 if bias is None else bias)
    after, moved = matrix_after(weight, bias, late := step(3, 3))
    np.testing.assert_allclose(x @ after + moved, late.scale * plain + late.shift, rtol=1e-9)
    before, shifted = matrix_before(weight, bias, early := step(4, 4))
    expected = (early.scale * x + early.shift) @ weight + (0 if bias is None else bias)
    np.testing.assert_allclose(x @ before + (0 if shifted is None else shifted), expected, rtol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_pointwise_convolution_takes_a_step_before_it_group_by_group(groups: int) -> None:
    channels, out = 6, 12
    weight, early, x = drawn(1, out, channels // groups, 1), step(2, channels), drawn(3, channels)
    scaled, bias = conv_before(weight, None, early, groups)
    assert bias is not None

    def product(w: Array64, values: Array64) -> Array64:
        parts = values.reshape(groups, -1)
        rows = w.reshape(groups, out // groups, -1)
        result: Array64 = np.einsum("gok,gk->go", rows, parts).reshape(-1)
        return result

    np.testing.assert_allclose(
        product(scaled, x) + bias, product(weight, early.scale * x + early.shift), rtol=1e-9
    )


def test_a_scale_alone_leaves_a_missing_bias_missing() -> None:
    early = Affine(drawn(0, 4), np.zeros(4))
    assert conv_before(drawn(1, 2, 4, 3, 3), None, early, 1)[1] is None
    assert matrix_before(drawn(1, 4, 3), None, early)[1] is None


def test_weights_are_never_written_to() -> None:
    weight, bias = drawn(1, 4, 4), drawn(2, 4)
    weight.flags.writeable = bias.flags.writeable = False
    for result in (
        matrix_before(weight, bias, step(1, 4)),
        matrix_after(weight, bias, step(1, 4)),
        (conv_transpose_before(weight, np.ones(4)), None),
    ):
        assert not np.shares_memory(result[0], weight)


def test_rounding_refuses_what_the_type_cannot_hold() -> None:
    assert rounded(np.array([70000.0]), np.dtype(np.float16)) is None
    assert rounded(np.array([1e39]), np.dtype(np.float32)) is None
    kept = rounded(np.array([np.inf, 1.5]), np.dtype(np.float16))
    assert kept is not None
    assert kept.dtype == np.float16
    assert kept.tolist() == [np.inf, 1.5]
