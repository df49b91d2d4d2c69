"""The files that describe targets: one TOML table per fact, each with a source and a date of trial.

They stand in `onnxcomp/targets_data`. A fact that nobody has tried has an empty `verified_on` and is shown as unverified.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from onnxcomp.compiler.target.facts import IMPLIED, INTEGERS, Fact, Format, Note, OperatorSet, Target
from onnxcomp.errors import UsageError, hint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DEFAULT_TARGET", "check_target_name", "load_target", "parse_target", "target_names"]

DEFAULT_TARGET = "ort-cpu"
"""The target where none is asked for."""


def target_names() -> tuple[str, ...]:
    """Return the names of all targets, the default first, the others by the alphabet."""
    found = sorted(f.name.removesuffix(".toml") for f in _folder().iterdir() if f.name.endswith(".toml"))
    return (DEFAULT_TARGET, *(name for name in found if name != DEFAULT_TARGET))


def check_target_name(name: str) -> None:
    """Raise UsageError for a target that nobody knows, with the nearest name."""
    known = target_names()
    if name not in known:
        raise UsageError(f"unknown target '{name}'{hint(name, known)}")


@cache
def load_target(name: str) -> Target:
    """Return the target called `name`.

    Raises:
        UsageError: for an unknown name, with the nearest; for a file that breaks the schema.
    """
    check_target_name(name)
    target = parse_target((_folder() / f"{name}.toml").read_text(encoding="utf-8"), f"target {name}")
    if target.name != name:
        raise UsageError(f"target {name}: the file calls itself '{target.name}'; give both one name")
    return target


def _folder() -> Any:
    return files("onnxcomp") / "targets_data"


# --- reading one -----------------------------------------------------------------------------------------------------
def parse_target(text: str, where: str = "target") -> Target:
    """Return the target that the TOML `text` describes; `where` names it in messages.

    Raises:
        UsageError: for what is no TOML, an unknown or missing key or table, a wrong type, a fact without a source.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise UsageError(f"{where}: not TOML: {' '.join(str(problem).split())}") from problem
    top: dict[str, Any] = {
        key: _text(tables.pop(key, None), f"{where}: {key}") for key in ("name", "summary")
    }
    notes = _notes(tables.pop("notes", []), where)
    for key in tables:
        if key not in _SCHEMA:
            raise UsageError(f"{where}: unknown table '{key}'{hint(key, _SCHEMA)}")
    values: dict[str, Any] = {}
    facts: list[Fact] = []
    for table, schema in _SCHEMA.items():
        if table not in tables and values.get("family") == "float" and table in _FLOAT_DEFAULTS:
            values |= _FLOAT_DEFAULTS[table]
            continue
        fact, found = _table(tables.get(table), table, schema, where)
        facts.append(fact)
        values |= found
    target = Target(facts=tuple(facts), notes=notes, **top, **values)
    _check_roles(target, where)
    return target


def _table(
    table: object, name: str, schema: Mapping[str, _Reader], where: str
) -> tuple[Fact, dict[str, Any]]:
    """Return a table as a fact, and what its keys say as fields of a Target."""
    place = f"{where}: [{name}]"
    if not isinstance(table, dict):
        raise UsageError(f"{place} is missing; write the table with {', '.join(schema)} and a source")
    known = (*schema, *_PROVENANCE)
    for key in table:
        if key not in known:
            raise UsageError(f"{place} unknown key '{key}'{hint(key, known)}")
    read = {key: reader(table.get(key), f"{place} {key}") for key, reader in schema.items()}
    source = _text(table.get("source"), f"{place} source")
    verified = _maybe_text(table.get("verified_on"), f"{place} verified_on")
    hard = _truth(table.get("hard"), f"{place} hard")
    stated = {key: table[key] for key in schema if key in table}
    if name in _FORMATS:
        read = {name: _format(read, place)}
    return Fact(name, stated, source, verified, hard), read


def _format(read: Mapping[str, Any], place: str) -> Format:
    dtype, (low, high) = read["dtype"], read["range"]
    least, most = INTEGERS[dtype]
    if not least <= low < high <= most:
        raise UsageError(
            f"{place} range [{low}, {high}] does not fit into {dtype}; it holds {least} to {most}"
        )
    accepts = read["accepts"] or (dtype,)
    if dtype not in accepts:
        raise UsageError(f"{place} accepts does not name {dtype} itself; add it")
    return Format(dtype, low, high, read["symmetric"], read.get("granularity") == "per-channel", accepts)


def _notes(notes: object, where: str) -> tuple[Note, ...]:
    if not isinstance(notes, list):
        raise UsageError(f"{where}: notes are tables; write [[notes]] above each")
    found = []
    for entry in notes:
        if not isinstance(entry, dict) or set(entry) != {"text", "source", "verified_on"}:
            raise UsageError(f"{where}: a note has the keys text, source and verified_on, and no others")
        text, source = (_text(entry[key], f"{where}: note {key}") for key in ("text", "source"))
        found.append(Note(text, source, _maybe_text(entry["verified_on"], f"{where}: note verified_on")))
    return tuple(found)


