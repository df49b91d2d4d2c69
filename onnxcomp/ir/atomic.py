"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from onnxcomp.errors import UsageError
from onnxcomp.ir.temporary import temporary_name

__all__ = ["check_output", "publish", "replacing"]


def check_output(path: Path, *, force: bool = False, sources: Sequence[Path] = ()) -> None:
    """Make sure that `path` can be written: call it before long work, not only before writing.

    `sources` are files that must survive whatever `force` says: `path` may be none of them, nor a link to one.

    Raises:
        UsageError: for a missing or unwritable folder, a path that is no ordinary file, one of `sources`, and for an
            existing file without `force`.
    """
    if "\0" in str(path):
        raise UsageError(f"cannot write {str(path)!r}: no path holds a zero byte")
    try:
        _check_place(path, force, sources)
    except OSError as problem:
        raise UsageError(f"cannot write {str(path)!r}: {problem.strerror}") from problem


def _check_place(path: Path, force: bool, sources: Sequence[Path]) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: there is no folder {str(folder)!r}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {str(path)!r}: the folder {str(folder)!r} is not writable")
    if path.is_dir() or not path.name:
        raise UsageError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {str(path)!r}: it is not an ordinary file")
    if any(_same_file(path, source) for source in sources):
        raise UsageError(f"cannot write {str(path)!r}: the model is read from it; choose another output")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{str(path)!r} already exists; choose another output, or --force to replace it")


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[BinaryIO, ...]]:
    """Open a temporary file beside each of `paths`; when the block ends well they take the places of `paths`.

    Contents are on the disk before any name changes, and names change in the order given. Whatever ends the block
    early (Ctrl-C included), the old files are as they were and nothing else is left. `paths` may exist.

    Raises:
        UsageError: in place of an OSError (full disk, no permission), with the system's reason.
    """
    temporary = [path.with_name(temporary_name(".tmp")) for path in paths]
    streams: list[BinaryIO] = []
    try:
        # Not tempfile: its files are private to the user, and what replaces OUT shall have the usual permissions.
        for path in temporary:
            streams.append(path.open("xb"))
        yield tuple(streams)
        for stream in streams:
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        _rename(list(zip(temporary, paths, strict=True)))
    except OSError as problem:
        raise UsageError(
            f"cannot write {str(paths[-1])!r}: {problem.strerror or problem}; nothing was written"
        ) from problem
    finally:
        for stream in streams:
            # Closing flushes what a full disk could not take the first time either.
            with contextlib.suppress(OSError):
                stream.close()
        for path in temporary:
            path.unlink(missing_ok=True)


def publish(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Move finished files to their places: every first path to the second, in one file system; all of them or none.

    Raises:
        UsageError: in place of an OSError, with the system's reason.
    """
    try:
        _rename(pairs)
    except OSError as problem:
        raise UsageError(
            f"cannot write {str(pairs[-1][1])!r}: {problem.strerror or problem}; nothing was written"
        ) from problem


def _rename(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Give every temporary file its final name; where one fails, take the others back."""
    undo: list[tuple[Path, Path | None]] = []
    try:
        for temporary, final in pairs:
            # A single rename is atomic by itself; only several need a way back.
            undo.append((final, _keep(final) if len(pairs) > 1 else None))
            temporary.replace(final)
    except BaseException:
        for final, kept in reversed(undo):
            if kept is not None:
                kept.replace(final)
            elif len(pairs) > 1:
                final.unlink(missing_ok=True)
        raise
    finally:
        for _, kept in undo:
            if kept is not None:
                kept.unlink(missing_ok=True)
    for folder in {final.parent for _, final in pairs}:
        _sync_folder(folder)


def _keep(final: Path) -> Path | None:
    """Return a second name for the file `final`, None where there is no such file."""
    if not os.path.lexists(final):
        return None
    kept = final.with_name(temporary_name(".old"))
    try:
        kept.hardlink_to(final)
    except OSError:
        # The file system knows no hard links: the old file is out of sight for a moment instead.
        final.replace(kept)
    return kept


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may undo the rename; not every system lets one open a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
