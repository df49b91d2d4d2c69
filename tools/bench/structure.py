"""Split and substitute layers of trained networks with the whole command; print what was reached beside what is to be reached.

    python -m tools.bench structure [--rows NAME,...] [--samples N] [--repeat-with-seed 0,1,2] [--passes TEXT]
                                    [--options TEXT] [--time-all | --no-latency] [--memory | --speed] [--threads N]
                                    [--shared FOLDER] [--keep FOLDER] [--json FILE]

Every row (see `tools.bench.structure_cases`) is one run of `python -m onnxcomp optimize` in a process of its own: wall time and peak
memory are measured from outside, accuracy and costs are read from the run's report, and in the rows about time the file that
was written is timed beside the folded original afterwards, in one process, in turns: batch 1, one thread. The networks and
data are those of `../shared` or `--shared`, and those of `models/`; no labels reach the passes, and nothing is trained. Exit
code 1 where a figure is missed or a run fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from onnxcomp.compiler.spec import Pipeline
from onnxcomp.errors import UsageError
from tools.bench.document import write_document
from tools.bench.prune import EXACT, FLAT, ROOT, Figure, spread
from tools.bench.structure_cases import CASES, MEMORY_ROWS, MEMORY_SAMPLES, SPEED_ROWS, Case
from tools.bench.structure_runs import Result, Setting, measure, pipeline
from tools.bench.structure_tables import line_of, show_memory, show_results, show_speed, show_spread

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--rows", type=_words, metavar="NAME,...", help=f"rows to run, of: {names}")
    parser.add_argument("--shared", type=Path, default=ROOT / "../shared", help="folder of models/ and data/")
    parser.add_argument("--samples", type=_count, help="calibration samples (default: what the row says)")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 = all cores (default)")
    parser.add_argument(
        "--repeat-with-seed", type=_seeds, default=[0], metavar="0,1,2", help="run every row with each seed"
    )
    parser.add_argument(
        "--passes", metavar="TEXT", help=f"what runs after {EXACT} in the place of the passes of every row"
    )
    parser.add_argument(
        "--options",
        type=_options,
        default={},
        metavar="TEXT",
        help="options of split-svd and substitute-depthwise, which win over those of the rows: 'sweeps=2'",
    )
    timing = parser.add_mutually_exclusive_group()
    timing.add_argument("--time-all", action="store_true", help="time the files of all rows")
    timing.add_argument("--no-latency", action="store_true", help="time none of them")
    kind = parser.add_mutually_exclusive_group()
    fewer, more = MEMORY_SAMPLES
    kind.add_argument(
        "--memory",
        action="store_true",
        help=f"only peaks, with {fewer} and {more} samples (--samples N: N and {more // fewer} N), by default of "
        + ", ".join(MEMORY_ROWS),
    )
    kind.add_argument(
        "--speed",
        action="store_true",
        help=f"only the seconds of the command and of its parts, by default of {', '.join(SPEED_ROWS)}",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep files, reports and what is left of crashes here"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seeds(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"'{text}' are no seeds; give whole numbers, as in 0,1,2")
    return [int(word) for word in words]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of samples; give 1 or more")
    return int(text)


def _options(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split()]
    if not pairs or not all(name and equals and value for name, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _chosen(
    parser: argparse.ArgumentParser, options: argparse.Namespace, setting: Setting
) -> tuple[list[Case], list[str]]:
    """Return the rows to run, and why others are left out; ends the program where a name or an option is wrong.

    A row that was asked for and has no files ends the program, too; one of those that run by default is left out.
    """
    cases = {case.name: case for case in CASES}
    usual = MEMORY_ROWS if options.memory else SPEED_ROWS if options.speed else tuple(cases)
    for name in options.rows or ():
        if name not in cases:
            parser.error(f"there is no row '{name}'; rows are {', '.join(cases)}")
    chosen: list[Case] = []
    notes: list[str] = []
    for case in (cases[name] for name in options.rows or usual):
        missing = next((path for path in _read(case, setting.shared) if not path.exists()), None)
        if missing is None:
            chosen.append(case)
        elif options.rows:
            parser.error(f"{missing} does not exist; say with --shared where models/ and data/ are")
        else:
            notes.append(f"{case.name}: left out, as {missing} does not exist")
    for case in chosen:
        try:
            Pipeline.parse(pipeline(case, setting))
        except UsageError as problem:
            parser.error(f"{case.name}: {str(problem).splitlines()[0]}")
    return chosen, notes


def _read(case: Case, shared: Path) -> list[Path]:
    roles = ("evaluation",) if case.calibration is not None else ("calibration", "evaluation")
    return [case.model_path(shared), *(case.data_path(shared, role) for role in roles)]


def _setting(options: argparse.Namespace) -> Setting:
    untimed = options.no_latency or options.memory or options.speed
    return Setting(
        options.shared.resolve(),
        options.samples,
        options.threads,
        options.passes,
        options.options,
        None if untimed else options.time_all,
        None if options.keep is None else options.keep.resolve(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print the tables and write the document; return 1 where a figure is missed or a run fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.memory or options.speed) and (options.time_all or len(options.repeat_with_seed) > 1):
        parser.error("--memory and --speed time no files and run with one seed; leave the other options out")
    setting = _setting(options)
    cases, notes = _chosen(parser, options, setting)
    if setting.keep is not None:
        setting.keep.mkdir(parents=True, exist_ok=True)
    # Where there is no terminal, rich would wrap the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 240)
    run = _memory if options.memory else _speed if options.speed else _rows
    document, met = run(console, cases, setting, options.repeat_with_seed)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    if options.json is not None:
        write_document(options.json, "structure", {**document, "notes": notes})
    return 0 if met else 1


def _rows(
    console: Console, cases: Sequence[Case], setting: Setting, seeds: Sequence[int]
) -> tuple[Mapping[str, object], bool]:
    results: list[Result] = []
    for case in cases:
        for seed in seeds:
            print(f"{case.name}: seed {seed}", file=sys.stderr)
            results.append(measure(case, setting, seed))
            print(f"    {line_of(results[-1])}", file=sys.stderr)
    show_results(console, results)
    spreads = spread(results)
    if spreads:
        show_spread(console, spreads)
    return {"rows": [_record(one) for one in results], "spread": spreads}, all(one.met for one in results)


def _memory(
    console: Console, cases: Sequence[Case], setting: Setting, seeds: Sequence[int]
) -> tuple[Mapping[str, object], bool]:
    fewer, more = MEMORY_SAMPLES
    once = fewer if setting.samples is None else setting.samples
    pairs: list[tuple[Result, Result, Figure]] = []
    for case in cases:
        print(f"{case.name}: {once} and {once * (more // fewer)} samples", file=sys.stderr)
        one, other = (
            _only(measure(case, replace(setting, samples=count), seeds[0]))
            for count in (once, once * (more // fewer))
        )
        grown = one.samples is not None and other.samples == (more // fewer) * one.samples
        ratio = other.peak_bytes / one.peak_bytes if grown else None
        pairs.append((one, other, Figure("peak_with_more_samples", "<=", FLAT, ratio)))
    show_memory(console, pairs)
    records = [
        {"fewer": _record(one), "more": _record(other), "figure": _figure(figure)}
        for one, other, figure in pairs
    ]
    return {"memory": records}, all(figure.met and one.met and other.met for one, other, figure in pairs)


def _speed(
    console: Console, cases: Sequence[Case], setting: Setting, seeds: Sequence[int]
) -> tuple[Mapping[str, object], bool]:
    results: list[Result] = []
    for case in cases:
        print(f"{case.name}: {setting.count(case)} samples", file=sys.stderr)
        results.append(_only(measure(case, setting, seeds[0]), "seconds"))
    show_speed(console, results)
    return {"speed": [_record(one) for one in results]}, all(one.met for one in results)


def _only(result: Result, *names: str) -> Result:
    """Return `result` with only the figures called `names`: what it was not run for is not judged."""
    return replace(result, figures=tuple(figure for figure in result.figures if figure.name in names))


def _record(result: Result) -> dict[str, object]:
    return asdict(result) | {"met": result.met, "figures": [_figure(figure) for figure in result.figures]}


def _figure(figure: Figure) -> dict[str, object]:
    return asdict(figure) | {"met": figure.met}
