"""How what was measured is printed: numbers, targets in brackets, and the tables about runs of the whole command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from tools.bench.figures import Figure, drop_of
from tools.bench.runs import Result

__all__ = [
    "cell",
    "forms_text",
    "line_of",
    "missed",
    "number",
    "say",
    "show_memory",
    "show_results",
    "show_speed",
    "show_spread",
]


def show_results(console: Console, title: str, beside: str, results: Sequence[Result]) -> None:
    """Print one line per run, what is to be reached in brackets, and below what was missed or failed.

    Times are shares of those of `beside`. What layers were replaced by is shown where any was.
    """
    table = Table(title=f"{title}, the whole command", title_justify="left")
    table.add_column("row")
    formed = any(result.forms for result in results)
    for name in (
        *("seed", "samples", "original %", "accuracy %", "drop", "agreement %", "SQNR dB", "MACs %"),
        *("parameters %", "bytes", "bytes %", f"time / {beside} %", "seconds", "peak MB", "met"),
        *(("replaced", "left") if formed else ()),
    ):
        table.add_column(name, justify="right")
    if formed:
        table.add_column("forms")
    for result in results:
        targets = {figure.name: figure for figure in result.figures}
        whole = result.bytes_before
        counts = (sum(result.forms.values()), result.left)
        table.add_row(
            result.case,
            str(result.seed),
            number(result.samples, digits=0),
            number(result.accuracy_before),
            cell(result.accuracy, targets.get("accuracy")),
            cell(drop_of(result.accuracy_before, result.accuracy), targets.get("drop")),
            cell(result.agreement, targets.get("agreement")),
            number(result.sqnr_db),
            cell(result.macs_share, targets.get("macs_share"), 100),
            cell(result.parameters_share, targets.get("parameters_share"), 100),
            number(result.bytes, digits=0),
            number(result.bytes / whole if result.bytes is not None and whole else None, 100, 1),
            cell(result.latency_share, targets.get("latency_share"), 100),
            cell(result.seconds, targets.get("seconds"), digits=1),
            cell(result.peak_bytes, targets.get("peak_bytes"), 1e-6, 0),
            _yes(result.met),
            *((*(number(count, digits=0) for count in counts), forms_text(result)) if formed else ()),
        )
    console.print(table)
    for result in results:
        named = f"{result.case} (seed {result.seed})"
        lines = [] if result.failure is None else [f"{named}: {result.failure}"]
        say(console, [*lines, *missed(named, result.figures)])


def missed(named: str, figures: Sequence[Figure]) -> list[str]:
    """Return a line for each of `figures` that is missed."""
    lines = []
    for figure in (figure for figure in figures if not figure.met):
        reached = "not measured" if figure.reached is None else f"{figure.reached:,.7g}"
        lines.append(f"{named}: {figure.name} {reached} misses {figure.bound} {figure.target:,.10g}")
    return lines


def say(console: Console, lines: Sequence[str]) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, markup=False, highlight=False)


def line_of(result: Result) -> str:
    """Return the result of a run in a few words, for those who wait for the table."""
    if result.bytes is None:
        return (result.failure or "nothing was written").splitlines()[0]
    found = (
        f"accuracy {number(result.accuracy)}, agreement {number(result.agreement)}",
        f"MACs {number(result.macs_share, 100, 1)} %, {number(result.bytes, digits=0)} bytes",
        *([] if result.latency_share is None else [f"time {number(result.latency_share, digits=3)}"]),
        f"{number(result.seconds, digits=1)} s",
        *([] if result.failure is None else [f"exit {result.exit_code}"]),
    )
    return ", ".join(found)


def forms_text(result: Result) -> str:
    """Return what layers were replaced by, as in `5 channel, 2 tucker`."""
    return ", ".join(f"{count} {form}" for form, count in result.forms.items())


def show_spread(console: Console, found: Mapping[str, Mapping[str, float]]) -> None:
    """Print mean, least, most and deviation of the accuracy of every row that ran with several seeds."""
    table = Table(title="accuracy % over seeds", title_justify="left")
    names = ("runs", "mean", "least", "most", "deviation")
    for name in ("row", *names):
        table.add_column(name, justify="left" if name == "row" else "right")
    for case, numbers in found.items():
        table.add_row(case, *(f"{numbers[n]:g}" if n == "runs" else number(numbers[n]) for n in names))
    console.print(table)


def show_memory(console: Console, pairs: Sequence[tuple[Result, Result, Figure]]) -> None:
    """Print the peaks of each row with fewer and with more samples side by side."""
    table = Table(title="peak memory of the whole command", title_justify="left")
    table.add_column("row")
    for name in ("samples", "peak MB", "samples", "peak MB", "more / fewer", "met"):
        table.add_column(name, justify="right")
    for fewer, more, figure in pairs:
        cells = ((number(one.samples, digits=0), number(one.peak_bytes, 1e-6, 0)) for one in (fewer, more))
        met = figure.met and fewer.met and more.met
        table.add_row(
            fewer.case, *(c for two in cells for c in two), cell(figure.reached, figure, 1, 3), _yes(met)
        )
    console.print(table)
    runs = (one for fewer, more, _ in pairs for one in (fewer, more))
    say(console, [f"{r.case}, {r.samples} samples: {r.failure}" for r in runs if r.failure is not None])


def show_speed(console: Console, results: Sequence[Result], passes: Sequence[str]) -> None:
    """Print the seconds of the whole command, and what `passes` and other parts of it took.

    `around` is what no pass took: to start, to look at the file, to verify and to judge on the evaluation samples.
    """
    table = Table(title="seconds of the whole command", title_justify="left")
    table.add_column("row")
    names = ("samples", "seconds", "CPU s", "these passes s", "other passes s", "around s", "met")
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        times = result.pass_seconds or {}
        these = sum(seconds for name, seconds in times.items() if name in passes)
        whole = sum(times.values())
        target = next((figure for figure in result.figures if figure.name == "seconds"), None)
        table.add_row(
            result.case,
            number(result.samples, digits=0),
            cell(result.seconds, target, digits=1),
            *(
                number(value, digits=1)
                for value in (result.cpu_seconds, these, whole - these, result.seconds - whole)
            ),
            _yes(result.failure is None and (target is None or target.met)),
        )
    console.print(table)
    say(console, [f"{r.case}: {r.failure}" for r in results if r.failure is not None])


def number(value: float | None, factor: float = 1, digits: int = 2) -> str:
    """Return `value * factor` with `digits` decimals and commas between thousands, a dash for None."""
    return "-" if value is None else f"{value * factor:,.{digits}f}"


def cell(value: float | None, figure: Figure | None, factor: float = 1, digits: int = 2) -> str:
    """Return what was reached, and in brackets what is to be reached."""
    target = "" if figure is None else f" ({figure.bound} {figure.target * factor:,.10g})"
    return number(value, factor, digits) + target


def _yes(met: bool) -> str:
    return "yes" if met else "no"
