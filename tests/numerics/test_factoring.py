"""Fitted factors against closed forms, on metrics that are whole, singular, zero, tiny and huge; never worse than a start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.numerics.factoring import Metric, balanced, fit
from onnxcomp.numerics.forms import FORMS, Form

Array = NDArray[Any]

SIZES = [(5, 4, (3, 3)), (3, 7, (3, 2)), (1, 4, (3, 3)), (4, 1, (2, 3))]


def form_of(name: str, outputs: int, channels: int, kernel: tuple[int, ...], rank: int = 2) -> Form:
    return FORMS[name](outputs, channels, kernel, (rank, rank) if name == "tucker" else (rank,))


def problem(outputs: int, width: int, seed: int = 0, *, weighed: bool = False) -> tuple[Array, Metric]:
    """Weights, and inputs of variances that differ a hundredfold."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((width, 2 * width)) * np.exp(rng.uniform(-1.2, 1.2, (width, 1)))
    F = rng.standard_normal((outputs, outputs + 2))
    return rng.standard_normal((outputs, width)), Metric(A @ A.T, F @ F.T if weighed else None)


def error_of(form: Form, factors: tuple[Array, ...], W: Array, metric: Metric) -> float:
    return metric.of(form.expand(factors) - W) / metric.of(W)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 7), st.booleans(), st.integers(0, 10_000))
def test_a_channel_fit_misses_the_sum_of_the_dropped_eigenvalues(
    outputs: int, channels: int, rank: int, weighed: bool, seed: int
) -> None:
    """Eckart and Young in the whitened space: `tr(F E H E')` is what the eigenvalues beyond the rank add up to."""
    form = FORMS["channel"](outputs, channels, (2, 1), (rank,))
    W, metric = problem(outputs, form.width, seed, weighed=weighed)
    found = fit(form, W, metric, 1)
    F = np.eye(outputs) if metric.outputs is None else metric.outputs
    R = np.linalg.cholesky(F)
    values = np.linalg.eigvalsh(R.T @ W @ metric.inputs @ W.T @ R)[::-1]
    np.testing.assert_allclose(found.error, values[rank:].sum() / values.sum(), rtol=1e-6, atol=1e-11)
    np.testing.assert_allclose(found.product, form.expand(found.factors))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_channel_fit_is_reduced_rank_regression(rank: int) -> None:
    """With samples `x`, the leading principal components of the fitted outputs span what is kept (Izenman 1975)."""
    rng = np.random.default_rng(7)
    x, W = rng.standard_normal((12, 400)), rng.standard_normal((4, 12))
    form = FORMS["channel"](4, 12, (), (rank,))
    found = fit(form, W, Metric(x @ x.T), 1)
    left = np.linalg.svd(W @ x, full_matrices=False)[0][:, :rank]
    np.testing.assert_allclose(found.product, left @ left.T @ W, atol=1e-9)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("outputs", "channels", "kernel"), SIZES)
@pytest.mark.parametrize("above", [0, 3])
def test_the_full_rank_and_more_is_exact(
    name: str, outputs: int, channels: int, kernel: tuple[int, ...], above: int
) -> None:
    ranks = tuple(rank + above for rank in form_of(name, outputs, channels, kernel).full())
    form = FORMS[name](outputs, channels, kernel, ranks)
    W, metric = problem(outputs, form.width, weighed=True)
    found = fit(form, W, metric, 20)
    assert found.error < 1e-10
    assert tuple(factor.shape for factor in found.factors) == form.shapes()
    np.testing.assert_allclose(found.product, W, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("outputs", "channels", "kernel"), SIZES)
