"""Measure what pruning is worth in time: pruned ResNets beside the original file, the folded one, and a peer's.

    python -m tools.bench latency [--rows NAME,...] [--align 1,8,16] [--batches 1,32] [--samples N] [--quick]
                                  [--rounds N] [--repeats N] [--threads N] [--shared FOLDER] [--json FILE]

All candidates of a network run in one process, in turns (see `onnxcomp.runtime.bench`); ratios are to the original file.
Let nothing heavy run beside it. Exit code 1 where the network pruned to half its MACs misses the ratio to reach.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table

import onnxcomp
from onnxcomp.analysis.cost import Cost, model_cost
from onnxcomp.api import Optimized
from onnxcomp.errors import BudgetError
from onnxcomp.ir import from_proto, to_proto
from onnxcomp.ir.model import Model
from onnxcomp.runtime.bench import Benchmark, Turns, batch_feeds, bench_models
from onnxcomp.runtime.observe import observe_shapes
from tools.bench import options as common
from tools.bench.cases import EXACT, NETWORKS, ROOT
from tools.bench.document import write_document
from tools.bench.tables import number, say

__all__ = ["JUDGED", "ROWS", "TARGET", "Candidate", "Row", "Timing", "candidates", "measure", "peer"]

TARGET = 0.80
"""Latency of a ResNet with half its MACs to that of the original file, which is to be reached at every batch size."""

JUDGED = "align=1"
"""The candidate that is to reach it."""

ROWS = ("resnet20", "resnet56")
"""The networks that are measured."""

QUICK = " criterion=l1 repair=none scope=uniform"
"""Options that cut as many channels everywhere without measuring which: the time is the same, the accuracy is not."""


@dataclass(frozen=True)
class Candidate:
    """A network to time: its cost, and the accuracy (%) where it was judged."""

    name: str
    model: Model
    cost: Cost
    accuracy: float | None = None


@dataclass(frozen=True)
class Timing:
    """What is pruned how, and how it is timed."""

    shared: Path
    align: tuple[int, ...] = (1, 8, 16)
    batches: tuple[int, ...] = (1, 32)
    samples: int = 512
    quick: bool = False
    threads: int = 1
    rounds: int = 40
    repeats: int = 5


@dataclass(frozen=True)
class Row:
    """All candidates of one network, the original first, and their latencies; `notes` say what is not there."""

    name: str
    candidates: tuple[Candidate, ...]
    benchmark: Benchmark
    notes: tuple[str, ...]

    @property
    def met(self) -> bool | None:
        """Whether the network pruned with align=1 reaches the target at every batch size; None without it."""
        judged = [one for one in self.benchmark.latencies if one.name == JUDGED]
        return all(one.ratio_median <= TARGET for one in judged) if judged else None


def candidates(path: Path, timing: Timing) -> tuple[list[Candidate], list[str]]:
    """Return the candidates made of the network at `path`, and notes on those that cannot be made."""
    original = onnxcomp.load(path)
    folded = onnxcomp.optimize(original, EXACT, threads=timing.threads).model
    found = [_candidate("original", original), _candidate("folded", folded)]
    notes: list[str] = []
    for align in timing.align:
        done = _pruned(original, align, timing)
        comparison = done.report.comparison
        accuracy = None if comparison is None else comparison.accuracy_after
        found.append(_candidate(f"align={align}", done.model, accuracy))
        notes += [f"align={align}: {run.shortfall}" for run in done.report.runs if run.shortfall]
    try:
        found.append(_candidate("onnxsim", peer(folded)))
    except LookupError as reason:
        notes.append(f"onnxsim: {reason}")
    return found, notes


def _pruned(original: Model, align: int, timing: Timing) -> Optimized:
    """Return `original` with half its MACs, or what comes nearest with channels in multiples of `align`."""
    try:
        return onnxcomp.optimize(
            original,
            f"{EXACT},prune-filters{{macs=0.5 align={align}{QUICK if timing.quick else ''}}}",
            calibration=timing.shared / "data" / "cifar10_calibration.npz",
            evaluation=timing.shared / "data" / "cifar10_evaluation.npz",
            samples=timing.samples,
        )
    except BudgetError as problem:
        if not isinstance(problem.result, Optimized):
            raise
        return problem.result


def _candidate(name: str, model: Model, accuracy: float | None = None) -> Candidate:
    shapes = observe_shapes(model, batch_feeds(model, (1,))[1])
    return Candidate(name, model, model_cost(model, shapes), accuracy)


def peer(folded: Model) -> Model:
    """Return the already folded model with half of the channels removed that onnxsim's structured pruning can remove.

    That is its own setting `sparsity=0.5`; on the ResNets half of the MACs remain. It removes nothing from a network
    that still has BatchNormalization.

    Raises:
        LookupError: where onnxsim is not installed, has no structured pruning, or removes nothing, saying which.
    """
    if find_spec("onnxsim") is None:
        raise LookupError("not installed")
    prune = getattr(import_module("onnxsim"), "apply_structured_pruning", None)
    if prune is None:
        raise LookupError("the installed version has no apply_structured_pruning")
    proto = to_proto(folded)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    pruned = from_proto(prune(copy, sparsity=0.5))
    if model_cost(pruned, None).parameters == model_cost(folded, None).parameters:
        raise LookupError("it removes nothing from this network")
    return pruned


def measure(name: str, path: Path, timing: Timing) -> Row:
    """Return the row of the network at `path`."""
    found, notes = candidates(path, timing)
    benchmark = bench_models(
        {one.name: one.model for one in found},
        Turns(timing.rounds, timing.repeats),
        batches=timing.batches,
        threads=timing.threads,
    )
    return Row(name, tuple(found), benchmark, tuple(notes))


# --- what is shown ---------------------------------------------------------------------------------------------------
def _show(console: Console, row: Row) -> None:
    table = Table(title=f"{row.name}: latency, {_threads(row.benchmark.threads)}", title_justify="left")
    table.add_column("candidate")
    for name in (
        *("MACs %", "parameters %", "accuracy %", "batch", "median ms", "minimum ms", "p95 ms"),
        *("median / original", "minimum /", "paired /", "CPU /", "to reach"),
    ):
        table.add_column(name, justify="right")
    shares = _shares(row)
    accuracies = {one.name: one.accuracy for one in row.candidates}
    for one in row.benchmark.latencies:
        macs, parameters = shares[one.name]
        table.add_row(
            one.name,
            number(macs and 100 * macs, digits=1),
            number(100 * parameters, digits=1),
            number(accuracies[one.name], digits=2),
            str(one.batch),
            *(number(1e3 * seconds, digits=3) for seconds in (one.median, one.minimum, one.p95)),
            *(
                number(r, digits=3)
                for r in (one.ratio_median, one.ratio_minimum, one.ratio_paired, one.ratio_cpu)
            ),
            f"<= {TARGET:.2f}" if one.name == JUDGED else "",
        )
    console.print(table)
    say(console, row.notes)


def _shares(row: Row) -> dict[str, tuple[float | None, float]]:
    """Return what remains of the original's MACs and parameters, by candidate."""
    whole = row.candidates[0].cost
    return {
        one.name: (
            one.cost.macs / whole.macs if one.cost.macs is not None and whole.macs else None,
            one.cost.parameters / whole.parameters,
        )
        for one in row.candidates
    }


