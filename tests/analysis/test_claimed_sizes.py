"""A few bytes of a file may claim values of any size: labels are kept by axis, and nothing grows with what is claimed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.analysis.labels import Blocked, Labels
from onnxcomp.errors import ModelError
from onnxcomp.ir.parse import parse_model
from tests.support.text import net

MEGABYTE = 2**20


@pytest.fixture
def memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MEGABYTE


@pytest.mark.parametrize(
    "body",
    [
        "[big] f = ConstantOfShape(s) r = ReduceSum<keepdims=0>(f) y = Add(c, r)",
        "[big] f = ConstantOfShape(s) g = Expand(f, s) r = ReduceMean<keepdims=0>(g) y = Add(c, r)",
        "[big] f = Tile(one, s) r = ReduceSum<keepdims=0>(f) y = Add(c, r)",
    ],
)
def test_a_fill_of_any_size_costs_nothing(body: str, memory: None) -> None:
    weights = "float[4,3,1,1] w, int64[1] s = {800000000}, float[1] one = {1}"
    channel_groups(
        parse_model(net("(float[N,3,6,6] x) => (float[N,4,6,6] y)", weights, f"c = Conv(x, w) {body}"))
    )


def test_a_reshape_beside_the_channels_costs_nothing(memory: None) -> None:
    text = net(
        "(float[1,3,20000,20000] x) => (float[1,5,400000000] y)",
        "float[4,3,1,1] w, int64[3] s = {1, 4, 400000000}, float[5,4,1] v",
        "c = Conv(x, w) r = Reshape(c, s) y = Conv(r, v)",
    )
    assert channel_groups(parse_model(text))["c"].blocked is None


@pytest.mark.parametrize(
    ("old", "new", "varying"),
    [
        ((2, 3, 4), (6, 4), (1,)),
        ((2, 12), (2, 3, 4), (1,)),
        ((2, 3, 4), (1, 2, 12, 1), (0, 2)),
        ((6, 4), (2, 3, 2, 2), (0,)),
        ((4, 6), (6, 4), (1,)),
        ((1, 1), (1,), ()),
        ((), (1, 1), ()),
        ((1,), (), ()),
    ],
)
def test_labels_are_reshaped_as_the_data_is(
    old: tuple[int, ...], new: tuple[int, ...], varying: tuple[int, ...]
) -> None:
    sides = [size if axis in varying else 1 for axis, size in enumerate(old)]
    labels = Labels(np.arange(int(np.prod(sides))).reshape(sides), old)
    made = labels.reshaped(new)
    full = np.broadcast_to(labels.ids, old).reshape(new)
    assert np.array_equal(np.broadcast_to(made.ids, new), full)


def test_labels_that_do_not_fit_a_shape_decline() -> None:
    with pytest.raises(Blocked, match="cannot be given the shape"):
        Labels(np.arange(4).reshape(4, 1), (4, 2)).reshaped((3, 3))


def test_a_node_that_contradicts_inferred_shapes_is_named() -> None:
    text = net(
        "(float[N,3,6,6] x) => (float[N,4,6,6] y)",
        "float[8,3,1,1] w, float[8] s",
        "c = Conv(x, w) [it] y = GroupNormalization<num_groups=7>(c, s, s)",
    ).replace('"" : 17', '"" : 21')
    with pytest.raises(ModelError, match="GroupNormalization 'it' does not fit"):
        channel_groups(parse_model(text))
