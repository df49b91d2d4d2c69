"""Samples for calibration and evaluation: opened, checked, batched, streamed.

`open_samples` takes everything that `--calibration` and `--evaluation` take, and what Python code passes
instead. What comes out are Samples: feeds that fit the network, in batches, as often as they are wanted, in
bounded memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError, UsageError
from onnxcomp.numerics.arrays import Array
from onnxcomp.runtime.data.fitting import Chunk, Fitter, InputSpec
from onnxcomp.runtime.data.locate import open_path
from onnxcomp.runtime.data.made_feeds import FeedSource, FeedSpool
from onnxcomp.runtime.data.preprocess import Preprocess
from onnxcomp.runtime.data.sources import ArraysTable, Source, TableSource

__all__ = ["InputSpec", "Preprocess", "SampleSource", "Samples", "open_samples"]

Feeds: TypeAlias = dict[str, Array]
SampleSource: TypeAlias = (
    str
    | os.PathLike[str]
    | Mapping[str, object]
    | Iterable[Mapping[str, object]]
    | Callable[[], Iterable[Mapping[str, object]]]
)
"""Where samples come from: text as on the command line, a path, arrays by input, feeds, or a function that makes them."""


class Samples:
    """Samples that fit a network, to be walked as often as wanted; made by `open_samples`.

    `source` says in words for reports where they come from: the path, `random:64`, `module:function` or
    `python`. A sample is a row of the arrays where first axes count samples, else one whole feed.
    """

    def __init__(
        self,
        source: str,
        origin: Source,
        fitter: Fitter,
        *,
        stop: int | None = None,
        chosen: NDArray[np.int64] | None = None,
    ) -> None:
        """Keep the first `stop` samples of `origin`, or those at the ascending positions `chosen`."""
        self.source = source
        self._origin = origin
        self._fitter = fitter
        self._stop = stop
        self._chosen = chosen

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The graph inputs that the feeds fit."""
        return self._fitter.inputs

    def __len__(self) -> int:
        """Return the number of samples; for feeds made by code this may walk them once."""
        return self._origin.count(self._stop) if self._chosen is None else len(self._chosen)

    def batches(self, size: int) -> Iterator[Feeds]:
        """Yield the feeds of all samples in order, `size` samples at a time, the last time what is left.

        Each is `{input: array}` with exactly the graph inputs, in their dtypes, preprocessed, finite,
        C-contiguous and read-only. Where the network fixes its batch size, that one is used; samples of
        another shape than those before begin a new batch; a whole feed is a batch of its own. Memory is
        bounded by `size` samples.

        Raises:
            UsageError: if `size` is below 1.
            DataError: if a sample does not fit, naming file, sample and input, or a fixed batch is not full.
        """
        for _, feeds in self._batches(size):
            yield feeds

    def labels(self) -> NDArray[np.int64] | None:
        """Return the labels `[n]`, int64, one per sample, or None where the source has none.

        Raises:
            DataError: if they are no integers, or not one per sample.
        """
        stop = self._stop if self._chosen is None else int(self._chosen[-1]) + 1
        found = self._origin.labels(stop)
        return found if found is None or self._chosen is None else found[self._chosen]

    def take(self, n: int) -> Samples:
        """Return the first `n` samples, or all if there are fewer; a fixed batch of the network is never cut.

        Raises:
            UsageError: if `n` is below 1.
        """
        if n < 1:
            raise UsageError(f"{self.source}: {n} samples are none; take 1 or more")
        batch = self._origin.batch or 1
        n = -(-n // batch) * batch
        if self._chosen is not None:
            return self._with(chosen=self._chosen[:n])
        return self._with(stop=n if self._stop is None else min(n, self._stop))

    def after(self, n: int) -> Samples:
        """Return the samples after the first `n`, or all if there are no more; a fixed batch is never cut."""
        batch = self._origin.batch or 1
        n = -(-n // batch) * batch
        if n >= len(self):
            return self
        return self._with(chosen=(np.arange(len(self)) if self._chosen is None else self._chosen)[n:])

    def split(self, held_back: float, seed: int) -> tuple[Samples, Samples]:
        """Return `(rest, held)`, both in order; `held` is the share `held_back`, drawn by `seed`.

        Neither is empty; batches that the network fixes are never cut. The same seed draws the same samples.

        Raises:
            UsageError: if `held_back` is not between 0 and 1, or there are too few samples for two parts.
        """
        if not 0 < held_back < 1:
            raise UsageError(
                f"{self.source}: a share of {held_back} cannot be held back; give one between 0 and 1"
            )
        batch, count = self._origin.batch or 1, len(self)
        if count < 2 * batch:
            raise UsageError(
                f"{self.source}: {count} sample{' is' if count == 1 else 's are'} too few to hold some back; "
                f"give {2 * batch} or more"
            )
        held_count = min(max(round(count * held_back / batch), 1), count // batch - 1) * batch
        draw = np.random.default_rng(seed).permutation(count)
        positions = np.arange(count) if self._chosen is None else self._chosen
        rest, held = draw[held_count:], draw[:held_count]
        return self._with(chosen=positions[np.sort(rest)]), self._with(chosen=positions[np.sort(held)])

    def digest(self) -> str:
        """Return the sha256 over all that is fed and the labels: name, dtype, shape, bytes of each sample.

        It is the same whatever the batch size, the compression and the sharding, and another if anything fed
        differs.

        Raises:
            DataError: as `batches`.
        """
        return _digest(self.inputs, self._batches(32), self.labels)

    def _with(self, stop: int | None = None, chosen: NDArray[np.int64] | None = None) -> Samples:
        return Samples(self.source, self._origin, self._fitter, stop=stop, chosen=chosen)

    def _batches(self, size: int) -> Iterator[tuple[bool, Feeds]]:
        """Yield as `batches`, each feed behind whether it is a whole one."""
        if size < 1:
            raise UsageError(f"{self.source}: batches of {size} samples; give 1 or more")
        fixed = self._origin.batch
        packer = _Packer(fixed or size, fixed, self.source)
        for chunk in self._chunks(fixed or size):
            feeds = self._fitter.fit(chunk)
            if chunk.whole:
                yield from ((False, batch) for batch in packer.flush())
                yield True, _frozen(feeds)
            else:
                yield from ((False, batch) for batch in packer.add(feeds))
        yield from ((False, batch) for batch in packer.flush())

    def _chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield the chunks of the chosen samples, walking no further than the last of them."""
        start = 0
        last = self._stop if self._chosen is None else int(self._chosen[-1]) + 1
        for chunk in self._origin.chunks(rows):
            stop = start + len(chunk.index)
            if self._chosen is None:
                keep = np.arange(start, stop) < (stop if last is None else last)
            else:
                low, high = np.searchsorted(self._chosen, (start, stop))
                keep = np.zeros(stop - start, dtype=np.bool_)
                keep[self._chosen[low:high] - start] = True
            if keep.any():
                yield chunk.select(keep)
            start = stop
            if last is not None and start >= last:
                return


def _digest(
    inputs: Sequence[InputSpec],
    batches: Iterable[tuple[bool, Feeds]],
    labels: Callable[[], NDArray[np.int64] | None],
) -> str:
    """Return the sha256 over `batches`, whole feeds and rows alike, and then over what `labels` returns."""
    hashes = {spec.name: hashlib.sha256() for spec in inputs}
    for whole, feeds in batches:
        for name, array in feeds.items():
            for sample in [array] if whole else [array[i : i + 1] for i in range(len(array))]:
                hashes[name].update(f"{sample.shape}".encode())
                text = sample.dtype.hasobject
                hashes[name].update(json.dumps(sample.tolist()).encode() if text else sample.tobytes())
    parts = [[spec.name, str(spec.dtype), hashes[spec.name].hexdigest()] for spec in inputs]
    found = labels()
    marks = None if found is None else hashlib.sha256(found.tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([parts, marks]).encode()).hexdigest()


class _Packer:
    """Packs rows into batches of `size`; what a change of shape or the end leaves makes a smaller one."""

    def __init__(self, size: int, fixed: int | None, source: str) -> None:
        self._size = size
        self._fixed = fixed
        self._source = source
        self._parts: list[Feeds] = []
        self._rows = 0

    def add(self, feeds: Feeds) -> Iterator[Feeds]:
        """Take some rows; yield the batches that are full."""
        if self._parts and any(a.shape[1:] != feeds[n].shape[1:] for n, a in self._parts[0].items()):
            yield from self.flush()
        self._parts.append(feeds)
        self._rows += len(next(iter(feeds.values())))
        while self._rows >= self._size:
            yield self._cut(self._size)

    def flush(self) -> Iterator[Feeds]:
        """Yield what is left, if anything."""
        if self._rows and self._fixed is not None:
            raise _not_full(self._source, self._fixed, self._rows)
        if self._rows:
            yield self._cut(self._rows)

    def _cut(self, count: int) -> Feeds:
        whole = self._parts[0]
        if len(self._parts) > 1:
            whole = {name: np.concatenate([part[name] for part in self._parts]) for name in whole}
        self._rows -= count
        self._parts = [{name: array[count:] for name, array in whole.items()}] if self._rows else []
        return _frozen({name: array[:count] for name, array in whole.items()})


def open_samples(
    source: SampleSource,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | Literal["none"] | None = None,
    limit: int | None = None,
    allow_code: bool = False,
    seed: int = 0,
) -> Samples:
    """Return the samples in `source`, fit for a network that takes `inputs`.

    `source` is one of

        path of an .npz         one array per input; the first axis counts samples (or, with one axis
                                more, each entry is one whole feed); `labels` and `preprocess` may be there
        directory or glob       of .npz shards or of image files, by name; images need a preprocess table
        "module:function"       the function yields `{input: array}` dicts; only with `allow_code`
        "random", "random:N"    noise from `seed`, see RandomSource; the shapes must be known
        dict of arrays          as an npz
        iterable of dicts       feeds; an iterator that can be walked once is kept in a temporary file
        function                returns such an iterable, for every walk anew

    `preprocess` wins over the table in an npz; `"none"` feeds arrays as they are stored; None leaves it to
    the file. `limit` keeps the first samples. Headers, names, dtypes, shapes and labels are checked here,
    values when read.

    Raises:
        UsageError: if the source does not exist, is no source, needs `allow_code`, or `limit` cannot be kept.
        DataError: if the data does not fit the inputs.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--samples {limit}: give 1 or more")
    if seed < 0:
        raise UsageError(f"--seed {seed}: give 0 or more")
    fitter = Fitter(tuple(inputs), preprocess)
    if not fitter.inputs:
        raise DataError("the network has no inputs, so there is nothing to feed; run it without data")
    if isinstance(source, Iterator):
        example = f"{{'{fitter.inputs[0].name}': array}}"
        source = FeedSpool(islice(source, limit), "python", example)
    words, origin = _open(source, fitter, allow_code, seed)
    samples = Samples(words, origin, fitter, stop=limit)
    if origin.batch is not None and not isinstance(origin, FeedSource) and len(samples) % origin.batch:
        raise _not_full(words, origin.batch, len(samples))
    return samples


def _open(source: object, fitter: Fitter, allow_code: bool, seed: int) -> tuple[str, Source]:
    if isinstance(source, str | os.PathLike):
        return open_path(os.fspath(source), fitter, allow_code=allow_code, seed=seed)
    if isinstance(source, Mapping):
        return "python", TableSource([ArraysTable(source, "python")], fitter)
    if callable(source):
        return "python", FeedSource(source, "python", fitter)
    if isinstance(source, Iterable) and not isinstance(source, np.ndarray | bytes):
        return "python", FeedSource(lambda: source, "python", fitter)
    raise UsageError(
        f"samples from {type(source).__name__}: give a path, a dict {{'{fitter.inputs[0].name}': array}}, "
        "an iterable of such dicts, or a function that returns one"
    )


def _not_full(source: str, fixed: int, count: int) -> DataError:
    return DataError(
        f"{source}: {count} samples do not fill batches of {fixed}, the size that the network fixes; "
        f"give a multiple of {fixed} with --samples"
    )


def _frozen(feeds: Feeds) -> Feeds:
    """Return read-only views: what is fed is shared with the source and with whoever walks it next."""
    views = {name: array.view() for name, array in feeds.items()}
    for view in views.values():
        view.flags.writeable = False
    return views
