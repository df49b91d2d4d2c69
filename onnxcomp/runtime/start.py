"""What a model takes in a process of its own: the time until its first answer, and its memory."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.ir.temporary import prefix
from onnxcomp.runtime.sandbox import run_child
from onnxcomp.runtime.session import SessionError

__all__ = ["Start", "start_fresh"]

_CHILD = "onnxcomp.runtime.start_child"


@dataclass(frozen=True)
class Start:
    """What loading a model and running it once took in a fresh process.

    `seconds` counts from before onnxruntime loads the file until the first result is there, imports not included;
    `peak_bytes` is the largest resident size beyond that of a process that has only imported onnxruntime, None where the
    system does not say.
    """

    seconds: float
    peak_bytes: int | None


def start_fresh(
    path: str | Path,
    feeds: Mapping[str, NDArray[Any]],
    *,
    threads: int = 1,
    custom_op_libs: Sequence[str] = (),
    processes: int = 1,
    timeout: float = 600.0,
) -> Start:
    """Return the median of what so many `processes`, one after the other, took for the model at `path`.

    Raises:
        SessionError: where the model does not load or run there, or takes more than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix=prefix()) as folder:
        stored = Path(folder) / "feeds.npz"
        keys = {name: f"a{number}" for number, name in enumerate(feeds)}
        arrays: dict[str, Any] = {keys[name]: _plain(array) for name, array in feeds.items()}
        np.savez(stored, **arrays)
        request = {
            "path": str(Path(path).absolute()),
            "feeds": str(stored),
            "inputs": keys,
            "threads": threads,
            "custom_op_libs": [str(Path(library).absolute()) for library in custom_op_libs],
        }
        starts = [_run(request, str(path), timeout) for _ in range(processes)]
    peaks = [start.peak_bytes for start in starts if start.peak_bytes is not None]
    return Start(median(s.seconds for s in starts), int(median(peaks)) if peaks else None)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(str) if array.dtype == object else array


def _run(request: Mapping[str, Any], name: str, timeout: float) -> Start:
    try:
        child = run_child(_CHILD, request, timeout)
    except subprocess.TimeoutExpired as problem:
        raise SessionError(f"{name}: its first run took more than {timeout:g} s and was stopped") from problem
    try:
        found = json.loads(child.stdout)
    except ValueError as problem:
        lines = child.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise SessionError(
            f"{name}: its first run ended with code {child.returncode}: {lines[-1]}"
        ) from problem
    if "error" in found:
        raise SessionError(f"{name}: it does not run in a process of its own: {found['error']}")
    return Start(**found)
