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
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from tools.bench.document import write_document
from tools.bench.quantize_cases import CASES, Case
from tools.bench.quantize_runs import (
    CANDIDATES,
    Cost,
    Memory,
    Row,
    Setting,
    calibration_cost,
    measure,
    measure_memory,
)
from tools.bench.quantize_tables import show_costs, show_memory, show_rows

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent.parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--rows", type=_words, metavar="NAME,...", help=f"rows to run, of: {names}")
    parser.add_argument(
        "--candidates", type=_words, default=list(CANDIDATES), metavar="NAME,...", help="what quantizes"
    )
    parser.add_argument("--shared", type=Path, default=ROOT / "../shared", help="folder of models/ and data/")
    parser.add_argument("--samples", type=int, help="calibration samples (default: what the row says)")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 = all cores (default)")
    parser.add_argument(
        "--options",
        type=_options,
        default={},
        metavar="TEXT",
        help="options of insert-qdq for every row, which win over its own: 'observer=minmax rounding=gptq'",
    )
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _options(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split()]
    if not all(name and equals and value for name, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """Return the rows to run, and why others are left out; ends the program where a name is not there.

    A row that was asked for and has no files ends the program, too; one of those that run by default is left out.
    """
    for name in options.candidates:
        if name not in CANDIDATES:
            parser.error(f"there is no candidate '{name}'; candidates are {', '.join(CANDIDATES)}")
    cases = {case.name: case for case in CASES}
    for name in options.rows or ():
        if name not in cases:
            parser.error(f"there is no row '{name}'; rows are {', '.join(cases)}")
    chosen: list[Case] = []
    notes: list[str] = []
    for case in (cases[name] for name in options.rows or cases):
        missing = next((path for path in _read(case, options.shared) if not path.exists()), None)
        if missing is None:
            chosen.append(case)
        elif options.rows:
            parser.error(f"{missing} does not exist; say with --shared where models/ and data/ are")
        else:
            notes.append(f"{case.name}: left out, as {missing} does not exist")
    return chosen, notes


def _read(case: Case, shared: Path) -> list[Path]:
    roles = ("calibration", "evaluation")
    return [case.model_path(shared), *(case.data_path(shared, role) for role in roles)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print the tables and write the document; return 1 where a figure is missed or a run fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    cases, notes = _chosen(parser, options)
    setting = Setting(
        options.shared.resolve(),
        candidates=tuple(options.candidates),
        samples=options.samples,
        threads=options.threads,
        options=options.options,
        latency=not options.no_latency,
    )
    # Where there is no terminal, rich would wrap the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 240)
    with tempfile.TemporaryDirectory(prefix="bench-quantize-") as scratch:
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
        setting = replace(setting, folder=Path(scratch) if options.keep is None else options.keep.resolve())
        content = _measure_memory if options.memory else _measure_rows
        document, met = content(console, cases, setting, options)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    if options.json is not None:
        write_document(options.json, "quantize", {**document, "notes": notes})
    return 0 if met else 1


def _measure_rows(
    console: Console, cases: Sequence[Case], setting: Setting, options: argparse.Namespace
) -> tuple[Mapping[str, object], bool]:
    rows: list[Row] = []
    costs: list[Cost] = []
    for case in cases:
        print(case.name, file=sys.stderr)
        rows.append(measure(case, setting))
        if options.calibration_cost and case.calibration is None:
            costs.append(calibration_cost(case, setting, rows[-1]))
    show_rows(console, rows)
    if costs:
        show_costs(console, costs)
    records = [
        asdict(row) | {"met": row.met, "figures": [asdict(one) | {"met": one.met} for one in row.figures]}
        for row in rows
    ]
    return {"rows": records, "costs": [asdict(cost) for cost in costs]}, all(row.met for row in rows)


def _measure_memory(
    console: Console, cases: Sequence[Case], setting: Setting, options: argparse.Namespace
) -> tuple[Mapping[str, object], bool]:
    found: list[Memory] = []
    for case in (case for case in cases if case.calibration is None):
        print(case.name, file=sys.stderr)
        found.append(measure_memory(case, setting))
    show_memory(console, found)
    return {"memory": [asdict(one) | {"met": one.met} for one in found]}, all(one.met for one in found)
