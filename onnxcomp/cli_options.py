"""Types and groups of options, and how the config file fills in what the command line leaves open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "FILE",
    "data_options",
    "merge_config",
    "read_table",
    "set_shape",
    "trust_options",
]

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
"""A path to read; whether it exists is checked where the message can say what to do."""


def set_shape(text: str) -> tuple[str, tuple[int | None, ...]]:
    """Return `(name, sizes)` of `name=1,3,224,224`, None for a `*`, which leaves an axis as it is.

    Raises:
        BadParameter: where `text` is not of that form.
    """
    name, equals, sizes = str(text).rpartition("=")
    words = [word.strip() for word in sizes.split(",")] if sizes.strip() else []
    numbers = [w for w in words if w != "*"]
    if not equals or not name or not all(w.isascii() and w.isdigit() for w in numbers):
        raise click.BadParameter(f"'{text}' is not NAME=SIZES, such as input=1,3,224,224 (* leaves an axis)")
    return name, tuple(None if w == "*" else int(w) for w in words)


def data_options(function: F) -> F:
    """Add the options that say how sample data is read."""
    for option in (
        click.option("--allow-code", is_flag=True, help="Let module:function data run Python code."),
        click.option(
            "--preprocess",
            metavar="FILE|none",
            help="Preprocess table (TOML or JSON) that wins over config and data; none feeds data as it is.",
        ),
    ):
        function = option(function)
    return function


def trust_options(function: F) -> F:
    """Add the options that say how the model file is read and run."""
    for option in (
        click.option(
            "--threads", type=click.IntRange(min=0), default=0, help="Of onnxruntime; 0 = all cores."
        ),
        click.option("--allow-links", is_flag=True, help="Follow links to external data (model-hub caches)."),
        click.option(
            "--custom-op-lib",
            "custom_op_libs",
            metavar="FILE",
            multiple=True,
            help="Shared library with operators of the model; its code runs.",
        ),
    ):
        function = option(function)
    return function


def read_table(text: str | None) -> Any:
    """Return what `--preprocess` says: a Preprocess, `none`, or None where it says nothing."""
    from onnxcomp.config import read_preprocess

    return text if text is None or text == "none" else read_preprocess(Path(text))


def merge_config(context: click.Context, config: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options `given` on the command line, filled up from the file `config`; the command line wins.

    A config key and the option it stands for have the same name; passes and preset stand for each other.
    """
    if config is None:
        return given
    from onnxcomp.config import Config, read_config

    table = read_config(config)
    merged = dict(given)
    said = {name for name in given if _on_command_line(context, name)}
    if said & {"passes", "preset"}:
        said |= {"passes", "preset"}
    for field in fields(Config):
        value = getattr(table, field.name)
        if value is not None and field.name not in said:
            merged[field.name] = value
    return merged


def _on_command_line(context: click.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)
