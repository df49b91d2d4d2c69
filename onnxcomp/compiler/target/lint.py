"""What a target would say to a file: rules over the graph, each of which reads one table of the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxcomp.compiler.target.facts import Target
from onnxcomp.compiler.target.lint_qdq import PAIR_RULES, Found
from onnxcomp.ir.graph import Node, is_default_domain
from onnxcomp.ir.model import Model

__all__ = ["Finding", "check_target", "hard_notes"]


@dataclass(frozen=True)
class Finding:
    """One place where a file is not what a target wants.

    `table` names the fact in the target's file, `where` a node or value, or the file; `what` is how it stands, `advice` what
    to do. Where `hard`, the toolchain refuses the file or computes wrong numbers; otherwise speed or accuracy is lost.
    """

    table: str
    where: str
    what: str
    advice: str
    hard: bool


_FILE = "the file"
"""Where a finding is that has no node and no value."""


def check_target(model: Model, target: Target) -> tuple[Finding, ...]:
    """Return all that `target` would object to in `model`, the file's own facts first; nothing is edited."""
    findings = [
        Finding(table, where, what, advice, target.is_hard(table))
        for table, file_rule in _FILE_RULES
        for where, what, advice in file_rule(model, target)
    ]
    quantized = [n for n in model.graph.nodes if n.op == "QuantizeLinear" or n.op.startswith("QLinear")]
    if target.family == "float":
        findings += [_unwelcome(node, target) for node in quantized]
    elif not quantized:
        advice = f"run insert-qdq with --target {target.name}"
        findings.append(Finding("family", _FILE, "holds nothing quantized", advice, hard=False))
    else:
        findings += [
            Finding(table, where, what, advice, target.is_hard(table) if hard is None else hard)
            for table, rule, hard in PAIR_RULES
            for where, what, advice in rule(model.graph, target)
        ]
    return tuple(findings)


def hard_notes(model: Model, target: Target) -> tuple[str, ...]:
    """Return a sentence per hard fact that `model` violates, with the first place and the number of others."""
    found: dict[str, list[Finding]] = {}
    for finding in check_target(model, target):
        if finding.hard:
            found.setdefault(finding.table, []).append(finding)
    notes = []
    for places in found.values():
        first, more = places[0], f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        place = " " if first.where == _FILE else f": {first.where}: "
        notes.append(f"target {target.name}{place}{first.what}{more}; {first.advice}")
    return tuple(notes)


def _unwelcome(node: Node, target: Target) -> Finding:
    what = "the target has its own quantizer and wants a clean float file"
    return Finding("family", node.name, what, "leave quantizing out", target.is_hard("family"))


# --- the file --------------------------------------------------------------------------------------------------------
def _opset(model: Model, target: Target) -> Found:
    least, most = target.opset
    if "" in model.opset_imports and not least <= model.opset <= most:
        wanted, use = (f"<= {most}", most) if model.opset > most else (f">= {least}", least)
        yield _FILE, f"wants opset {wanted}, the file has {model.opset}", f"use --opset {use}"


def _ir(model: Model, target: Target) -> Found:
    if model.ir_version > target.ir_max:
        what = f"wants an IR version <= {target.ir_max}, the file has {model.ir_version}"
        yield _FILE, what, f"use --ir-version {target.ir_max}"


def _shapes(model: Model, target: Target) -> Found:
    if not target.static_shapes:
        return
    for value in model.graph.inputs:
        sizes = value.shape
        if sizes is None:
            yield value.name, "the input has no shape, wanted is a static one", "export it with a shape"
        elif not all(isinstance(s, int) for s in sizes):
            what = f"the input is [{', '.join(str(s) for s in sizes)}], wanted is a static shape"
            fixed = ",".join(str(s) if isinstance(s, int) else "1" for s in sizes)
            yield value.name, what, f"use --set-shape {value.name}={fixed}"


def _domains(model: Model, target: Target) -> Found:
    known = {d for d in target.domains if not is_default_domain(d)}
    for node in model.graph.nodes:
        if not node.standard and node.domain not in known:
            yield (
                node.name,
                f"operator {node.domain}.{node.op} is of a foreign domain",
                "replace it by standard operators",
            )


def _refuses(model: Model, target: Target) -> Found:
    for node in model.graph.nodes:
        if node in target.refuses:
            yield node.name, f"operator {node.op} is not taken", "export the network without it"


_FILE_RULES: tuple[tuple[str, Callable[[Model, Target], Found]], ...] = (
    ("opset", _opset),
    ("ir", _ir),
    ("shapes", _shapes),
    ("domains", _domains),
    ("refuses", _refuses),
)