def _check_roles(target: Target, where: str) -> None:
    """Refuse an operator that is to be computed in two ways."""
    seen: dict[str, str] = {}
    for role, operators in (
        ("quantize", target.quantize),
        ("same_scale", target.same_scale),
        ("keep_float", target.keep_float),
    ):
        for entry in str(operators).split():
            if entry in seen:
                raise UsageError(f"{where}: {entry} stands in {seen[entry]} and in {role}; keep one")
            seen[entry] = role


# --- types -----------------------------------------------------------------------------------------------------------
_Reader: TypeAlias = Callable[[object, str], Any]
_ENTRY = re.compile(r"(\w+)(?:\{(\w+)=(\w+)\})?")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: text is needed, this is {value!r}")
    return value


def _maybe_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: text is needed, empty where nobody has tried it; this is {value!r}")
    return value


def _truth(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{where}: true or false is needed, this is {value!r}")
    return value


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{where}: a whole number of 1 or more is needed, this is {value!r}")
    return value


def _pair(value: object, where: str) -> tuple[int, int]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 2 or any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise UsageError(f"{where}: two whole numbers [least, greatest] are needed, this is {value!r}")
    if numbers[0] > numbers[1]:
        raise UsageError(f"{where}: {numbers[0]} is above {numbers[1]}; the least comes first")
    return numbers[0], numbers[1]


def _choice(*known: str) -> _Reader:
    def read(value: object, where: str) -> Any:
        if value not in known:
            raise UsageError(f"{where}: unknown value {value!r}{hint(str(value), known)}")
        return str(value)

    return read


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise UsageError(f"{where}: a list of texts is needed, this is {value!r}")
    return tuple(value)


def _dtypes(value: object, where: str) -> tuple[str, ...]:
    one = _choice(*INTEGERS)
    return tuple(one(entry, where) for entry in _texts([] if value is None else value, where))


def _operators(value: object, where: str) -> OperatorSet:
    names, conditions = set(), {}
    for entry in _texts(value, where):
        match = _ENTRY.fullmatch(entry)
        if match is None or (match[2] and (match[1], match[2]) not in IMPLIED):
            raise UsageError(f"{where}: '{entry}' is no operator; write Name, or Resize{{mode=nearest}}")
        if match[2]:
            conditions[match[1]] = (match[2], match[3])
        else:
            names.add(match[1])
    return OperatorSet(frozenset(names), conditions)


_PROVENANCE = ("source", "verified_on", "hard")
_STORED: dict[str, _Reader] = {
    "dtype": _choice(*INTEGERS),
    "accepts": _dtypes,
    "range": _pair,
    "symmetric": _truth,
}
_FORMATS = ("weights", "activations")
_PLACEMENT = ("all_inputs", "output_pair", "one_scale", "pair_in_front", "float_in_front", "several_inputs")
_SCHEMA: dict[str, dict[str, _Reader]] = {
    "family": {"family": _choice("qdq", "float")},
    "opset": {"opset": _pair},
    "ir": {"ir_max": _count},
    "shapes": {"static_shapes": _truth},
    "domains": {"domains": _texts},
    "refuses": {"refuses": _operators},
    "weights": {**_STORED, "granularity": _choice("per-tensor", "per-channel")},
    "activations": _STORED,
    "bias": {"bias": _choice("float", "int32")},
    "scale": {"scale": _choice("float", "pow2")},
    "zero-point": {"zero_point": _choice("any", "0")},
    "boundary": {"outputs_quantized": _truth, "inputs_symmetric": _truth},
    "align": {"align": _count},
    "operators": dict.fromkeys(("quantize", "same_scale", "keep_float", "absorbs"), _operators),
    "placement": dict.fromkeys(_PLACEMENT, _operators),
}
"""Tables of a target file and the readers of their keys, which are fields of Target; formats are one field each."""
_NONE = OperatorSet()
_FLOAT_DEFAULTS: dict[str, dict[str, Any]] = {
    "weights": {"weights": Format("int8", -127, 127, True, True, ("int8",))},
    "activations": {"activations": Format("int8", -128, 127, False, False, ("int8",))},
    "bias": {"bias": "float"},
    "scale": {"scale": "float"},
    "zero-point": {"zero_point": "any"},
    "boundary": {"outputs_quantized": False, "inputs_symmetric": False},
    "align": {"align": 1},
    "operators": {"quantize": _NONE, "same_scale": _NONE, "keep_float": _NONE, "absorbs": _NONE},
    "placement": dict.fromkeys(_PLACEMENT, _NONE),
}
"""What stands in a Target whose toolchain quantizes by itself and whose file is silent: nobody reads it there."""
