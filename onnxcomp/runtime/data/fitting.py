"""Fits stored samples to the inputs of a network: names, rank, dtype, shape, finite values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import DataError
from onnxcomp.numerics.arrays import Array
from onnxcomp.runtime.data.preprocess import Preprocess, did_you_mean

__all__ = ["Chunk", "Fitter", "InputSpec", "check_labels", "plain_array"]

_UINT8_ADVICE = (
    "give a [preprocess] table with scale, mean, std and layout in the config, --preprocess FILE, "
    "or an array 'preprocess' in the npz"
)


@dataclass(frozen=True)
class InputSpec:
    """One graph input as sample data must fit it.

    `dtype` is numpy's; a string input has `numpy.dtype(object)`. In `shape` an int is fixed and a name or
    None is free; a `shape` of None means that not even the rank is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    @property
    def rank(self) -> int | None:
        """The number of axes, or None where it is unknown."""
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        dtype = "text" if self.dtype.kind in "OU" else self.dtype.name
        if self.shape is None:
            return f"{dtype} of any shape"
        return f"{dtype} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Chunk:
    """Raw arrays of some samples of one file or feed, as stored.

    `arrays[name]` is `[b, ...]` by input name; where `whole` holds it is one complete feed of the network,
    and counts as one sample. `index` `[b]` says which samples of `where` these are. `table` is the
    preprocessing that holds for them.
    """

    where: str
    index: NDArray[np.int64]
    arrays: dict[str, Array]
    whole: bool = False
    table: Preprocess | None = None

    def select(self, keep: NDArray[np.bool_]) -> Chunk:
        """Return the samples where `keep` `[b]` holds; not for whole feeds, which are one sample."""
        if keep.all():
            return self
        arrays = {name: array[keep] for name, array in self.arrays.items()}
        return Chunk(self.where, self.index[keep], arrays, self.whole, self.table)