@pytest.mark.parametrize("weighed", [False, True])
def test_no_fit_is_worse_than_its_start_and_more_steps_are_no_worse(
    name: str, outputs: int, channels: int, kernel: tuple[int, ...], weighed: bool
) -> None:
    form = form_of(name, outputs, channels, kernel)
    W, metric = problem(outputs, form.width, weighed=weighed)
    rng = np.random.default_rng(1)
    given = tuple(rng.standard_normal(shape) for shape in form.shapes())
    for start in (given, form.start(W, metric.inputs)):
        few = fit(form, W, metric, 3, start)
        many = fit(form, W, metric, 60, few.factors)
        assert few.error <= error_of(form, start, W, metric) * (1 + 1e-9) + 1e-12
        assert many.error <= few.error * (1 + 1e-9) + 1e-12
        np.testing.assert_allclose(many.error, error_of(form, many.factors, W, metric), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(FORMS) - {"channel"}))
def test_a_fit_gains_on_its_start_where_inputs_are_correlated(name: str) -> None:
    form = form_of(name, 8, 6, (3, 3))
    W, metric = problem(8, form.width)
    start = error_of(form, form.start(W, metric.inputs), W, metric)
    assert fit(form, W, metric, 80).error < 0.97 * start


@pytest.mark.parametrize("name", FORMS)
def test_weights_of_the_form_are_found_again_from_nearby(name: str) -> None:
    """The least error is zero, and descent gets there: as low as float32 sees."""
    rng = np.random.default_rng(3)
    form = form_of(name, 6, 5, (3, 3), 1)
    truth = tuple(rng.standard_normal(shape) for shape in form.shapes())
    W, metric = form.expand(truth), problem(6, form.width)[1]
    near = tuple(f + 0.1 * rng.standard_normal(f.shape) for f in truth)
    assert fit(form, W, metric, 400, near).error < 1e-7


@pytest.mark.parametrize("name", FORMS)
def test_outputs_that_weigh_more_are_kept_better(name: str) -> None:
    form = form_of(name, 6, 5, (3, 3), 1)
    W, plain = problem(6, form.width)
    heavy = Metric(plain.inputs, np.diag([100.0, 1, 1, 1, 1, 1]))
    alike, leaning = fit(form, W, plain, 150), fit(form, W, heavy, 150)

    def missed(product: Array) -> float:
        row = (product - W)[:1]
        return float(np.vdot(row @ plain.inputs, row))

    # Of pointwise every output has factors of its own: there is nothing to lean with.
    if name == "pointwise":
        np.testing.assert_allclose(missed(leaning.product), missed(alike.product), rtol=0.1)
    else:
        assert missed(leaning.product) < 0.8 * missed(alike.product)
    assert heavy.of(leaning.product - W) <= heavy.of(alike.product - W) * 1.01


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("what", ["weights", "inputs", "outputs"])
def test_where_nothing_weighs_anything_the_error_is_zero(name: str, what: str) -> None:
    form = form_of(name, 5, 4, (3, 3))
    W, metric = problem(5, form.width, weighed=True)
    assert metric.outputs is not None
    metric = Metric(metric.inputs * (what != "inputs"), metric.outputs * (what != "outputs"))
    W = W * (what != "weights")
    found = fit(form, W, metric, 10)
    assert found.error == 0
    assert all(np.isfinite(factor).all() for factor in found.factors)
    assert np.linalg.norm(found.product - W) <= np.linalg.norm(W), "a start, not nothing, stands in"
    if what == "weights":
        assert not found.product.any()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("what", ["one channel", "few samples", "one output", "all alike"])
