"""What the benchmarks of the whole command do: run rows, hold the results against their figures, print and write them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from tools.bench import options as common
from tools.bench.cases import EXACT, Case, Setting
from tools.bench.document import write_document
from tools.bench.figures import FLAT, Figure, record
from tools.bench.runs import Result, figures, only, record_of, run_command, spread, time_ratio, work_of
from tools.bench.tables import line_of, say, show_memory, show_results, show_speed, show_spread

__all__ = ["Suite", "applied", "measure", "run_suite"]


def _as_it_is(case: Case) -> Case:
    return case


@dataclass(frozen=True)
class Suite:
    """A benchmark of the whole command.

    Attributes:
        name: that of the benchmark.
        about: what its module says of itself.
        cases: its rows.
        passes: those that it measures; `--options` are theirs.
        goals: their options of which a run has one.
        example: of `--options`.
        memory_rows: the rows whose memory is measured where none are asked for.
        memory_samples: the numbers of samples whose peaks are compared.
        speed_rows: the rows whose time is shown in parts where none are asked for.
        folded: whether times are held against the folded original; else against the file.
        flags: those of the command.
        judged: returns a case with the targets that follow from its passes.
    """

    name: str
    about: str | None
    cases: tuple[Case, ...]
    passes: tuple[str, ...]
    goals: tuple[str, ...]
    example: str
    memory_rows: tuple[str, ...]
    memory_samples: tuple[int, int]
    speed_rows: tuple[str, ...]
    folded: bool = False
    flags: tuple[str, ...] = ()
    judged: Callable[[Case], Case] = _as_it_is


def applied(suite: Suite, case: Case, setting: Setting) -> Case:
    """Return `case` with the passes, the options and the targets that it has under `setting`."""
    return suite.judged(setting.applied(case, suite.passes, suite.goals))


def measure(suite: Suite, case: Case, setting: Setting, seed: int = 0) -> Result:
    """Run the whole command on `case`, time what was written where that is wanted, and return the result.

    Raises:
        OSError: where python cannot be started.
    """
    case = applied(suite, case, setting)
    # Where files are kept, those of an earlier call are written over.
    kept = () if setting.folder is None or "--force" in suite.flags else ("--force",)
    work = replace(work_of(case, setting, seed), flags=(*suite.flags, *kept))
    with tempfile.TemporaryDirectory(prefix=f"bench-{suite.name}-") as scratch:
        result, written = run_command(work, Path(scratch) if setting.folder is None else setting.folder)
        if written is not None and setting.times(case):
            share = time_ratio(work.model, written, folded=suite.folded)
            result = replace(result, latency_share=share)
    return replace(result, figures=figures(case, result, timed=setting.times(case)))


# --- the command line ------------------------------------------------------------------------------------------------
def _parser(suite: Suite) -> argparse.ArgumentParser:
    parser = common.new_parser(suite.name, suite.about)
    common.add_rows(parser, (case.name for case in suite.cases))
    common.add_shared(parser)
    common.add_samples(parser, "what the row says")
    common.add_threads(parser)
    common.add_seed(parser, many=True)
    parser.add_argument(
        "--passes", metavar="TEXT", help=f"what runs after {EXACT} in the place of the passes of every row"
    )
    common.add_options(parser, suite.passes, suite.example)
    timing = parser.add_mutually_exclusive_group()
    timing.add_argument("--time-all", action="store_true", help="time the files of all rows")
    timing.add_argument("--no-latency", action="store_true", help="time none of them")
    kind = parser.add_mutually_exclusive_group()
    fewer, more = suite.memory_samples
    kind.add_argument(
        "--memory",
        action="store_true",
        help=f"only peaks, with {fewer} and {more} samples (--samples N: N and {more // fewer} N), by default of "
        + ", ".join(suite.memory_rows),
    )
    kind.add_argument(
        "--speed",
        action="store_true",
        help=f"only the seconds of the command and of its parts, by default of {', '.join(suite.speed_rows)}",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep files, reports and what is left of crashes here"
    )
    common.add_json(parser)
    return parser


def run_suite(suite: Suite, arguments: Sequence[str] | None) -> int:
    """Run the rows, print the tables and write the document; return 1 where a figure is missed or a run fails."""
    parser = _parser(suite)
    options = parser.parse_args(arguments)
    if (options.memory or options.speed) and (options.time_all or len(options.seed) > 1):
        parser.error("--memory and --speed time no files and run with one seed; leave the other options out")
    setting = _setting(options)
    usual = suite.memory_rows if options.memory else suite.speed_rows if options.speed else None
    cases, notes = common.chosen_cases(parser, options.rows, suite.cases, setting.shared, usual)
    common.check_pipelines(parser, (applied(suite, case, setting) for case in cases))
    if setting.folder is not None:
        setting.folder.mkdir(parents=True, exist_ok=True)
    console = common.console()
    run = _memory if options.memory else _speed if options.speed else _rows
    document, met = run(console, suite, cases, setting, options.seed)
    say(console, notes)
    if options.json is not None:
        write_document(options.json, suite.name, {**document, "notes": notes})
    return 0 if met else 1


def _setting(options: argparse.Namespace) -> Setting:
    untimed = options.no_latency or options.memory or options.speed
    return Setting(
        options.shared.resolve(),
        options.samples,
        options.threads,
        options.passes,
        options.options,
        "none" if untimed else "all" if options.time_all else "wanted",
        None if options.keep is None else options.keep.resolve(),
    )


def _rows(
    console: Console, suite: Suite, cases: Sequence[Case], setting: Setting, seeds: Sequence[int]
) -> tuple[Mapping[str, object], bool]:
    results: list[Result] = []
    for case in cases:
        for seed in seeds:
            print(f"{case.name}: {setting.count(case)} samples, seed {seed}", file=sys.stderr)
            results.append(measure(suite, case, setting, seed))
            print(f"    {line_of(results[-1])}", file=sys.stderr)
    beside = "folded" if suite.folded else "original"
    show_results(console, " and ".join(suite.passes), beside, results)
    spreads = spread(results)
    if spreads:
        show_spread(console, spreads)
    return {"rows": [record_of(one) for one in results], "spread": spreads}, all(one.met for one in results)


def _memory(
    console: Console, suite: Suite, cases: Sequence[Case], setting: Setting, seeds: Sequence[int]
) -> tuple[Mapping[str, object], bool]:
    fewer, more = suite.memory_samples
    once = fewer if setting.samples is None else setting.samples
    pairs: list[tuple[Result, Result, Figure]] = []
    for case in cases:
        print(f"{case.name}: {once} and {once * (more // fewer)} samples", file=sys.stderr)
        one, other = (
            only(measure(suite, case, replace(setting, samples=count), seeds[0]))
            for count in (once, once * (more // fewer))
        )
        grown = one.samples is not None and other.samples == (more // fewer) * one.samples
        ratio = other.peak_bytes / one.peak_bytes if grown else None
        pairs.append((one, other, Figure("peak_with_more_samples", "<=", FLAT, ratio)))
    show_memory(console, pairs)
    records = [
        {"fewer": record_of(one), "more": record_of(other), "figure": record(figure)}
        for one, other, figure in pairs
    ]
    return {"memory": records}, all(figure.met and one.met and other.met for one, other, figure in pairs)


def _speed(
    console: Console, suite: Suite, cases: Sequence[Case], setting: Setting, seeds: Sequence[int]
) -> tuple[Mapping[str, object], bool]:
    results: list[Result] = []
    for case in cases:
        print(f"{case.name}: {setting.count(case)} samples", file=sys.stderr)
        results.append(only(measure(suite, case, setting, seeds[0]), ["seconds"]))
    show_speed(console, results, suite.passes)
    return {"speed": [record_of(one) for one in results]}, all(one.met for one in results)
