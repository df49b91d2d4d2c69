"""Samples from .npz files: what fits, what is refused and in which words, damage, and flat memory."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxcomp.errors import DataError
from onnxcomp.runtime.data.npz import NpzTable
from onnxcomp.runtime.data.samples import InputSpec, Preprocess, Samples, open_samples
from tests.support.sources import imports, sources

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


def test_the_data_files_import_neither_onnx_nor_onnxruntime() -> None:
    files = {source.module: source for source in sources("onnxcomp")}
    seen: set[str] = set()
    waiting = ["onnxcomp.runtime.data.samples"]
    while waiting:
        module = waiting.pop()
        if module not in seen and module in files:
            seen.add(module)
            waiting += [found.module for found in imports(files[module])]
        assert module.split(".")[0] not in ("onnx", "onnxruntime", "onnx_graphsurgeon")
    assert {f"onnxcomp.runtime.data.{name}" for name in ("npz", "images", "preprocess")} <= seen


def test_float_arrays_are_fed_as_they_are(tmp_path: Path) -> None:
    x = images(10)
    samples = open_samples(saved(tmp_path / "a.npz", x=x, labels=np.arange(10)), [X])
    assert len(samples) == 10
    assert samples.source == str(tmp_path / "a.npz")
    batches = list(samples.batches(4))
    assert [set(feeds) for feeds in batches] == [{"x"}] * 3
    assert [len(feeds["x"]) for feeds in batches] == [4, 4, 2]
    np.testing.assert_array_equal(joined(samples), x)
    labels = samples.labels()
    assert labels is not None and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, np.arange(10))


def test_no_labels_are_none(tmp_path: Path) -> None:
    assert open_samples(saved(tmp_path / "a.npz", x=images(2)), [X]).labels() is None


def test_an_input_called_labels_is_fed(tmp_path: Path) -> None:
    spec = InputSpec("labels", I64, ("N",))
    samples = open_samples(saved(tmp_path / "a.npz", labels=np.arange(3)), [spec])
    np.testing.assert_array_equal(joined(samples, name="labels"), np.arange(3))
    assert samples.labels() is None


def test_paths_may_be_path_objects(tmp_path: Path) -> None:
    saved(tmp_path / "a.npz", x=images(2))
    assert len(open_samples(tmp_path / "a.npz", [X])) == 2


def test_names_with_slashes_and_colons_are_names(tmp_path: Path) -> None:
    spec = InputSpec("serving/x:0", F32, ("N", 3, 4, 4))
    x = images(3)
    samples = open_samples(saved(tmp_path / "a.npz", **{"serving/x:0": x}), [spec])
    np.testing.assert_array_equal(joined(samples, name="serving/x:0"), x)


def test_feeds_are_read_only_and_contiguous_and_the_array_of_the_caller_stays_writable() -> None:
    x = images(4)
    for feeds in open_samples({"x": x}, [X]).batches(3):
        assert feeds["x"].flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            feeds["x"][0] = 0
    x[0] = 0


def test_uint8_images_go_through_the_table_in_the_file(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    table = {"scale": 1 / 255, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "layout": "NHWC->NCHW"}
    path = saved(tmp_path / "a.npz", x=stored, preprocess=np.array(json.dumps(table)))
    fed = joined(open_samples(path, [X]))
    assert fed.dtype == np.float32
    expected = ((stored / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(fed, expected, rtol=1e-5, atol=1e-6)


def test_the_table_that_was_asked_for_wins_over_the_one_in_the_file(tmp_path: Path) -> None:
    stored = np.full((2, 3, 4, 4), 7, np.uint8)
    path = saved(tmp_path / "a.npz", x=stored, preprocess=np.array('{"scale": 2}'))
    assert joined(open_samples(path, [X])).max() == 14
    assert joined(open_samples(path, [X], preprocess=Preprocess(scale=3))).max() == 21
    assert "stored as uint8 without preprocessing" in refusal(path, X, preprocess="none")


def test_preprocess_none_feeds_floats_as_they_are_stored(tmp_path: Path) -> None:
    x = images(2)
    path = saved(tmp_path / "a.npz", x=x, preprocess=np.array('{"scale": 2}'))
    np.testing.assert_array_equal(joined(open_samples(path, [X], preprocess="none")), x)
    np.testing.assert_array_equal(joined(open_samples(path, [X])), x * 2)


def test_a_broken_table_in_the_file_matters_only_if_it_is_used(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x=images(2), preprocess=np.array('{"sclae": 2}'))
    assert refusal(path, X) == f"{path}: array 'preprocess': unknown key 'sclae'; did you mean 'scale'?"
    assert len(open_samples(path, [X], preprocess="none")) == 2
    path = saved(tmp_path / "b.npz", x=images(2), preprocess=np.arange(3))
    assert refusal(path, X) == (
        f"{path}: array 'preprocess' is int64 [3]; store one short JSON string: numpy.array(json.dumps(table))"
    )


# ---------------------------------------------------------------- damage


def damaged(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> str:
    np.savez_compressed(path, x=images(64))
    path.write_bytes(change(bytearray(path.read_bytes())))
    return str(path)


def npz_of(path: Path, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return str(path)


def npy_of(array: Array, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version, allow_pickle=True)
    return stream.getvalue()


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = damaged(tmp_path / "a.npz", lambda data: data[: len(data) // 2])
    assert refusal(path, X) == f"{path}: not a whole .npz file (cut short or damaged); write or fetch it anew"


def test_a_flipped_byte_in_the_data_is_found_while_reading(tmp_path: Path) -> None:
    def flip(data: bytearray) -> bytearray:
        data[len(data) // 2] ^= 0xFF
        return data

    message = refusal(damaged(tmp_path / "a.npz", flip), X, walk=True)
    assert "array 'x' cannot be read (" in message
    assert message.endswith("the file is cut short or damaged, write or fetch it anew")


def test_a_flipped_byte_in_stored_data_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=images(64))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)
    assert "Bad CRC-32" in refusal(str(path), X, walk=True)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_a_checksum_that_does_not_match_is_found_at_the_end(tmp_path: Path, write: Any, size: int) -> None:
    path = tmp_path / "a.npz"
    write(path, x=np.zeros((64, 3, 4, 4), np.float32))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 16] ^= 0xFF  # the checksum in the directory of the zip
    path.write_bytes(data)
    samples = open_samples(path, [X])
    with pytest.raises(DataError, match=r"array 'x' cannot be read \(Bad CRC-32"):
        list(samples.batches(size))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not an .npz file; write one with numpy.savez(path, input=array), one array per graph input"),
        (b"hello", "not an .npz file; write one with numpy.savez(path, input=array), one array per graph input"),
        (npy_of(np.zeros(3)), "a single .npy array; name it after the graph input: numpy.savez('data.npz', input=array)"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert refusal(str(path), X) == f"{path}: {text}"


def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    path = npz_of(tmp_path / "a.npz", x=npy_of(np.array([Bomb(), None], dtype=object)))
    assert refusal(path, X) == (
        f"{path}: array 'x' holds pickled Python objects, which are never loaded; "
        "store plain numbers (numpy.stack a list of arrays)"
    )
    assert not (tmp_path / "exploded").exists()


def test_structured_arrays_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", x=np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]))
    assert refusal(path, X) == f"{path}: array 'x' is structured; store one plain array per input"


def test_an_unknown_npy_version_is_refused(tmp_path: Path) -> None:
    data = bytearray(npy_of(images(2)))
    data[6] = 3
    path = npz_of(tmp_path / "a.npz", x=bytes(data))
    assert "array 'x' has npy version (3, 0), which plain arrays do not need" in refusal(path, X)


def test_npy_version_2_is_read(tmp_path: Path) -> None:
    x = images(2)
    path = npz_of(tmp_path / "a.npz", x=npy_of(x, version=(2, 0)))
    np.testing.assert_array_equal(joined(open_samples(path, [X])), x)


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f4', 'fortran_order': False, 'shape': (9, 3, 4, 4)}", b"{((((", b"\xff"]
)
def test_a_header_that_lies_or_is_garbled_is_refused(tmp_path: Path, header: bytes) -> None:
    text = header.ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + images(2).tobytes()
    message = refusal(npz_of(tmp_path / "a.npz", x=data), X)
    assert message.endswith("the file is cut short or damaged, write or fetch it anew")


def test_a_header_with_a_negative_size_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3, 4, 4)}".ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4 * 96)
    assert "its shape [-2, -3, 4, 4] of float32" in refusal(npz_of(tmp_path / "a.npz", x=data), X)


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert refusal(str(path), X) == (
        f"{path}: 'readme.txt' in it is not an array (.npy); write the file with numpy.savez(path, name=array)"
    )


def test_an_array_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy_of(images(2)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", npy_of(images(2)))
    assert refusal(str(path), X) == f"{path}: array 'x' is in it twice; write the file anew"


def test_a_file_that_changes_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    samples = open_samples(saved(path, x=images(4)), [X])
    saved(path, x=images(5))
    with pytest.raises(DataError, match=r"array 'x' is another now; the file changed while it was read$"):
        list(samples.batches(2))
    saved(path, y=images(5))
    with pytest.raises(DataError, match=r"array 'x' is gone; the file changed while it was read$"):
        list(samples.batches(2))
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        list(samples.batches(2))


# ---------------------------------------------------------------- shards


def test_shards_are_one_stream_in_the_order_of_their_names(tmp_path: Path) -> None:
    x = images(11)
    for name, part in (("b", x[3:4]), ("a", x[:3]), ("c", x[4:])):
        np.savez(tmp_path / f"{name}.npz", x=part, labels=np.arange(len(part)))
    (tmp_path / "notes.txt").write_text("ignored beside shards")
    (tmp_path / ".hidden.npz").write_text("ignored")
    for source in (str(tmp_path), str(tmp_path / "*.npz")):
        samples = open_samples(source, [X])
        assert len(samples) == 11 and samples.source == source
        assert [len(feeds["x"]) for feeds in samples.batches(4)] == [4, 4, 3]
        np.testing.assert_array_equal(joined(samples), x)
        labels = samples.labels()
        assert labels is not None and labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6]


def test_each_shard_may_have_a_table_of_its_own(tmp_path: Path) -> None:
    for name, scale in (("a", 1), ("b", 2)):
        table = np.array(json.dumps({"scale": scale}))
        np.savez(tmp_path / f"{name}.npz", x=np.ones((2, 3, 4, 4), np.uint8), preprocess=table)
    assert joined(open_samples(tmp_path, [X]))[:, 0, 0, 0].tolist() == [1, 1, 2, 2]


def test_shards_of_different_image_sizes_never_share_a_batch(tmp_path: Path) -> None:
    spec = InputSpec("x", F32, ("N", 3, "h", "w"))
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 3, 4, 4), np.float32))
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 3, 6, 5), np.float32))
    shapes = [feeds["x"].shape for feeds in open_samples(tmp_path, [spec]).batches(2)]
    assert shapes == [(2, 3, 4, 4), (1, 3, 4, 4), (2, 3, 6, 5), (1, 3, 6, 5)]


def test_a_fault_in_a_shard_names_the_shard_and_the_sample_in_it(tmp_path: Path) -> None:
    x = images(5)
    np.savez(tmp_path / "a.npz", x=x)
    x[2] = np.inf
    np.savez(tmp_path / "b.npz", x=x)
    message = refusal(str(tmp_path), X, walk=True)
    assert message.startswith(f"{tmp_path / 'b.npz'}: sample 2 of input 'x' holds Inf")


def test_labels_in_some_shards_only_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=images(2), labels=np.arange(2))
    np.savez(tmp_path / "b.npz", x=images(2))
    assert refusal(str(tmp_path), X) == (
        f"{tmp_path / 'b.npz'}: no labels, other shards have them; give labels to all or to none"
    )


# ---------------------------------------------------------------- rows against numpy, and memory

ARRAYS = hnp.arrays(
    st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1", ">f4", "<f2", "<U3"]),
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ARRAYS, st.integers(1, 7), st.booleans(), st.booleans())
def test_rows_are_what_numpy_loads(
    tmp_path: Path, array: Array, size: int, fortran: bool, compressed: bool
) -> None:
    path = tmp_path / "p.npz"
    stored = np.asfortranarray(array) if fortran else array
    (np.savez_compressed if compressed else np.savez)(path, a=stored, b=np.arange(len(array)))
    table = NpzTable(path)
    with np.load(path) as loaded:
        whole = loaded["a"]
    blocks = list(table.rows(["a", "b"], size))
    assert [len(block["a"]) for block in blocks] == [
        min(size, len(array) - i) for i in range(0, len(array), size)
    ]
    assert all(block["a"].flags.c_contiguous for block in blocks)
    assert table.headers["a"].dtype == whole.dtype and table.headers["a"].shape == whole.shape
    np.testing.assert_array_equal(table.load("a"), whole)
    if blocks:
        np.testing.assert_array_equal(np.concatenate([block["a"] for block in blocks]), whole)
        np.testing.assert_array_equal(np.concatenate([block["b"] for block in blocks]), np.arange(len(array)))


def peak_of_walk(samples: Samples, size: int = 8) -> int:
    """Bytes at the peak of one walk, beyond what was there before."""
    tracemalloc.start()
    try:
        for _ in samples.batches(size):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["compressed", "stored", "fortran", "whole feeds", "uint8"])
def test_the_memory_of_a_walk_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    spec = InputSpec("x", F32, ("N", 3, 32, 32))
    table = Preprocess(scale=1 / 255) if kind == "uint8" else None
    peaks = []
    for n in (32, 512):
        x: Array = np.zeros((n, 3, 32, 32), np.uint8 if kind == "uint8" else np.float32)
        x[:, 0, 0, 0] = np.arange(n) % 251
        stored = np.asfortranarray(x) if kind == "fortran" else x[:, None] if kind == "whole feeds" else x
        path = tmp_path / f"{n}.npz"
        (np.savez if kind == "stored" else np.savez_compressed)(path, x=stored)
        samples = open_samples(path, [spec], preprocess=table)
        peak_of_walk(samples.take(8))
        peaks.append(peak_of_walk(samples))
    assert peaks[1] <= 1.2 * peaks[0]
    assert peaks[1] < 512 * 3 * 32 * 32


def test_taking_the_first_samples_does_not_read_the_rest(tmp_path: Path) -> None:
    x = images(64)
    x[8:] = np.nan
    samples = open_samples(saved(tmp_path / "a.npz", x=x), [X], limit=8)
    np.testing.assert_array_equal(joined(samples), x[:8])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared measurement data is not beside this repository")
def test_uint8_with_its_table_equals_the_same_images_preprocessed_beforehand() -> None:
    spec = InputSpec("input", F32, ("N", 3, 32, 32))
    stored = open_samples(SHARED / "cifar10_calibration.npz", [spec], limit=512)
    ready = open_samples(SHARED / "cifar10_calibration_float.npz", [spec])
    for a, b in zip(stored.batches(64), ready.batches(64), strict=True):
        np.testing.assert_allclose(a["input"], b["input"], atol=2e-6)
