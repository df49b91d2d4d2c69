"""Quantize trained networks with the whole command and with onnxruntime's own quantizer, and print both side by side.

    python -m tools.bench quantize [--rows NAME,...] [--candidates ours,percentile,minmax] [--samples N] [--options TEXT]
                                   [--calibration-cost] [--memory] [--no-latency] [--threads N] [--shared FOLDER]
                                   [--keep FOLDER] [--json FILE]

Every candidate is quantized by one process of its own (ours is `python -m onnxcomp optimize`, the peers are
`tools.bench.peers`) from the same file and the same calibration samples; wall time, CPU time and peak memory are
measured from outside. All are then judged on the evaluation samples against the float original, and timed beside it in
turns: batch 1, one thread. The networks and data are those of `../shared` or `--shared`, and those of `models/`. Exit code 1
where a figure is missed or a run fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tools.bench import options as common
from tools.bench.cases import Case, Setting
from tools.bench.document import write_document
from tools.bench.quantize_cases import CASES
from tools.bench.quantize_runs import (
    CANDIDATES,
    PASSES,
    Cost,
    Memory,
    Row,
    calibration_cost,
    measure,
    measure_memory,
    record_of_row,
)
from tools.bench.quantize_tables import show_costs, show_memory, show_rows
from tools.bench.tables import say

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = common.new_parser("quantize", __doc__)
    common.add_rows(parser, (case.name for case in CASES))
    parser.add_argument(
        "--candidates",
        type=common.words,
        metavar="NAME,...",
        help=f"what quantizes, of {', '.join(CANDIDATES)}",
    )
    common.add_shared(parser)
    common.add_samples(parser, "what the row says")
    common.add_threads(parser)
    common.add_options(parser, PASSES, "observer=minmax rounding=gptq")
    parser.add_argument("--no-latency", action="store_true", help="do not time what was written")
    parser.add_argument(
        "--calibration-cost", action="store_true", help="also time plain inference of the samples"
    )
    parser.add_argument(
        "--memory", action="store_true", help="only our peak memory, with 100 and with 400 samples"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the quantized files and reports here"
    )
    common.add_json(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print the tables and write the document; return 1 where a figure is missed or a run fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.candidates = common.chosen_names(parser, options.candidates, CANDIDATES, "candidate")
    setting = Setting(
        options.shared.resolve(),
        samples=options.samples,
        threads=options.threads,
        options=options.options,
        timed="none" if options.no_latency else "all",
    )
    cases, notes = common.chosen_cases(parser, options.rows, CASES, setting.shared)
    common.check_pipelines(parser, (setting.applied(case, PASSES) for case in cases))
    with tempfile.TemporaryDirectory(prefix="bench-quantize-") as scratch:
        folder = Path(scratch) if options.keep is None else options.keep.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        content = _measure_memory if options.memory else _measure_rows
        document, met = content(cases, setting, folder, options)
    say(common.console(), notes)
    if options.json is not None:
        write_document(options.json, "quantize", {**document, "notes": notes})
    return 0 if met else 1


def _measure_rows(
    cases: Sequence[Case], setting: Setting, folder: Path, options: argparse.Namespace
) -> tuple[Mapping[str, object], bool]:
    rows: list[Row] = []
    costs: list[Cost] = []
    for case in cases:
        print(case.name, file=sys.stderr)
        rows.append(measure(case, setting, folder, options.candidates))
        if options.calibration_cost and case.calibration is None:
            costs.append(calibration_cost(case, setting, folder, rows[-1]))
    show_rows(common.console(), rows)
    if costs:
        show_costs(common.console(), costs)
    records = [record_of_row(row) for row in rows]
    return {"rows": records, "costs": [asdict(cost) for cost in costs]}, all(row.met for row in rows)


def _measure_memory(
    cases: Sequence[Case], setting: Setting, folder: Path, options: argparse.Namespace
) -> tuple[Mapping[str, object], bool]:
    found: list[Memory] = []
    for case in (case for case in cases if case.calibration is None):
        print(case.name, file=sys.stderr)
        found.append(measure_memory(case, setting, folder))
    show_memory(common.console(), found)
    return {"memory": [asdict(one) | {"met": one.met} for one in found]}, all(one.met for one in found)
