"""Options of commands: those of a run, derived from their table, and how the config file fills in what is left open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxcomp.compiler.run.run_options import RUN_OPTIONS, Kind, RunOption, run_option

__all__ = ["FILE", "MEASURED_SIZES", "changed", "json_option", "merge_config", "run_options"]

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
"""A path to read; whether it exists is checked where the message can say what to do."""


def _sizes(text: str) -> tuple[str, tuple[int | None, ...]]:
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


def _table(_: click.Context, __: click.Parameter, sizes: tuple[Any, ...]) -> dict[str, Any]:
    return dict(sizes)


def _read_table(_: click.Context, __: click.Parameter, text: str | None) -> Any:
    """Return what `--preprocess` says: a Preprocess, `none`, or None where it says nothing."""
    from onnxcomp.cli.config_file import read_preprocess

    return text if text is None or text == "none" else read_preprocess(Path(text))


_SETTINGS: dict[Kind, dict[str, Any]] = {
    "text": {},
    "data": {},
    "count": {"type": int},
    "number": {"type": float},
    "flag": {"is_flag": True},
    "switch": {},
    "choice": {},
    "texts": {"multiple": True},
    "files": {"type": FILE, "multiple": True},
    "file": {"type": FILE},
    "sizes": {"type": _sizes, "multiple": True, "callback": _table},
    "preprocess": {"callback": _read_table},
}
"""What click gets for the kinds of options."""


def changed(name: str, *, help: str, default: Any = ...) -> RunOption:
    """Return the option of a run called `name` with what is another for one command: its help, perhaps its default."""
    option = run_option(name)
    return replace(option, help=help, default=option.default if default is ... else default)


MEASURED_SIZES = changed(
    "set_shape", help="Sizes of an input to measure at: x=1,3,224,224 (* leaves an axis)."
)
"""--set-shape of commands that write no model."""


def run_options(*options: str | RunOption) -> Callable[[F], F]:
    """Return what adds `options` of a run, by name or as `changed`, to a command; all of them where none is named.

    The help shows them in this order. Each is handed over under its name in the table.
    """
    chosen = [run_option(o) if isinstance(o, str) else o for o in options] or RUN_OPTIONS

    def add(function: F) -> F:
        for option in reversed(chosen):
            function = _click_option(option)(function)
        return function

    return add


def _click_option(option: RunOption) -> Callable[[F], F]:
    settings = dict(_SETTINGS[option.kind])
    if option.choices:
        settings["type"] = click.Choice(option.choices)
    if option.least is not None:
        settings["type"] = click.IntRange(min=option.least)
    if option.default is not None:
        settings["default"] = option.default
        settings["show_default"] = option.name == "threads" and bool(option.default)
    flags = f"--{option.key}" + (f"/--no-{option.key}" if option.kind == "switch" else "")
    short = [f"-{option.short}"] if option.short else []
    return click.option(*short, flags, option.name, metavar=option.metavar, help=option.help, **settings)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def merge_config(context: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options `given` on the command line, filled up from the file of `--config`; the command line wins.

    Passes and preset stand for each other.
    """
    merged = dict(given)
    config = merged.pop("config")
    if config is None:
        return merged
    from onnxcomp.cli.config_file import read_config

    said = {name for name in merged if _on_command_line(context, name)}
    if said & {"passes", "preset"}:
        said |= {"passes", "preset"}
    return merged | {name: value for name, value in read_config(config).items() if name not in said}


def _on_command_line(context: click.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)
