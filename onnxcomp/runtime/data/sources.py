"""What a source of samples is, and two of them: tables of arrays (npz, shards, dicts) and noise.

A source yields Chunks of raw arrays; it knows nothing of batches, selection or casting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError, UsageError
from onnxcomp.numerics.arrays import Array
from onnxcomp.runtime.data.fitting import Chunk, Fitter, InputSpec, check_labels, plain_array
from onnxcomp.runtime.data.npz import Header
from onnxcomp.runtime.data.preprocess import Preprocess

__all__ = ["ArraysTable", "RandomSource", "Source", "Table", "TableSource"]

_LONGEST_TABLE = 1 << 20
_MOST_ELEMENTS = 1 << 28
"""Elements of one made-up sample; a file that declares more is not worth a gigabyte of memory."""


class Source(Protocol):
    """Samples that can be walked again and again; `stop` bounds how far a walk looks, None for all.

    `batch` is the batch size that the network fixes for rows, None where it is free or where samples are
    whole feeds.
    """

    @property
    def batch(self) -> int | None:
        """The batch size that rows must fill."""

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield all samples, at most `rows` at a time."""

    def count(self, stop: int | None = None) -> int:
        """Return the number of samples, counting no further than `stop`."""

    def labels(self, stop: int | None = None) -> NDArray[np.int64] | None:
        """Return the labels `[n]` of the first `stop` samples, or None where there are none."""


