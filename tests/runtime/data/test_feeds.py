"""Samples from Python code: dicts of arrays, iterables of feeds, functions, `module:function`."""

from __future__ import annotations

import errno
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.errors import DataError, UsageError
from onnxcomp.runtime.data import made_feeds
from onnxcomp.runtime.data.samples import InputSpec, Preprocess, Samples, open_samples

Array = NDArray[Any]
Feeds = dict[str, Array]
F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
X = InputSpec("x", F32, ("N", 2, 3))
STATE = InputSpec("state", F32, (2, "N", 5))
RATE = InputSpec("rate", I64, ())


def rows(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, 2, 3)).astype(np.float32)


def joined(samples: Samples, size: int = 4) -> Array:
    return np.concatenate([feeds["x"] for feeds in samples.batches(size)])


def refusal(source: Any, *inputs: InputSpec, **options: Any) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        list(open_samples(source, inputs or [X], **options).batches(4))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module into the working directory and returns its name; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    written: list[str] = []

    def write(text: str) -> str:
        name = f"feeds_of_{tmp_path.name.replace('-', '_')}_{len(written)}"
        (tmp_path / f"{name}.py").write_text("import numpy as np\n" + text)
        written.append(name)
        return name

    path = list(sys.path)
    yield write
    assert sys.path == path
    for name in written:
        sys.modules.pop(name, None)


# ---------------------------------------------------------------- dicts and iterables


def test_a_dict_of_arrays_is_like_an_npz() -> None:
    x = rows(7)
    samples = open_samples({"x": x, "labels": np.arange(7)}, [X])
    assert samples.source == "python" and len(samples) == 7
    np.testing.assert_array_equal(joined(samples), x)
    labels = samples.labels()
    assert labels is not None and labels.tolist() == list(range(7))


def test_a_dict_of_nested_lists_is_taken_and_may_carry_its_table() -> None:
    samples = open_samples({"x": rows(2).tolist(), "preprocess": '{"scale": 2}'}, [X])
    np.testing.assert_allclose(joined(samples), rows(2) * 2, rtol=1e-6)


def test_a_list_of_feeds_is_batched_anew_where_first_axes_count_samples() -> None:
    x = rows(10)
    feeds = [{"x": x[0:1]}, {"x": x[1:7]}, {"x": x[7:10]}]
    samples = open_samples(feeds, [X])
    assert len(samples) == 10
    for size, lengths in ((1, [1] * 10), (4, [4, 4, 2]), (64, [10])):
        assert [len(f["x"]) for f in samples.batches(size)] == lengths
        np.testing.assert_array_equal(joined(samples, size), x)


def test_feeds_are_whole_where_first_axes_do_not_count_samples() -> None:
    wave = InputSpec("wave", F32, ("N", 7))
    feeds: list[Feeds] = [
        {
            "wave": np.full((n, 7), n, np.float32),
            "state": np.zeros((2, n, 5), np.float32),
            "rate": np.array(n),
        }
        for n in (3, 1)
    ]
    samples = open_samples(feeds, [wave, STATE, RATE])
    assert len(samples) == 2
    out = list(samples.batches(64))
    assert [f["wave"].shape for f in out] == [(3, 7), (1, 7)]
    assert [f["state"].shape for f in out] == [(2, 3, 5), (2, 1, 5)]
    assert [int(f["rate"]) for f in out] == [3, 1]


def test_first_axes_of_different_meaning_make_whole_feeds_even_where_their_lengths_agree() -> None:
    wave = InputSpec("wave", F32, ("N", 7))
    feed = {"wave": np.zeros((2, 7), np.float32), "state": np.zeros((2, 2, 5), np.float32)}
    samples = open_samples([feed, feed], [wave, STATE])
    assert len(samples) == 2
    assert [f["wave"].shape for f in samples.batches(1)] == [(2, 7), (2, 7)]
    noise = next(open_samples("random:2", [wave, InputSpec("state", F32, (2, 1, 5))]).batches(8))
    assert (noise["wave"].shape, noise["state"].shape) == ((1, 7), (2, 1, 5))


def test_feeds_of_unknown_first_axes_are_whole_if_their_lengths_differ() -> None:
    a, b = InputSpec("a", F32, (None, 2)), InputSpec("b", F32, (None, 2))
    feed = {"a": np.zeros((3, 2), np.float32), "b": np.zeros((4, 2), np.float32)}
    assert [f["b"].shape for f in open_samples([feed, feed], [a, b]).batches(8)] == [(4, 2), (4, 2)]


def test_feeds_that_disagree_on_a_shared_axis_are_refused() -> None:
    a, b = InputSpec("a", F32, ("N", 2)), InputSpec("b", F32, ("N", 2))
    feed = {"a": np.zeros((3, 2), np.float32), "b": np.zeros((4, 2), np.float32)}
    assert refusal([feed], a, b) == (
        "python, feed 0: arrays of different lengths ('a' 3, 'b' 4); the first axis counts samples, make it the same"
    )


