"""The config file: one TOML schema, in which a key that nobody knows is an error.

Keys are called like the options of `onnxcomp optimize`, which win over them. What decides about trust (running code,
following links, loading libraries) and about replacing files is not among them: a config file comes along with a model.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxcomp.compiler.run.run_options import RUN_OPTIONS, Kind, RunOption, run_option
from onnxcomp.errors import DataError, UsageError, hint
from onnxcomp.runtime.data.preprocess import Preprocess

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["TEMPLATE", "read_config", "read_preprocess"]

CONFIGURED = {option.key: option for option in RUN_OPTIONS if option.config is not None}
"""The options that a config file may set, by key."""


def read_config(path: Path) -> dict[str, Any]:
    """Return the values of the TOML file `path` by name of the option; relative paths in it are meant from its folder.

    Raises:
        UsageError: where it cannot be read, is no TOML, has an unknown key (with the nearest) or a wrong type.
    """
    values: dict[str, Any] = {}
    for key, value in _toml(path).items():
        if key not in CONFIGURED:
            raise UsageError(f"{path}: unknown key '{key}'{hint(key, CONFIGURED)}")
        option = CONFIGURED[key]
        values[option.name] = _READERS[option.kind](value, f"{path}: {key}", option, path.parent)
    if "passes" in values and "preset" in values:
        raise UsageError(f"{path}: passes and preset are both given; keep one")
    return values


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
_Reader = Callable[[object, str, RunOption, Path], object]
"""Returns a value as an option takes it: from TOML, the words for messages, the option and the folder of the file."""


def _expected(where: str, what: str, value: object) -> UsageError:
    return UsageError(f"{where}: {what} is needed, this is {value!r}")


def _string(value: object, where: str, *_: object) -> str:
    if not isinstance(value, str) or not value:
        raise _expected(where, "text", value)
    return value


def _data(value: object, where: str, _: RunOption, folder: Path) -> str:
    return _from_folder(_string(value, where), folder)


def _file(value: object, where: str, _: RunOption, folder: Path) -> Path:
    return folder / _string(value, where)


def _files(value: object, where: str, _: RunOption, folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in _strings(value, where))


def _integer(value: object, where: str, *_: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _expected(where, "a whole number", value)
    return value


def _number(value: object, where: str, *_: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _expected(where, "a number", value)
    return float(value)


def _truth(value: object, where: str, *_: object) -> bool:
    if not isinstance(value, bool):
        raise _expected(where, "true or false", value)
    return value


def _strings(value: object, where: str, *_: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_string(value, where),)
    if not isinstance(value, list):
        raise _expected(where, "a list of texts", value)
    return tuple(_string(entry, where) for entry in value)


def _choice(value: object, where: str, option: RunOption, _: Path) -> str:
    if value not in option.choices:
        raise UsageError(f"{where}: unknown {option.key} '{value}'{hint(str(value), option.choices)}")
    return str(value)


def _sizes(value: object, where: str, *_: object) -> dict[str, tuple[int | None, ...]]:
    if not isinstance(value, dict):
        raise _expected(where, "a table of lists such as input = [1, 3, 224, 224]", value)
    found: dict[str, tuple[int | None, ...]] = {}
    for name, sizes in value.items():
        if not isinstance(sizes, list):
            raise _expected(f"{where}.{name}", "a list of sizes", sizes)
        found[name] = tuple(None if s == "*" else _integer(s, f"{where}.{name}") for s in sizes)
    return found


def _preprocess(value: object, where: str, *_: object) -> Preprocess:
    if not isinstance(value, dict):
        raise _expected(where, "a table", value)
    try:
        return Preprocess.from_mapping(value, where)
    except DataError as problem:
        raise UsageError(str(problem)) from problem


_READERS: dict[Kind, _Reader] = {
    "text": _string,
    "data": _data,
    "count": _integer,
    "number": _number,
    "flag": _truth,
    "switch": _truth,
    "choice": _choice,
    "texts": _strings,
    "files": _files,
    "file": _file,
    "sizes": _sizes,
    "preprocess": _preprocess,
}

# --- the template ----------------------------------------------------------------------------------------------------
_HEAD = """\
# Settings of `onnxcomp optimize`, given with --config. Keys are called like the options; options win over them.
# Relative paths are meant from the folder of this file.
"""

_LAYOUT = {
    "": "preset passes target",
    "data": "calibration evaluation samples",
    "conditions": "metric max_drop min_sqnr require_smaller require_speedup",
    "the model": "exclude decision opset ir_version",
    "the run": "seed threads reports ranges timings allow_noop accept_ruin strict",
}
"""Names of options by the heading that they stand under; tables come last."""

_TABLES = ("set_shape", "preprocess")

_WIDTH = 39
"""Columns before the notes."""


def _template() -> str:
    """Return the text of a config file with every key; all but the preset are commented out."""
    blocks = [_HEAD]
    for heading, names in _LAYOUT.items():
        lines = [f"# --- {heading}"] if heading else []
        lines += [_line(run_option(name)) for name in names.split()]
        blocks.append("\n".join(lines) + "\n")
    for option in map(run_option, _TABLES):
        first, *rest = (option.config or "").split("\n")
        lines = [f"# [{option.key}]", _noted(f"# {first}", option.note), *(f"# {line}" for line in rest)]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _line(option: RunOption) -> str:
    setting = f"{option.key} = {option.config}"
    return _noted(setting if option.name == "preset" else f"# {setting}", option.note)


def _noted(text: str, note: str) -> str:
    return f"{text:{_WIDTH}}# {note}" if note else text


TEMPLATE = _template()
"""What `onnxcomp config init` writes: every key, explained."""
