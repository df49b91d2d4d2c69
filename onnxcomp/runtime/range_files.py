"""Ranges of values that are known already: from a file, or from the report of an earlier run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from onnxcomp.errors import UsageError, hint
from onnxcomp.ir.model import Model
from onnxcomp.runtime.documents import READABLE_VERSIONS

__all__ = ["Ranges", "check_ranges", "read_ranges"]

Ranges: TypeAlias = Mapping[str, tuple[float, float]]
"""The lowest and the highest number by the name of the value."""

CURE = "give the report of an earlier run with insert-qdq"


def read_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """Return the ranges in `path`: a file `{"schema_version": 2, "ranges": {NAME: [LOW, HIGH]}}`, or the report of a run.

    Raises:
        UsageError: where it cannot be read, is no such file, or holds no ranges.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"--ranges {path}: {problem.strerror or problem}; give a readable file") from problem
    except (UnicodeDecodeError, ValueError, RecursionError) as problem:
        raise UsageError(f"--ranges {path} is no JSON; {CURE}") from problem
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version not in READABLE_VERSIONS:
        said = f"schema version {version} is not known here" if version is not None else "it is no report"
        raise UsageError(f"--ranges {path}: {said}; {CURE}")
    table = document.get("ranges") if "ranges" in document else _reported(document)
    if not isinstance(table, dict) or not table:
        raise UsageError(f"--ranges {path} holds no ranges; {CURE}")
    return {name: _range(name, ends, path) for name, ends in table.items()}


def check_ranges(model: Model, given: Ranges) -> None:
    """Raise UsageError for a name that no value of `model` bears."""
    known = model.graph.values()
    for name in given:
        if name not in known:
            raise UsageError(
                f"--ranges: no value is called '{name}' in the model as insert-qdq gets and rewrites it"
                f"{hint(name, _stored_first(model))}"
            )


def _stored_first(model: Model) -> list[str]:
    """Return the names of computed values; weights have no ranges to give."""
    return [name for name in model.graph.values() if name and name not in model.graph.constants]


def _reported(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ranges in the changes of a report."""
    found: dict[str, Any] = {}
    runs = document.get("runs")
    for run in runs if isinstance(runs, list) else []:
        for change in run.get("changes") or [] if isinstance(run, dict) else []:
            details = change.get("details") if isinstance(change, dict) else None
            found_here = details.get("ranges") if isinstance(details, dict) else None
            if isinstance(found_here, dict):
                found.update(found_here)
    return found


def _range(name: str, ends: Any, path: Path) -> tuple[float, float]:
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_finite, ends))):
        raise UsageError(f"--ranges {path}: '{name}' is {ends!r}; give two finite numbers [LOW, HIGH]")
    low, high = float(ends[0]), float(ends[1])
    if low > high:
        raise UsageError(f"--ranges {path}: '{name}' reaches down from {low:g} to {high:g}; swap them")
    return low, high


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
