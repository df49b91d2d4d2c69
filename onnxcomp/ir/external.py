"""External data: tensors that live in files beside the model. What a model says about other files is not trusted.

A location is accepted only if it is a relative path without `..`, and if neither the file nor a folder on the way is a
link, unless links are allowed (model hubs keep their downloads in a cache of links). Files are mapped, not read: a
tensor takes memory only where it is looked at. A file that shrinks while it is mapped ends the process; onnxcomp does
not guard against others who change the model's folder during a run.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from onnxcomp.errors import ModelError
from onnxcomp.ir.graph import Array, Constant
from onnxcomp.ir.scopes import nested_tensors, subgraph_initializers
from onnxcomp.ir.tensors import (
    Layout,
    is_external,
    layout,
    packed_bits,
    raw_bytes,
    read_raw,
    read_tensor,
    write_tensor,
)

__all__ = ["DataWriter", "ExternalReader", "data_files", "inline_nested", "open_regular", "why_unsafe"]

_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
"""What an entry may say. `basepath` is a path on the machine that wrote the file and is never followed."""

_PAGE = 4096
"""Large tensors start on a page so that they can be mapped without copying."""
_LARGE = 2**16
_SMALL_ALIGNMENT = 64
_INLINE_BYTES = 1024
"""Smaller tensors stay in the model file: shape arithmetic reads them, and loaders of graphs without weights."""


# --- reading ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Entry:
    """Where a tensor says its data is; `length` is None where it says nothing."""

    location: str
    offset: int
    length: int | None
    checksum: str


@dataclass
class _DataFile:
    """An open data file; `ranges` says which tensor took which bytes."""

    size: int
    mapped: mmap.mmap | None
    ranges: dict[tuple[int, int], str] = field(default_factory=dict)

    @cached_property
    def sha1(self) -> str:
        return hashlib.sha1(self.mapped or b"", usedforsecurity=False).hexdigest()


class ExternalReader:
    """Reads tensors of a model in `folder`, their data inside the proto or in files; usable as a TensorReader.

    Arrays of external tensors are read-only views of the mapped file (elements of less than a byte are unpacked).
    `files` lists the data files met so far.
    """

    def __init__(self, folder: Path, *, allow_links: bool = False) -> None:
        self._folder = folder
        self._allow_links = allow_links
        self._files: dict[Path, _DataFile] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """The data files that tensors were read from, in order of first use."""
        return tuple(self._files)

    def __call__(self, tensor: TensorProto) -> Array:
        """Return the data of `tensor`.

        Raises:
            ModelError: naming the tensor, where its location is unsafe or its data does not fit what it declares.
        """
        if not is_external(tensor):
            return read_tensor(tensor)
        declared = layout(tensor)
        if tensor.data_type == TensorProto.STRING:
            raise ModelError(f"tensor {tensor.name!r} keeps strings in another file, which ONNX forbids")
        entry = _entry(tensor)
        path, file = self._open(tensor.name, entry.location)
        start = _place(tensor.name, entry, declared, file.size)
        if entry.checksum and entry.checksum.lower() != file.sha1:
            raise ModelError(
                f"the external data of {tensor.name!r} does not match its checksum; fetch {path} again"
            )
        if not declared.count or file.mapped is None:
            return np.empty(declared.shape, declared.dtype)
        file.ranges[start, start + declared.stored_bytes] = tensor.name
        if packed_bits(tensor.data_type) is not None:
            data = file.mapped[start : start + declared.stored_bytes]
            return read_raw(tensor.data_type, declared, data)
        return np.frombuffer(file.mapped, declared.dtype, declared.count, start).reshape(declared.shape)

    def check_overlaps(self) -> None:
        """Make sure that no two tensors share a part of their bytes; to share all of them is allowed (tied weights).

        Raises:
            ModelError: naming both tensors.
        """
        for path, file in self._files.items():
            ordered = sorted(file.ranges.items())
            for ((_, end), name), ((start, _), other) in itertools.pairwise(ordered):
                if start < end:
                    raise ModelError(f"the external data of {name!r} and {other!r} overlap in {path.name!r}")

    def _open(self, name: str, location: str) -> tuple[Path, _DataFile]:
        path = _contained(self._folder, location, name, self._allow_links)
        if path not in self._files:
            what = f"the external data of {name!r}"
            with open_regular(path, what, allow_links=self._allow_links) as stream:
                size = os.fstat(stream.fileno()).st_size
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else None
            self._files[path] = _DataFile(size, mapped)
        return path, self._files[path]


def _entry(tensor: TensorProto) -> _Entry:
    found: dict[str, str] = {}
    for pair in tensor.external_data:
        if pair.key not in _KEYS:
            raise ModelError(f"tensor {tensor.name!r} has the unknown external data key {pair.key!r}")
        if pair.key in found:
            raise ModelError(f"tensor {tensor.name!r} has two external data entries {pair.key!r}")
        found[pair.key] = pair.value
    if not found.get("location"):
        raise ModelError(f"tensor {tensor.name!r} keeps its data in another file but does not say which")
    numbers = {key: _number(tensor.name, key, found[key]) for key in ("offset", "length") if key in found}
    return _Entry(
        found["location"], numbers.get("offset", 0), numbers.get("length"), found.get("checksum", "")
    )


def _number(name: str, key: str, text: str) -> int:
    # int() would take signs, underscores, other scripts' digits and thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ModelError(
            f"tensor {name!r} has the external data {key} {text[:40]!r}, which is not a whole number"
        )
    return int(text)


def _place(name: str, entry: _Entry, declared: Layout, size: int) -> int:
    if entry.length is not None and entry.length != declared.stored_bytes:
        raise ModelError(
            f"tensor {name!r} of shape {list(declared.shape)} needs {declared.stored_bytes} bytes; its external data "
            f"has the length {entry.length}"
        )
    if entry.offset + declared.stored_bytes > size:
        raise ModelError(
            f"the external data of {name!r} ends at byte {entry.offset + declared.stored_bytes} of "
            f"{entry.location!r}, which has {size}; the file is cut short or belongs to another model"
        )
    return entry.offset


def why_unsafe(location: str) -> str | None:
    """Return what is wrong with `location` as a path below the model's folder, None where nothing is."""
    if not location.isprintable():
        return "which holds control characters"
    parts = location.replace("\\", "/").split("/")
    if not parts[0] or parts[0][1:2] == ":":
        return "an absolute path; only paths below the model's folder are read"
    if ".." in parts:
        return "outside the model's folder; only paths below it are read"
    return None