@dataclass(frozen=True)
class Fitter:
    """What sample data must fit: the inputs of a network, and the preprocessing that was asked for.

    `preprocess` wins over what the files say; `"none"` means that the arrays are fed as they are. A table is
    for images: the float or uint8 inputs of rank 4, or all float inputs of a network that has none such.
    """

    inputs: tuple[InputSpec, ...]
    preprocess: Preprocess | Literal["none"] | None = None

    def table(self, own: Preprocess | None) -> Preprocess | None:
        """Return the table that holds for a file which itself says `own`."""
        if self.preprocess is None:
            return own
        return None if isinstance(self.preprocess, str) else self.preprocess

    @cached_property
    def image_inputs(self) -> frozenset[str]:
        """The names of the inputs that a preprocess table is for."""
        floats = [spec.name for spec in self.inputs if spec.dtype.kind == "f"]
        images = [spec.name for spec in self.inputs if spec.rank == 4 and _takes_images(spec)]
        return frozenset(images or floats)

    @property
    def share_batch_axis(self) -> bool:
        """Whether the first axis of every input counts the same samples, as far as the shapes tell."""
        firsts = {spec.shape[0] if spec.shape else None for spec in self.inputs}
        ranks = [spec.rank for spec in self.inputs]
        return 0 not in ranks and len(firsts - {None}) <= 1

    def batch(self, where: str) -> int | None:
        """Return the batch size that the inputs fix, or None where it is free.

        Raises:
            DataError: if two inputs fix different sizes, so that first axes cannot count samples.
        """
        fixed = {s.name: s.shape[0] for s in self.inputs if s.shape and isinstance(s.shape[0], int)}
        if len(set(fixed.values())) > 1:
            sizes = ", ".join(f"'{name}' {size}" for name, size in fixed.items())
            raise DataError(
                f"{where}: the inputs of the network fix different first axes ({sizes}), so rows are no "
                "samples; give arrays with one axis more, one whole feed per entry"
            )
        return next(iter(fixed.values()), None)

    def check_names(self, names: Iterable[str], where: str, reserved: Sequence[str]) -> None:
        """Hold the names of the arrays in `where` against the inputs; those in `reserved` may be there too.

        Raises:
            DataError: for an array that is no input, and for an input without an array.
        """
        wanted = [spec.name for spec in self.inputs]
        found = [name for name in names if name in wanted or name not in reserved]
        missing = [name for name in wanted if name not in found]
        for name in found:
            if name not in wanted:
                hint = did_you_mean(name, missing) if missing else "; leave it out"
                raise DataError(
                    f"{where}: array {name!r} is not an input of the network (inputs: {', '.join(wanted)})"
                    f"{hint or '; rename it'}"
                )
        if missing:
            raise DataError(
                f"{where}: no array for input '{missing[0]}' (arrays: {', '.join(found) or 'none'}); "
                f"add one that fits {self._spec(missing[0])}"
            )

    def whole_entries(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> frozenset[str]:
        """Return the inputs whose arrays have one axis more than the input: one whole feed per entry.

        Raises:
            DataError: if an array has neither the rank of its input nor one axis more.
        """
        whole = set()
        for spec in self.inputs:
            rank, given = spec.rank, len(shapes[spec.name])
            if given > 0 and rank in (None, given):
                continue
            if given != (rank or 0) + 1:
                rows = f"rank {rank} (rows are samples) or " if rank else ""
                raise DataError(
                    f"{where}: array '{spec.name}' has shape {list(shapes[spec.name])}, the network takes "
                    f"{spec}; give {rows}rank {(rank or 0) + 1} (one whole feed per entry)"
                )
            whole.add(spec.name)
        return frozenset(whole)

    def check(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], spec: InputSpec, chunk: Chunk, *, batch_free: bool
    ) -> None:
        """Hold shape and dtype of the array for `spec`, as it is stored, against the input.

        `batch_free` says that the first axis counts samples and may have any size.

        Raises:
            DataError: naming the file, the sample, the input and what it takes.
        """
        table = chunk.table if spec.name in self.image_inputs else None
        where = f"{chunk.where}: sample {chunk.index[0]} of input '{spec.name}'"
        _check_dtype(dtype, spec, table, where)
        if table is not None:
            table.check(shape, where)
        fed = table.shape(shape) if table is not None else shape
        if spec.shape is None or _fits(fed, spec.shape, batch_free):
            return
        axes = 1 if batch_free and len(fed) == len(spec.shape) else 0
        made = f" (stored {list(shape[axes:])})" if table is not None and fed != shape else ""
        wanted = ", ".join("?" if size is None else str(size) for size in spec.shape[axes:])
        raise DataError(
            f"{where} has shape {list(fed[axes:])}{made}, the network takes [{wanted}]"
            f"{_shape_advice(shape, spec.shape, table)}"
        )

    def fit(self, chunk: Chunk) -> dict[str, Array]:
        """Return the feeds that `chunk` makes: preprocessed, cast to the dtype of each input, C-contiguous.

        Floats are rounded to the precision of the input. Integers are taken for integer inputs, where every value
        stays exact; for float inputs only uint8 images with a table are.

        Raises:
            DataError: if dtype, shape or a value does not fit, naming the file, the sample and the input.
        """
        feeds = {}
        for spec in self.inputs:
            raw = chunk.arrays[spec.name]
            self.check(raw.shape, raw.dtype, spec, chunk, batch_free=not chunk.whole)
            values = raw
            if chunk.table is not None and spec.name in self.image_inputs:
                values = chunk.table.apply(raw) if spec.dtype.kind == "f" else chunk.table.arrange(raw)
            feeds[spec.name] = _cast(values, raw, spec, chunk)
        return feeds

    def _spec(self, name: str) -> InputSpec:
        return next(spec for spec in self.inputs if spec.name == name)


def check_labels(shape: tuple[int, ...], dtype: np.dtype[Any], count: int, where: str) -> None:
    """Hold shape and dtype of an array of labels against the `count` samples that it is for.

    Raises:
        DataError: if they are no integers that int64 holds, or not one per sample.
    """
    if dtype.kind not in "iu" or not np.can_cast(dtype, np.int64):
        raise DataError(f"{where}: labels are {dtype}, int64 is needed; store labels.astype('int64')")
    if shape != (count,):
        raise DataError(
            f"{where}: labels have shape {list(shape)} and there are {count} samples; "
            "give one class number each"
        )


def plain_array(name: str, value: object, where: str) -> Array:
    """Return `value`, an array or nested lists from Python code, as an array.

    Raises:
        DataError: if it is ragged, holds Python objects, or is structured.
    """
    try:
        array: Array = np.asarray(value)
    except (ValueError, TypeError) as problem:
        raise DataError(
            f"{where}: '{name}' is no array ({problem}); give plain numbers of one shape"
        ) from problem
    if array.dtype.hasobject or array.dtype.names is not None:
        raise DataError(f"{where}: '{name}' holds Python objects or records; give an array of plain numbers")
    return array