def test_feeds_may_carry_labels_for_all_rows_or_one_for_a_whole_feed() -> None:
    feeds: list[Any] = [{"x": rows(2), "labels": np.array([3, 1])}, {"x": rows(1), "labels": [2]}]
    labels = open_samples(feeds, [X]).labels()
    assert labels is not None and labels.tolist() == [3, 1, 2]
    whole: list[Any] = [{"rate": np.array(1), "labels": np.array(5)}, {"rate": np.array(2), "labels": 6}]
    labels = open_samples(whole, [RATE]).labels()
    assert labels is not None and labels.tolist() == [5, 6]
    labels = open_samples(feeds, [X], limit=1).labels()
    assert labels is not None and labels.tolist() == [3]


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ([], "python: no samples; yield dicts of one array per input, {'x': array}"),
        ([rows(1)], "python, feed 0: ndarray is no feed; yield dicts of one array per input, {'x': array}"),
        (
            [{"x": rows(1)}, 3],
            "python, feed 1: int is no feed; yield dicts of one array per input, {'x': array}",
        ),
        ([{"y": rows(1)}], "python, feed 0: array 'y' is not an input of the network (inputs: x); rename it"),
        ([{}], "python, feed 0: no array for input 'x' (arrays: none); add one that fits float32 [N, 2, 3]"),
        (
            [{"x": rows(1), "preprocess": "{}"}],
            "python, feed 0: array 'preprocess' is not an input of the network (inputs: x); leave it out",
        ),
        ([{"x": rows(0)}], "python, feed 0: no samples (arrays of length 0); leave such feeds out"),
        (
            [{"x": rows(1)}, {"x": rows(1)[0]}],
            "python, feed 1: sample 0 of input 'x' has shape [2, 3], the network takes [N, 2, 3]; the first axis",
        ),
        ([{"x": [[1], [2, 3]]}], "python, feed 0: 'x' is no array"),
        (
            [{"x": [None]}],
            "python, feed 0: 'x' holds Python objects or records; give an array of plain numbers",
        ),
        (
            [{"x": rows(1)}, {"x": rows(1), "labels": [1]}],
            "python, feed 1: labels, unlike the feeds before; give labels to all of them or to none",
        ),
        (
            [{"x": rows(1), "labels": [1]}, {"x": rows(1)}],
            "python, feed 1: no labels, unlike the feeds before; give labels to all of them or to none",
        ),
    ],
)
def test_feeds_that_do_not_fit_are_refused_by_number(feeds: Any, text: str) -> None:
    assert refusal(feeds).startswith(text)
    assert refusal(lambda: iter(feeds)).startswith(text)
    assert refusal(iter(feeds)).startswith(text)


def test_labels_of_a_feed_must_be_one_per_sample() -> None:
    samples = open_samples([{"x": rows(2), "labels": [1]}], [X])
    with pytest.raises(DataError, match=r"python, feed 0: labels have shape \[1\] and there are 2 samples"):
        samples.labels()


def test_nan_in_a_feed_names_the_feed_and_the_row() -> None:
    bad = rows(5)
    bad[3, 1] = np.nan
    assert refusal([{"x": rows(2)}, {"x": bad}]).startswith("python, feed 1: sample 3 of input 'x' holds NaN")


def test_uint8_feeds_need_a_table_that_was_asked_for() -> None:
    feed = {"x": np.full((1, 2, 3), 4, np.uint8)}
    assert "stored as uint8 without preprocessing" in refusal([feed])
    assert joined(open_samples([feed], [X], preprocess=Preprocess(scale=0.5))).max() == 2


def test_an_iterator_that_can_be_walked_once_is_walked_again_from_disk() -> None:
    x = rows(9)
    given = ({"x": part, "labels": np.zeros(len(part), int)} for part in (x[:4], np.asfortranarray(x[4:])))
    samples = open_samples(given, [X])
    for _ in range(2):
        np.testing.assert_array_equal(joined(samples), x)
    first, second = samples.batches(2), samples.batches(3)
    for _ in range(3):
        np.testing.assert_array_equal(next(first)["x"][:1].shape, next(second)["x"][:1].shape)
    np.testing.assert_array_equal(next(second, {"x": x[:0]})["x"], x[:0])
    np.testing.assert_array_equal(next(first)["x"], x[6:8])
    assert len(samples) == 9 and samples.labels() is not None


def test_an_endless_iterator_is_read_as_far_as_the_limit() -> None:
    def endless() -> Iterator[Feeds]:
        while True:
            yield {"x": rows(1)}

    assert len(open_samples(endless(), [X], limit=3)) == 3


