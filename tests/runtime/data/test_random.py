"""Samples that a text names without a file of its own: noise; and the texts that name nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.errors import DataError, UsageError
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


# ---------------------------------------------------------------- noise


def test_random_is_64_standard_normal_samples_and_bits_for_integers() -> None:
    mask = InputSpec("mask", np.dtype(np.bool_), ("N", 4))
    samples = open_samples("random", [X, InputSpec("ids", I64, ("N", 16)), mask])
    assert len(samples) == 64 and samples.source == "random:64" and samples.labels() is None
    (feeds,) = samples.batches(64)
    assert feeds["x"].dtype == np.float32 and feeds["x"].shape == (64, 2, 3)
    assert abs(feeds["x"].mean()) < 0.2 and 0.8 < feeds["x"].std() < 1.2
    assert feeds["ids"].dtype == np.int64 and set(np.unique(feeds["ids"])) == {0, 1}
    assert feeds["mask"].dtype == np.bool_ and 0 < feeds["mask"].mean() < 1


def test_random_depends_on_the_seed_and_on_nothing_else() -> None:
    one = open_samples("random:20", [X], seed=1)
    assert len(one) == 20
    np.testing.assert_array_equal(joined(one, 1), joined(one, 7))
    np.testing.assert_array_equal(joined(one), joined(open_samples("random:20", [X], seed=1)))
    np.testing.assert_array_equal(joined(one), joined(open_samples("random:64", [X], seed=1))[:20])
    assert not np.array_equal(joined(one), joined(open_samples("random:20", [X], seed=2)))
    assert len(np.unique(joined(one))) == 20 * 6


def test_random_is_what_the_network_sees_whatever_the_table() -> None:
    table = Preprocess(scale=1 / 255, mean=(0.5,))
    np.testing.assert_array_equal(
        joined(open_samples("random:3", [X], preprocess=table)), joined(open_samples("random:3", [X]))
    )


def test_random_makes_whole_feeds_where_first_axes_do_not_count_samples() -> None:
    samples = open_samples(
        "random:3", [InputSpec("state", F32, (2, 1, 5)), InputSpec("w", F32, ("N", 7)), RATE]
    )
    feeds = list(samples.batches(8))
    assert [(f["state"].shape, f["w"].shape, f["rate"].shape) for f in feeds] == [((2, 1, 5), (1, 7), ())] * 3


def test_random_fills_the_batches_that_the_network_fixes() -> None:
    spec = InputSpec("x", F32, (3, 2))
    assert len(open_samples("random", [spec])) == 66
    assert refusal("random:64", spec) == (
        "random:64: 64 samples do not fill batches of 3, the size that the network fixes; "
        "give a multiple of 3 with --samples"
    )


@pytest.mark.parametrize(
    "text",
    ["random:", "random:0", "random:-3", "random:x", "random:1.5", "random:\u0663", "random:9999999999"],
)
def test_random_takes_a_whole_number(text: str) -> None:
    assert refusal(text) == f"{text}: N in random:N is a whole number of samples, 1 or more; give random:64"


def test_random_needs_known_sizes_and_numbers() -> None:
    assert refusal("random", InputSpec("ids", I64, ("N", "seq"))) == (
        "random samples: axis 'seq' of input 'ids' (int64 [N, seq]) has no size; give it with --set-shape ids=..."
    )
    assert "axis '?' of input 'ids'" in refusal("random", InputSpec("ids", I64, ("N", None)))
    assert refusal("random", InputSpec("ids", I64, None)) == (
        "random samples: input 'ids' has no known shape; give it with --set-shape"
    )
    assert refusal("random", InputSpec("s", np.dtype(object), ("N",))) == (
        "random samples: input 's' takes text [N]; give real data with --calibration FILE"
    )


# ---------------------------------------------------------------- what a text names


def test_a_path_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", x=rows(1))
    path = tmp_path / "calibraton.npz"
    assert refusal(str(path)) == f"{path}: no such file or directory; did you mean 'calibration.npz'?"
    with pytest.raises(UsageError):
        open_samples(path, [X])


def test_a_path_like_nothing_is_refused_with_the_kinds_of_source(tmp_path: Path) -> None:
    kinds = "give an .npz, a directory or glob of .npz or images, module:function, or random[:N]"
    assert refusal(str(tmp_path / "zzz" / "q")) == f"{tmp_path}/zzz/q: no such file or directory; {kinds}"
    assert refusal("") == f"empty path: no such file or directory; {kinds}"


def test_a_glob_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    pattern = str(tmp_path / "*.npz")
    assert refusal(pattern) == f"{pattern}: matches no file; mend the pattern"


def test_a_path_that_the_system_refuses_is_refused_in_one_line() -> None:
    assert "cannot be looked into (File name too long); mend the path" in refusal("x" * 5000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(str(tmp_path / "pipe")) == (
        f"{tmp_path / 'pipe'}: neither a file nor a directory; give an .npz or a directory"
    )
