"""The config file: one TOML schema, in which a key that nobody knows is an error.

Keys are called like the options of `onnxcomp optimize`, which win over them. What decides about trust (running code,
following links, loading libraries) and about replacing files is not among them: a config file comes along with a model.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from onnxcomp.errors import DataError, UsageError, hint
from onnxcomp.runtime.data.preprocess import Preprocess

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["METRICS", "TEMPLATE", "Config", "read_config", "read_preprocess"]

METRICS = ("top1", "agreement", "mse", "sqnr")
"""What `metric` may be."""


@dataclass(frozen=True)
class Config:
    """What a config file says; None where it says nothing."""

    passes: str | None = None
    preset: str | None = None
    target: str | None = None
    calibration: str | None = None
    evaluation: str | None = None
    samples: int | None = None
    metric: str | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    require_smaller: bool | None = None
    require_speedup: float | None = None
    exclude: tuple[str, ...] | None = None
    output: str | None = None
    seed: int | None = None
    threads: int | None = None
    opset: int | None = None
    ir_version: int | None = None
    report: tuple[str, ...] | None = None
    ranges: Path | None = None
    timings: Path | None = None
    allow_noop: bool | None = None
    strict: bool | None = None
    set_shape: Mapping[str, tuple[int | None, ...]] | None = None
    preprocess: Preprocess | None = None


def read_config(path: Path) -> Config:
    """Return what the TOML file `path` says; relative paths in it are meant from its folder.

    Raises:
        UsageError: where it cannot be read, is no TOML, has an unknown key (with the nearest) or a wrong type.
    """
    table = _toml(path)
    known = {f.name.replace("_", "-"): f.name for f in fields(Config)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{path}: unknown key '{key}'{hint(key, known)}")
        values[known[key]] = _READERS[known[key]](value, f"{path}: {key}")
    if "passes" in values and "preset" in values:
        raise UsageError(f"{path}: passes and preset are both given; keep one")
    for key in ("calibration", "evaluation"):
        if key in values:
            values[key] = _from_folder(values[key], path.parent)
    for key in ("ranges", "timings"):
        if key in values:
            values[key] = path.parent / values[key]
    if "report" in values:
        values["report"] = tuple(str(path.parent / name) for name in values["report"])
    return Config(**values)


def read_preprocess(path: Path) -> Preprocess:
    """Return the preprocess table in the file `path`: JSON, or TOML with the keys on top or under `[preprocess]`.

    Raises:
        UsageError: where the file cannot be read.
        DataError: for unknown keys and values out of range.
    """
    if path.suffix == ".json":
        return Preprocess.from_json(_text(path), str(path))
    table = _toml(path)
    inner = table.get("preprocess", table)
    if not isinstance(inner, dict):
        raise UsageError(f"{path}: preprocess is no table; write [preprocess] above its keys")
    return Preprocess.from_mapping(inner, str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"{path}: {problem.strerror or problem}; give a readable file") from problem
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path}: not UTF-8 text; save it as UTF-8") from problem


def _toml(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise UsageError(f"{path}: not TOML: {' '.join(str(problem).split())}") from problem


def _from_folder(text: str, folder: Path) -> str:
    """Return the data source `text` with a relative path meant from `folder`; what is no path stays as it is."""
    if re.fullmatch(r"none|random(:.*)?", text):
        return text
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) and not (folder / text).exists():
        return text
    return str(folder / text)


# --- types -----------------------------------------------------------------------------------------------------------
def _expected(where: str, what: str, value: object) -> UsageError:
    return UsageError(f"{where}: {what} is needed, this is {value!r}")


def _string(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _expected(where, "text", value)
    return value


def _integer(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _expected(where, "a whole number", value)
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _expected(where, "a number", value)
    return float(value)


def _truth(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _expected(where, "true or false", value)
    return value


def _strings(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_string(value, where),)
    if not isinstance(value, list):
        raise _expected(where, "a list of texts", value)
    return tuple(_string(entry, where) for entry in value)


def _metric(value: object, where: str) -> str:
    if value not in METRICS:
        raise UsageError(f"{where}: unknown metric '{value}'{hint(str(value), METRICS)}")
    return str(value)


def _shapes(value: object, where: str) -> dict[str, tuple[int | None, ...]]:
    if not isinstance(value, dict):
        raise _expected(where, "a table of lists such as input = [1, 3, 224, 224]", value)
    found: dict[str, tuple[int | None, ...]] = {}
    for name, sizes in value.items():
        if not isinstance(sizes, list):
            raise _expected(f"{where}.{name}", "a list of sizes", sizes)
        found[name] = tuple(None if s == "*" else _integer(s, f"{where}.{name}") for s in sizes)
    return found


def _preprocess(value: object, where: str) -> Preprocess:
    if not isinstance(value, dict):
        raise _expected(where, "a table", value)
    try:
        return Preprocess.from_mapping(value, where)
    except DataError as problem:
        raise UsageError(str(problem)) from problem


_READERS: dict[str, Callable[[object, str], object]] = {
    "passes": _string,
    "preset": _string,
    "target": _string,
    "calibration": _string,
    "evaluation": _string,
    "samples": _integer,
    "metric": _metric,
    "max_drop": _number,
    "min_sqnr": _number,
    "require_smaller": _truth,
    "require_speedup": _number,
    "exclude": _strings,
    "output": _string,
    "seed": _integer,
    "threads": _integer,
    "opset": _integer,
    "ir_version": _integer,
    "report": _strings,
    "ranges": _string,
    "timings": _string,
    "allow_noop": _truth,
    "strict": _truth,
    "set_shape": _shapes,
    "preprocess": _preprocess,
}

TEMPLATE = """\
# Settings of `onnxcomp optimize`, given with --config. Keys are called like the options; options win over them.
# Relative paths are meant from the folder of this file.

preset = "exact"                       # or passes, never both
# passes = "fold-constants,fold-batchnorm,remove-dead"
# target = "ort-cpu"                   # what the result is made for; see `onnxcomp targets`

# --- data
# calibration = "calibration.npz"      # .npz, folder or glob of .npz or images, module:function, random[:N], none
# evaluation = "evaluation.npz"        # the same; with an int64 array `labels` for the metric top1
# samples = 512                        # use the first so many calibration samples

# --- conditions
# metric = "top1"                      # top1 | agreement | mse | sqnr
# max-drop = 1.0                       # percentage points of top1 or agreement
# min-sqnr = 20.0                      # decibels of the worst output
# require-smaller = true
# require-speedup = 1.2                # times as fast as the original, batch 1, one thread

# --- the model
# exclude = ["head/*", "re:^stem", "op:Softmax"]
# output = "logits"                    # the output on which classes are chosen
# opset = 17
# ir-version = 8

# --- the run
# seed = 0
# threads = 0                          # 0 = all cores
# report = ["run.json"]
# ranges = "earlier.json"              # take ranges of values from the report of an earlier run
# timings = "earlier.json"             # replay the latencies in the report of an earlier run
# allow-noop = false
# strict = false

# [set-shape]
# input = [1, 3, 224, 224]             # "*" leaves an axis as it is

# [preprocess]
# layout = "NHWC->NCHW"
# scale = 0.00392156862745098
# mean = [0.485, 0.456, 0.406]
# std = [0.229, 0.224, 0.225]
# size = [224, 224]
# channels = "RGB"
"""
"""What `onnxcomp config init` writes: every key, explained."""