def test_an_iterator_is_not_kept_in_memory() -> None:
    def make(n: int) -> Iterator[Feeds]:
        for i in range(n):
            yield {"x": np.full((8, 256, 8), i, np.float32)}

    spec = InputSpec("x", F32, ("N", 256, 8))
    peaks = []
    for n in (8, 80):
        list(open_samples(make(2), [spec]).batches(8))
        tracemalloc.start()
        for _ in open_samples(make(n), [spec]).batches(8):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.3 * peaks[0]


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(spool: object, array: Array) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(made_feeds.FeedSpool, "_keep", full)
    message = refusal(iter([{"x": rows(1)}]))
    assert message.startswith("python, feed 0: cannot be kept in ")
    assert message.endswith(
        "(No space left on device); pass a function that returns a fresh iterator instead"
    )


def test_a_function_is_called_for_every_walk() -> None:
    calls = []

    def make() -> Iterator[Feeds]:
        calls.append(1)
        yield {"x": rows(3)}

    samples = open_samples(make, [X])
    before = len(calls)
    np.testing.assert_array_equal(joined(samples), rows(3))
    np.testing.assert_array_equal(joined(samples), rows(3))
    assert len(calls) == before + 2


def test_code_that_yields_another_number_of_samples_is_refused() -> None:
    counts = iter([5, 5, 4])
    samples = open_samples(lambda: [{"x": rows(next(counts))}], [X])
    assert len(samples) == 5
    with pytest.raises(
        DataError, match="python: 5 samples the first time and 4 now; make it yield the same every"
    ):
        list(samples.batches(2))


def test_an_endless_function_is_walked_as_far_as_the_limit() -> None:
    def make() -> Iterator[dict[str, Any]]:
        while True:
            yield {"x": rows(3), "labels": [0, 1, 2]}

    samples = open_samples(make, [X], limit=7)
    assert len(samples) == 7
    assert joined(samples).shape == (7, 2, 3)
    labels = samples.labels()
    assert labels is not None and labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    rest, held = samples.split(0.3, 0)
    assert (len(joined(rest)), len(joined(held))) == (5, 2)


def test_code_that_raises_is_quoted_in_one_line() -> None:
    def make() -> Iterator[Feeds]:
        yield {"x": rows(1)}
        raise RuntimeError("camera\nis gone")

    assert (
        refusal(make) == "python, feed 1: RuntimeError (camera is gone); mend the code that makes the feeds"
    )

    def at_once() -> list[Feeds]:
        raise KeyError("path")

    assert refusal(at_once) == "python, feed 0: KeyError ('path'); mend the code that makes the feeds"


@pytest.mark.parametrize("source", [3, None, np.zeros(3), b"bytes"])
def test_other_things_are_no_source(source: Any) -> None:
    assert refusal(source) == (
        f"samples from {type(source).__name__}: give a path, a dict {{'x': array}}, an iterable of such dicts, "
        "or a function that returns one"
    )


# ---------------------------------------------------------------- module:function


def test_module_and_function_run_only_if_code_is_allowed(module: Callable[[str], str]) -> None:
    name = module(
        "def feeds():\n    for i in range(3):\n        yield {'x': np.full((2, 2, 3), i, np.float32)}\n"
    )
    source = f"{name}:feeds"
    assert refusal(source) == f"{source}: runs Python code; say --allow-code if you trust it"
    assert name not in sys.modules
    samples = open_samples(source, [X], allow_code=True)
    assert samples.source == source and len(samples) == 6
    assert joined(samples)[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        (
            "def feeds(): yield 3\n",
            "feeds",
            "{s}, feed 0: int is no feed; yield dicts of one array per input",
        ),
        ("def feeds(): yield {}\n", "feed", "{s}: module '{m}' has no 'feed'; did you mean 'feeds'?"),
        ("feeds = 3\n", "feeds", "{s}: 'feeds' is int, not a function; name one that yields dicts"),
        ("def feeds(): return None\n", "feeds", "{s}, feed 0: TypeError ("),
        (
            "import no_such_module_here\n",
            "feeds",
            "{s}: the module needs 'no_such_module_here', which is not installed",
        ),
        (
            "1 / 0\n",
            "feeds",
            "{s}: importing it raised ZeroDivisionError (division by zero); mend the module",
        ),
        ("def (:\n", "feeds", "{s}: importing it raised SyntaxError ("),
        (
            "def feeds():\n    yield {'x': np.array([object()])}\n",
            "feeds",
            "{s}, feed 0: 'x' holds Python objects",
        ),
    ],
)
def test_code_that_cannot_be_used_is_refused(
    module: Callable[[str], str], text: str, function: str, message: str
) -> None:
    name = module(text)
    source = f"{name}:{function}"
    assert refusal(source, allow_code=True).startswith(message.format(s=source, m=name))


def test_a_module_that_does_not_exist_is_refused() -> None:
    assert refusal("no_such_module_here:feeds", allow_code=True) == (
        "no_such_module_here:feeds: no module 'no_such_module_here' here; run in its folder or install it"
    )
    assert "no module 'json.nothing' here" in refusal("json.nothing:feeds", allow_code=True)


def test_a_file_that_exists_is_never_taken_for_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "mod", x=rows(2))
    (tmp_path / "mod.npz").rename(tmp_path / "mod:feeds")
    assert len(open_samples("mod:feeds", [X])) == 2
