"""The command `compare`: two models on the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import FILE, changed, json_option, run_options

__all__ = ["compare"]


@click.command(
    cls=Command,
    examples=(
        "onnxcomp compare model.onnx small.onnx --data evaluation.npz",
        "onnxcomp compare model.onnx small.onnx --data random:16 --json",
    ),
)
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@click.option(
    "--data", metavar="DATA", required=True, help=".npz, folder or glob, module:function, or random[:N]."
)
@run_options("decision")
@json_option
@run_options(
    changed("seed", help="Of random data."),
    "preprocess",
    "allow_code",
    "custom_op_libs",
    "allow_links",
    "threads",
)
@common_options
def compare(
    first: Path,
    second: Path,
    data: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show how B differs from A on data: per output max abs, SQNR and cosine; agreement; accuracy with labels."""
    from onnxcomp.cli.progress import Teller
    from onnxcomp.cli.view import show_contrast
    from onnxcomp.compiler.commands.compare import contrast
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.compiler.run.request import Request

    request = Request(source=first, evaluation=data, **options)
    with Teller(quiet=quiet or as_json) as teller:
        found = contrast(request, second, teller)
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        show_contrast(found)
