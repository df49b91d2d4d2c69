"""Options of passes: how they are declared, what types they may have, and how their values read as text."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from onnxcomp.errors import UsageError

__all__ = [
    "Option",
    "at_least",
    "describe_type",
    "format_option",
    "in_range",
    "is_list",
    "option",
    "supported",
]


@dataclass(frozen=True)
class Option:
    """One option of a pass as the command line shows it: kebab-case `name`, python `annotation`, default, help."""

    name: str
    field: str
    annotation: Any
    default: Any
    help: str

    @property
    def kind(self) -> str:
        """The type in words, for help and error messages."""
        return describe_type(self.annotation)


def describe_type(annotation: Any) -> str:
    """Return an option's type in words: `number`, `whole number`, `true or false`, `text`, or its choices."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if origin in (Union, types.UnionType):
        return " | ".join(describe_type(a) for a in typing.get_args(annotation) if a is not type(None))
    if origin is tuple:
        return "list of " + describe_type(typing.get_args(annotation)[0])
    return {float: "number", int: "whole number", bool: "true | false", str: "text"}[annotation]


def option(default: Any, help: str) -> Any:
    """Declare a dataclass field as an option of a pass, with its default and its one-line help."""
    return field(default=default, metadata={"help": help})


def format_option(value: Any) -> str:
    """Return the text of an option's value, such that parsing it gives the value back."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(format_option(v) for v in value)
    text = repr(value) if isinstance(value, float) else str(value)
    if isinstance(value, str) and (text.lower() in ("", "none") or re.search(r'[\s{}=,"]', text)):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def in_range(
    owner: str,
    name: str,
    value: float | None,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise UsageError unless `low <= value <= high` (`<` at an open end); None passes."""
    if value is None:
        return
    if (low < value if open_low else low <= value) and (value < high if open_high else value <= high):
        return
    below, above = ("<" if is_open else "<=" for is_open in (open_low, open_high))
    raise UsageError(f"{owner}: {name}={value:g} is out of range; {low:g} {below} {name} {above} {high:g}")


def at_least(owner: str, name: str, value: int | None, least: int) -> None:
    """Raise UsageError unless `value` is `least` or more; None passes."""
    if value is not None and value < least:
        raise UsageError(f"{owner}: {name}={value} is out of range; it is at least {least}")


def supported(annotation: Any) -> bool:
    """Return whether options may be annotated so: float, int, bool, str, Literal, unions with None, tuples of these."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return all(isinstance(a, str | int) for a in args)
    if origin in (Union, types.UnionType):
        return any(a is not type(None) for a in args) and all(a is type(None) or supported(a) for a in args)
    if origin is tuple:
        return bool(args) and all(a is ... or (supported(a) and not is_list(a)) for a in args)
    return annotation in (float, int, bool, str)


def is_list(annotation: Any) -> bool:
    """Return whether an option annotated so takes several values."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return any(is_list(a) for a in typing.get_args(annotation))
    return typing.get_origin(annotation) is tuple
