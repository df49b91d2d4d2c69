"""Types and groups of options, and how the config file fills in what the command line leaves open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "FILE",
    "calibration_options",
    "data_options",
    "exclude_option",
    "json_option",
    "link_options",
    "merge_config",
    "output_option",
    "read_table",
    "seed_option",
    "set_shape_option",
    "threads_option",
    "trust_options",
]

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
"""A path to read; whether it exists is checked where the message can say what to do."""


def _set_shape(text: str) -> tuple[str, tuple[int | None, ...]]:
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


def calibration_options(function: F) -> F:
    """Add --calibration and --samples."""
    return _with(
        function,
        click.option(
            "--calibration",
            metavar="DATA",
            help=".npz, folder or glob, module:function, random[:N] for noise, or none.",
        ),
        click.option(
            "--samples", metavar="N", type=click.IntRange(min=1), help="Use the first N calibration samples."
        ),
    )


def data_options(function: F) -> F:
    """Add the options that say how sample data is read."""
    return _with(
        function,
        click.option(
            "--preprocess",
            metavar="FILE|none",
            help="Preprocess table (TOML or JSON) that wins over config and data; none feeds data as it is.",
        ),
        click.option("--allow-code", is_flag=True, help="Let module:function data run Python code."),
    )


def trust_options(function: F) -> F:
    """Add the options that say how the model file is read and run."""
    return link_options(threads_option(0)(function))


def link_options(function: F) -> F:
    """Add --custom-op-lib and --allow-links."""
    return _with(
        function,
        click.option(
            "--custom-op-lib",
            "custom_op_libs",
            metavar="FILE",
            multiple=True,
            help="Shared library with operators of the model; its code runs.",
        ),
        click.option("--allow-links", is_flag=True, help="Follow links to external data (model-hub caches)."),
    )


def threads_option(default: int) -> Callable[[F], F]:
    """Return what adds --threads with its `default`."""
    return click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=default,
        show_default=bool(default),
        help="Of onnxruntime; 0 = all cores.",
    )


def exclude_option(function: F) -> F:
    """Add --exclude."""
    return click.option(
        "--exclude",
        metavar="PATTERN",
        multiple=True,
        help="Leave nodes alone: a glob, re:EXPRESSION or op:OPERATOR.",
    )(function)


def set_shape_option(what: str) -> Callable[[F], F]:
    """Return what adds --set-shape, whose help says `what` the sizes are for."""
    return click.option(
        "--set-shape",
        metavar="NAME=SIZES",
        type=_set_shape,
        multiple=True,
        help=f"{what}: x=1,3,224,224 (* leaves an axis).",
    )


def output_option(function: F) -> F:
    """Add --output."""
    return click.option("--output", metavar="NAME", help="The graph output on which classes are chosen.")(
        function
    )


def seed_option(what: str) -> Callable[[F], F]:
    """Return what adds --seed, whose help says `what` it decides."""
    return click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, help=what)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def _with(function: F, *options: Callable[[F], F]) -> F:
    """Return `function` with `options`, which the help shows in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def read_table(text: str | None) -> Any:
    """Return what `--preprocess` says: a Preprocess, `none`, or None where it says nothing."""
    from onnxcomp.cli.config import read_preprocess

    return text if text is None or text == "none" else read_preprocess(Path(text))


def merge_config(context: click.Context, config: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options `given` on the command line, filled up from the file `config`; the command line wins.

    A config key and the option it stands for have the same name; passes and preset stand for each other.
    """
    if config is None:
        return given
    from onnxcomp.cli.config import Config, read_config

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
