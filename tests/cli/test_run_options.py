"""One table of run options: the command line, the config file, Python and the Request agree with it."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

import click
import pytest

import onnxcomp
from onnxcomp.api import ModelOptions, Options
from onnxcomp.cli.config_file import CONFIGURED, TEMPLATE
from onnxcomp.cli.main import cli
from onnxcomp.compiler.run.request import Metric, Request
from onnxcomp.compiler.run.run_options import (
    METRICS,
    MODEL_OPTIONS,
    RUN_OPTIONS,
    RunOption,
    keywords,
    run_option,
)
from onnxcomp.errors import UsageError

OF_REQUEST = [option for option in RUN_OPTIONS if option.scope == "request"]

HANDED_OVER = {"pipeline", "source", "output"}
"""Fields of a Request that no option fills in: the text of passes is read, and files are named by arguments."""

KINDS = {
    "text": "str",
    "data": "SampleSource",
    "count": "int",
    "number": "float",
    "flag": "bool",
    "switch": "bool",
    "choice": "Metric",
    "texts": "tuple[str, ...]",
    "files": "tuple[Path, ...]",
    "file": "Path",
    "sizes": "Mapping[str, tuple[int | None, ...]]",
    "preprocess": "Preprocess | Literal['none']",
}
"""The type of a field of a Request by kind, None aside."""

LOOSER = {
    "texts": "Sequence[str]",
    "files": "Sequence[str | os.PathLike[str]]",
    "file": "str | os.PathLike[str]",
    "sizes": "Mapping[str, Sequence[int | None]]",
}
"""What Python code may give where a Request is stricter."""


def click_options(name: str) -> dict[str, click.Option]:
    command = cli.commands[name]
    return {p.name: p for p in command.params if isinstance(p, click.Option) and p.name}


def annotation(option: RunOption, types: dict[str, str]) -> str:
    several = option.kind in ("texts", "files", "sizes")
    return types[option.kind] + ("" if several or option.default is not None else " | None")


def test_the_options_are_the_fields_of_a_request_with_their_types_and_defaults() -> None:
    fields = {f.name: f for f in dataclasses.fields(Request) if f.name not in HANDED_OVER}
    assert set(fields) == set(keywords())
    plain = Request()
    for option in OF_REQUEST:
        assert fields[option.name].type == annotation(option, KINDS), option.name
        empty: Any = {} if option.kind == "sizes" else () if option.kind in ("texts", "files") else None
        expected = empty if option.default is None else option.default
        assert getattr(plain, option.name) == expected, option.name


def test_the_options_are_the_keywords_in_python_with_their_types() -> None:
    assert set(Options.__annotations__) == set(keywords())
    assert set(ModelOptions.__annotations__) == set(MODEL_OPTIONS)
    for option in OF_REQUEST:
        hint = Options.__annotations__[option.name]
        # TypedDict keeps the text of an annotation as a forward reference, its quotes as they are written.
        text = str(getattr(hint, "__forward_arg__", hint)).replace('"', "'")
        assert text == annotation(option, KINDS | LOOSER), option.name


def test_the_docstring_in_python_names_them_all() -> None:
    doc = inspect.getdoc(onnxcomp.optimize) or ""
    assert [name for name in keywords() if f"`{name}`" not in doc] == []


def test_optimize_on_the_command_line_has_them_all_with_help_type_and_default() -> None:
    found = click_options("optimize")
    assert set(found) - {"out", "quiet", "debug", "help"} == {option.name for option in RUN_OPTIONS}
    for option in RUN_OPTIONS:
        given = found[option.name]
        assert f"--{option.key}" in given.opts
        assert (given.help, given.metavar) == (option.help, option.metavar)
        assert given.multiple == (option.kind in ("texts", "files", "sizes")), option.name
        assert given.is_flag == (option.kind in ("flag", "switch")), option.name
        if option.default is not None:
            assert given.default == option.default
        if option.choices:
            assert isinstance(given.type, click.Choice) and tuple(given.type.choices) == option.choices


@pytest.mark.parametrize("name", ["inspect", "compare", "bench", "sensitivity", "print"])
def test_where_another_command_has_an_option_of_a_run_it_has_the_same_name_and_type(name: str) -> None:
    def facts(option: click.Option) -> tuple[Any, ...]:
        return option.opts, option.metavar, option.multiple, option.is_flag, option.type.to_info_dict()

    whole, found = click_options("optimize"), click_options(name)
    shared = {option.name for option in RUN_OPTIONS} & set(found)
    assert shared
    assert [n for n in shared if facts(found[n]) != facts(whole[n])] == []


def test_a_config_file_may_set_what_the_table_allows_and_the_template_shows_it() -> None:
    allowed = {option.key for option in RUN_OPTIONS if option.config is not None}
    assert set(CONFIGURED) == allowed
    for option in CONFIGURED.values():
        table = option.kind in ("sizes", "preprocess")
        assert (f"[{option.key}]" if table else f"{option.key} = {option.config}") in TEMPLATE
        assert option.note in TEMPLATE


def test_a_config_file_never_decides_about_trust() -> None:
    trusted = {option.name for option in RUN_OPTIONS if option.trusted}
    assert trusted == {"allow_code", "allow_links", "custom_op_libs", "force"}
    assert [option.name for option in RUN_OPTIONS if option.trusted and option.config is not None] == []


def test_the_metrics_are_those_of_the_request() -> None:
    assert typing.get_args(Metric) == METRICS


def test_an_unknown_option_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'max_drop'"):
        run_option("max_drops")
