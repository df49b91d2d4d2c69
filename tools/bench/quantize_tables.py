"""How `tools.bench.quantize` prints what it measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tools.bench.prune import Figure
from tools.bench.quantize_runs import COMMAND_LIMIT, COST_LIMIT, COST_LIMITS, Cost, Memory, Row

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
        *("samples", "original %", "top1 %", "agreement %", "SQNR dB", "bytes", "latency", "minimum"),
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
                _number(result.accuracy_before),
                _cell(result.accuracy, targets.get("drop")),
                _cell(result.agreement, targets.get("agreement")),
                _cell(result.sqnr_db, targets.get("sqnr_db")),
                _cell(result.bytes, targets.get("bytes"), 0),
                _cell(result.latency_share, targets.get("latency_share"), 3),
                _number(result.latency_minimum, 3),
                *(_number(count, 0) for count in counts),
                *(_number(seconds, 1) for seconds in (result.seconds, result.cpu_seconds)),
                _number(result.peak_bytes / 1e6, 0),
            )
        table.add_section()
    console.print(table)
    for row in rows:
        for line in _remarks(row):
            console.print(line, markup=False, highlight=False)


def _remarks(row: Row) -> list[str]:
    lines = [f"{row.case}, {one.candidate}: {one.failure}" for one in row.results if one.failure is not None]
    missed = [figure for figure in row.figures if not figure.met]
    for figure in missed:
        reached = "not measured" if figure.reached is None else f"{figure.reached:,.7g}"
        lines.append(f"{row.case}: {figure.name} {reached} misses {figure.bound} {figure.target:,.10g}")
    for result in row.results:
        if result.candidate == "ours" and result.fused is not None and result.fused.islands:
            lines.append(f"{row.case}: float between integers: {', '.join(result.fused.islands)}")
    return lines


def show_costs(console: Console, costs: Sequence[Cost]) -> None:
    """Print what calibration costs, in seconds and as ratios; what the report does not tell is a dash."""
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
            _number(cost.plain),
            _number(cost.calibration),
            _number(_ratio(cost.calibration, cost.plain)),
            _number(cost.command),
            _number(cost.percentile),
            _number(_ratio(cost.command, cost.percentile)),
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
            cells = (_number(bytes_ / 1e6, 0) for bytes_ in (peak, above))
            table.add_row(
                one.case, _number(one.interpreter / 1e6, 0), str(count), *cells, "yes" if one.met else "no"
            )
    console.print(table)
    for one in found:
        if one.failure is not None:
            console.print(f"{one.case}: {one.failure}", markup=False, highlight=False)


def _ratio(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or not other else mine / other


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _cell(value: float | None, figure: Figure | None, digits: int = 2) -> str:
    """Return what was reached, and in brackets what is to be reached."""
    if figure is None:
        return _number(value, digits)
    unit = " drop" if figure.name == "drop" else ""
    return f"{_number(value, digits)} ({figure.bound} {figure.target:,.10g}{unit})"
