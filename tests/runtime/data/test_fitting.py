"""What sample data must be to fit a network (names, shapes, dtypes, values, labels), and how misfits are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.errors import DataError
from onnxcomp.runtime.data.samples import InputSpec, Preprocess, Samples, open_samples

Array = NDArray[Any]
F32, I64, U8 = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.uint8)
X = InputSpec("x", F32, ("N", 3, 4, 4))
STATE = InputSpec("state", F32, (2, "N", 5))
RATE = InputSpec("rate", I64, ())
SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"


def images(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, 3, 4, 4)).astype(np.float32)


def joined(samples: Samples, size: int = 4, name: str = "x") -> Array:
    return np.concatenate([feeds[name] for feeds in samples.batches(size)])


def refusal(source: Any, *inputs: InputSpec, walk: bool = False, **options: Any) -> str:
    """The one line with which `source` is refused, at opening or (with `walk`) while it is read."""
    samples = open_samples(source, inputs, **options) if walk else None
    with pytest.raises(DataError) as caught:
        if samples is None:
            open_samples(source, inputs, **options)
        else:
            list(samples.batches(4))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_tables_are_for_the_images_among_several_inputs() -> None:
    size = InputSpec("size", F32, ("N", 2))
    arrays = {"x": np.full((2, 3, 4, 4), 10, np.uint8), "size": np.full((2, 2), 10, np.float32)}
    (feeds,) = open_samples(arrays, [X, size], preprocess=Preprocess(scale=0.5)).batches(4)
    assert feeds["x"].max() == 5
    assert feeds["size"].max() == 10


def test_tables_are_for_all_float_inputs_where_none_is_an_image() -> None:
    flat = InputSpec("flat", F32, ("N", 8))
    (feeds,) = open_samples(
        {"flat": np.full((2, 8), 16, np.uint8)}, [flat], preprocess=Preprocess(scale=1 / 16)
    ).batches(4)
    np.testing.assert_array_equal(feeds["flat"], np.ones((2, 8)))


def test_a_network_that_takes_uint8_may_have_its_layout_changed_but_not_its_values() -> None:
    spec = InputSpec("x", U8, ("N", 3, 4, 5))
    stored = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    fed = joined(open_samples({"x": stored}, [spec], preprocess=Preprocess(layout="NHWC->NCHW")))
    assert fed.dtype == np.uint8
    np.testing.assert_array_equal(fed, stored.transpose(0, 3, 1, 2))
    assert refusal({"x": stored}, spec, preprocess=Preprocess(scale=2, layout="NHWC->NCHW")) == (
        "python: sample 0 of input 'x': the network takes uint8 and the preprocess table makes floats; "
        "leave scale, mean and std out of it, or say --preprocess none"
    )


# ---------------------------------------------------------------- names and lengths


def test_a_wrong_name_is_refused_with_the_nearest_input(tmp_path: Path) -> None:
    spec = InputSpec("pixel_values", F32, ("N", 3, 4, 4))
    path = saved(tmp_path / "a.npz", pixel_value=images(2))
    assert refusal(path, spec) == (
        f"{path}: array 'pixel_value' is not an input of the network (inputs: pixel_values); "
        "did you mean 'pixel_values'?"
    )


def test_a_name_like_no_input_is_refused_with_the_inputs(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", q=images(2))
    assert refusal(path, X) == f"{path}: array 'q' is not an input of the network (inputs: x); rename it"


def test_an_extra_array_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x=images(2), y=np.arange(2))
    assert refusal(path, X) == f"{path}: array 'y' is not an input of the network (inputs: x); leave it out"


def test_a_missing_input_is_refused_with_what_it_takes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x=images(2))
    assert refusal(path, X, InputSpec("mask", I64, ("N", None))) == (
        f"{path}: no array for input 'mask' (arrays: x); add one that fits int64 [N, ?]"
    )
    empty = saved(tmp_path / "b.npz")
    assert (
        refusal(empty, X)
        == f"{empty}: no array for input 'x' (arrays: none); add one that fits float32 [N, 3, 4, 4]"
    )


def test_first_axes_of_different_length_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x=images(2), m=np.arange(3))
    assert refusal(path, X, InputSpec("m", I64, ("N",))) == (
        f"{path}: 'x' has 2 samples and 'm' 3; the first axis counts samples and must be the same in all arrays"
    )


def test_no_samples_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x=images(0))
    assert refusal(path, X) == f"{path}: no samples (arrays of length 0); add some or remove the file"


def test_a_network_without_inputs_is_refused() -> None:
    assert refusal({"x": images(1)}) == (
        "the network has no inputs, so there is nothing to feed; run it without data"
    )


# ---------------------------------------------------------------- shapes


MISFIT = "sample 0 of input 'x' has shape [{}], the network takes [{}3, 4, 4]; {}"
RANKS = (
    "array 'x' has shape [{}], the network takes float32 [N, 3, 4, 4]; "
    "give rank 4 (rows are samples) or rank 5 (one whole feed per entry)"
)
NHWC = "it looks like NHWC, give a [preprocess] table with layout = 'NHWC->NCHW'"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 5), MISFIT.format("3, 4, 5", "", "mend the data")),
        ((2, 4, 4, 3), MISFIT.format("4, 4, 3", "", NHWC)),
        ((2, 1, 3, 4, 5), MISFIT.format("1, 3, 4, 5", "N, ", "mend the data")),
        ((2, 4, 4), RANKS.format("2, 4, 4")),
        ((2, 1, 1, 3, 4, 4), RANKS.format("2, 1, 1, 3, 4, 4")),
        ((), RANKS.format("")),
    ],
)
def test_a_shape_against_the_fixed_axes_is_refused(
    tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    path = saved(tmp_path / "a.npz", x=np.zeros(shape, np.float32))
    assert refusal(path, X) == f"{path}: {message}"


def test_a_table_that_moves_axes_too_many_is_named() -> None:
    table = Preprocess(layout="NHWC->NCHW")
    assert refusal({"x": images(2)}, X, preprocess=table) == (
        "python: sample 0 of input 'x' has shape [4, 3, 4] (stored [3, 4, 4]), the network takes [3, 4, 4]; "
        "the stored array fits as it is, say layout = 'NCHW' or --preprocess none"
    )


def test_a_scalar_input_needs_one_entry_per_feed() -> None:
    assert refusal({"rate": np.int64(3)}, RATE) == (
        "python: array 'rate' has shape [], the network takes int64 []; give rank 1 (one whole feed per entry)"
    )
    assert [int(f["rate"]) for f in open_samples({"rate": np.arange(3)}, [RATE]).batches(8)] == [0, 1, 2]


def test_free_axes_and_unknown_ranks_take_any_size() -> None:
    free = InputSpec("x", F32, (None, "channels", None, "w"))
    assert joined(open_samples({"x": images(3)}, [free])).shape == (3, 3, 4, 4)
    unknown = InputSpec("x", F32, None)
    assert joined(open_samples({"x": images(3)}, [unknown])).shape == (3, 3, 4, 4)
    assert "float32 of any shape; give rank 1" in refusal({"x": np.float32(1)}, unknown)


# ---------------------------------------------------------------- whole feeds


def test_entries_with_one_axis_more_are_whole_feeds_and_rows_beside_them_come_singly(tmp_path: Path) -> None:
    wave = InputSpec("wave", F32, ("N", 7))
    rng = np.random.default_rng(0)
    arrays = {
        "wave": rng.standard_normal((5, 7)).astype(np.float32),
        "state": rng.standard_normal((5, 2, 1, 5)).astype(np.float32),
        "rate": np.full(5, 16000),
        "labels": np.arange(5),
    }
    samples = open_samples(saved(tmp_path / "a.npz", **arrays), [wave, STATE, RATE])
    assert len(samples) == 5
    feeds = list(samples.batches(3))
    assert len(feeds) == 5
    for i, feed in enumerate(feeds):
        assert feed["wave"].shape == (1, 7) and feed["state"].shape == (2, 1, 5) and feed["rate"].shape == ()
        np.testing.assert_array_equal(feed["wave"][0], arrays["wave"][i])
        np.testing.assert_array_equal(feed["state"], arrays["state"][i])
        assert feed["rate"] == 16000 and feed["rate"].dtype == np.int64


def test_an_image_array_with_one_axis_more_is_preprocessed_feed_by_feed() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3)).astype(np.uint8)
    samples = open_samples({"x": stored}, [X], preprocess=Preprocess(scale=0.5, layout="NHWC->NCHW"))
    feeds = list(samples.batches(8))
    assert [feed["x"].shape for feed in feeds] == [(2, 3, 4, 4)] * 3
    np.testing.assert_array_equal(feeds[1]["x"], stored[1].transpose(0, 3, 1, 2) * np.float32(0.5))


def test_rows_cannot_be_samples_where_inputs_fix_different_first_axes() -> None:
    other = InputSpec("x", F32, (1, 3, 4, 4))
    assert refusal({"x": images(2), "state": np.zeros((2, 4, 5), np.float32)}, other, STATE) == (
        "python: the inputs of the network fix different first axes ('x' 1, 'state' 2), so rows are no samples; "
        "give arrays with one axis more, one whole feed per entry"
    )


# ---------------------------------------------------------------- dtypes and values


@pytest.mark.parametrize(
    ("stored", "takes"),
    [
        (np.float64, np.float32),
        (np.float16, np.float32),
        (np.float32, np.float64),
        (np.float32, np.float16),
        (np.int64, np.int32),
        (np.uint8, np.int64),
        (np.bool_, np.int64),
        (np.int64, np.bool_),
        (np.dtype(">f4"), np.float32),
        (np.dtype(">i8"), np.int64),
    ],
)
def test_values_that_fit_are_cast(stored: Any, takes: Any) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(stored)
    fed = joined(open_samples({"x": values}, [InputSpec("x", np.dtype(takes), ("N", 2))]))
    assert fed.dtype == np.dtype(takes)
    np.testing.assert_array_equal(fed.astype(int), values.astype(int))


@pytest.mark.parametrize(
    ("stored", "takes", "text"),
    [
        (np.float32, np.int64, "stored as float32, the network takes int64; convert the array"),
        (np.int64, np.float32, "stored as int64, the network takes float32; convert the array"),
        (np.bool_, np.float32, "stored as bool, the network takes float32; convert the array"),
        (np.complex64, np.float32, "stored as complex64, the network takes float32; convert the array"),
        ("<U3", np.float32, "stored as <U3, the network takes float32; convert the array"),
        (np.int64, object, "stored as int64, the network takes text (numpy str); convert the array"),
        ("S3", object, "stored as |S3, the network takes text (numpy str); convert the array"),
        ("M8[s]", np.int64, "stored as datetime64[s], the network takes int64; convert the array"),
    ],
)
def test_a_dtype_that_does_not_fit_is_refused(tmp_path: Path, stored: Any, takes: Any, text: str) -> None:
    path = saved(tmp_path / "a.npz", x=np.zeros((3, 2)).astype(int).astype(stored))
    assert (
        refusal(path, InputSpec("x", np.dtype(takes), ("N", 2))) == f"{path}: sample 0 of input 'x': {text}"
    )


def test_uint8_for_floats_without_preprocessing_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x=np.zeros((2, 3, 4, 4), np.uint8))
    assert refusal(path, X) == (
        f"{path}: sample 0 of input 'x': stored as uint8 without preprocessing, the network takes float32; "
        "give a [preprocess] table with scale, mean, std and layout in the config, --preprocess FILE, "
        "or an array 'preprocess' in the npz"
    )


@pytest.mark.parametrize(
    ("stored", "takes", "value"),
    [
        (np.int64, np.int32, 2**31),
        (np.int64, np.uint8, -1),
        (np.int64, np.uint64, -1),
        (np.uint64, np.int64, 2**63),
        (np.int64, np.bool_, 2),
    ],
)
def test_an_integer_that_would_change_is_refused_where_it_stands(stored: Any, takes: Any, value: int) -> None:
    values = np.zeros((7, 2), stored)
    values[5, 1] = value
    assert refusal({"x": values}, InputSpec("x", np.dtype(takes), ("N", 2)), walk=True) == (
        f"python: sample 5 of input 'x' holds {value}, which {np.dtype(takes)} cannot hold exactly; mend the data"
    )


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
@pytest.mark.parametrize("sample", [0, 3, 4, 9])
def test_nan_and_inf_are_refused_with_file_sample_and_input(
    tmp_path: Path, value: float, word: str, sample: int
) -> None:
    x = images(10)
    x[sample, 1, 2, 3] = value
    path = saved(tmp_path / "a.npz", x=x)
    assert refusal(path, X, walk=True) == (
        f"{path}: sample {sample} of input 'x' holds {word}; mend that sample or leave it out"
    )


def test_nan_is_found_before_preprocessing_hides_where_it_came_from() -> None:
    x = images(5)
    x[4, 0, 0, 0] = np.nan
    assert "sample 4 of input 'x' holds NaN" in refusal(
        {"x": x}, X, walk=True, preprocess=Preprocess(scale=2)
    )


def test_nan_in_a_whole_feed_is_named_by_its_entry() -> None:
    x = images(6)[:, None]
    x[2] = np.nan
    assert "python: sample 2 of input 'x' holds NaN" in refusal({"x": x}, X, walk=True)


def test_values_beyond_the_range_of_the_input_are_refused() -> None:
    x = images(3).astype(np.float64)
    x[1, 0, 0, 0] = 1e39
    assert refusal({"x": x}, X, walk=True) == (
        "python: sample 1 of input 'x' holds a value beyond the range of float32; "
        "scale the data or mend the preprocess table"
    )


def test_text_inputs_take_text(tmp_path: Path) -> None:
    spec = InputSpec("x", np.dtype(object), ("N",))
    samples = open_samples(saved(tmp_path / "a.npz", x=np.array(["a", "bc", "d"])), [spec])
    fed = joined(samples, 2)
    assert fed.dtype == object and fed.tolist() == ["a", "bc", "d"]
    assert samples.digest() != open_samples({"x": np.array(["a", "b", "cd"])}, [spec]).digest()


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_of_any_integer_type_become_int64(dtype: Any) -> None:
    labels = open_samples({"x": images(3), "labels": np.array([2, 1, 0], dtype)}, [X]).labels()
    assert labels is not None and labels.dtype == np.int64 and labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.zeros(3), "labels are float64, int64 is needed; store labels.astype('int64')"),
        (np.zeros(3, np.uint64), "labels are uint64, int64 is needed; store labels.astype('int64')"),
        (np.zeros(2, int), "labels have shape [2] and there are 3 samples; give one class number each"),
        (
            np.zeros((3, 1), int),
            "labels have shape [3, 1] and there are 3 samples; give one class number each",
        ),
    ],
)
def test_wrong_labels_are_refused_at_opening(tmp_path: Path, labels: Array, text: str) -> None:
    path = saved(tmp_path / "a.npz", x=images(3), labels=labels)
    assert refusal(path, X) == f"{path}: {text}"