def _threads(count: int) -> str:
    return {0: "all cores", 1: "one thread"}.get(count, f"{count} threads")


def _record(row: Row) -> dict[str, object]:
    shares = _shares(row)
    return {
        "name": row.name,
        "target": TARGET,
        "met": row.met,
        "candidates": [
            {
                "name": one.name,
                "macs": one.cost.macs,
                "parameters": one.cost.parameters,
                "macs_share": shares[one.name][0],
                "parameters_share": shares[one.name][1],
                "accuracy": one.accuracy,
            }
            for one in row.candidates
        ],
        **asdict(row.benchmark),
        "notes": list(row.notes),
    }


# --- the command line ------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = common.new_parser("latency", __doc__)
    usual = Timing(ROOT / "../shared")
    common.add_rows(parser, ROWS)
    parser.add_argument(
        "--align", type=_sizes, default=usual.align, metavar="N,...", help="multiples to keep"
    )
    parser.add_argument("--batches", type=_sizes, default=usual.batches, metavar="N,...", help="batch sizes")
    common.add_samples(parser, str(usual.samples), usual.samples)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="prune by l1 norm without repair: the same time, a useless accuracy",
    )
    parser.add_argument("--rounds", type=common.count, default=usual.rounds, help="turns of every candidate")
    parser.add_argument("--repeats", type=common.count, default=usual.repeats, help="runs in a turn")
    common.add_threads(parser, usual.threads)
    common.add_shared(parser)
    common.add_json(parser)
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(common.count(word) for word in text.split(","))


def _paths(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Mapping[str, Path]:
    """Return the files to measure by row; ends the program where a name or a file is not there."""
    names = common.chosen_names(parser, options.rows, ROWS)
    found = {name: NETWORKS[name].model_path(options.shared) for name in names}
    for path in found.values():
        if not path.exists():
            parser.error(f"{path} {common.ABSENT}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows, print the tables and write the document; return 1 where the ratio to reach is missed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    names = ("shared", "align", "batches", "samples", "quick", "threads", "rounds", "repeats")
    timing = Timing(**{name: getattr(options, name) for name in names})
    rows: list[Row] = []
    console = common.console()
    for name, path in _paths(parser, options).items():
        print(name, file=sys.stderr)
        rows.append(measure(name, path, timing))
        _show(console, rows[-1])
    if options.json is not None:
        content = {"quick": timing.quick, "rows": [_record(row) for row in rows]}
        write_document(options.json, "latency", content)
    return 1 if any(row.met is False for row in rows) else 0
