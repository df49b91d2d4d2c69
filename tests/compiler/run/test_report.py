"""Reports: JSON that any reader takes, whatever passes put into it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

import onnxcomp
from onnxcomp.compiler.run.report import Condition, Report, to_json, versions
from tests.support.fakes import Breaker, Scale, classifier


@dataclass(frozen=True)
class Odd:
    """What does not go into JSON by itself."""

    number: Any = field(default_factory=lambda: np.float32(0.5))
    count: Any = field(default_factory=lambda: np.int64(3))
    array: Any = field(default_factory=lambda: np.arange(3))
    endless: float = math.inf
    nothing: float = math.nan
    names: frozenset[str] = frozenset({"b", "a"})
    path: Path = Path("a/b")
    keys: dict[Any, Any] = field(default_factory=lambda: {1: (np.True_,)})


def test_numpy_sets_paths_and_numbers_beyond_json_become_plain() -> None:
    assert json.loads(to_json(Odd()), parse_constant=lambda c: 1 / 0) == {
        "schema_version": 2,
        "number": 0.5,
        "count": 3,
        "array": [0, 1, 2],
        "endless": None,
        "nothing": None,
        "names": ["a", "b"],
        "path": "a/b",
        "keys": {"1": [True]},
    }


def test_the_schema_version_comes_first_and_every_field_is_there() -> None:
    report = onnxcomp.optimize(classifier(), [Scale(), Breaker()]).report
    document = json.loads(str(report), parse_constant=lambda c: 1 / 0)
    assert next(iter(document)) == "schema_version"
    assert document.keys() == {f.name for f in fields(Report)}
    assert document["comparison"]["outputs"][0]["max_abs"] > 0
    assert document["comparison"]["sqnr_db"] == document["comparison"]["outputs"][0]["sqnr_db"]


def test_a_condition_reads_as_a_sentence() -> None:
    assert str(Condition("max-drop", 1.0, 2.5, "percentage points of top1 lost", False)) == (
        "--max-drop 1: 2.5 percentage points of top1 lost, not met"
    )
    assert str(Condition("min-sqnr", 20.0, None, "dB", False)) == "--min-sqnr 20: not known, not met"
    assert str(Condition("require-smaller", 1103649, 543415, "bytes", True)) == (
        "--require-smaller 1,103,649: 543,415 bytes, met"
    )
    assert str(Condition("min-sqnr", 20, math.inf, "dB", True)) == "--min-sqnr 20: inf dB, met"


def test_versions_are_known() -> None:
    assert "unknown" not in versions().values()
    assert versions()["onnxcomp"] == onnxcomp.__version__