class Table(Protocol):
    """Named arrays that can be read row by row; `where` names them in messages."""

    where: str
    headers: dict[str, Header]

    def rows(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """Yield the next `size` rows of the arrays `names`."""

    def load(self, name: str) -> Array:
        """Return the whole array `name`."""


class ArraysTable:
    """The Table of arrays that are in memory already; holds references, copies nothing.

    Raises:
        DataError: if a value is no plain array.
    """

    def __init__(self, arrays: Mapping[str, object], where: str) -> None:
        self.where = where
        self._arrays = {name: plain_array(name, value, where) for name, value in arrays.items()}
        self.headers = {name: Header(array.shape, array.dtype) for name, array in self._arrays.items()}

    def rows(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """Yield the next `size` rows of the arrays `names`, as views."""
        count = len(self._arrays[names[0]])
        for start in range(0, count, size):
            yield {name: self._arrays[name][start : start + size] for name in names}

    def load(self, name: str) -> Array:
        """Return the array `name` itself."""
        return self._arrays[name]


class TableSource:
    """Samples from tables of arrays (an npz, its shards, a dict): first axes count samples.

    An array of its input's own rank is cut into batches along the first axis. Where an array has one axis
    more, each of its entries is one whole feed, and arrays of their own rank beside it give one row to each
    feed. All headers are checked here, before anything runs; values are checked as they are read.

    Raises:
        DataError: if names, ranks, dtypes, shapes or first axes of the arrays do not fit.
    """

    def __init__(self, tables: Sequence[Table], fitter: Fitter) -> None:
        self._fitter = fitter
        self._names = [spec.name for spec in fitter.inputs]
        self.batch: int | None = None
        self._parts = [self._part(table) for table in tables]
        with_labels = [self._has_labels(table) for table, *_ in self._parts]
        if any(with_labels) and not all(with_labels):
            first = self._parts[with_labels.index(False)][0]
            raise DataError(
                f"{first.where}: no labels, other shards have them; give labels to all or to none"
            )
        for table, *_ in self._parts if any(with_labels) else ():
            header = table.headers["labels"]
            check_labels(header.shape, header.dtype, self._count(table), table.where)

    def count(self, stop: int | None = None) -> int:
        """Return the number of samples, no more than `stop`."""
        total = sum(self._count(table) for table, *_ in self._parts)
        return total if stop is None else min(stop, total)

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield rows of one table after the other, or whole feeds."""
        for table, whole, own in self._parts:
            start = 0
            for arrays in table.rows(self._names, rows):
                count = len(arrays[self._names[0]])
                index = np.arange(start, start + count, dtype=np.int64)
                start += count
                if not whole:
                    yield Chunk(table.where, index, arrays, table=own)
                    continue
                for row in range(count):
                    feed = {n: a[row] if n in whole else a[row : row + 1] for n, a in arrays.items()}
                    yield Chunk(table.where, index[row : row + 1], feed, whole=True, table=own)

    def labels(self, stop: int | None = None) -> NDArray[np.int64] | None:
        """Return the labels of all tables one after the other.

        Raises:
            DataError: if a file is damaged.
        """
        if not self._has_labels(self._parts[0][0]):
            return None
        parts = [table.load("labels").astype(np.int64) for table, *_ in self._parts]
        return np.concatenate(parts)[:stop]

    def _has_labels(self, table: Table) -> bool:
        return "labels" in table.headers and "labels" not in self._names

    def _count(self, table: Table) -> int:
        return table.headers[self._names[0]].shape[0]

    def _part(self, table: Table) -> tuple[Table, frozenset[str], Preprocess | None]:
        """Check one table; return it with the inputs whose entries are whole feeds, and its preprocessing."""
        self._fitter.check_names(table.headers, table.where, ("labels", "preprocess"))
        headers = {name: table.headers[name] for name in self._names}
        whole = self._fitter.whole_entries({n: h.shape for n, h in headers.items()}, table.where)
        count = headers[self._names[0]].shape[0]
        for name, header in headers.items():
            if header.shape[0] != count:
                raise DataError(
                    f"{table.where}: '{self._names[0]}' has {count} samples and '{name}' {header.shape[0]}; "
                    "the first axis counts samples and must be the same in all arrays"
                )
        if count == 0:
            raise DataError(f"{table.where}: no samples (arrays of length 0); add some or remove the file")
        if not whole:
            self.batch = self._fitter.batch(table.where)
        own = self._fitter.table(self._own_table(table))
        first = Chunk(table.where, np.zeros(1, dtype=np.int64), {}, bool(whole), own)
        for spec in self._fitter.inputs:
            shape = headers[spec.name].shape
            fed = shape[1:] if spec.name in whole else (1, *shape[1:]) if whole else shape
            self._fitter.check(fed, headers[spec.name].dtype, spec, first, batch_free=not whole)
        return table, whole, own

    def _own_table(self, table: Table) -> Preprocess | None:
        overruled = "preprocess" in self._names or self._fitter.preprocess is not None
        if overruled or "preprocess" not in table.headers:
            return None
        header, where = table.headers["preprocess"], f"{table.where}: array 'preprocess'"
        if header.dtype.kind != "U" or math.prod(header.shape) != 1 or header.nbytes > _LONGEST_TABLE:
            raise DataError(
                f"{where} is {header.dtype} {list(header.shape)}; "
                "store one short JSON string: numpy.array(json.dumps(table))"
            )
        return Preprocess.from_json(str(table.load("preprocess").item()), where)


class RandomSource:
    """Noise: floats are standard normal, integers and booleans 0 or 1; made sample by sample from the seed.

    Sample `i` is the same whatever the batch size. The numbers are what the network sees: a preprocess table,
    which makes images come out about standard normal, has done its work already. A free first axis counts
    samples; where first axes do not, each sample is one whole feed. Without `count` there are 64, or the next
    multiple of a fixed batch.

    Raises:
        UsageError: if an input has an unknown axis beside the first, or takes text.
    """

    def __init__(self, count: int | None, fitter: Fitter, seed: int) -> None:
        self._fitter = fitter
        self._seed = seed
        self._whole = not fitter.share_batch_axis
        self.batch = None if self._whole else fitter.batch("random")
        step = self.batch or 1
        self._count = count if count is not None else -(-64 // step) * step
        self.where = f"random:{self._count}"
        for spec in fitter.inputs:
            _check_random(spec)

    def count(self, stop: int | None = None) -> int:
        """Return the number of samples, no more than `stop`."""
        return self._count if stop is None else min(stop, self._count)

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield the samples, `rows` at a time or as whole feeds."""
        step = 1 if self._whole else rows
        for start in range(0, self._count, step):
            index = np.arange(start, min(start + step, self._count), dtype=np.int64)
            arrays = {}
            for number, spec in enumerate(self._fitter.inputs):
                samples = [self._sample(spec, number, int(i)) for i in index]
                arrays[spec.name] = samples[0] if self._whole else np.stack(samples)
            yield Chunk(self.where, index, arrays, self._whole)

    def labels(self, stop: int | None = None) -> None:
        """Return None: noise has no labels."""
        return

    def _sample(self, spec: InputSpec, number: int, index: int) -> Array:
        sizes = tuple(size if isinstance(size, int) else 1 for size in spec.shape or ())
        shape = sizes if self._whole else sizes[1:]
        generator = np.random.default_rng([self._seed, number, index])
        if spec.dtype.kind == "f":
            return np.asarray(generator.standard_normal(shape), dtype=spec.dtype)
        return np.asarray(generator.integers(0, 2, shape), dtype=spec.dtype)


def _check_random(spec: InputSpec) -> None:
    if spec.dtype.kind not in "fiub":
        raise UsageError(
            f"random samples: input '{spec.name}' takes {spec}; give real data with --calibration FILE"
        )
    if spec.shape is None:
        raise UsageError(f"random samples: input '{spec.name}' has no known shape; give it with --set-shape")
    for size in spec.shape[1:]:
        if not isinstance(size, int):
            raise UsageError(
                f"random samples: axis '{size or '?'}' of input '{spec.name}' ({spec}) has no size; "
                f"give it with --set-shape {spec.name}=..."
            )
    if math.prod(size for size in spec.shape if isinstance(size, int) and size) > _MOST_ELEMENTS:
        raise UsageError(
            f"random samples: input '{spec.name}' ({spec}) is too large to be made up; "
            f"give smaller sizes with --set-shape {spec.name}=..."
        )
