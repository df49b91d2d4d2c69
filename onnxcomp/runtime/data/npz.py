"""Reads `.npz` files row by row, so that a file larger than memory can feed a network.

An npz is a zip of `.npy` members. Each member is inflated once per walk, a few rows at a time; nothing is
ever unpickled.
"""

from __future__ import annotations

import lzma
import math
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxcomp.errors import DataError
from onnxcomp.numerics.arrays import Array

__all__ = ["Header", "NpzTable"]


_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    OSError,
    RecursionError,
    RuntimeError,  # encrypted members; its child NotImplementedError is an unknown compression
    SyntaxError,
    ValueError,
)


@dataclass(frozen=True)
class Header:
    """Shape and dtype of a stored array, and whether its first axis varies fastest (`fortran`)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """The bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzTable:
    """The arrays of one npz file, read in rows. Opening it reads the headers and no data.

    `where` is the path as given, `headers` maps the name of each array to its Header. The file is opened anew
    for every walk and closed after it, so that thousands of shards need no thousands of handles.

    Raises:
        DataError: if the file cannot be read, is no npz, is cut short, or holds pickled objects.
    """

    def __init__(self, path: str | Path) -> None:
        self.where = str(path)
        self.headers = self._read_headers()

    def rows(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """Yield the next `size` rows, the last time what is left, of the arrays `names` of equal first axes.

        Memory is bounded by `size` rows, whatever the length of the arrays. An array in Fortran order, whose
        rows are scattered over the file, is inflated into an unnamed temporary file first and mapped from
        there.

        Raises:
            DataError: if the file is damaged or not the one whose headers were read.
        """
        with ExitStack() as stack:
            archive = self._open(stack)
            walks = [self._member_rows(archive, stack, name, size) for name in names]
            for blocks in zip(*walks, strict=True):
                yield dict(zip(names, blocks, strict=True))

    def load(self, name: str) -> Array:
        """Return the whole array `name`; for small ones such as labels.

        Raises:
            DataError: as `rows`.
        """
        with ExitStack() as stack:
            archive = self._open(stack)
            member = stack.enter_context(self._member(archive, name))
            header = self._header(archive, member, name)
            with self._reading(name):
                return _block(member, header.shape, header.dtype, header.fortran)

    def _open(self, stack: ExitStack) -> zipfile.ZipFile:
        try:
            return stack.enter_context(zipfile.ZipFile(self.where))
        except _DAMAGE as problem:
            raise DataError(f"{self.where}: {_why_no_npz(self.where, problem)}") from problem

    def _read_headers(self) -> dict[str, Header]:
        headers: dict[str, Header] = {}
        with ExitStack() as stack:
            archive = self._open(stack)
            for filename in archive.namelist():
                if not filename.endswith(".npy"):
                    raise DataError(
                        f"{self.where}: {filename!r} in it is not an array (.npy); "
                        "write the file with numpy.savez(path, name=array)"
                    )
                name = filename.removesuffix(".npy")
                if name in headers:
                    raise DataError(f"{self.where}: array {name!r} is in it twice; write the file anew")
                with self._member(archive, name) as member:
                    headers[name] = self._header(archive, member, name)
        return headers

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as problem:
            if isinstance(problem, OSError) and problem.strerror:
                raise DataError(
                    f"{self.where}: array {name!r} cannot be read: {problem.strerror}; "
                    "mend the disk or the rights, or move the file"
                ) from problem
            reason = str(problem) or type(problem).__name__
            raise DataError(
                f"{self.where}: array {name!r} cannot be read ({' '.join(reason.split())}); "
                "the file is cut short or damaged, write or fetch it anew"
            ) from problem

    def _member(self, archive: zipfile.ZipFile, name: str) -> IO[bytes]:
        with self._reading(name):
            try:
                return archive.open(f"{name}.npy")
            except KeyError as problem:
                raise DataError(
                    f"{self.where}: array {name!r} is gone; the file changed while it was read"
                ) from problem

    def _header(self, archive: zipfile.ZipFile, member: IO[bytes], name: str) -> Header:
        """Return the header that `member`, just opened, begins with; leaves `member` at the data."""
        with self._reading(name):
            version = npy.read_magic(member)
            if version not in ((1, 0), (2, 0)):
                raise DataError(
                    f"{self.where}: array {name!r} has npy version {version}, which plain arrays do not "
                    "need; store one plain array per input"
                )
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(member)
            start = member.tell()
        header = Header(tuple(int(size) for size in shape), dtype, bool(fortran) and len(shape) > 1)
        if dtype.hasobject:
            raise DataError(
                f"{self.where}: array {name!r} holds pickled Python objects, which are never loaded; "
                "store plain numbers (numpy.stack a list of arrays)"
            )
        if dtype.names is not None or dtype.subdtype is not None:
            raise DataError(f"{self.where}: array {name!r} is structured; store one plain array per input")
        stored = archive.getinfo(f"{name}.npy").file_size - start
        if min(header.shape, default=0) < 0 or stored != header.nbytes:
            raise DataError(
                f"{self.where}: array {name!r} holds {stored} bytes, its shape {list(header.shape)} of "
                f"{dtype} needs {header.nbytes}; the file is cut short or damaged, write or fetch it anew"
            )
        known = getattr(self, "headers", {}).get(name, header)
        if known != header:
            raise DataError(
                f"{self.where}: array {name!r} is another now; the file changed while it was read"
            )
        return header

    def _member_rows(
        self, archive: zipfile.ZipFile, stack: ExitStack, name: str, size: int
    ) -> Iterator[Array]:
        member = stack.enter_context(self._member(archive, name))
        header = self._header(archive, member, name)
        count, *rest = header.shape
        mapped: Array | None = None
        if header.fortran and header.nbytes:
            with self._reading(name):
                mapped = _mapped(member, stack, header)
        for start in range(0, count, size):
            stop = min(start + size, count)
            with self._reading(name):
                if mapped is not None:
                    block = np.array(mapped[start:stop], order="C")
                else:
                    block = _block(member, (stop - start, *rest), header.dtype)
            yield block


def _block(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool = False) -> Array:
    """Return the next array of `shape` in `stream`, read-only; at the last, zipfile checks the checksum."""
    wanted = math.prod(shape) * dtype.itemsize
    data = stream.read(wanted)
    if len(data) != wanted:
        raise EOFError(f"{len(data)} bytes where {wanted} were expected")
    return np.ndarray(shape, dtype, buffer=data, order="F" if fortran else "C")


def _mapped(stream: IO[bytes], stack: ExitStack, header: Header) -> Array:
    """Return the array in `stream` mapped from a temporary file that lives as long as `stack`."""
    spool = stack.enter_context(tempfile.TemporaryFile(prefix="onnxcomp-"))  # noqa: SIM115
    shutil.copyfileobj(stream, spool)
    spool.flush()
    return np.memmap(spool, header.dtype, mode="r", shape=header.shape, order="F")


def _why_no_npz(path: str, problem: Exception) -> str:
    """Return what is wrong with a file that does not open as a zip, in words that say what to do."""
    if isinstance(problem, OSError):
        return f"cannot be read ({problem.strerror or problem})"
    with Path(path).open("rb") as file:
        magic = file.read(6)
    if magic == npy.MAGIC_PREFIX:
        return "a single .npy array; name it after the graph input: numpy.savez('data.npz', input=array)"
    if magic.startswith(b"PK"):
        return "not a whole .npz file (cut short or damaged); write or fetch it anew"
    return "not an .npz file; write one with numpy.savez(path, input=array), one array per graph input"
