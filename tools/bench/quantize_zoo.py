"""Quantize the networks of `tools.package_zoo` and print the results, and why what stayed float did.

    python -m tools.bench quantize-zoo [--rows NAME,...] [--passes TEXT] [--peer] [--samples N] [--evaluation N]
                                         [--no-latency] [--threads N] [--json FILE]

The networks come from packages that are installed beside onnxcomp; one that is not there is left out with the reason.
Inputs are synthetic, so the SQNR says how far the int8 file is from the original on inputs of that kind, and nothing about
its accuracy. `--peer` adds what onnxruntime's own quantizer makes of the same file and samples (ranges by percentile, see
`tools.bench.peers`). Exit code 1 where a run of ours fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import onnxcomp
from onnxcomp.api import Optimized
from onnxcomp.errors import OnnxcompError
from onnxcomp.ir.model import Model
from onnxcomp.runtime.compare import compare_models
from onnxcomp.runtime.fusion import Fusion, fusion_of
from onnxcomp.runtime.session import Session, SessionError
from onnxcomp.runtime.steady import steady_ratio
from tools.bench import options as common
from tools.bench.cases import EXACT, ROOT
from tools.bench.child import run_measured
from tools.bench.document import write_document
from tools.bench.peers import samples_of
from tools.package_zoo import ENTRIES, Entry, write_samples

__all__ = ["PEER", "QUANTIZE", "ZooQuantization", "main", "peer_entry", "quantize_entry", "reasons"]

QUANTIZE = f"{EXACT},insert-qdq"
"""The pipeline that runs."""

PEER = ", onnxruntime"
"""What stands behind the name of a network that onnxruntime's quantizer quantized."""


@dataclass(frozen=True)
class ZooQuantization:
    """The result on one network; None where it was not measured.

    Attributes:
        name: that of the entry.
        nodes: how many the file held, and the exact passes left, subgraphs not counted.
        quantized: how many QuantizeLinear and DequantizeLinear nodes were added.
        fused: nodes that run on integers in onnxruntime.
        unfused: float nodes that were meant to.
        floats: all other nodes that compute on floats.
        reasons: why nodes stayed float, with how many did.
        sqnr_db: of the worst output, on the evaluation samples.
        bytes_share: of the original's bytes.
        latency_share: of the original's time, one thread.
        failure: what went wrong.
    """

    name: str
    nodes: int | None = None
    quantized: int | None = None
    fused: int | None = None
    unfused: int | None = None
    floats: int | None = None
    reasons: Mapping[str, int] | None = None
    sqnr_db: float | None = None
    bytes_share: float | None = None
    latency_share: float | None = None
    failure: str | None = None


def quantize_entry(
    entry: Entry,
    folder: Path,
    passes: str = QUANTIZE,
    *,
    counts: tuple[int, int] = (32, 16),
    threads: int = 1,
    latency: bool = True,
) -> ZooQuantization:
    """Run `passes` on `entry`, on `counts` samples to calibrate and to judge, and return the result.

    Files are written into `folder`.

    Raises:
        LookupError: where the network is not there.
    """
    model = entry.model_path(folder)
    calibration, evaluation = write_samples(entry, model, folder, *counts)
    output = folder / f"{entry.name}.int8.onnx"
    try:
        done = onnxcomp.optimize(
            model,
            passes,
            output=output,
            calibration=str(calibration),
            evaluation=str(evaluation),
            threads=threads,
            allow_noop=True,
            require_smaller=False,
            force=True,
        )
    except OnnxcompError as problem:
        return ZooQuantization(entry.name, failure=f"{type(problem).__name__}: {problem}")
    return _outcome(entry, model, evaluation, done, latency)


def _outcome(entry: Entry, model: Path, evaluation: Path, done: Optimized, latency: bool) -> ZooQuantization:
    report = done.report
    fusion = fusion_of(done.model)
    failed = [f"{run.name} {run.status}: {run.reason}" for run in report.runs if run.reason is not None]
    before, after = report.input, report.output
    original = onnxcomp.load(model)
    return ZooQuantization(
        entry.name,
        nodes=report.before.nodes,
        quantized=_pairs(done.model) - _pairs(original),
        fused=len(fusion.fused),
        unfused=len(fusion.unfused),
        floats=len(fusion.floats),
        reasons=reasons(done, fusion),
        sqnr_db=None if report.comparison is None else report.comparison.sqnr_db,
        bytes_share=after.bytes / before.bytes if before is not None and after is not None else None,
        latency_share=_latency(original, done.model, model, evaluation) if latency else None,
        failure="; ".join(failed) or None,
    )


