"""Forms of weights: their products and slopes against definitions, and starts that are exact where ranks allow it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numerics.forms import FORMS, Factors, Form, whitened_svd

Array = NDArray[Any]

SIZES = [
    (5, 4, (3, 3)),
    (3, 7, (3, 2)),
    (1, 4, (3, 3)),
    (4, 1, (2, 3)),
    (6, 5, (1, 1)),
    (3, 4, (5,)),
    (4, 3, (2, 3, 2)),
]
"""Outputs, channels and kernels: more outputs and fewer, single ones, kernels of one to three axes, and of one tap."""

SPLIT = ("vertical", "horizontal")
"""Forms of kernels with two axes alone."""

CASES = [(name, *size) for name in FORMS for size in SIZES if len(size[2]) == 2 or name not in SPLIT]


def ranked(name: str, rank: int) -> tuple[int, ...]:
    return (rank + 1, rank) if name == "tucker" else (rank,)


def full(name: str, outputs: int, channels: int, kernel: tuple[int, ...]) -> Form:
    ranks = FORMS[name](outputs, channels, kernel, ranked(name, 1)).full()
    return FORMS[name](outputs, channels, kernel, ranks)


def random_factors(form: Form, rng: np.random.Generator) -> Factors:
    return tuple(rng.standard_normal(shape) for shape in form.shapes())


def covariance(size: int, rng: np.random.Generator) -> Array:
    A = rng.standard_normal((size, size + 3))
    return A @ A.T


def defined(form: Form, factors: Factors) -> Array:
    """The product as the table of the module writes it, `[o, c, s]`."""
    o, c = form.outputs, form.channels
    h, w = form.kernel if len(form.kernel) == 2 else (form.taps, 1)
    r, s = form.ranks[-1], form.taps
    A, B = factors[0], factors[-1]
    written: dict[str, Callable[[], Array]] = {
        "channel": lambda: np.einsum("or,rcs->ocs", A, B.reshape(r, c, s)),
        "first": lambda: np.einsum("osr,rc->ocs", A.reshape(o, s, r), B),
        "vertical": lambda: np.einsum("owr,rch->ochw", A.reshape(o, w, r), B.reshape(r, c, h)),
        "horizontal": lambda: np.einsum("ohr,rcw->ochw", A.reshape(o, h, r), B.reshape(r, c, w)),
        "tucker": lambda: np.einsum("oq,qrs,rc->ocs", A, factors[1], B),
        "cp": lambda: np.einsum("or,rs,rc->ocs", A, factors[1], B),
        "depthwise": lambda: np.einsum("ocj,cjs->ocs", A, B),
        "pointwise": lambda: np.einsum("ojc,ojs->ocs", A, B),
    }
    return written[form.name]().reshape(o, c, s)


@pytest.mark.parametrize(("name", "outputs", "channels", "kernel"), CASES)
def test_the_product_is_the_one_in_the_table(
    name: str, outputs: int, channels: int, kernel: tuple[int, ...]
) -> None:
    form = FORMS[name](outputs, channels, kernel, ranked(name, 2))
    factors = random_factors(form, np.random.default_rng(0))
    np.testing.assert_allclose(
        form.expand(factors).reshape(outputs, channels, -1), defined(form, factors), atol=1e-12
    )
    assert form.elements() == sum(factor.size for factor in factors)


@pytest.mark.parametrize(("name", "outputs", "channels", "kernel"), CASES)
def test_slopes_are_those_of_finite_differences_in_every_factor(
    name: str, outputs: int, channels: int, kernel: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    form = FORMS[name](outputs, channels, kernel, ranked(name, 2))
    factors = random_factors(form, rng)
    error = rng.standard_normal((form.outputs, form.width))
    slopes = form.slopes(factors, error)
    assert [slope.shape for slope in slopes] == list(form.shapes())
    for which, slope in enumerate(slopes):
        # The product is linear in each factor alone: the difference has no error but rounding.
        step = rng.standard_normal(slope.shape)
        there = tuple(f + step if k == which else f for k, f in enumerate(factors))
        moved = np.vdot(error, form.expand(there) - form.expand(factors))
        np.testing.assert_allclose(np.vdot(slope, step), moved, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "outputs", "channels", "kernel"), CASES)
def test_mixed_factors_have_the_product_with_mixed_channels(
    name: str, outputs: int, channels: int, kernel: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(2)
    form = FORMS[name](outputs, channels, kernel, ranked(name, 2))
    factors, mix = random_factors(form, rng), rng.standard_normal((channels, channels))
    if form.apart:
        mix = np.diag(np.diag(mix))
    wanted = np.einsum("ocs,cd->ods", form.expand(factors).reshape(outputs, channels, -1), mix)
    made = form.expand(form.mixed(factors, mix))
    np.testing.assert_allclose(made, wanted.reshape(made.shape), atol=1e-12)


@pytest.mark.parametrize(("name", "outputs", "channels", "kernel"), CASES)
@pytest.mark.parametrize("above", [0, 1, 7])
def test_the_start_is_exact_at_the_full_rank_and_above(
    name: str, outputs: int, channels: int, kernel: tuple[int, ...], above: int
) -> None:
    rng = np.random.default_rng(3)
    ranks = tuple(rank + above for rank in full(name, outputs, channels, kernel).ranks)
    form = FORMS[name](outputs, channels, kernel, ranks)
    W = rng.standard_normal((outputs, form.width))
    factors = form.start(W, covariance(form.width, rng))
    assert tuple(factor.shape for factor in factors) == form.shapes()
    np.testing.assert_allclose(form.expand(factors), W, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(FORMS) - {"cp"}))
@pytest.mark.parametrize(("outputs", "channels", "kernel"), [(5, 4, (3, 3)), (3, 7, (3, 2)), (9, 2, (2, 2))])
def test_no_less_than_the_full_rank_writes_every_weight(
    name: str, outputs: int, channels: int, kernel: tuple[int, ...]
) -> None:
    """Of cp the full rank is a bound: what rank a tensor has at most is not known in general."""
    rng = np.random.default_rng(4)
    whole = full(name, outputs, channels, kernel)
    W = rng.standard_normal((outputs, whole.width))
    for which, rank in enumerate(whole.ranks):
        ranks = tuple(rank - 1 if k == which else r for k, r in enumerate(whole.ranks))
        if 0 in ranks:
            continue
        form = FORMS[name](outputs, channels, kernel, ranks)
        made = form.expand(form.start(W, np.eye(form.width)))
        assert np.linalg.norm(made - W) > 1e-3 * np.linalg.norm(W)


@pytest.mark.parametrize(("name", "outputs", "channels", "kernel"), CASES)
@pytest.mark.parametrize("what", ["weights", "inputs", "one channel", "one input"])
def test_starts_are_finite_where_something_is_zero(
    name: str, outputs: int, channels: int, kernel: tuple[int, ...], what: str
) -> None:
    rng = np.random.default_rng(5)
    form = FORMS[name](outputs, channels, kernel, ranked(name, 2))
    W, H = rng.standard_normal((outputs, form.width)), covariance(form.width, rng)
    still = {"inputs": form.width, "one channel": form.taps, "one input": 1}.get(what, 0)
    W = W * (what != "weights")
    H[:still] = H[:, :still] = 0
    factors = form.start(W, H)
    assert all(np.isfinite(factor).all() for factor in factors)
    assert tuple(factor.shape for factor in factors) == form.shapes()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(0, 10_000))
def test_a_whitened_decomposition_misses_what_the_dropped_singular_values_say(
    m: int, n: int, rank: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    M, H = rng.standard_normal((m, n)), covariance(n, rng)
    A, B = whitened_svd(M, H, rank)
    assert (A.shape, B.shape) == ((m, rank), (rank, n))
    dropped = np.linalg.svd(M @ np.linalg.cholesky(H), compute_uv=False)[rank:]
    E = A @ B - M
    np.testing.assert_allclose(np.vdot(E @ H, E), np.sum(dropped**2), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMS)
def test_the_same_weights_give_the_same_start_to_the_bit(name: str) -> None:
    rng = np.random.default_rng(6)
    form = FORMS[name](5, 4, (3, 3), ranked(name, 2))
    W, H = rng.standard_normal((5, form.width)), covariance(form.width, rng)
    one, two = form.start(W, H), form.start(W.copy(), H.copy())
    assert [f.tobytes() for f in one] == [f.tobytes() for f in two]


def test_a_form_counts_the_taps_and_inputs_of_its_kernel() -> None:
    form = FORMS["channel"](2, 3, (2, 5), (1,))
    assert (form.taps, form.width) == (10, 30)
    assert FORMS["channel"](2, 3, (), (1,)).width == 3
    assert math.prod(FORMS["channel"](2, 3, (), (1,)).shapes()[1]) == 3
