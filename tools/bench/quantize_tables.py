"""How the benchmark quantize prints what it measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tools.bench.figures import drop_of
from tools.bench.quantize_runs import COMMAND_LIMIT, COST_LIMIT, COST_LIMITS, Cost, Memory, Row
from tools.bench.tables import cell, missed, number, say

__all__ = ["show_costs", "show_memory", "show_rows"]


def show_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print one line per candidate, what ours is to reach in brackets, and below what failed or stayed float."""
    table = Table(
        title="insert-qdq, the whole command, beside onnxruntime's quantizer (after its own quant_pre_process)",
        title_justify="left",
    )
    for name in ("row", "candidate"):
        table.add_column(name)
    for name in (
        *("samples", "original %", "top1 %", "drop", "agreement %", "SQNR dB", "bytes", "latency", "minimum"),
        *("fused", "unfused", "float", "islands", "seconds", "CPU s", "peak MB"),
    ):
        table.add_column(name, justify="right")
    for row in rows:
        for result in row.results:
            targets = {f.name: f for f in row.figures} if result.candidate == "ours" else {}
            kinds = result.fused
            counts = (
                (None,) * 4
                if kinds is None
                else (kinds.fused, kinds.unfused, kinds.floats, len(kinds.islands))
            )
            table.add_row(
                row.case,
                result.candidate,
                str(row.samples),
                number(result.accuracy_before),
                number(result.accuracy),
                cell(drop_of(result.accuracy_before, result.accuracy), targets.get("drop")),
                cell(result.agreement, targets.get("agreement")),
                cell(result.sqnr_db, targets.get("sqnr_db")),
                cell(result.bytes, targets.get("bytes"), digits=0),
                cell(result.latency_share, targets.get("latency_share"), digits=3),
                number(result.latency_minimum, digits=3),
                *(number(count, digits=0) for count in counts),
                *(number(seconds, digits=1) for seconds in (result.seconds, result.cpu_seconds)),
                number(result.peak_bytes, 1e-6, 0),
            )
        table.add_section()
    console.print(table)
    say(console, [line for row in rows for line in _remarks(row)])


def _remarks(row: Row) -> list[str]:
    lines = [f"{row.case}, {one.candidate}: {one.failure}" for one in row.results if one.failure is not None]
    lines += missed(row.case, row.figures)
    for result in row.results:
        if result.candidate == "ours" and result.fused is not None and result.fused.islands:
            lines.append(f"{row.case}: float between integers: {', '.join(result.fused.islands)}")
    return lines


def show_costs(console: Console, costs: Sequence[Cost]) -> None:
    """Print what calibration costs, in seconds and as ratios; what the report does not hold is a dash."""
    table = Table(title="cost of calibration, seconds", title_justify="left")
    table.add_column("row")
    limit = f"<= {COST_LIMIT:g}; minmax {COST_LIMITS['minmax']:g}"
    for name in (
        *("samples", "plain inference", "our stage", f"stage / plain ({limit})", "our command"),
        *("onnxruntime percentile", f"command / percentile (<= {COMMAND_LIMIT:g})"),
    ):
        table.add_column(name, justify="right")
    for cost in costs:
        table.add_row(
            cost.case,
            str(cost.samples),
            number(cost.plain),
            number(cost.calibration),
            number(_ratio(cost.calibration, cost.plain)),
            number(cost.command),
            number(cost.percentile),
            number(_ratio(cost.command, cost.percentile)),
        )
    console.print(table)


def show_memory(console: Console, found: Sequence[Memory]) -> None:
    """Print the peaks of our command above the interpreter, by number of samples."""
    table = Table(title="peak memory of the whole command", title_justify="left")
    table.add_column("row")
    for name in ("interpreter MB", "samples", "peak MB", "above MB", "met"):
        table.add_column(name, justify="right")
    for one in found:
        for count, peak in one.peaks.items():
            above = peak - one.interpreter
            cells = (number(bytes_, 1e-6, 0) for bytes_ in (peak, above))
            table.add_row(
                one.case, number(one.interpreter, 1e-6, 0), str(count), *cells, "yes" if one.met else "no"
            )
    console.print(table)
    say(console, [f"{one.case}: {one.failure}" for one in found if one.failure is not None])


def _ratio(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or not other else mine / other
