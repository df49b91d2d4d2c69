"""The command `passes`: which there are, and their options."""

from __future__ import annotations

import click

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import json_option

__all__ = ["passes"]


@click.command(
    cls=Command,
    examples=(
        "onnxcomp passes",
        "onnxcomp passes prune-filters",
    ),
)
@click.argument("name", required=False)
@json_option
@common_options
def passes(name: str | None, as_json: bool, quiet: bool) -> None:
    """List the passes, or show the options of the pass NAME. Broken plug-ins are listed as broken."""
    from onnxcomp.cli.view import show_pass, show_passes
    from onnxcomp.compiler.commands.catalogue import describe, list_passes
    from onnxcomp.compiler.run.report import to_json

    if name is None:
        listed = list_passes()
        click.echo(to_json({"passes": listed}), nl=False) if as_json else show_passes(listed)
    else:
        described = describe(name)
        click.echo(to_json(described), nl=False) if as_json else show_pass(described)