def test_singular_metrics_are_fitted_like_others(name: str, what: str) -> None:
    rng = np.random.default_rng(9)
    form = form_of(name, 6, 5, (3, 3))
    W, metric = problem(6, form.width)
    H, F = metric.inputs.copy(), np.eye(6)
    if what == "one channel":
        H[:9] = H[:, :9] = 0
    elif what == "few samples":
        x = rng.standard_normal((form.width, 3))
        H = x @ x.T
    elif what == "one output":
        F[0] = 0
    else:
        H = np.ones_like(H)
    metric = Metric(H, F)
    found = fit(form, W, metric, 60)
    assert all(np.isfinite(factor).all() for factor in found.factors)
    assert found.error <= error_of(form, form.start(W, H), W, metric) * 1.001 + 1e-9
    if what == "all alike":
        assert found.error < 1e-6, "one number an output is all that the inputs tell"


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("weights", "inputs", "outputs"), [(1e-12, 1, 1), (1, 1e-14, 1e-20), (1e6, 1e10, 1e15)]
)
def test_units_change_nothing(name: str, weights: float, inputs: float, outputs: float) -> None:
    form = form_of(name, 6, 5, (3, 3))
    W, metric = problem(6, form.width, weighed=True)
    assert metric.outputs is not None
    plain = fit(form, W, metric, 40)
    scaled = fit(form, W * weights, Metric(metric.inputs * inputs, metric.outputs * outputs), 40)
    np.testing.assert_allclose(scaled.error, plain.error, rtol=0.02)
    assert np.linalg.norm(scaled.product / weights - plain.product) < 0.2 * np.linalg.norm(plain.product)


@pytest.mark.parametrize("name", FORMS)
def test_a_lopsided_start_is_as_good_as_an_even_one(name: str) -> None:
    """Beside a factor a million times as large the other would hardly move."""
    form = form_of(name, 6, 5, (3, 3))
    W, metric = problem(6, form.width)
    first, *rest = form.start(W, metric.inputs)
    even, lopsided = (fit(form, W, metric, 60, (first * k, rest[0] / k, *rest[1:])) for k in (1, 1e3))
    np.testing.assert_allclose(lopsided.error, even.error, rtol=1e-2)


def test_balanced_factors_have_one_norm_and_the_same_product() -> None:
    form = form_of("tucker", 6, 5, (3, 3))
    rng = np.random.default_rng(0)
    factors = tuple(rng.standard_normal(shape) * 10.0**k for k, shape in enumerate(form.shapes()))
    even = balanced(factors)
    norms = [float(np.linalg.norm(factor)) for factor in even]
    np.testing.assert_allclose(norms, norms[0])
    np.testing.assert_allclose(form.expand(even), form.expand(factors))
    nothing = (factors[0], factors[1] * 0, factors[2])
    assert balanced(nothing) is nothing, "where a factor is zero there is no size to share"


@pytest.mark.parametrize("name", sorted(name for name, form in FORMS.items() if not form.apart))
def test_few_steps_come_near_what_many_reach(name: str) -> None:
    """Inputs that vary together as a network's do: without evening out, thirty steps of every hundred stand still."""
    rng = np.random.default_rng(4)
    form = form_of(name, 24, 12, (3, 3), 4)
    mixed = rng.standard_normal((12, 12)) * np.exp(-np.arange(12) / 2)
    near = np.exp(-np.abs(np.subtract.outer(np.arange(9), np.arange(9))) / 4)
    metric = Metric(np.kron(mixed @ mixed.T, near) + 1e-3 * np.eye(form.width))
    W = rng.standard_normal((24, form.width))
    assert fit(form, W, metric, 40).error < 1.15 * fit(form, W, metric, 400).error


@pytest.mark.parametrize("name", FORMS)
def test_the_same_problem_gives_the_same_factors_to_the_bit(name: str) -> None:
    form = form_of(name, 6, 5, (3, 3))
    W, metric = problem(6, form.width, weighed=True)
    again = Metric(metric.inputs.copy(), None if metric.outputs is None else metric.outputs.copy())
    one, two = fit(form, W, metric, 30), fit(form, W.copy(), again, 30)
    assert [f.tobytes() for f in one.factors] == [f.tobytes() for f in two.factors]


@pytest.mark.parametrize("name", FORMS)
def test_a_fit_writes_into_nothing_it_is_given(name: str) -> None:
    form = form_of(name, 5, 4, (3, 3))
    W, metric = problem(5, form.width, weighed=True)
    assert metric.outputs is not None
    start = form.start(W, metric.inputs)
    for array in (W, metric.inputs, metric.outputs, *start):
        array.flags.writeable = False
    fit(form, W, metric, 5, start)
