"""Comparing two models: the figures against numpy, streamed, with everything that outputs can be."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.errors import DataError, ModelError, UsageError
from onnxcomp.ir.parse import parse_model
from onnxcomp.runtime.compare import SQNR_FLOOR, compare_models, numbers
from onnxcomp.runtime.session import Session, SessionError

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net '
X = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)


def session(text: str, seed: int = 0, **weights: NDArray[np.float32]) -> Session:
    return Session(parse_model(HEAD + text, weights, seed=seed))


def linear(seed: int = 0) -> Session:
    return session("(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { y = MatMul (x, w) }", seed)


def batches(size: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    for start in range(0, len(X), size):
        yield {"x": X[start : start + size]}


def test_the_figures_are_those_of_numpy_over_all_samples() -> None:
    before, after = linear(0), linear(1)
    a, b = (s.run({"x": X})["y"].astype(np.float64) for s in (before, after))
    labels = np.random.default_rng(1).integers(0, 3, len(X))
    found = compare_models(before, after, batches(7), labels=labels)
    (y,) = found.outputs
    noise = ((a - b) ** 2).sum()
    assert found.samples == 50
    assert y.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-6)
    assert y.mse == pytest.approx(noise / a.size, rel=1e-6)
    assert y.sqnr_db == pytest.approx(10 * math.log10((a**2).sum() / noise), rel=1e-6)
    assert y.relative == pytest.approx(math.sqrt(noise / (a**2).sum()), rel=1e-6)
    assert y.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)
    assert found.agreement == pytest.approx(100 * (a.argmax(1) == b.argmax(1)).mean())
    assert found.accuracy_before == pytest.approx(100 * (a.argmax(1) == labels).mean())
    assert found.accuracy_after == pytest.approx(100 * (b.argmax(1) == labels).mean())
    assert not y.identical


@pytest.mark.parametrize("size", [1, 13, 50])
def test_the_batch_size_does_not_matter(size: int) -> None:
    labels = np.zeros(len(X), np.int64)
    one = compare_models(linear(0), linear(1), batches(size), labels=labels)
    other = compare_models(linear(0), linear(1), batches(10), labels=labels)
    assert one.agreement == other.agreement
    assert one.accuracy_after == other.accuracy_after
    assert one.sqnr_db == pytest.approx(other.sqnr_db, rel=1e-5)


def test_equal_models_are_identical_and_infinitely_close() -> None:
    found = compare_models(linear(), linear(), batches(10))
    assert found.outputs[0].identical
    assert found.sqnr_db == math.inf
    assert (found.outputs[0].max_abs, found.mse, found.agreement) == (0.0, 0.0, 100.0)
    assert found.accuracy_before is None


def test_an_output_that_was_zero_and_is_not_has_the_lowest_sqnr() -> None:
    text = "(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { y = MatMul (x, w) }"
    zero = session(text, w=np.zeros((4, 3), np.float32))
    found = compare_models(zero, linear(), batches(10))
    assert found.sqnr_db == SQNR_FLOOR
    assert found.outputs[0].relative is None


def test_the_worst_output_speaks_for_all_of_them() -> None:
    text = "(float[N, 4] x) => (float[N, 4] a, float[N, 4] b) <float w> {{ a = Mul (x, w) b = {} (x) }}"
    first = session(text.format("Relu"), w=np.array(1, np.float32))
    second = session(text.format("Abs"), w=np.array(1.001, np.float32))
    found = compare_models(first, second, batches(10))
    assert [o.name for o in found.outputs] == ["a", "b"]
    assert found.worst is not None
    assert found.worst.name == "b"
    assert found.sqnr_db == found.outputs[1].sqnr_db


def test_an_output_that_is_no_longer_finite_has_no_sqnr() -> None:
    first = session("(float[N, 4] x) => (float[N, 4] y) { y = Abs (x) }")
    second = session("(float[N, 4] x) => (float[N, 4] y) { y = Log (x) }")
    found = compare_models(first, second, batches(10))
    assert not found.outputs[0].finite
    assert found.sqnr_db is None


def test_classes_are_chosen_on_the_first_float_matrix_or_on_the_output_named() -> None:
    text = """(float[N, 4] x) => (int64[N, 4] whole, float[N, 1] thin, float[N, 3] y, float[N, 2] z)
    <float[4, 3] w, float[4, 2] v, float[4, 1] u> {
        whole = Cast <to = 7> (x)  thin = MatMul (x, u)  y = MatMul (x, w)  z = MatMul (x, v) }"""
    assert compare_models(session(text), session(text, 1), batches(10)).decision == "y"
    assert compare_models(session(text), session(text, 1), batches(10), output="z").decision == "z"
    with pytest.raises(UsageError, match=r"--output 'thin' is \[10, 1\]"):
        compare_models(session(text), session(text), batches(10), output="thin")
    with pytest.raises(UsageError, match="'q' is no output; known: whole, thin, y, z"):
        compare_models(session(text), session(text), batches(10), output="q")


def test_models_without_such_an_output_choose_nothing() -> None:
    text = "(float[N, 4] x) => (float[N, 4, 1] y) <int64[1] a = {2}> { y = Unsqueeze (x, a) }"
    found = compare_models(session(text), session(text), batches(10))
    assert (found.decision, found.agreement, found.samples) == (None, None, 50)


def test_truth_values_and_integers_are_numbers_too() -> None:
    text = "(float[N, 4] x) => (bool[N, 4] y) <float zero = {{0.0}}> {{ y = {} (x, zero) }}"
    found = compare_models(session(text.format("Less")), session(text.format("Greater")), batches(10))
    assert found.outputs[0].max_abs == 1.0


def test_models_with_different_outputs_do_not_compare() -> None:
    other = session("(float[N, 4] x) => (float[N, 4] z) { z = Relu (x) }")
    with pytest.raises(ModelError, match="different outputs: y and z"):
        compare_models(linear(), other, batches(10))
    wide = session("(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    with pytest.raises(ModelError, match=r"output 'y' has shape \[10, 3\] in one model and \[10, 4\]"):
        compare_models(linear(), wide, batches(10))


def test_labels_must_be_one_per_sample() -> None:
    with pytest.raises(DataError, match="49 labels for 50 samples"):
        compare_models(linear(), linear(), batches(10), labels=np.zeros(49, np.int64))


def test_progress_counts_samples() -> None:
    seen: list[int] = []
    compare_models(linear(), linear(), batches(20), progress=seen.append)
    assert seen == [20, 40, 50]


def test_samples_that_the_first_model_does_not_run_on_are_the_fault_of_the_data() -> None:
    text = "(float[N, S] x) => (float[N, 3] y) <float[{}, 3] w> {{ y = MatMul (x, w) }}"
    first, second = session(text.format(4)), session(text.format(5))
    with pytest.raises(DataError, match=r"does not run on the samples from 10 on \(x \[2, 5\]\)"):
        compare_models(first, first, [{"x": X[:10]}, {"x": np.ones((2, 5), np.float32)}])
    with pytest.raises(SessionError):
        compare_models(first, second, batches(10))


def test_whole_numbers_are_equal_or_not_and_never_decide_over_floats() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y, int64[N] index) <float w> {
        y = Mul (x, w)  index = ArgMax <axis = 1, keepdims = 0> (y) }"""
    first, second = (session(text, w=np.array(w, np.float32)) for w in (1, -1))
    found = compare_models(first, second, batches(10))
    y, index = found.outputs
    assert (index.sqnr_db, index.mse, index.cosine) == (None, None, None)
    a, b = (s.run({"x": X})["index"] for s in (first, second))
    assert index.equal == pytest.approx(100 * (a == b).mean())
    assert found.worst is y and found.sqnr_db == y.sqnr_db
    assert found.decision == "y"


