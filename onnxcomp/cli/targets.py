"""The command `targets`: what toolchains want of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import json_option

if TYPE_CHECKING:
    from onnxcomp.compiler.target.facts import Target

__all__ = ["targets"]


@click.command(
    cls=Command,
    examples=(
        "onnxcomp targets",
        "onnxcomp targets tensorrt",
        "onnxcomp targets qnn --json",
    ),
)
@click.argument("name", required=False)
@json_option
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