def _takes_images(spec: InputSpec) -> bool:
    return spec.dtype.kind == "f" or spec.dtype == np.uint8


def _check_dtype(dtype: np.dtype[Any], spec: InputSpec, table: Preprocess | None, where: str) -> None:
    wanted = spec.dtype
    if table is not None and wanted == np.uint8 and not table.only_moves:
        raise DataError(
            f"{where}: the network takes uint8 and the preprocess table makes floats; "
            "leave scale, mean and std out of it, or say --preprocess none"
        )
    if dtype == np.uint8 and wanted.kind == "f" and table is None:
        raise DataError(
            f"{where}: stored as uint8 without preprocessing, the network takes {wanted}; {_UINT8_ADVICE}"
        )
    # Integers for a float input are a mistake more often than not (raw pixels, indices); only images with a table are meant.
    kinds = {"f": "f", "i": "iub", "u": "iub", "b": "iub", "O": "U", "U": "U"}.get(wanted.kind, "")
    if dtype != wanted and dtype.kind not in kinds and not (dtype == np.uint8 and wanted.kind == "f"):
        plain = "text (numpy str)" if wanted.kind in "OU" else wanted.name
        raise DataError(f"{where}: stored as {dtype}, the network takes {plain}; convert the array")


def _fits(shape: tuple[int, ...], wanted: Sequence[int | str | None], batch_free: bool) -> bool:
    if len(shape) != len(wanted):
        return False
    free = 1 if batch_free else 0
    return all(not isinstance(w, int) or w == s for w, s in zip(wanted[free:], shape[free:], strict=True))


def _shape_advice(
    stored: tuple[int, ...], wanted: Sequence[int | str | None], table: Preprocess | None
) -> str:
    """Return what to do about an array of shape `stored` that `table` does not make fit `wanted`."""
    if len(stored) == len(wanted) - 1 and _fits(stored, wanted[1:], False):
        return "; the first axis counts samples, give array[None]"
    if table is not None and table.shape(stored) != stored and _fits(stored, wanted, True):
        return "; the stored array fits as it is, say layout = 'NCHW' or --preprocess none"
    if len(stored) == 4 and _fits((stored[0], stored[3], *stored[1:3]), wanted, True):
        return "; it looks like NHWC, give a [preprocess] table with layout = 'NHWC->NCHW'"
    return "; mend the data"


def _cast(values: Array, raw: Array, spec: InputSpec, chunk: Chunk) -> Array:
    """Return `values` in the dtype of `spec`; `raw` are the stored values that they were made from."""
    if spec.dtype.kind in "OU":
        return np.asarray(values, dtype=spec.dtype, order="C")
    with np.errstate(over="ignore", invalid="ignore"):
        fitted = np.asarray(values, dtype=spec.dtype, order="C")
        if values.dtype.kind in "iub" and values.dtype != spec.dtype:
            changed = (fitted.astype(values.dtype) != values) | ((fitted < 0) != (values < 0))
            if changed.any():
                raise DataError(
                    f"{_place(changed, spec, chunk)} holds {values[changed][0]}, which {spec.dtype} cannot "
                    "hold exactly; mend the data"
                )
    if spec.dtype.kind == "f" and not np.isfinite(fitted).all():
        if raw.dtype.kind == "f" and not np.isfinite(raw).all():
            nan = np.isnan(raw).any()
            place = _place(np.isnan(raw) if nan else np.isinf(raw), spec, chunk)
            raise DataError(f"{place} holds {'NaN' if nan else 'Inf'}; mend that sample or leave it out")
        raise DataError(
            f"{_place(~np.isfinite(fitted), spec, chunk)} holds a value beyond the range of {spec.dtype}; "
            "scale the data or mend the preprocess table"
        )
    return fitted


def _place(bad: NDArray[np.bool_], spec: InputSpec, chunk: Chunk) -> str:
    """Return where the first sample is for which `bad`, shaped like its array, holds anywhere."""
    row = 0 if chunk.whole else int(bad.reshape(len(chunk.index), -1).any(axis=1).argmax())
    return f"{chunk.where}: sample {chunk.index[row]} of input '{spec.name}'"
