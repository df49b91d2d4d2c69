"""The command `presets`: pipelines that have a name."""

from __future__ import annotations

import click

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import json_option

__all__ = ["presets"]


@click.command(
    cls=Command,
    examples=(
        "onnxcomp presets",
        "onnxcomp optimize model.onnx -o small.onnx --preset exact",
    ),
)
@json_option
@common_options
def presets(as_json: bool, quiet: bool) -> None:
    """List the presets: pipelines that have a name."""
    from onnxcomp.cli.view import show_table
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.presets import PRESETS

    if as_json:
        click.echo(to_json({"presets": list(PRESETS.values())}), nl=False)
    else:
        show_table(("preset", "pipeline", ""), [(p.name, p.pipeline, p.summary) for p in PRESETS.values()])