def peer_entry(
    entry: Entry, folder: Path, *, counts: tuple[int, int] = (32, 16), threads: int = 1, latency: bool = True
) -> ZooQuantization:
    """Return what onnxruntime's quantizer makes of `entry`, on the samples that `quantize_entry` takes.

    Raises:
        LookupError: where the network is not there.
    """
    model = entry.model_path(folder)
    calibration, evaluation = write_samples(entry, model, folder, *counts)
    name, output = f"{entry.name}{PEER}", folder / f"{entry.name}.peer.onnx"
    command = (*(sys.executable, "-m", "tools.bench.peers", "percentile", str(model)), "-o", str(output))
    usage = run_measured((*command, "--calibration", str(calibration)), ROOT)
    if usage.exit_code:
        said = usage.stderr.strip().splitlines()
        return ZooQuantization(
            name, failure=f"exit {usage.exit_code}: {said[-1] if said else 'it said nothing'}"
        )
    original, quantized = onnxcomp.load(model), onnxcomp.load(output)
    try:
        first, second = (Session(str(path), threads=threads) for path in (model, output))
        comparison = compare_models(first, second, samples_of(model, evaluation, None).batches(1))
    except SessionError as problem:
        return ZooQuantization(name, failure=f"what it wrote does not run: {problem}")
    fusion = fusion_of(quantized)
    return ZooQuantization(
        name,
        nodes=len(original.graph.nodes),
        quantized=_pairs(quantized) - _pairs(original),
        fused=len(fusion.fused),
        unfused=len(fusion.unfused),
        floats=len(fusion.floats),
        sqnr_db=comparison.sqnr_db,
        bytes_share=output.stat().st_size / model.stat().st_size,
        latency_share=_latency(original, quantized, model, evaluation) if latency else None,
    )


def _pairs(model: Model) -> int:
    return sum(node.op in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.nodes)


def _latency(original: Model, quantized: Model, path: Path, evaluation: Path) -> float:
    """Return the time of `quantized` for one sample as a share of that of `original`, on one thread, in turns."""
    feed = next(samples_of(path, evaluation, 1).batches(1))
    reference, candidate = (Session(one, threads=1) for one in (original, quantized))
    return steady_ratio(reference, candidate, feed).ratio


def reasons(done: Optimized, fusion: Fusion) -> dict[str, int]:
    """Return why nodes stayed float, with how many did: what insert-qdq declined, and what onnxruntime did not fuse."""
    found: Counter[str] = Counter()
    for run in (run for run in done.report.runs if run.name == "insert-qdq"):
        found.update(skip.reason for skip in run.skips)
    found.update(f"not fused: {node.op}: {node.reason or 'reason not known'}" for node in fusion.unfused)
    return dict(found.most_common())


# --- what is shown ---------------------------------------------------------------------------------------------------
def _show(console: Console, outcomes: Sequence[ZooQuantization]) -> None:
    table = Table(title="insert-qdq on networks from packages, synthetic inputs", title_justify="left")
    table.add_column("network")
    for name in ("nodes", "Q and DQ", "fused", "unfused", "float", "SQNR dB", "bytes", "latency"):
        table.add_column(name, justify="right")
    for one in outcomes:
        counts = (one.nodes, one.quantized, one.fused, one.unfused, one.floats)
        table.add_row(
            one.name,
            *("-" if count is None else str(count) for count in counts),
            *(_number(one.sqnr_db, 1), _number(one.bytes_share, 3), _number(one.latency_share, 3)),
        )
    console.print(table)
    for one in outcomes:
        if one.failure is not None:
            console.print(f"{one.name}: {one.failure}", markup=False, highlight=False)
        for reason, count in (one.reasons or {}).items():
            console.print(f"{one.name}: {count} x {reason}", markup=False, highlight=False)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


# --- the command line ------------------------------------------------------------------------------------------------
def main(arguments: Sequence[str] | None = None) -> int:
    """Quantize the networks that are there and print the table; return 1 where a run fails."""
    parser = common.new_parser("quantize-zoo", __doc__)
    names = [entry.name for entry in ENTRIES]
    common.add_rows(parser, names)
    parser.add_argument(
        "--passes", default=QUANTIZE, metavar="TEXT", help=f"the pipeline (default {QUANTIZE})"
    )
    parser.add_argument("--peer", action="store_true", help="also onnxruntime's own quantizer")
    common.add_samples(parser, "32", 32)
    parser.add_argument("--evaluation", type=int, default=16, metavar="N", help="samples to judge on")
    parser.add_argument("--no-latency", action="store_true", help="do not time the files")
    common.add_threads(parser, 1)
    common.add_json(parser)
    given = parser.parse_args(arguments)
    wanted = common.chosen_names(parser, given.rows, names, "network")
    outcomes: list[ZooQuantization] = []
    absent: list[str] = []
    with tempfile.TemporaryDirectory(prefix="package-zoo-") as folder:
        for entry in (entry for entry in ENTRIES if entry.name in wanted):
            print(entry.name, file=sys.stderr)
            try:
                outcomes += _outcomes(entry, Path(folder), given)
            except LookupError as reason:
                absent.append(f"{entry.name}: left out, {reason}")
    console = common.console()
    _show(console, outcomes)
    for line in absent:
        console.print(line, markup=False, highlight=False)
    if given.json is not None:
        write_document(
            given.json, "package-zoo", {"rows": [asdict(one) for one in outcomes], "notes": absent}
        )
    return 1 if any(one.failure is not None for one in outcomes if not one.name.endswith(PEER)) else 0


def _outcomes(entry: Entry, folder: Path, given: argparse.Namespace) -> list[ZooQuantization]:
    counts, latency = (given.samples, given.evaluation), not given.no_latency
    found = [
        quantize_entry(entry, folder, given.passes, counts=counts, threads=given.threads, latency=latency)
    ]
    if given.peer:
        found.append(peer_entry(entry, folder, counts=counts, threads=given.threads, latency=latency))
    return found
