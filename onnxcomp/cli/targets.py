"""The commands `targets` and `check`: what toolchains want of a file, and whether a file is so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import FILE

if TYPE_CHECKING:
    from onnxcomp.compiler.target.facts import Target
    from onnxcomp.compiler.target.lint import Finding

__all__ = ["check", "targets"]

SHOWN = 10
"""Rows of one kind that `check` prints without --all."""

VIOLATED = 1
"""Exit code of `check` where a hard fact is violated."""


@click.command(
    cls=Command,
    examples=(
        "onnxcomp targets",
        "onnxcomp targets tensorrt",
        "onnxcomp targets qnn --json",
    ),
)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@common_options
def targets(name: str | None, as_json: bool, quiet: bool) -> None:
    """List the targets, or show what the target NAME wants: each fact with its source and when it was tried."""
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.targets import TARGETS, target

    if name is not None:
        found = target(name)
        click.echo(to_json(_document(found)), nl=False) if as_json else _show_target(found)
    elif as_json:
        click.echo(to_json({"targets": [_document(t) for t in TARGETS.values()]}), nl=False)
    else:
        _show_targets(TARGETS)


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--all", "every", is_flag=True, help=f"List all places, not {SHOWN} of a kind.")
@click.option("--allow-links", is_flag=True, help="Follow links to external data (model-hub caches).")
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


def _document(target: Target) -> dict[str, Any]:
    """Return a target as its file has it: the tables, each with source, date and hardness."""
    return {"name": target.name, "summary": target.summary, "facts": target.facts, "notes": target.notes}


def _show_targets(known: Mapping[str, Target]) -> None:
    from onnxcomp.cli.view import show_table

    rows = [
        (t.name, t.family, _formats(t), f"{t.opset[0]} to {t.opset[1]}", _tried(t), t.summary)
        for t in known.values()
    ]
    show_table(("target", "family", "weights / activations", "opset", "verified", ""), rows)


def _formats(target: Target) -> str:
    if target.family == "float":
        return "its own quantizer"
    per = "per channel" if target.weights.per_channel else "per tensor"
    scale = ", powers of two" if target.scale == "pow2" else ""
    return f"{target.weights.dtype} {per} / {target.activations.dtype}{scale}"


def _tried(target: Target) -> str:
    return f"{sum(bool(f.verified_on) for f in target.facts)} of {len(target.facts)}"


def _show_target(target: Target) -> None:
    from onnxcomp.cli.view import say, show_table

    say((target.name, "bold"), f": {target.summary}")
    rows: list[Sequence[str | Text]] = []
    for fact in target.facts:
        verified = fact.verified_on or Text("unverified", style="yellow")
        stated = [f"{key}: {_value(value)}" for key, value in fact.values.items()]
        rows.append((fact.table, "must" if fact.hard else "should", "\n".join(stated), verified, fact.source))
    show_table(("fact", "", "what", "verified", "source"), rows)
    for note in target.notes:
        say(f"{note.text} ({note.source}; {note.verified_on or 'unverified'})")


def _value(value: object) -> str:
    if isinstance(value, list):
        if len(value) == 2 and all(isinstance(entry, int) for entry in value):
            return f"{value[0]} to {value[1]}"
        return ", ".join(_value(entry) for entry in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "standard operators"


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
        say(f"{model.name} suits {target.name}, as far as the rules tell{advice}")
