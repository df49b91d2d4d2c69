"""Affine quantization of arrays: the formula, onnxruntime's own operators, and what must hold of every range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxcomp.numerics.affine import Affine, Grid, channel_affine, range_affine
from onnxcomp.runtime.session import Session

TYPES = ("uint8", "int8", "uint16", "int16")
GRIDS = [
    Grid(dtype, symmetric, narrow, bits, pow2)
    for dtype in TYPES
    for symmetric in (False, True)
    for narrow in ((False, True) if dtype.startswith("int") else (False,))
    for bits in (None, 4, 7)
    for pow2 in (False, True)
]
FINITE = st.floats(-(2.0**100), 2.0**100, allow_nan=False, width=32)


def numbers(seed: int, low: float, high: float, count: int = 5000) -> Any:
    return np.random.default_rng(seed).uniform(low, high, count).astype(np.float32)


def in_onnxruntime(values: Any, affine: Affine, axis: int = 0) -> tuple[Any, Any]:
    """Return what QuantizeLinear makes of `values`, and what DequantizeLinear makes of that."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(affine.grid.dtype))
    attrs: dict[str, Any] = {"axis": axis} if affine.per_axis else {}
    size = list(affine.scale.shape)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **attrs),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **attrs),
        ],
        "pair",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, size),
            helper.make_tensor_value_info("zero", kind, size),
        ],
        [
            helper.make_tensor_value_info("q", kind, values.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, values.shape),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = Session(model.SerializeToString(), optimize=False, threads=1)
    found = session.run({"x": values, "scale": affine.scale, "zero": affine.zero})
    return found["q"], found["y"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-0.3, 0.0), (0.0, 7.7), (-1e-3, 1e3)])
def test_whole_tensors_are_stored_bit_for_bit_as_onnxruntime_stores_them(
    dtype: str, low: float, high: float
) -> None:
    affine = range_affine(low, high, Grid(dtype))
    values = numbers(1, 2 * low - 1, 2 * high + 1)
    stored, real = in_onnxruntime(values, affine)
    np.testing.assert_array_equal(affine.quantize(values), stored)
    np.testing.assert_array_equal(affine.round_trip(values), real)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_are_stored_bit_for_bit_as_onnxruntime_stores_them(dtype: str, axis: int) -> None:
    grid = Grid(dtype, symmetric=True)
    values = numbers(2, -3, 3, 4 * 5 * 6).reshape(4, 5, 6)
    largest = np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)).max(1).astype(np.float64)
    affine = channel_affine(largest * np.linspace(0.4, 1.2, values.shape[axis]), grid)
    stored, real = in_onnxruntime(values, affine, axis)
    np.testing.assert_array_equal(affine.quantize(values, axis), stored)
    np.testing.assert_array_equal(affine.round_trip(values, axis), real)


def test_halves_go_to_the_even_integer() -> None:
    affine = Affine(np.array(1, np.float32), np.array(0, np.int8), Grid("int8"))
    halves = np.arange(-5, 6, dtype=np.float32) + np.float32(0.5)
    assert affine.quantize(halves).tolist() == [-4, -4, -2, -2, 0, 0, 2, 2, 4, 4, 6]
    np.testing.assert_array_equal(affine.quantize(halves), in_onnxruntime(halves, affine)[0])


def test_the_zero_point_is_added_after_rounding() -> None:
    affine = Affine(np.array(1, np.float32), np.array(3, np.uint8), Grid("uint8"))
    halves = np.array([0.5, 1.5, 2.5], np.float32)
    assert affine.quantize(halves).tolist() == [3, 5, 5]
    np.testing.assert_array_equal(affine.quantize(halves), in_onnxruntime(halves, affine)[0])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_lies_outside_is_saturated(grid: Grid) -> None:
    affine = range_affine(-1, 1, grid)
    assert affine.quantize(np.array([-1e9, 1e9], np.float32)).tolist() == [grid.low, grid.high]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-0.3, 0.0), (0.0, 7.7), (-40.0, 1e-3)])
def test_inside_the_range_nothing_moves_by_more_than_half_a_step(grid: Grid, low: float, high: float) -> None:
    affine = range_affine(low, high, grid)
    step = float(affine.scale)
    # Numbers of type float32 are not much finer than steps of 16 bits.
    slack = step * 1e-3 + max(-low, high) * 2.0**-23
    reach = affine.bounds()
    values = numbers(3, low, high)
    # The zero point is rounded, so that one end of the range may lie half a step outside.
    gap = np.abs(affine.round_trip(values).astype(np.float64) - values)
    inside = (values >= reach[0]) & (values <= reach[1])
    assert gap[inside].max(initial=0) <= step / 2 + slack
    assert gap.max() <= step + slack
    assert reach[0] <= low + step / 2 * (1 + 1e-3)
    assert reach[1] >= high - step / 2 * (1 + 1e-3)


@given(FINITE, FINITE, st.sampled_from(GRIDS))
def test_every_range_has_a_finite_positive_scale_and_holds_zero_exactly(
    one: float, two: float, grid: Grid
) -> None:
    affine = range_affine(min(one, two), max(one, two), grid)
    assert np.isfinite(affine.scale)
    assert affine.scale >= np.finfo(np.float32).tiny
    assert grid.low <= int(affine.zero) <= grid.high
    assert affine.round_trip(np.zeros(1, np.float32))[0] == 0
    if grid.symmetric:
        assert int(affine.zero) == grid.middle
    if grid.pow2:
        assert np.frexp(affine.scale)[0] == 0.5


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("edge", [0.0, 1e-45, 1e-38, 1e-31, 1e37])
def test_constant_denormal_and_huge_ranges_have_usable_scales(grid: Grid, edge: float) -> None:
    for low, high in ((-edge, edge), (0.0, edge), (-edge, 0.0), (edge, edge)):
        affine = range_affine(low, high, grid)
        assert 0 < float(affine.scale) < np.inf
        assert float(affine.scale) >= np.finfo(np.float32).tiny
        assert np.isfinite(affine.round_trip(np.array([0, low, high], np.float32))).all()


@given(st.floats(-50, 0), st.floats(0, 50), st.sampled_from(GRIDS))
def test_bounds_are_a_range_that_gives_the_same_parameters_again(low: float, high: float, grid: Grid) -> None:
    affine = range_affine(low, high, grid)
    again = range_affine(*affine.bounds(), grid)
    if high - low > 1e-20:
        assert (again.scale, again.zero) == (affine.scale, affine.zero)


@pytest.mark.parametrize(
    ("grid", "ends"),
    [
        (Grid("uint8"), (0, 255)),
        (Grid("int8"), (-128, 127)),
        (Grid("int8", narrow=True), (-127, 127)),
        (Grid("int8", bits=7), (-64, 63)),
        (Grid("uint8", bits=7), (0, 127)),
        (Grid("uint16"), (0, 65535)),
        (Grid("int16", narrow=True), (-32767, 32767)),
    ],
)
def test_grids_use_the_integers_they_say(grid: Grid, ends: tuple[int, int]) -> None:
    assert (grid.low, grid.high) == ends
    assert grid.middle == (0 if grid.signed else (ends[1] + 1) // 2)


def test_channels_that_are_all_zero_come_back_as_zero() -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[1] = [1, -2, 0.5, 2]
    affine = channel_affine(np.abs(weight).max(1).astype(np.float64), Grid("int8", True, True))
    assert affine.scale.tolist() == [1.0, np.float32(2 / 127), 1.0]
    back = affine.round_trip(weight, 0)
    assert not back[[0, 2]].any()
    assert np.abs(back - weight).max() <= 1 / 127