def test_a_network_of_whole_numbers_alone_is_judged_by_the_share_that_are_equal() -> None:
    text = """(float[N, 4] x) => (int64[N] index) <float w> {
        y = Mul (x, w)  index = ArgMax <axis = 1, keepdims = 0> (y) }"""
    first, second = (session(text, w=np.array(w, np.float32)) for w in (1, -1))
    found = compare_models(first, second, batches(10))
    assert (found.sqnr_db, found.decision) == (None, "index")
    assert found.agreement == found.outputs[0].equal
    assert not found.unjudged


ROWS = """(float[N, 4] x) => (float[R, 4] y) <float limit> {
    best = ReduceMax <axes = [1], keepdims = 0> (x)  chosen = Greater (best, limit)
    y = Compress <axis = 0> (x, chosen) }"""


def test_batches_in_which_other_numbers_of_rows_are_selected_are_left_out_and_told() -> None:
    first, second = (session(ROWS, limit=np.array(limit, np.float32)) for limit in (1.0, 1.1))
    pairs = [(len(first.run(b)["y"]), len(second.run(b)["y"])) for b in batches(5)]
    other = sum(a != b for a, b in pairs)
    assert 0 < other < len(pairs)
    found = compare_models(first, second, batches(5), counts=[5] * 10)
    assert found.samples == 50
    assert f"differs in {other} of {len(pairs)} runs" in found.outputs[0].note
    assert found.notes and "'y'" in found.notes[0]
    assert found.sqnr_db is not None


def test_where_no_batch_has_the_same_rows_nothing_is_judged() -> None:
    first, second = (session(ROWS, limit=np.array(limit, np.float32)) for limit in (0.0, 9.0))
    found = compare_models(first, second, batches(50), counts=[50])
    assert found.unjudged
    assert found.sqnr_db is None


def test_maps_of_scores_are_rows_and_other_sequences_are_no_tensors() -> None:
    rows = [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}]
    np.testing.assert_array_equal(numbers(rows), np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    for other in ([{0: 0.5}, {1: 0.5}], [np.zeros(2)], [], "text"):
        assert numbers(other) is other
    text = "(float[N, 4] x) => (seq(float[N, 4]) y) <float w> { z = Mul (x, w) y = SequenceConstruct (z) }"
    first, second = (session(text, w=np.array(w, np.float32)) for w in (1, 2))
    found = compare_models(first, second, batches(10), counts=[10] * 5)
    assert found.unjudged and not found.outputs[0].identical
    assert "no tensor" in found.outputs[0].note
    assert found.samples == 50
