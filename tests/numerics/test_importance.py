"""Greedy elimination against brute force: every cost is the true increase of a least-squares error."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics import importance
from onnxcomp.numerics.importance import DAMPING, Reader, eliminate, norms

Array64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


def one_must_stay(alive: Mask) -> Mask:
    return alive & np.bool_(alive.sum() > 1)


def reader(units: list[int], outputs: int = 4, seed: int = 0) -> Reader:
    """A consumer of correlated columns that belong to the given units."""
    rng = np.random.default_rng(seed)
    width = len(units)
    x = rng.standard_normal((width, width)) @ rng.standard_normal((width, 50))
    return Reader(rng.standard_normal((outputs, width)), x @ x.T / 50, np.array(units))


def damped(H: Array64) -> Array64:
    identity: Array64 = np.eye(len(H))
    return H + DAMPING * float(np.trace(H)) / len(H) * identity


def error(of: Reader, gone: list[int], *, exact: bool = False) -> float:
    """The least relative output error with the columns of units `gone` at zero and all others refitted from scratch."""
    H = of.H if exact else damped(of.H)
    root = np.linalg.cholesky(H + (1e-12 * np.trace(H) * np.eye(len(H)) if exact else 0))
    wanted = of.weight @ root
    rows = root[~np.isin(of.units, gone)]
    fitted = np.linalg.lstsq(rows.T, wanted.T, rcond=None)[0].T @ rows
    return float(((wanted - fitted) ** 2).sum() / (wanted**2).sum())


@pytest.mark.parametrize(
    "units", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 1, 2, 3, 3], [2, -1, 0, -1, 1, 0]]
)
def test_the_first_cost_is_the_true_increase_of_the_error_and_the_smallest_there_is(units: list[int]) -> None:
    for seed in range(4):
        of = reader(units, seed=seed)
        count = max(units) + 1
        truth = [error(of, [unit]) for unit in range(count)]
        order, costs = eliminate([of], count, one_must_stay)
        assert order[0] == int(np.argmin(truth))
        np.testing.assert_allclose(costs[0], min(truth), rtol=1e-8)


@pytest.mark.parametrize("units", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 1, 2, 3, 3, -1]])
def test_costs_add_up_to_the_error_of_refitting_from_scratch(units: list[int]) -> None:
    """The updates of W and of the inverse after each removal are those of a fresh fit without the removed units."""
    for seed in range(4):
        of = reader(units, seed=seed)
        count = max(units) + 1
        order, costs = eliminate([of], count, one_must_stay)
        assert len(order) == count - 1
        for step in range(1, count):
            gone = order[: step - 1]
            truth = {
                unit: error(of, [*gone, unit]) - error(of, gone) for unit in range(count) if unit not in gone
            }
            assert order[step - 1] == min(truth, key=truth.__getitem__)
            np.testing.assert_allclose(sum(costs[:step]), error(of, order[:step]), rtol=1e-7)


def test_the_damping_changes_the_costs_of_well_conditioned_inputs_by_little() -> None:
    of = Reader(reader(list(range(6))).weight, np.eye(6) + 0.5, np.arange(6))
    order, costs = eliminate([of], 6, one_must_stay)
    for step in range(1, 6):
        assert sum(costs[:step]) == pytest.approx(error(of, order[:step], exact=True), rel=5e-3)


def test_costs_of_several_readers_add_relative_to_their_outputs() -> None:
    first, second = reader([0, 1, 2, 3], seed=1), reader([3, 3, 2, 2, 0, -1, 1, 1], seed=2)
    second.weight *= 1000
    truth = [error(first, [unit]) + error(second, [unit]) for unit in range(4)]
    order, costs = eliminate([first, second], 4, one_must_stay)
    assert order[0] == int(np.argmin(truth))
    np.testing.assert_allclose(costs[0], min(truth), rtol=1e-7)
    louder = Reader(first.weight * 1e6, first.H, first.units)
    assert eliminate([louder, second], 4, one_must_stay)[0] == order, "the scale of an output does not matter"


def test_a_reader_breaks_the_tie_that_another_leaves() -> None:
    """The first reader likes all channels alike; the second reads them with weights 3, 1, 2."""
    alike = Reader(np.eye(3), np.eye(3), np.arange(3))
    judge = Reader(np.array([[3.0, 1.0, 2.0]]), np.eye(3), np.arange(3))
    assert eliminate([alike], 3, one_must_stay)[0] == [0, 1], "a true tie goes to the first"
    assert eliminate([alike, judge], 3, one_must_stay)[0] == [1, 2]


def test_a_unit_that_one_reader_does_not_read_costs_only_the_others() -> None:
    first, second = reader([0, 1, 2], seed=5), reader([0, 2], seed=6)
    truth = [
        error(first, [0]) + error(second, [0]),
        error(first, [1]),
        error(first, [2]) + error(second, [2]),
    ]
    order, costs = eliminate([first, second], 3, one_must_stay)
    assert order[0] == int(np.argmin(truth))
    np.testing.assert_allclose(costs[0], min(truth), rtol=1e-8)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_dead_channels_go_first_whatever_their_weights(size: float) -> None:
    of = reader([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], seed=7)
    dead = [2, 3, 8, 9]
    of.H[dead, :] = of.H[:, dead] = 0
    of.weight[:, dead] *= size
    order, costs = eliminate([of], 5, one_must_stay)
    assert set(order[:2]) == {1, 4}
    assert costs[:2] == [0.0, 0.0]
    assert costs[2] > 0


def test_a_channel_that_repeats_another_is_nearly_free_and_then_the_other_is_not() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((4, 200))
    x[3] = 2 * x[1]
    of = Reader(np.ones((1, 4)), x @ x.T / 200, np.arange(4))
    order, costs = eliminate([of], 4, one_must_stay)
    assert order[0] in (1, 3)
    assert costs[0] < 1e-3
    assert costs[1] > 0.02
    assert set(order) == {0, 1, 2, 3} - ({1, 3} - {order[0]}), "the twin that is left is the last of all"


def test_only_what_is_allowed_goes_and_the_end_is_when_nothing_is() -> None:
    of = reader([0, 1, 2, 3, 4, 5])
    seen: list[int] = []
    order, costs = eliminate([of], 6, lambda alive: np.isin(np.arange(6), [1, 4, 5]), seen.append)
    assert sorted(order) == [1, 4, 5]
    assert len(costs) == 3
    assert seen == [1, 2, 3]
    assert eliminate([of], 6, lambda alive: np.zeros(6, bool)) == ([], [])


def test_a_group_that_nobody_reads_costs_nothing() -> None:
    assert eliminate([], 3, one_must_stay) == ([0, 1], [0.0, 0.0])
    blind = Reader(np.zeros((2, 3)), np.eye(3), np.arange(3))
    assert eliminate([blind], 3, one_must_stay) == ([0, 1], [0.0, 0.0])


@pytest.mark.parametrize(
    "units", [np.repeat(np.arange(30), 5), np.repeat(np.arange(20), np.arange(20) % 4 + 1)]
)
def test_strips_and_smaller_arrays_change_neither_order_nor_costs(
    units: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wider than a strip of rows, columns scattered, some of other groups, and most of the units removed."""
    rng = np.random.default_rng(9)
    count = int(units.max()) + 1
    of = reader(rng.permutation([*units, *[-1] * 7]).tolist(), outputs=9, seed=9)
    found = eliminate([of], count, one_must_stay)
    monkeypatch.setattr(importance, "SHRINK", 0.0)
    monkeypatch.setattr(importance, "STRIP", 10**6)
    order, costs = eliminate([of], count, one_must_stay)
    assert found[0] == order
    np.testing.assert_allclose(found[1], costs, rtol=1e-7)
    for step in (1, count // 2, count - 1):
        np.testing.assert_allclose(sum(costs[:step]), error(of, order[:step]), rtol=1e-6)


def test_a_covariance_that_rounding_made_indefinite_is_eliminated_all_the_same() -> None:
    of = reader(list(range(8)), seed=3)
    values, vectors = np.linalg.eigh(of.H)
    values[0] = -2 * DAMPING * values.mean()
    of.H = (vectors * values) @ vectors.T
    order, costs = eliminate([of], 8, one_must_stay)
    assert len(order) == 7
    assert np.isfinite(costs).all()


def test_elimination_leaves_its_arguments_alone() -> None:
    of = reader([0, 0, 1, 1, 2, 2])
    weight, H = of.weight.copy(), of.H.copy()
    eliminate([of], 3, one_must_stay)
    np.testing.assert_array_equal(of.weight, weight)
    np.testing.assert_array_equal(of.H, H)


# --- norms -----------------------------------------------------------------------------------------------------------
def test_norms_of_filters_are_scaled_to_mean_one() -> None:
    weight = np.array([[1.0, -1.0], [2.0, 2.0], [0.0, -6.0]])
    np.testing.assert_allclose(norms([(weight, np.arange(3))], 3, 1), np.array([2, 4, 6]) / 4)
    np.testing.assert_allclose(norms([(weight, np.arange(3))], 3, 2), np.array([2, 8, 36]) / (46 / 3))


def test_positions_of_one_unit_add_and_those_of_other_groups_do_not_count() -> None:
    weight = np.array([1.0, 2.0, 3.0, 4.0, 100.0]).reshape(5, 1, 1, 1)
    found = norms([(weight, np.array([0, 1, 0, 1, -1]))], 2, 1)
    np.testing.assert_allclose(found, np.array([4, 6]) / 5)


def test_parts_that_share_a_stream_weigh_alike_whatever_their_scale() -> None:
    small, large = np.array([[1.0], [3.0]]), np.array([[3000.0], [1000.0]])
    np.testing.assert_allclose(norms([(small, np.arange(2)), (large, np.arange(2))], 2, 1), [2.0, 2.0])


def test_a_part_of_zeros_or_of_nothing_does_not_divide_by_zero() -> None:
    units = np.arange(2)
    np.testing.assert_array_equal(norms([(np.zeros((2, 3)), units)], 2, 1), [0, 0])
    np.testing.assert_array_equal(norms([(np.ones((2, 3)), np.array([-1, -1]))], 2, 2), [0, 0])
