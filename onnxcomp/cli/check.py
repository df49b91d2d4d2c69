"""The command `check`: whether a file is as a toolchain wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import FILE, json_option, run_options

if TYPE_CHECKING:
    from onnxcomp.compiler.target.facts import Target
    from onnxcomp.compiler.target.lint import Finding

__all__ = ["check"]

SHOWN = 10
"""Rows of one kind that `check` prints without --all."""

VIOLATED = 1
"""Exit code of `check` where a hard fact is violated."""


@click.command(
    cls=Command,
    examples=(
        "onnxcomp check model.onnx --target ort-cpu",
        "onnxcomp check model.onnx --target tensorrt --json",
    ),
)
@click.argument("model", metavar="IN", type=FILE)
@click.option(
    "--target", metavar="NAME", required=True, help="What the file is to run on; see `onnxcomp targets`."
)
@json_option
@click.option("--all", "every", is_flag=True, help=f"List all places, not {SHOWN} of a kind.")
@run_options("allow_links")
@common_options
def check(model: Path, target: str, as_json: bool, every: bool, allow_links: bool, quiet: bool) -> int:
    """Hold IN against a target: its opset, shapes and operators, and where it is quantized its pairs.

    The exit code is 0 where nothing is violated that the toolchain insists on, and 1 where it would refuse the file or
    compute wrong numbers.
    """
    from onnxcomp.cli.progress import Teller
    from onnxcomp.compiler.run.loading import load_checked
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.compiler.target.lint import check_target
    from onnxcomp.targets import target as target_called

    wanted = target_called(target)
    with Teller(quiet=quiet or as_json) as teller:
        teller.stage(f"loading {model.name}")
        loaded, _ = load_checked(model, allow_links=allow_links)
        for note in loaded.notes:
            teller.note(note)
        findings = check_target(loaded, wanted)
    clean = not any(f.hard for f in findings)
    if as_json:
        document = {"model": str(model), "target": wanted.name, "clean": clean, "findings": findings}
        click.echo(to_json(document), nl=False)
    else:
        _show_findings(model, wanted, findings, every)
    return 0 if clean else VIOLATED


def _show_findings(model: Path, target: Target, findings: Sequence[Finding], every: bool) -> None:
    from onnxcomp.cli.view import count_text, say, show_table

    kinds: dict[tuple[str, str], int] = {}
    rows: list[Sequence[str | Text]] = []
    for finding in sorted(findings, key=lambda f: not f.hard):
        kind = (finding.table, finding.advice)
        kinds[kind] = kinds.get(kind, 0) + 1
        if every or kinds[kind] <= SHOWN:
            must = Text("must", style="bold red") if finding.hard else "should"
            rows.append((finding.where, must, finding.table, finding.what, finding.advice))
    if rows:
        show_table(("node", "", "fact", "what", "what to do"), rows)
    if len(rows) < len(findings):
        say(f"{count_text(len(findings) - len(rows), 'more place')} of the same kinds; --all lists them")
    hard = sum(f.hard for f in findings)
    if hard:
        say((f"{model.name} does not suit {target.name}", "bold red"), f": {count_text(hard, 'violation')}")
    else:
        advice = f", {count_text(len(findings), 'piece')} of advice" if findings else ""
        say(f"{model.name} suits {target.name}, as far as the rules say{advice}")
