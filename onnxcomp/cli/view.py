"""Results as tables on stdout. Whatever a model says of itself goes through `clean` first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxcomp.cli.group import clean

if TYPE_CHECKING:
    from onnxcomp.analysis.cost import Cost
    from onnxcomp.compiler.commands.catalogue import PassFacts
    from onnxcomp.compiler.commands.compare import Contrast
    from onnxcomp.compiler.commands.inspection import Inspection
    from onnxcomp.compiler.run.prepare import Prepared
    from onnxcomp.compiler.run.report import DataFacts, Report
    from onnxcomp.runtime.compare import Comparison, OutputDifference

__all__ = [
    "show_comparison",
    "show_contrast",
    "show_inspection",
    "show_pass",
    "show_passes",
    "show_plan",
    "show_report",
    "show_table",
    "to_terminal",
]

_WIDE = 4000
"""Columns where there is no terminal: nothing is cut, so that output can be searched."""

_STATUS = {"changed": "green", "unchanged": "dim", "rolled-back": "bold yellow", "failed": "bold red"}

_QUALITY = {
    "kept": "green",
    "noticeable": "yellow",
    "unjudged": "yellow",
    "ruined": "bold red",
    "unverified": "bold red",
}


def to_terminal() -> Console:
    """Return the console of stdout."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_WIDE)
    return console


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
    title: str | None = None,
) -> None:
    """Print a table; the columns named in `right` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row))
    console = to_terminal()
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    console.print("\n".join(line.rstrip() for line in capture.get().split("\n")), end="", soft_wrap=True)


def say(*parts: str | tuple[str, str]) -> None:
    """Print one line of text, parts of it in a style."""
    cleaned = [(clean(p[0]), p[1]) if isinstance(p, tuple) else clean(p) for p in parts]
    to_terminal().print(Text.assemble(*cleaned), soft_wrap=True)


# --- numbers ---------------------------------------------------------------------------------------------------------
def count_text(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def amount(value: float | None) -> str:
    """Return a number with three or four figures and k, M, G or T behind it."""
    if value is None:
        return "?"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.2f} {unit}"
    return f"{value:,.0f}"


def share(part: float | None, whole: float | None) -> str:
    """Return `part` as percent of `whole`."""
    return f"{100 * part / whole:.1f} %" if part is not None and whole else ""


def size(value: float) -> str:
    """Return a number of bytes."""
    return f"{amount(value)}B" if value >= 1e4 else f"{value:,.0f} B"


def shape_text(shape: Sequence[Any] | None) -> str:
    """Return a shape as `[1, 3, N]`."""
    return "?" if shape is None else "[" + ", ".join("?" if s is None else str(s) for s in shape) + "]"


def decibels(value: float | None) -> str:
    """Return an SQNR in words."""
    if value is None:
        return "not finite"
    return "equal" if math.isinf(value) else f"{value:.1f} dB"


# --- optimize --------------------------------------------------------------------------------------------------------
def show_report(report: Report, written: Sequence[str]) -> None:
    """Print what a run did: a row per pass, then how the result compares and what was written."""
    given = report.input.bytes if report.input is not None else report.before.bytes
    rows: list[Sequence[str | Text]] = [_cost_row("input", "", report.before, given)]
    for run in report.runs:
        status = Text(run.status, style=_STATUS[run.status])
        rows.append(_cost_row(run.name, status, run.after, run.after.bytes))
    made = report.output.bytes if report.output is not None else given
    if report.output is not None:
        before, after = report.before, report.after
        rows.append(_cost_row("output", "", after, made))
        shares = [
            share(after.nodes, before.nodes),
            share(after.parameters, before.parameters),
            share(made, given),
            share(after.macs, before.macs),
        ]
        rows.append([Text(text, style="dim") for text in ("of the input", "", *shares)])
    columns = ("pass", "status", "nodes", "parameters", "bytes", "MACs")
    show_table(columns, rows, right=columns[2:])
    for run in report.runs:
        if run.reason:
            say((f"{run.name} {run.status}: ", _STATUS[run.status]), run.reason)
    if report.comparison is not None and report.compared_on is not None:
        show_comparison(report.comparison, _compared_on(report), report.metric)
    for condition in report.conditions:
        say(str(condition) if condition.met else (str(condition), "bold red"))
    if made > given and report.status != "unchanged":
        say(
            (f"the file grew by {size(made - given)}", "bold yellow"),
            "; --require-smaller makes that an error",
        )
    if written:
        say("wrote ", (", ".join(written), "bold"))
    if report.verdict is not None and report.status != "unchanged":
        say(
            (report.verdict.quality, _QUALITY[report.verdict.quality]),
            str(report.verdict).removeprefix(report.verdict.quality),
        )


def _cost_row(name: str, status: str | Text, cost: Cost, file_bytes: int) -> list[str | Text]:
    return [name, status, f"{cost.nodes:,}", f"{cost.parameters:,}", size(file_bytes), amount(cost.macs)]


def _compared_on(report: Report) -> str:
    facts = next((d for d in report.data if d.role == report.compared_on), None)
    return "noise" if facts is None else _data_text(facts)


def _data_text(facts: DataFacts) -> str:
    return facts.source if facts.mode == "none" else f"{facts.role} data {facts.source}"


def show_comparison(comparison: Comparison, where: str, metric: str | None) -> None:
    """Print how far two models are apart."""
    parts: list[str] = []
    if comparison.accuracy_before is not None and comparison.accuracy_after is not None:
        drop = comparison.accuracy_before - comparison.accuracy_after
        parts.append(
            f"top1 {comparison.accuracy_before:.2f} % -> {comparison.accuracy_after:.2f} % (drop {drop:.2f})"
        )
    if comparison.agreement is not None:
        parts.append(f"agreement {comparison.agreement:.2f} %")
    for output in comparison.outputs:
        if output.equal is not None and output.name != comparison.decision:
            parts.append(f"{output.name} equal {output.equal:.2f} %")
    if comparison.worst is not None or not all(o.finite for o in comparison.outputs):
        parts.append(f"SQNR {decibels(comparison.sqnr_db)}")
    if comparison.unjudged:
        parts.append("no output can be compared")
    if metric == "mse" and comparison.mse is not None:
        parts.insert(0, f"mse {comparison.mse:.3g}")
    if comparison.worst is not None:
        parts.append(f"largest difference {comparison.worst.max_abs:.3g}")
    say(
        ("compared", "bold"), f" on {count_text(comparison.samples, 'sample')} of {where}: {', '.join(parts)}"
    )


# --- plan ------------------------------------------------------------------------------------------------------------
def show_plan(prepared: Prepared, cost: Cost) -> None:
    """Print what a run would do."""
    request = prepared.request
    rows = []
    for step in request.passes:
        needs = ", ".join(sorted(step.needs())) or "nothing"
        rows.append([str(step), "exact" if step.exact else "lossy", step.stage, needs])
    show_table(("pass", "kind", "stage", "needs"), rows, title="would run")
    shapes = " ".join(f"{n}={shape_text(s)}" for n, s in prepared.data.shapes.items()) or "unknown sizes"
    facts: list[tuple[str, str]] = [
        (
            "model",
            f"{cost.nodes:,} nodes, {cost.parameters:,} parameters, {amount(cost.macs)} MACs at {shapes}",
        )
    ]
    for data in prepared.data.facts:
        labels = ", labelled" if data.labelled else ""
        facts.append((data.role, f"{data.samples:,} samples of {data.source} ({data.mode}{labels})"))
    if prepared.metric is not None:
        on = f" on output {prepared.decision}" if prepared.decision and prepared.metric != "sqnr" else ""
        facts.append(("judged by", f"{prepared.metric}{on}"))
    facts += [(f"--{name}", f"{limit:g}") for name, limit in _bounds(prepared)]
    if prepared.excluded:
        facts.append(("excluded", ", ".join(sorted(prepared.excluded))))
    facts.append(("would write", ", ".join(map(str, [request.output, *request.reports]))))
    for name, text in facts:
        say((f"{name:<14}", "bold"), text)


def _bounds(prepared: Prepared) -> list[tuple[str, float]]:
    request = prepared.request
    found = [
        ("max-drop", request.max_drop),
        ("min-sqnr", request.min_sqnr),
        ("require-speedup", request.require_speedup),
    ]
    return [(name, limit) for name, limit in found if limit is not None]


# --- compare ---------------------------------------------------------------------------------------------------------
def show_contrast(result: Contrast) -> None:
    """Print how two files differ: a row per output, then the choice of classes."""
    rows = []
    for output in result.comparison.outputs:
        rows.append(
            [
                output.name,
                "-" if output.max_abs is None else f"{output.max_abs:.3g}",
                "-" if output.relative is None else f"{output.relative:.3g}",
                "-" if output.sqnr_db is None else decibels(output.sqnr_db),
                "-" if output.cosine is None else f"{output.cosine:.6f}",
                _remark(output),
            ]
        )
    columns = ("output", "max abs", "relative", "SQNR", "cosine", "")
    show_table(columns, rows, right=columns[1:5])
    for name, facts in (("A", result.a), ("B", result.b)):
        say((f"{name}  ", "bold"), f"{facts.path}: {size(facts.bytes)}")
    show_comparison(result.comparison, result.data.source, None)


def _remark(output: OutputDifference) -> str:
    if output.identical:
        return "identical"
    if not output.finite:
        return "NaN or Inf"
    return "" if output.equal is None else f"{output.equal:.2f} % equal"


# --- inspect ---------------------------------------------------------------------------------------------------------
def show_inspection(result: Inspection, *, every_node: bool) -> None:
    """Print what is in a model: its face, the nodes that cost something (or all), the channel groups."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in result.opsets.items())
    say((result.file.path if result.file is not None else "model", "bold"))
    say(
        f"  IR version {result.ir_version}, {opsets}" + (f", by {result.producer}" if result.producer else "")
    )
    for role, values in (("input", result.inputs), ("output", result.outputs)):
        for value in values:
            measured = result.input_shapes.get(value.name) if role == "input" else None
            at = f", measured at {shape_text(measured)}" if measured and measured != value.shape else ""
            say(f"  {role:<6} {value.name}: {value.dtype} {shape_text(value.shape)}{at}")
    cost = result.cost
    say(
        f"  {cost.nodes:,} nodes, {cost.parameters:,} parameters, {amount(cost.macs)} MACs"
        + (f", {size(result.file.bytes)}" if result.file is not None else "")
    )
    for note in result.notes:
        say(("  note: ", "cyan"), note)
    _show_nodes(result, every_node)
    _show_groups(result)


