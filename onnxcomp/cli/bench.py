"""The command `bench`: model files in, one call, a table or JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.group import Command, common_options
from onnxcomp.cli.options import FILE, MEASURED_SIZES, changed, json_option, run_options

if TYPE_CHECKING:
    from onnxcomp.compiler.commands.bench import BenchedModel, BenchReport
    from onnxcomp.runtime.bench import Latency

__all__ = ["bench", "show_bench"]


_NAMED = 20
"""Nodes of a model that the table names."""


def _batches(text: str) -> tuple[int, ...]:
    """Return the sizes of a text such as `1,8`, each once.

    Raises:
        BadParameter: where `text` is not of that form.
    """
    words = [word.strip() for word in str(text).split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise click.BadParameter(f"'{text}' is no list of batch sizes, such as 1,8")
    return tuple(dict.fromkeys(int(word) for word in words))


@click.command(
    cls=Command,
    examples=(
        "onnxcomp bench model.onnx",
        "onnxcomp bench model.onnx small.onnx --batch 1,8",
        "onnxcomp bench model.onnx small.onnx --rounds 40 --no-memory --json",
    ),
)
@click.argument("models", metavar="A [B ...]", type=FILE, nargs=-1, required=True)
@click.option(
    "--batch",
    "batches",
    metavar="SIZES",
    type=_batches,
    help="Samples per run, such as 1,8; default: what the models fix, else 1.",
)
@run_options(changed("threads", help="Of onnxruntime; 0 = all cores.", default=1))
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Rounds in which the models take turns.",
)
@click.option(
    "--repeats",
    metavar="N",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Runs of a model in each of its turns.",
)
@click.option(
    "--warmup",
    metavar="N",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Runs before, which are not timed.",
)
@run_options(MEASURED_SIZES, changed("seed", help="Of the noise that is fed."))
@click.option(
    "--no-memory",
    is_flag=True,
    help="Leave out peak memory and start-up time, which take processes of their own.",
)
@json_option
@run_options("custom_op_libs", "allow_links")
@common_options
def bench(
    models: tuple[Path, ...],
    batches: tuple[int, ...] | None,
    rounds: int,
    repeats: int,
    warmup: int,
    no_memory: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show how long models take on the same noise: median, 95th percentile, minimum, ratio to A.

    The models take turns, so that a machine that slows down does so for all; a ratio is the median over rounds. Memory
    is what a fresh process takes for one run of the largest batch, beyond onnxruntime itself; the start is the time from
    loading to the first result. Of quantized models onnxruntime's own graph says how many nodes run on integers, how
    many were meant to and stayed float, and how many are float by nature.
    """
    from onnxcomp.cli.progress import Teller
    from onnxcomp.compiler.commands.bench import BenchPlan, bench_files
    from onnxcomp.compiler.run.report import to_json
    from onnxcomp.compiler.run.request import Request
    from onnxcomp.runtime.bench import Turns

    plan = BenchPlan(batches or (), Turns(rounds, repeats, warmup), fresh=not no_memory)
    request = Request(**options)
    files: dict[str, Path] = {}
    for number, path in enumerate(models, 1):
        # The same file twice shows how far two measurements of one thing lie apart.
        files[f"{path} ({number})" if str(path) in files else str(path)] = path
    with Teller(quiet=quiet or as_json) as teller:
        found = bench_files(files, request, plan, teller)
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        show_bench(found)


# --- results ---------------------------------------------------------------------------------------------------------
def show_bench(report: BenchReport) -> None:
    """Print a row per model and batch size, and the nodes of quantized models that stayed float."""
    from onnxcomp.cli.view import count_text, say, show_table

    quantized = any(m.fusion is not None for m in report.models)
    fresh = any(m.start_seconds is not None for m in report.models)
    columns = ["file", "bytes", "batch", "median ms", "p95", "min", "ratio"]
    columns += (["memory", "start ms"] if fresh else []) + (["fused/unfused/float"] if quantized else [])
    first = report.models[0].name
    rows = []
    for model in report.models:
        facts = _facts(model, fresh, quantized)
        for latency in report.latencies:
            if latency.name == model.name:
                ratio = "1" if model.name == first else f"{latency.ratio_paired:.3f}"
                rows.append([facts[0], facts[1], *_times(latency), ratio, *facts[2:]])
                facts = [""] * len(facts)
    cores = "all cores" if not report.threads else count_text(report.threads, "thread")
    runs = count_text(report.rounds * report.repeats, "run")
    show_table(columns, rows, right=columns[1:], title=f"{runs} each on {cores}, taking turns")
    for model in report.models:
        for line in _left_float(model):
            say(f"  {line}")


def _left_float(model: BenchedModel) -> list[str]:
    """Return a line per node that was meant to run on integers, or stands between such nodes, and is float."""
    if model.fusion is None:
        return []
    islands = set(model.fusion.islands)
    lines = []
    for node in dict.fromkeys([*model.fusion.unfused, *model.fusion.islands]):
        kind = "unfused" if node in model.fusion.unfused else "float"
        place = " between integer nodes" if node in islands else ""
        lines.append(
            f"{model.name}: {kind} {node.op} {node.name}{place}{': ' if node.reason else ''}{node.reason}"
        )
    if len(lines) > _NAMED:
        lines[_NAMED:] = [f"{model.name}: and {len(lines) - _NAMED} more; --json names all"]
    return lines


def _facts(model: BenchedModel, fresh: bool, quantized: bool) -> list[str]:
    """Return what is said once of a file: its name, its size, and what else was found out."""
    from onnxcomp.cli.view import size

    facts = [model.name, f"{model.file.bytes:,}"]
    if fresh:
        facts.append("?" if model.peak_bytes is None else size(model.peak_bytes))
        facts.append("?" if model.start_seconds is None else _milliseconds(model.start_seconds))
    if quantized:
        found = model.fusion
        counts = "" if found is None else f"{len(found.fused)}/{len(found.unfused)}/{len(found.floats)}"
        facts.append(counts)
    return facts


def _times(latency: Latency) -> list[str]:
    times = (latency.median, latency.p95, latency.minimum)
    return [str(latency.batch), *(_milliseconds(seconds) for seconds in times)]


def _milliseconds(seconds: float) -> str:
    """Return milliseconds with three figures or more."""
    value = 1000 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