def _contained(folder: Path, location: str, name: str, allow_links: bool) -> Path:
    """Return the path of `location` below `folder`, having refused all ways out of it."""
    what = f"the external data of {name!r} lies at {location[:200]!r}"
    if reason := why_unsafe(location):
        raise ModelError(f"{what}, {reason}")
    path = folder
    try:
        for part in location.replace("\\", "/").split("/"):
            path = path / part
            if not allow_links and path.is_symlink():
                raise ModelError(
                    f"{what}, but {path.name!r} is a symbolic link; if you trust it, use --allow-links"
                )
    except OSError as problem:
        raise ModelError(f"{what}: {problem.strerror}") from problem
    return path


def open_regular(path: Path, what: str, *, allow_links: bool = True) -> BinaryIO:
    """Return `path` opened for reading if it is an ordinary file; `what` names it in messages.

    Never waits (a FIFO is refused, not read). Without `allow_links`, links of both kinds are refused.

    Raises:
        ModelError: for everything else, missing files included.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    if not allow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        stream = os.fdopen(os.open(path, flags), "rb")
    except (OSError, ValueError) as problem:
        raise ModelError(f"{what} cannot be read: {_reason(path, problem)}") from problem
    try:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{what} cannot be read: {str(path)!r} is not an ordinary file")
        if not allow_links and found.st_nlink > 1:
            raise ModelError(
                f"{what} cannot be read: {str(path)!r} is a hard link; if you trust it, use --allow-links"
            )
    except BaseException:
        stream.close()
        raise
    return stream


def _reason(path: Path, problem: OSError | ValueError) -> str:
    if isinstance(problem, FileNotFoundError):
        return f"there is no file {str(path)!r}"
    if isinstance(problem, IsADirectoryError):
        return f"{str(path)!r} is a folder"
    detail = problem.strerror if isinstance(problem, OSError) else problem
    return f"{str(path)!r}: {detail}"


def inline_nested(proto: ModelProto, reader: ExternalReader) -> None:
    """Pull external data of attributes, subgraphs and functions into `proto`, which is edited in place.

    Those are carried through as they are; a path in them would point nowhere once the model lies elsewhere.
    """
    for tensor in nested_tensors(proto):
        if is_external(tensor):
            tensor.raw_data = write_tensor(reader(tensor), "").raw_data
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def data_files(proto: ModelProto, folder: Path, *, allow_links: bool = False) -> dict[str, Path]:
    """Return the files that `proto`, lying in `folder`, keeps data in, by location, in order of first use.

    Raises:
        ModelError: for locations that are not safe to follow.
    """
    found: dict[str, Path] = {}
    for tensor in [*proto.graph.initializer, *nested_tensors(proto)]:
        if is_external(tensor):
            location = _entry(tensor).location
            found[location] = _contained(folder, location, tensor.name, allow_links)
    return found


# --- writing ---------------------------------------------------------------------------------------------------------
class DataWriter:
    """Lays out external data under the name `location`: first the protos with their places, then the bytes.

    `size` is how many bytes have been laid out so far.
    """

    def __init__(self, location: str) -> None:
        self.size = 0
        self._location = location
        self._pending: list[tuple[int, Array]] = []
        self._places: dict[tuple[int, int, np.dtype[Any]], int] = {}

    def proto(self, constant: Constant) -> TensorProto:
        """Return the TensorProto of `constant`: small ones and strings with their data, others with a place."""
        values = constant.values
        if values.nbytes < _INLINE_BYTES or values.dtype == object:
            return write_tensor(values, constant.name)
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = TensorProto(name=constant.name, data_type=elem_type, dims=values.shape)
        self._place(tensor, values)
        return tensor

    def move_out(self, proto: ModelProto) -> None:
        """Give the large initializers inside subgraphs of `proto` (edited in place) a place as well."""
        for tensor in subgraph_initializers(proto):
            if tensor.HasField("raw_data") and len(tensor.raw_data) >= _INLINE_BYTES:
                values = np.frombuffer(tensor.raw_data, np.uint8)
                tensor.ClearField("raw_data")
                self._place(tensor, values)

    def write(self, stream: BinaryIO) -> None:
        """Write all bytes, one tensor at a time, with zeros in the gaps."""
        position = 0
        for offset, values in self._pending:
            stream.write(bytes(offset - position))
            position = offset
            for piece in raw_bytes(values):
                stream.write(piece)
                position += piece.nbytes

    def _place(self, tensor: TensorProto, values: Array) -> None:
        length = layout(tensor).stored_bytes
        # Tied weights of a mapped file are one piece of memory under several names: they stay one.
        memory = (values.ctypes.data, values.nbytes, values.dtype)
        offset = self._places.get(memory) if values.flags.c_contiguous else None
        if offset is None:
            alignment = _PAGE if length >= _LARGE else _SMALL_ALIGNMENT
            offset = -(-self.size // alignment) * alignment
            self.size = offset + length
            self._pending.append((offset, values))
            if values.flags.c_contiguous:
                self._places[memory] = offset
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": self._location, "offset": offset, "length": length}.items():
            tensor.external_data.add(key=key, value=str(value))