def _show_nodes(result: Inspection, every: bool) -> None:
    rows = []
    for node in result.nodes:
        if every or node.macs or node.parameters:
            op = f"{node.domain}.{node.op}" if node.domain else node.op
            rows.append(
                [
                    node.name,
                    op,
                    node.dtype or "?",
                    shape_text(node.shape),
                    f"{node.parameters:,}",
                    amount(node.macs) if node.macs else "-",
                    share(node.macs, result.cost.macs) if node.macs else "",
                ]
            )
    columns = ("node", "operator", "dtype", "output", "parameters", "MACs", "share")
    title = (
        "nodes" if len(rows) == len(result.nodes) else f"nodes with cost ({len(rows)} of {len(result.nodes)})"
    )
    show_table(columns, rows, right=columns[4:], title=title)


def _show_groups(result: Inspection) -> None:
    rows: list[list[str | Text]] = [
        [
            group.name,
            f"{group.units:,}",
            _some(group.producers),
            _some(group.consumers),
            Text(clean(group.blocked), style="yellow")
            if group.blocked
            else Text("can be cut", style="green"),
        ]
        for group in result.groups
    ]
    columns = ("channel group", "channels", "made by", "read by", "")
    show_table(columns, rows, right=("channels",), title=f"{len(rows)} channel groups")


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = len(names) - most
    return "\n".join(names[:most]) + (f"\nand {rest} more" if rest > 0 else "")


# --- passes ----------------------------------------------------------------------------------------------------------
def show_passes(passes: Sequence[PassFacts]) -> None:
    """Print a row per pass."""
    rows: list[list[str | Text]] = []
    for entry in passes:
        if entry.broken is not None:
            rows.append([entry.name, entry.owner, Text("broken", style="bold red"), entry.broken])
        else:
            rows.append([entry.name, entry.owner, "exact" if entry.exact else "lossy", entry.summary])
    show_table(("pass", "package", "kind", ""), rows)


def show_pass(entry: PassFacts) -> None:
    """Print one pass: what it does, what it needs, its options."""
    kind = "exact" if entry.exact else "lossy"
    say((entry.name, "bold"), f"  ({kind}, {entry.stage}, of {entry.owner})")
    say(f"\n{entry.doc}\n")
    say(f"needs {', '.join(entry.needs) or 'nothing'} by default")
    if entry.options:
        rows = [(o.name, o.kind, "-" if o.default is None else o.default, o.help) for o in entry.options]
        show_table(("option", "type", "default", ""), rows)
