"""Samples that Python code makes: dicts `{input: array}`, walked as they come."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError
from onnxcomp.numerics.arrays import Array
from onnxcomp.runtime.data.fitting import Chunk, Fitter, check_labels, plain_array
from onnxcomp.runtime.data.npz import Header

__all__ = ["FeedSource", "FeedSpool"]

_ALL_ROWS = 1 << 40


class FeedSource:
    """Samples from dicts `{input: array}` that `make()` yields anew for every walk.

    Where the first axis of every input counts samples, the rows of each dict are samples and may be batched
    anew; else each dict is one whole feed and one sample. A dict may carry `labels`. Opening looks at the
    first dict.

    Raises:
        DataError: if there is no dict, or the first one does not fit.
    """

    def __init__(self, make: Callable[[], Iterable[object]], where: str, fitter: Fitter) -> None:
        self._make = make
        self._where = where
        self._fitter = fitter
        self._names = [spec.name for spec in fitter.inputs]
        self.batch = fitter.batch(where) if fitter.share_batch_axis else None
        self._known_count: int | None = None
        first = next(self.chunks(1), None)
        if first is None:
            raise DataError(f"{where}: no samples; yield dicts of one array per input, {self._example}")
        fitter.fit(first)

    def count(self, stop: int | None = None) -> int:
        """Return the number of samples; walks the feeds to find out, once or up to `stop`."""
        if self._known_count is not None:
            return self._known_count if stop is None else min(stop, self._known_count)
        total = 0
        for chunk in self.chunks(_ALL_ROWS):
            total += len(chunk.index)
            if stop is not None and total >= stop:
                return stop
        return total

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield the rows of each feed, or whole feeds.

        Raises:
            DataError: if a feed is no dict of arrays, names, lengths or shapes do not fit, the code that makes
                the feeds raises, or a later walk yields another number of samples than the first.
        """
        total = 0
        for where, feed in self._feeds():
            for chunk in self._chunks_of(feed, where, rows):
                total += len(chunk.index)
                yield chunk
        if self._known_count not in (None, total):
            raise DataError(
                f"{self._where}: {self._known_count} samples the first time and {total} now; "
                "make it yield the same every time it is called"
            )
        self._known_count = total

    def labels(self, stop: int | None = None) -> NDArray[np.int64] | None:
        """Return the `labels` of all feeds one after the other, or None where the feeds have none.

        Raises:
            DataError: as `chunks`, or if labels are no integers or not one per sample.
        """
        found: list[NDArray[np.int64]] = []
        total = 0
        for where, feed in self._feeds():
            if "labels" not in feed or "labels" in self._names:
                return None
            count = sum(len(chunk.index) for chunk in self._chunks_of(feed, where, _ALL_ROWS))
            values = np.atleast_1d(plain_array("labels", feed["labels"], where))
            check_labels(values.shape, values.dtype, count, where)
            found.append(values.astype(np.int64))
            total += count
            if stop is not None and total >= stop:
                break
        return np.concatenate(found)[:stop]

    @property
    def _example(self) -> str:
        return f"{{'{self._names[0]}': array}}"

    def _feeds(self) -> Iterator[tuple[str, Mapping[str, object]]]:
        """Yield each feed behind the name it has in messages, its keys checked."""
        labelled: bool | None = None
        for number, feed in enumerate(_guarded(self._make, self._where, self._example)):
            where = f"{self._where}, feed {number}"
            self._fitter.check_names(feed, where, ("labels",))
            if labelled not in (None, "labels" in feed):
                raise DataError(
                    f"{where}: {'no labels' if labelled else 'labels'}, unlike the feeds before; "
                    "give labels to all of them or to none"
                )
            labelled = "labels" in feed
            yield where, feed

    def _chunks_of(self, feed: Mapping[str, object], where: str, rows: int) -> Iterator[Chunk]:
        arrays = {name: plain_array(name, feed[name], where) for name in self._names}
        whole = self._is_whole(arrays, where)
        table = self._fitter.table(None)
        chunk = Chunk(where, np.zeros(1, dtype=np.int64), arrays, whole, table)
        for spec in self._fitter.inputs:
            raw = arrays[spec.name]
            self._fitter.check(raw.shape, raw.dtype, spec, chunk, batch_free=not whole)
        if whole:
            yield chunk
            return
        count = len(arrays[self._names[0]])
        if count == 0:
            raise DataError(f"{where}: no samples (arrays of length 0); leave such feeds out")
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            part = {name: array[start:stop] for name, array in arrays.items()}
            yield Chunk(where, np.arange(start, stop, dtype=np.int64), part, table=table)

    def _is_whole(self, arrays: Mapping[str, Array], where: str) -> bool:
        """Return whether the arrays are one whole feed, their first axes not being samples."""
        if not self._fitter.share_batch_axis or any(array.ndim == 0 for array in arrays.values()):
            return True
        if len({len(array) for array in arrays.values()}) == 1:
            return False
        if all(spec.shape and spec.shape[0] is not None for spec in self._fitter.inputs):
            lengths = ", ".join(f"'{name}' {len(array)}" for name, array in arrays.items())
            raise DataError(
                f"{where}: arrays of different lengths ({lengths}); "
                "the first axis counts samples, make it the same"
            )
        return True


