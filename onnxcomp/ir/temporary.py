"""Names of temporary files, and the removal of those that processes which were killed have left."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["prefix", "remove_leftovers", "temporary_name"]

STALE_SECONDS = 3600
"""A file younger than this may belong to a run on another machine that shares the folder, where its process is not seen."""

_OURS = re.compile(r"^\.?onnxcomp-(\d+)-\w+(\.tmp|\.old)?$")


def prefix() -> str:
    """Return what names of this process's temporary files and folders begin with."""
    return f"onnxcomp-{os.getpid()}-"


def temporary_name(suffix: str) -> str:
    """Return a new hidden name for a file beside the one that it will replace."""
    return f".{prefix()}{secrets.token_hex(8)}{suffix}"


def remove_leftovers(folder: Path | None, *, process: int | None = None) -> list[Path]:
    """Remove temporary files of ended processes from `folder` and the system's temporary folder, and return them.

    Only files and folders with our names go that belong to this user: those of the ended `process`, or without it those whose
    process is gone and that nobody has written to for an hour.
    """
    found = []
    for place in {folder, Path(tempfile.gettempdir())} - {None}:
        for path in _leftovers(place, process):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                found.append(path)
    return found


def _leftovers(folder: Path | None, process: int | None) -> Iterator[Path]:
    if folder is None:
        return
    with suppress(OSError):
        for entry in os.scandir(folder):
            match = _OURS.match(entry.name)
            if match is None:
                continue
            with suppress(OSError):
                facts = entry.stat(follow_symlinks=False)
                mine = not hasattr(os, "getuid") or facts.st_uid == os.getuid()
                ended = (
                    int(match[1]) == process if process is not None else _stale(int(match[1]), facts.st_mtime)
                )
                if mine and ended:
                    yield Path(entry.path)


def _stale(process: int, written: float) -> bool:
    return time.time() - written > STALE_SECONDS and not _alive(process)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
