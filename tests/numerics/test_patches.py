"""Patches times weights are what onnxruntime's convolution computes, for every way in which a kernel can read."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.ir.graph import Graph, Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.patches import Window, at_positions, patches, resolve_pads
from onnxcomp.runtime.session import Session

Array = NDArray[Any]


def convolved(x: Array, weight: Array, **attrs: Any) -> Array:
    """The output `[n, o, *spatial]` of onnxruntime's Conv."""
    graph = Graph("net", opset=17)
    axes = [f"{axis}" for axis in "nabcd"[: x.ndim]]
    data, made = (Variable(name, np.dtype(np.float32), list(axes)) for name in "xy")
    made.shape = [f"{axis}_out" for axis in axes]
    graph.inputs.append(data)
    graph.nodes.append(Node("Conv", "conv", attrs, [data, graph.add_constant("w", weight)], [made]))
    graph.outputs.append(made)
    return Session(Model(graph), optimize=False, threads=1).run({"x": x})["y"]


def multiplied(x: Array, weight: Array, window: Window, group: int, positions: Array | None = None) -> Array:
    """`weight @ patches` as `[o, n, positions]`."""
    columns = patches(x, window, group, positions)
    assert columns.dtype == np.float32
    rows = weight.reshape(group, len(weight) // group, -1)
    product: Array = (rows @ columns).reshape(len(weight), -1, len(x)).swapaxes(1, 2)
    return product


def flat(y: Array) -> Array:
    """`[n, o, *spatial]` as `[o, n, positions]`."""
    return y.swapaxes(0, 1).reshape(y.shape[1], len(y), -1)


def data(channels: int, filters: int, spatial: tuple[int, ...], kernel: tuple[int, ...], group: int) -> Any:
    rng = np.random.default_rng([channels, filters, group, *spatial, *kernel])
    x = rng.standard_normal((2, channels, *spatial)).astype(np.float32)
    return x, rng.standard_normal((filters, channels // group, *kernel)).astype(np.float32)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], Window]:
    """An input size and a window that fits it at least once, of one to three axes, every axis its own."""
    ndim = draw(st.integers(1, 3))

    def axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    kernel, dilations, strides = axis(1, 3), axis(1, 3), axis(1, 3)
    pads = tuple(zip(axis(0, 2), axis(0, 2), strict=True))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = tuple(max(1, r - sum(p)) + extra for r, p, extra in zip(reach, pads, axis(0, 5), strict=True))
    return spatial, Window(kernel, strides, dilations, pads)


@given(
    windows(),
    st.sampled_from([(4, 6, 1), (4, 6, 2), (3, 3, 3), (3, 6, 3)]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
def test_patches_times_weights_are_a_convolution_at_all_and_at_sampled_positions(
    drawn: tuple[tuple[int, ...], Window], sizes: tuple[int, int, int], random: Any
) -> None:
    spatial, window = drawn
    channels, filters, group = sizes
    x, weight = data(channels, filters, spatial, window.kernel, group)
    y = convolved(
        x,
        weight,
        group=group,
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=[*(p[0] for p in window.pads), *(p[1] for p in window.pads)],
    )
    assert window.output_size(spatial) == y.shape[2:]
    wanted = flat(y)
    np.testing.assert_allclose(multiplied(x, weight, window, group), wanted, rtol=1e-4, atol=1e-4)
    total = wanted.shape[2]
    some = np.array(random.sample(range(total), random.randint(1, total)))
    found = multiplied(x, weight, window, group, some)
    np.testing.assert_allclose(found, wanted[:, :, some], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_automatic_pads_are_those_that_onnxruntime_takes(mode: str, ndim: int) -> None:
    """Odd and even kernels, strides that divide the size and that do not, strides larger than the kernel."""
    cases = [(5, 3, 1), (5, 2, 1), (6, 3, 2), (7, 4, 2), (7, 2, 3), (8, 1, 3), (5, 4, 3)]
    for start in range(len(cases)):
        chosen = list(itertools.islice(itertools.cycle(cases), start, start + ndim))
        spatial, kernel, strides = (tuple(c[i] for c in chosen) for i in range(3))
        window = Window(
            kernel, strides, (1,) * ndim, resolve_pads(mode, spatial, kernel, strides, (1,) * ndim)
        )
        x, weight = data(2, 3, spatial, kernel, 1)
        y = convolved(x, weight, auto_pad=mode, strides=list(strides))
        assert window.output_size(spatial) == y.shape[2:]
        np.testing.assert_allclose(multiplied(x, weight, window, 1), flat(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "wanted"), [("SAME_UPPER", (1, 2)), ("SAME_LOWER", (2, 1)), ("VALID", (0, 0))]
)
def test_an_odd_pad_goes_where_the_mode_says(mode: str, wanted: tuple[int, int]) -> None:
    assert resolve_pads(mode, (8,), (4,), (1,), (1,)) == (wanted,)
    assert resolve_pads(mode, (8,), (2,), (1,), (3,)) == (wanted,), "a dilated kernel reaches further"


def test_rows_are_in_the_order_of_the_flat_weight_and_columns_go_position_by_position() -> None:
    x = np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3)
    window = Window((2, 2), (1, 1), (1, 1), ((0, 0), (0, 0)))
    found = patches(x, window, 1, None)
    assert found.shape == (1, 8, 8)
    for sample, (row, column) in itertools.product(range(2), np.ndindex(2, 2)):
        wanted = x[sample, :, row : row + 2, column : column + 2].reshape(-1)
        np.testing.assert_array_equal(found[0, :, (row * 2 + column) * 2 + sample], wanted)


def test_the_input_is_read_only_and_stays_so() -> None:
    x, _ = data(2, 2, (4, 4), (3, 3), 1)
    x.flags.writeable = False
    before = x.copy()
    patches(x, Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))), 1, np.array([0, 5]))
    np.testing.assert_array_equal(x, before)


def test_few_positions_of_a_large_image_and_all_of_a_small_one_are_gathered_alike() -> None:
    """Two orders of copying, by which is shorter: the columns are the same bit by bit."""
    x, _ = data(3, 2, (12, 11), (3, 2), 1)
    window = Window((3, 2), (1, 2), (2, 1), ((2, 2), (0, 1)))
    whole = patches(x, window, 1, None).reshape(18, -1, 2)
    for some in (np.array([0]), np.array([3, 17, 18]), np.arange(0, whole.shape[1], 2)):
        np.testing.assert_array_equal(patches(x, window, 1, some).reshape(18, -1, 2), whole[:, some])


def test_outputs_at_positions_are_in_the_order_of_patches() -> None:
    """A kernel of one element that is 1 gives back its input."""
    x, _ = data(3, 2, (4, 5), (1, 1), 1)
    window = Window((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    for some in (None, np.array([19, 0, 7])):
        np.testing.assert_array_equal(at_positions(x, some), patches(x, window, 1, some)[0])