class FeedSpool:
    """The feeds of an iterator that can be walked only once, kept in a temporary file; call it to walk them.

    Only their positions stay in memory. The file is gone when this object is. `example` shows users what a
    feed is.

    Raises:
        DataError: if the iterator yields anything but dicts of plain arrays, raises, or the disk is full.
    """

    def __init__(self, feeds: Iterator[object], where: str, example: str) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="onnxcomp-")  # noqa: SIM115 - see the finalizer
        weakref.finalize(self, self._file.close)
        self._feeds: list[dict[str, tuple[int, Header]]] = []
        for number, feed in enumerate(_guarded(lambda: feeds, where, example)):
            place = f"{where}, feed {number}"
            arrays = {name: plain_array(name, value, place) for name, value in feed.items()}
            try:
                self._feeds.append({name: self._keep(array) for name, array in arrays.items()})
            except OSError as problem:
                raise DataError(
                    f"{place}: cannot be kept in {tempfile.gettempdir()} ({problem.strerror}); "
                    "pass a function that returns a fresh iterator instead"
                ) from problem

    def __call__(self) -> Iterator[dict[str, Array]]:
        """Yield the feeds as they came."""
        for feed in self._feeds:
            yield {name: self._load(offset, header) for name, (offset, header) in feed.items()}

    def _keep(self, array: Array) -> tuple[int, Header]:
        offset = self._file.seek(0, 2)
        self._file.write(array.tobytes())
        return offset, Header(array.shape, array.dtype)

    def _load(self, offset: int, header: Header) -> Array:
        self._file.seek(offset)
        return np.ndarray(header.shape, header.dtype, buffer=self._file.read(header.nbytes))


def _guarded(
    make: Callable[[], Iterable[object]], where: str, example: str
) -> Iterator[Mapping[str, object]]:
    """Yield what `make()` yields.

    Raises:
        DataError: if something yielded is no dict, or `make` or its iterator raises anything.
    """
    number = 0
    try:
        for feed in make():
            if not isinstance(feed, Mapping):
                raise DataError(
                    f"{where}, feed {number}: {type(feed).__name__} is no feed; "
                    f"yield dicts of one array per input, {example}"
                )
            yield feed
            number += 1
    except DataError:
        raise
    except Exception as problem:  # code of the user may raise anything, and its own words help most
        reason = " ".join(str(problem).split())[:200]
        raise DataError(
            f"{where}, feed {number}: {type(problem).__name__} ({reason}); mend the code that makes the feeds"
        ) from problem
