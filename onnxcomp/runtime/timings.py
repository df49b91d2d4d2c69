"""What was measured by the clock, so that a run whose choices hang on time can be repeated byte for byte.

A key says in words what was timed, and its number is milliseconds or a ratio of two times. The numbers are rounded before
anybody sees them, so that what a run used is what its report holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxcomp.errors import UsageError
from onnxcomp.runtime.documents import READABLE_VERSIONS, SCHEMA_VERSION

__all__ = ["Timings", "read_timings"]

_DIGITS = 6
"""Significant digits of a number; no clock knows more."""


class Timings:
    """Numbers by key: measured when first asked for, or replayed from `known`.

    With `known` (see `read_timings`), a key that it lacks is measured all the same and named in `notes`: the passes or the
    model are not those the timings were taken for. With `strict` it is an error. `used` holds what was asked for in this
    run, in order of first use, and can itself be replayed.
    """

    def __init__(self, known: Mapping[str, float] | None = None, *, strict: bool = False) -> None:
        self._known = known
        self._strict = strict
        self._missing: list[str] = []
        self.used: dict[str, float] = {}

    @property
    def replayed(self) -> bool:
        """Whether numbers are taken from an earlier run."""
        return self._known is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: how much of a replay had to be measured; empty where nothing had."""
        if not self._missing:
            return ()
        count = len(self._missing)
        what = f"{count} timings were" if count > 1 else "one timing was"
        named = "; ".join(self._missing[:3]) + (", ..." if count > 3 else "")
        return (f"{what} missing from --timings and measured now, so that another run may differ: {named}",)

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """Return the number of `key`, from this run or a replayed one; else what `measure` returns, recorded.

        Raises:
            UsageError: where a strict replay lacks the key, or `measure` gives no finite number.
        """
        if key not in self.used:
            self.used[key] = self._find(key, measure)
        return self.used[key]

    def _find(self, key: str, measure: Callable[[], float]) -> float:
        if self._known is not None:
            if key in self._known:
                return self._known[key]
            if self._strict:
                raise UsageError(
                    f"--timings lacks '{key}'; leave out --strict to measure it, or --timings to measure all"
                )
            self._missing.append(key)
        value = float(f"{measure():.{_DIGITS}g}")
        if not math.isfinite(value):
            raise UsageError(f"'{key}' cannot be timed: the clock gave {value}; run again, or use macs=")
        return value

    def save(self, path: Path) -> None:
        """Write what was used to `path` as JSON, whole or not at all."""
        document = {"schema_version": SCHEMA_VERSION, "timings": self.used}
        # Passes are described without the ir room, which imports onnx.
        from onnxcomp.ir.atomic import replacing

        with replacing(path) as (stream,):
            stream.write((json.dumps(document, indent=2) + "\n").encode())


def read_timings(path: Path) -> dict[str, float]:
    """Return the numbers in `path`: a file of timings, or the report of a run, which holds its own.

    Raises:
        UsageError: where it cannot be read, is no such file, or holds no timings.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(
            f"--timings {path}: {problem.strerror or problem}; give a readable file"
        ) from problem
    except (UnicodeDecodeError, ValueError, RecursionError) as problem:
        raise UsageError(f"--timings {path} is no JSON; give the report of an earlier run") from problem
    return _numbers(document, path)


def _numbers(document: Any, path: Path) -> dict[str, float]:
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version not in READABLE_VERSIONS:
        said = f"schema version {version} is not known here" if version is not None else "it is no report"
        raise UsageError(f"--timings {path}: {said}; give the report of an earlier run")
    table = document.get("timings")
    if not isinstance(table, dict) or not table:
        raise UsageError(
            f"--timings {path} holds no timings; "
            "give the report of an earlier run with a latency budget or --require-speedup"
        )
    for key, number in table.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise UsageError(
                f"--timings {path}: '{key}' is {number!r}, no number; give the report of an earlier run"
            )
    return {key: float(number) for key, number in table.items()}
