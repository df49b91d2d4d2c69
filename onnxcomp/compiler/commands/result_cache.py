"""Results kept on disk by the digest of all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxcomp.errors import UsageError
from onnxcomp.ir.atomic import replacing

__all__ = ["ResultCache", "cache_folder", "key_of"]


def cache_folder(given: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder for results: `given`, the user's cache folder for None, or None for the text `none`.

    The user's cache folder is `$XDG_CACHE_HOME/onnxcomp`, by default `~/.cache/onnxcomp` (XDG base directories 0.8).
    """
    if given is not None:
        return None if given == "none" else Path(given)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "onnxcomp"
    # Whoever has no home has no cache.
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "onnxcomp"
    return None


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the sha256 of `facts`, which JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class ResultCache:
    """JSON documents in `folder`, a file each; None keeps nothing. Never raises: a cache that fails is reported in `notes`."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.notes: list[str] = []

    def path(self, key: str) -> Path | None:
        """Return the file of the document `key`, whether or not it exists."""
        return None if self._folder is None else self._folder / f"{key}.json"

    def read(self, key: str) -> dict[str, Any] | None:
        """Return the document kept under `key`, or None: there is none, or its file is damaged."""
        path = self.path(key)
        if path is None:
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            document = kept["document"]
            if kept["key"] != key or kept["sha256"] != key_of(document):
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            reason = f"cannot be read ({problem.strerror})" if isinstance(problem, OSError) else "is damaged"
            self.notes.append(f"the cached result {path} {reason} and was ignored")
            return None
        return dict(document)

    def write(self, key: str, document: Mapping[str, Any]) -> None:
        """Keep `document` under `key`, whole or not at all."""
        path = self.path(key)
        if path is None:
            return
        text = json.dumps({"key": key, "sha256": key_of(document), "document": document}, indent=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as (stream,):
                stream.write(text.encode())
        except (OSError, UsageError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else str(problem)
            self.notes.append(f"the result is not kept in {path.parent}: {reason}")
