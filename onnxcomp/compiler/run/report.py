"""What a run did, as frozen records and as one JSON document.

Report
├── input, output     FileFacts     path, sha256, bytes; external data files likewise
├── data              DataFacts*    what was calibrated and judged on
├── runs              PassRun*      one per pass: status, cost before and after, changes, skips, notes
├── comparison        Comparison    output against input
├── conditions        Condition*    what was asked for, and whether it was met
├── timings           key -> number what was measured by the clock, milliseconds and ratios; --timings replays it
└── nodes             old name -> new name, None where the node is gone; unchanged names are absent
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

import numpy as np

from onnxcomp import __version__
from onnxcomp.analysis.cost import Cost
from onnxcomp.compiler.passbase import Change, Skip
from onnxcomp.compiler.run.verdict import Verdict
from onnxcomp.compiler.target.files import DEFAULT_TARGET
from onnxcomp.runtime.compare import Comparison
from onnxcomp.runtime.documents import SCHEMA_VERSION

__all__ = [
    "Condition",
    "DataFacts",
    "FileFacts",
    "PassRun",
    "Report",
    "RunStatus",
    "to_json",
    "versions",
]

PassStatus = Literal["changed", "unchanged", "rolled-back", "failed"]
RunStatus = Literal["done", "unchanged", "budget-not-met", "broken"]
"""How a run ended; `broken` means that the final file failed verification."""


@dataclass(frozen=True)
class FileFacts:
    """A model file as it is on disk; `external` are the sha256 of its data files by location, `bytes` counts all."""

    path: str
    sha256: str
    bytes: int
    external: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataFacts:
    """Samples that were used: `role` is calibration, evaluation or held-back (from calibration, to judge on).

    `mode` is real for the user's data, random for noise, none where the data-free mode was asked for.
    """

    role: Literal["calibration", "evaluation", "held-back"]
    mode: Literal["real", "random", "none"]
    source: str
    samples: int
    labelled: bool
    sha256: str | None


@dataclass(frozen=True)
class PassRun:
    """One pass of a run. `bytes` in the costs is the estimated file size; `reason` says why it was not kept."""

    spec: str
    name: str
    exact: bool
    status: PassStatus
    seconds: float
    before: Cost
    after: Cost
    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    shortfall: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Condition:
    """A bound that was asked for: `limit` and the `value` reached, in `unit`.

    A bound that is `met` without a `value` is one that no output could be held to.
    """

    name: str
    limit: float
    value: float | None
    unit: str
    met: bool

    def __str__(self) -> str:
        if self.value is None and self.met:
            return f"--{self.name} {_text(self.limit)}: cannot be judged, as no output can be compared"
        value = "not known" if self.value is None else f"{_text(self.value)} {self.unit}"
        return f"--{self.name} {_text(self.limit)}: {value}, {'met' if self.met else 'not met'}"


def _text(number: float) -> str:
    """Return a number with at most three decimals, and commas between thousands."""
    return f"{number:,.3f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Report:
    """Everything about one run of a pipeline."""

    pipeline: str
    status: RunStatus
    seed: int
    threads: int
    seconds: float
    before: Cost
    after: Cost
    runs: tuple[PassRun, ...]
    input: FileFacts | None = None
    output: FileFacts | None = None
    metric: str | None = None
    comparison: Comparison | None = None
    compared_on: str | None = None
    conditions: tuple[Condition, ...] = ()
    verdict: Verdict | None = None
    data: tuple[DataFacts, ...] = ()
    excluded: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    verification: Literal["full", "structural"] = "full"
    notes: tuple[str, ...] = ()
    target: str = DEFAULT_TARGET
    timings: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, str | None] = field(default_factory=dict)
    onnxcomp_version: str = __version__
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    schema_version: int = SCHEMA_VERSION

    def __str__(self) -> str:
        return to_json(self)


def versions() -> dict[str, str]:
    """Return the versions that decide what a run gives: of onnxcomp, python, onnx, onnxruntime and numpy."""
    found = {"onnxcomp": __version__, "python": platform.python_version()}
    for module in ("onnx", "onnxruntime", "numpy"):
        found[module] = _version(module)
    return found


def _version(module: str) -> str:
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        # Builds of onnxruntime for other hardware are packages of another name.
        owners = metadata.packages_distributions().get(module, [])
        return metadata.version(owners[0]) if owners else "unknown"


def to_json(document: Any) -> str:
    """Return `document` (records, mappings, sequences, numpy scalars) as JSON text with `schema_version` on top.

    Numbers that are not finite become null, which JSON can hold: see `identical` and `finite` beside them.
    """
    plain = _plain(document)
    return json.dumps({"schema_version": SCHEMA_VERSION, **plain}, indent=2, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Comparison):
            fields |= {"sqnr_db": _plain(value.sqnr_db), "mse": _plain(value.mse)}
        return fields
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
