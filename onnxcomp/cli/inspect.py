"""The command `inspect`: what is in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import FILE, MEASURED_SIZES, json_option, run_options

__all__ = ["inspect"]


@click.command(
    cls=Command,
    examples=(
        "onnxcomp inspect model.onnx",
        "onnxcomp inspect model.onnx --set-shape input=1,3,320,320 --json",
    ),
)
@click.argument("model", metavar="IN", type=FILE)
@json_option
@click.option("--all", "every_node", is_flag=True, help="List the nodes that cost nothing, too.")
@run_options(MEASURED_SIZES, "custom_op_libs", "allow_links", "threads")
@common_options
def inspect(model: Path, as_json: bool, every_node: bool, quiet: bool, **options: Any) -> None:
    """Show what is in IN: the cost of every node, the channel groups and what blocks each."""
    from onnxcomp.cli.progress import Teller
    from onnxcomp.cli.view import show_inspection
    from onnxcomp.compiler.commands.inspection import inspect_model
    from onnxcomp.compiler.run.prepare import prepare
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.compiler.run.request import Request

    with Teller(quiet=quiet or as_json) as teller:
        teller.stage(f"loading {model.name}")
        found = inspect_model(prepare(Request(source=model, **options)))
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        show_inspection(found, every_node=every_node)
