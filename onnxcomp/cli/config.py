"""The command `config init`: a config file to start from."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcomp.cli.group import Group, common_options
from onnxcomp.cli.options import FILE

__all__ = ["config"]


@click.group(cls=Group)
def config() -> None:
    """Work with config files."""


@config.command(
    examples=(
        "onnxcomp config init",
        "onnxcomp config init - > settings.toml",
    ),
)
@click.argument("path", metavar="FILE", type=FILE, default=Path("onnxcomp.toml"))
@click.option("--force", is_flag=True, help="Replace an existing file.")
@common_options
def init(path: Path, force: bool, quiet: bool) -> None:
    """Write a config file with every key explained; onnxcomp.toml by default, - for stdout."""
    from onnxcomp.cli.config_file import TEMPLATE
    from onnxcomp.ir.atomic import check_output, replacing

    if str(path) == "-":
        click.echo(TEMPLATE, nl=False)
        return
    check_output(path, force=force)
    with replacing(path) as (stream,):
        stream.write(TEMPLATE.encode())
    if not quiet:
        click.echo(f"wrote {path}", err=True)
