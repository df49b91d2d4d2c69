"""The preprocess table: what it accepts, what it refuses and in which words, and the arithmetic it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.errors import DataError
from onnxcomp.runtime.data.preprocess import Preprocess

WRONG: list[tuple[Mapping[str, object], str]] = [
    ({"sclae": 1.0}, "cfg: unknown key 'sclae'; did you mean 'scale'?"),
    ({"zzz": 1.0}, "cfg: unknown key 'zzz'; known: scale, mean, std, layout, size, channels"),
    ({"scale": "1/255"}, "cfg: scale: a number is needed, this is text"),
    ({"scale": True}, "cfg: scale: a number is needed, this is true or false"),
    ({"scale": None}, "cfg: scale: a number is needed, this is nothing"),
    ({"scale": float("nan")}, "cfg: scale: a finite number in the range of float32 is needed"),
    ({"mean": [float("inf")]}, "cfg: mean: a finite number in the range of float32 is needed"),
    ({"mean": 10**400}, "cfg: mean: a finite number in the range of float32 is needed"),
    ({"scale": 0}, "cfg: scale: 0 would make every sample the same or infinite; leave the key out for 1"),
    ({"std": [1, 0, 1]}, "cfg: std: 0 would make every sample the same or infinite; leave the key out for 1"),
    ({"mean": []}, "cfg: mean: the list is empty; give one number, or one per channel"),
    ({"mean": ["a"]}, "cfg: mean: a number is needed, this is text"),
    (
        {"mean": [1, 2], "std": [1, 2, 3]},
        "cfg: mean has 2 values and std 3; give one each, or one per channel each",
    ),
    ({"layout": "NHCW"}, "cfg: layout: unknown value 'NHCW'; did you mean 'NHWC'?"),
    ({"layout": "??"}, "cfg: layout: unknown value '??'; known: NCHW, NHWC, NHWC->NCHW"),
    ({"layout": 3}, "cfg: layout: one of NCHW, NHWC, NHWC->NCHW is needed, this is a number"),
    ({"channels": "RBG"}, "cfg: channels: unknown value 'RBG'; did you mean 'RGB'?"),
    ({"size": [224]}, "cfg: size: two whole numbers [height, width] are needed, this is a list"),
    ({"size": "224x224"}, "cfg: size: two whole numbers [height, width] are needed, this is text"),
    ({"size": [224, 22.4]}, "cfg: size: [height, width] are whole numbers from 1 to 65535, this is 22.4"),
    ({"size": [0, 224]}, "cfg: size: [height, width] are whole numbers from 1 to 65535, this is 0"),
    ({"size": True}, "cfg: size: [height, width] are whole numbers from 1 to 65535, this is True"),
]


@pytest.mark.parametrize(("mapping", "message"), WRONG, ids=[m for _, m in WRONG])
def test_every_wrong_table_is_refused_in_one_clear_line(mapping: Mapping[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        Preprocess.from_mapping(mapping, "cfg")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[" * 100_000])
def test_text_that_is_no_json_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(DataError, match=r'^npz: not a JSON object \(.*write \{"scale": 1.0') as caught:
        Preprocess.from_json(text, "npz")
    assert "\n" not in str(caught.value)


def test_json_that_is_no_object_is_refused() -> None:
    with pytest.raises(DataError, match="npz: a JSON object is needed, this is a list; write"):
        Preprocess.from_json("[1, 2]", "npz")


def test_json_and_mapping_give_the_same_table_and_case_and_blanks_do_not_matter() -> None:
    mapping = {
        "scale": 0.5,
        "mean": [1, 2, 3],
        "std": 2,
        "layout": "nhwc -> nchw",
        "size": [4, 6],
        "channels": "bgr",
    }
    table = Preprocess.from_mapping(mapping, "cfg")
    assert table == Preprocess(0.5, (1.0, 2.0, 3.0), (2.0,), "NHWC->NCHW", (4, 6), "BGR")
    assert table == Preprocess.from_json(json.dumps(mapping), "npz")


def test_one_number_for_size_means_a_square() -> None:
    assert Preprocess.from_mapping({"size": 32}, "cfg").size == (32, 32)


def test_an_empty_table_changes_nothing_but_the_dtype() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    fed = Preprocess.from_mapping({}, "cfg").apply(images)
    assert fed.dtype == np.float32
    np.testing.assert_array_equal(fed, images)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["NCHW", "NHWC", "NHWC->NCHW"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_apply_is_scale_then_mean_then_std_then_the_layout(
    n: int, h: int, w: int, c: int, layout: str, per_channel: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    stored = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
    images: NDArray[np.uint8] = rng.integers(0, 256, stored).astype(np.uint8)
    before = images.copy()
    mean, std = rng.uniform(-1, 1, c if per_channel else 1), rng.uniform(0.5, 2, c if per_channel else 1)
    scale = float(rng.uniform(0.001, 1))
    table = Preprocess.from_mapping(
        {"scale": scale, "mean": mean.tolist(), "std": std.tolist(), "layout": layout}, "cfg"
    )
    last = np.moveaxis(images, 1, -1) if layout == "NCHW" else images
    expected = (last * scale - mean) / std
    expected = expected if layout == "NHWC" else np.moveaxis(expected, -1, 1)
    fed = table.apply(images)
    assert fed.shape == expected.shape == table.shape(stored)
    assert fed.dtype == np.float32 and fed.flags.c_contiguous
    np.testing.assert_allclose(fed, expected, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(images, before)


def test_a_mean_per_channel_must_match_the_channels_of_the_layout() -> None:
    table = Preprocess.from_mapping({"mean": [1, 2, 3]}, "cfg")
    with pytest.raises(DataError) as caught:
        table.apply(np.zeros((2, 8, 8, 3), np.uint8))
    assert str(caught.value) == (
        "preprocess: mean in the preprocess table has 3 values, the array of shape [2, 8, 8, 3] has 8 channels "
        "in layout 'NCHW'; mend mean or the layout"
    )


def test_arrays_must_have_the_size_that_the_table_names() -> None:
    table = Preprocess.from_mapping({"size": [4, 6], "layout": "NHWC->NCHW"}, "cfg")
    assert table.apply(np.zeros((1, 4, 6, 3), np.uint8)).shape == (1, 3, 4, 6)
    with pytest.raises(
        DataError, match=r"images of 6 x 4 \(height x width\).*size 4 x 6; mend size or layout"
    ):
        table.apply(np.zeros((1, 6, 4, 3), np.uint8))


def test_layouts_leave_arrays_without_image_axes_alone() -> None:
    table = Preprocess.from_mapping({"layout": "NHWC->NCHW", "scale": 2}, "cfg")
    np.testing.assert_array_equal(table.apply(np.ones((3, 5), np.uint8)), np.full((3, 5), 2, np.float32))
    assert Preprocess.from_mapping({"layout": "NHWC"}, "cfg").apply(np.ones(3, np.uint8)).shape == (3,)


def test_only_moves_says_whether_values_stay() -> None:
    assert Preprocess(layout="NHWC->NCHW").only_moves
    assert not Preprocess(scale=2).only_moves
    assert not Preprocess(mean=(0, 1)).only_moves
    assert not Preprocess(std=(2,)).only_moves
