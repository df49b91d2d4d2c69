"""What Samples promise whatever they come from: batches, the first n, held-back parts, digests."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.errors import DataError, UsageError
from onnxcomp.runtime.data.samples import InputSpec, Preprocess, Samples, open_samples

Array = NDArray[Any]
F32 = np.dtype(np.float32)
X = InputSpec("x", F32, ("N", 5))


def numbered(n: int) -> NDArray[np.float32]:
    """Rows that tell their own position."""
    return np.repeat(np.arange(n, dtype=np.float32), 5).reshape(n, 5)


def positions(samples: Samples, size: int = 4) -> list[int]:
    return [int(row[0]) for feeds in samples.batches(size) for row in feeds["x"]]


def kinds(tmp_path: Path, n: int) -> list[Samples]:
    """The same n rows from an npz, from shards, from feeds, from a function and from a dict, with labels."""
    x, labels = numbered(n), np.arange(n) % 3
    tmp_path.mkdir(exist_ok=True)
    np.savez(tmp_path / "one.npz", x=x, labels=labels)
    (tmp_path / "shards").mkdir()
    cuts = sorted({0, n // 3, n // 2, n})
    parts: list[dict[str, Any]] = [{"x": x[a:b], "labels": labels[a:b]} for a, b in pairwise(cuts)]
    for i, part in enumerate(parts):
        np.savez_compressed(tmp_path / "shards" / f"{i}.npz", x=part["x"], labels=part["labels"])
    sources: list[Any] = [
        tmp_path / "one.npz",
        tmp_path / "shards",
        parts,
        lambda: iter(parts),
        iter(parts),
        {"x": x, "labels": labels},
    ]
    return [open_samples(source, [X]) for source in sources]


def test_every_source_gives_the_same_samples_labels_and_digest(tmp_path: Path) -> None:
    digests = set()
    for samples in kinds(tmp_path, 17):
        assert len(samples) == 17
        for size in (1, 4, 16, 17, 100):
            batches = list(samples.batches(size))
            assert [len(feeds["x"]) for feeds in batches] == [min(size, 17 - i) for i in range(0, 17, size)]
            np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in batches]), numbered(17))
        labels = samples.labels()
        assert labels is not None and labels.tolist() == [i % 3 for i in range(17)]
        digests.add(samples.digest())
    assert len(digests) == 1


def test_parts_are_the_same_from_every_source(tmp_path: Path) -> None:
    for samples in kinds(tmp_path, 17):
        rest, held = samples.take(12).split(0.25, 3)
        assert (len(rest), len(held)) == (9, 3)
        both = positions(rest) + positions(held)
        assert sorted(both) == list(range(12)) and positions(rest) == sorted(positions(rest))
        for part in (rest, held):
            labels = part.labels()
            assert labels is not None and labels.tolist() == [i % 3 for i in positions(part, 2)]
    first, *others = [positions(s.split(0.25, 3)[1]) for s in kinds(tmp_path / "again", 17)]
    assert all(other == first for other in others)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 5), st.integers(1, 9))
def test_a_split_is_a_partition_of_about_the_share(n: int, share: float, seed: int, size: int) -> None:
    samples = open_samples({"x": numbered(n)}, [X])
    rest, held = samples.split(share, seed)
    assert sorted(positions(rest, size) + positions(held, size)) == list(range(n))
    assert len(rest) >= 1 and len(held) >= 1
    assert abs(len(held) - share * n) <= 1
    assert positions(samples.split(share, seed)[1]) == positions(held)


def test_another_seed_draws_other_samples() -> None:
    samples = open_samples({"x": numbered(100)}, [X])
    draws = {tuple(positions(samples.split(0.2, seed)[1])) for seed in range(5)}
    assert len(draws) == 5
    assert all(draw != tuple(range(80, 100)) for draw in draws)


def test_parts_can_be_cut_again() -> None:
    samples = open_samples({"x": numbered(20), "labels": np.arange(20)}, [X])
    rest, _ = samples.split(0.5, 0)
    assert positions(rest.take(3)) == positions(rest)[:3]
    again = rest.split(0.3, 1)
    assert sorted(positions(again[0]) + positions(again[1])) == positions(rest)
    labels = rest.take(3).labels()
    assert labels is not None and labels.tolist() == positions(rest)[:3]


def test_take_gives_the_first_or_all() -> None:
    samples = open_samples({"x": numbered(6)}, [X])
    assert positions(samples.take(4)) == [0, 1, 2, 3] and len(samples.take(4)) == 4
    assert positions(samples.take(9)) == list(range(6)) and len(samples.take(9)) == 6
    assert positions(samples.take(4).take(5)) == [0, 1, 2, 3]
    assert positions(open_samples({"x": numbered(6)}, [X], limit=2).take(5)) == [0, 1]


def test_a_limit_beyond_the_data_takes_all_of_it() -> None:
    samples = open_samples({"x": numbered(6), "labels": np.arange(6)}, [X], limit=100)
    labels = samples.labels()
    assert len(samples) == 6 and labels is not None and len(labels) == 6


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: s.take(0), "python: 0 samples are none; take 1 or more"),
        (lambda s: list(s.batches(0)), "python: batches of 0 samples; give 1 or more"),
        (lambda s: s.split(0.0, 0), "python: a share of 0.0 cannot be held back; give one between 0 and 1"),
        (lambda s: s.split(1.0, 0), "python: a share of 1.0 cannot be held back; give one between 0 and 1"),
        (
            lambda s: s.take(1).split(0.5, 0),
            "python: 1 sample is too few to hold some back; give 2 or more",
        ),
    ],
)
def test_calls_that_make_no_sense_are_refused(call: Any, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        call(open_samples({"x": numbered(4)}, [X]))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [({"limit": 0}, "--samples 0: give 1 or more"), ({"seed": -1}, "--seed -1: give 0 or more")],
)
def test_options_that_make_no_sense_are_refused(options: Any, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_samples({"x": numbered(4)}, [X], **options)
    assert str(caught.value) == text


# ---------------------------------------------------------------- a batch size that the network fixes

FIXED = InputSpec("x", F32, (4, 5))


def test_a_fixed_batch_wins_over_the_size_asked_for() -> None:
    samples = open_samples({"x": numbered(12)}, [FIXED])
    for size in (1, 4, 64):
        assert [feeds["x"].shape for feeds in samples.batches(size)] == [(4, 5)] * 3
    one = open_samples({"x": numbered(3)}, [InputSpec("x", F32, (1, 5))])
    assert [feeds["x"].shape for feeds in one.batches(64)] == [(1, 5)] * 3


def test_samples_that_do_not_fill_a_fixed_batch_are_refused_at_opening() -> None:
    with pytest.raises(DataError) as caught:
        open_samples({"x": numbered(10)}, [FIXED])
    assert str(caught.value) == (
        "python: 10 samples do not fill batches of 4, the size that the network fixes; "
        "give a multiple of 4 with --samples"
    )
    assert len(open_samples({"x": numbered(10)}, [FIXED], limit=8)) == 8
    with pytest.raises(DataError, match="python: 2 samples do not fill batches of 4"):
        list(open_samples([{"x": numbered(10)}], [FIXED]).batches(4))


def test_parts_never_cut_a_fixed_batch() -> None:
    samples = open_samples({"x": numbered(40)}, [FIXED])
    assert len(samples.take(1)) == 4 and len(samples.take(5)) == 8
    rest, held = samples.split(0.1, 0)
    assert (len(rest), len(held)) == (36, 4)
    assert sorted(positions(rest) + positions(held)) == list(range(40))
    with pytest.raises(UsageError, match="4 samples are too few to hold some back; give 8 or more"):
        samples.take(4).split(0.5, 0)


def test_whole_feeds_of_a_fixed_batch_count_as_one_sample_each() -> None:
    samples = open_samples({"x": np.stack([numbered(4)] * 3)}, [FIXED])
    assert len(samples) == 3 and len(samples.take(1)) == 1
    assert [feeds["x"].shape for feeds in samples.batches(8)] == [(4, 5)] * 3


# ---------------------------------------------------------------- digest


def test_a_digest_tells_any_difference_in_what_is_fed() -> None:
    def digest(x: Any, spec: InputSpec = X, **options: Any) -> str:
        return open_samples({spec.name: x}, [spec], **options).digest()

    base = numbered(6)
    other = base.copy()
    other[5, 4] += 1
    labelled = [open_samples({"x": base, "labels": np.arange(6) + i}, [X]).digest() for i in (0, 1)]
    seen = [
        digest(base),
        digest(other),
        digest(base[::-1]),
        digest(base[:5]),
        digest(base, InputSpec("y", F32, ("N", 5))),
        digest(base, InputSpec("x", np.dtype(np.float64), ("N", 5))),
        digest(base.reshape(6, 5, 1), InputSpec("x", F32, ("N", 5, 1))),
        digest(base, preprocess=Preprocess(scale=2)),
        *labelled,
    ]
    assert len(set(seen)) == len(seen)
    assert all(len(text) == 64 and int(text, 16) >= 0 for text in seen)


def test_a_digest_is_of_what_is_fed_and_not_of_how_it_is_kept(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (40, 5)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=stored)
    np.savez_compressed(tmp_path / "b.npz", x=Preprocess(scale=0.5).apply(stored))
    kept = open_samples(tmp_path / "a.npz", [X], preprocess=Preprocess(scale=0.5)).digest()
    assert kept == open_samples(tmp_path / "b.npz", [X]).digest()
    whole = open_samples({"x": Preprocess(scale=0.5).apply(stored)[:, None]}, [X])
    assert kept == whole.digest()


def test_samples_know_their_inputs() -> None:
    assert open_samples({"x": numbered(1)}, [X]).inputs == (X,)
