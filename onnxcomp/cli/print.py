"""The command `print`: a model as text."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import FILE, run_options

__all__ = ["print_"]


@click.command(
    "print",
    cls=Command,
    examples=(
        "onnxcomp print model.onnx",
        "diff <(onnxcomp print model.onnx) <(onnxcomp print small.onnx)",
    ),
)
@click.argument("model", metavar="IN", type=FILE)
@run_options("allow_links")
@common_options
def print_(model: Path, allow_links: bool, quiet: bool) -> None:
    """Print IN as text: the same model gives the same text, weights by digest."""
    from onnxcomp.cli.progress import Teller
    from onnxcomp.compiler.run.loading import load_checked
    from onnxcomp.ir.text import dump

    with Teller(quiet=quiet) as teller:
        loaded, _ = load_checked(model, allow_links=allow_links)
        for note in loaded.notes:
            teller.note(note)
    click.echo(dump(loaded), nl=False)
