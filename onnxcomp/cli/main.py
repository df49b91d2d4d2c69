"""The command line: all commands, a file each. What they do stands in the rooms below."""

from __future__ import annotations

import click

from onnxcomp.cli.bench import bench
from onnxcomp.cli.check import check
from onnxcomp.cli.compare import compare
from onnxcomp.cli.config import config
from onnxcomp.cli.group import Commands
from onnxcomp.cli.inspect import inspect
from onnxcomp.cli.optimize import optimize
from onnxcomp.cli.passes import passes
from onnxcomp.cli.presets import presets
from onnxcomp.cli.print import print_
from onnxcomp.cli.sensitivity import sensitivity
from onnxcomp.cli.targets import targets

__all__ = ["cli", "main"]


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from onnxcomp.compiler.run.report import versions

    found = versions()
    others = ", ".join(f"{name} {found[name]}" for name in ("onnx", "onnxruntime", "python"))
    click.echo(f"onnxcomp {found['onnxcomp']} ({others})")
    context.exit()


@click.group(
    "onnxcomp",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the versions of onnxcomp, onnx and onnxruntime.",
)
def cli() -> None:
    """Make trained ONNX networks smaller and faster, without a training framework."""


def main() -> None:
    """Run the command line and exit with its code."""
    cli.main()


for command in (
    optimize,
    inspect,
    compare,
    bench,
    sensitivity,
    check,
    targets,
    print_,
    passes,
    presets,
    config,
):
    cli.add_command(command)
