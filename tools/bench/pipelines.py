"""Run pipelines of all lossy passes on a network, and print accuracy, costs, bytes and time of all results side by side.

    python -m tools.bench pipelines [--model NAME|FILE]... [--rows NAME,...] [--passes TEXT]... [--samples N] [--seed N]
                                  [--calibration DATA] [--evaluation DATA] [--rounds N] [--threads N] [--keep FOLDER]
                                  [--shared FOLDER] [--json FILE]

Every pipeline (those of a network stand in `pipeline_cases.py`; `--passes` adds one's own) is one run of `python -m onnxcomp optimize` in a process
of its own. When all are done, all that was written is timed beside the original in one run, in turns: batch 1, one thread. A
pipeline is marked as best for time (or size) where no other is at least as accurate and as fast (or as small), and better in
one of the two. Without labels, and on the few samples of lite0, it is the agreement with the original that counts. Let
nothing heavy run beside it. Exit code 1 where a run fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import onnxcomp
from onnxcomp.compiler.spec import Pipeline
from onnxcomp.errors import OnnxcompError, UsageError
from onnxcomp.runtime.bench import batch_feeds
from tools.bench import options as common
from tools.bench.cases import EXACT
from tools.bench.document import write_document
from tools.bench.pipeline_cases import FOLDED, SUBJECTS, Subject, Try, tries_for
from tools.bench.runs import Result, Work, latency_shares, run_command
from tools.bench.tables import forms_text, line_of, number, say

__all__ = ["Entry", "Gain", "Trial", "best_for", "gains", "main", "try_all"]

ORIGINAL = "original"

USUAL_MODELS = ("resnet56", "lite0")
"""What is tried on where nothing is said."""


@dataclass(frozen=True)
class Trial:
    """What is tried on: a network, its data, the pipelines, and how they run; see `tools.bench.runs.Work`."""

    name: str
    model: Path
    calibration: str
    evaluation: str
    tries: tuple[Try, ...]
    samples: int | None = None
    by_agreement: bool = False
    seed: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Entry:
    """One pipeline and its result; the original has no result.

    `quality` is accuracy or agreement in percent, `time` and `minimum` are shares of the original's: by rounds of turns,
    and of the fastest runs. `best` names what it is best for.
    """

    name: str
    quality: float | None
    bytes: int | None
    result: Result | None = None
    time: float | None = None
    minimum: float | None = None
    best: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gain:
    """What a pair of passes is worth: points of quality above the better one of the two alone, at the same MACs."""

    name: str
    quality: float
    alone: str
    points: float


def try_all(trial: Trial, folder: Path, rounds: int, report: Callable[[str], None]) -> list[Entry]:
    """Run every pipeline on `trial`, the files into `folder`; return the original's entry, then one for each.

    `report` gets a line when a run begins and one when it has ended; the files are timed when all have.

    Raises:
        OSError: where python cannot be started.
    """
    results: dict[str, Result] = {}
    written: dict[str, Path] = {}
    for position, one in enumerate(trial.tries, 1):
        report(f"{trial.name}: {one.name} ({position} of {len(trial.tries)})")
        # A name may be the text of a pipeline, which is none for a file.
        work = Work(
            f"{trial.name}.{position}",
            trial.model,
            ",".join(text for text in (EXACT, one.passes) if text),
            trial.calibration,
            trial.evaluation,
            trial.samples,
            trial.seed,
            trial.threads,
        )
        results[one.name], file = run_command(work, folder)
        report(f"    {line_of(results[one.name])}")
        if file is not None:
            written[one.name] = file
    times = latency_shares(trial.model, written, rounds)
    return _marked(_entries(trial, results, times))


def _entries(
    trial: Trial, results: Mapping[str, Result], times: Mapping[str, tuple[float, float]]
) -> list[Entry]:
    labelled = next((one for one in results.values() if one.accuracy_before is not None), None)
    by_accuracy = labelled is not None and not trial.by_agreement
    before = labelled.accuracy_before if labelled is not None and by_accuracy else 100.0
    entries = [Entry(ORIGINAL, before, trial.model.stat().st_size, None, *times[ORIGINAL])]
    for name, result in results.items():
        quality = result.accuracy if by_accuracy else result.agreement
        entries.append(Entry(name, quality, result.bytes, result, *times.get(name, (None, None))))
    return entries


def _marked(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with what each is best for."""
    best = {
        "time": best_for({one.name: (one.quality, one.time) for one in entries}),
        "size": best_for({one.name: (one.quality, one.bytes) for one in entries}),
    }
    return [replace(one, best=tuple(k for k, names in best.items() if one.name in names)) for one in entries]


def best_for(points: Mapping[str, tuple[float | None, float | None]]) -> set[str]:
    """Return the names that nothing else beats; `points` are quality (more is better) and cost (less is better).

    One beats another that is at least as good in both and better in one. What was not measured is never best.
    """
    known = {
        name: (quality, cost)
        for name, (quality, cost) in points.items()
        if quality is not None and cost is not None
    }
    return {
        name
        for name, (quality, cost) in known.items()
        if not any(q >= quality and c <= cost and (q, c) != (quality, cost) for q, c in known.values())
    }


def gains(entries: Sequence[Entry], tries: Sequence[Try]) -> list[Gain]:
    """Return what every pair is worth beside the better of its passes alone; what missed its budget is left out."""
    went = [one for one in entries if one.result is not None and one.result.failure is None]
    qualities = {one.name: one.quality for one in went if one.quality is not None}
    found: list[Gain] = []
    for one in tries:
        alone = {name: qualities[name] for name in one.alone if name in qualities}
        if alone and one.name in qualities:
            best = max(alone, key=lambda name: alone[name])
            found.append(Gain(one.name, qualities[one.name], best, qualities[one.name] - alone[best]))
    return found


# --- what is shown ---------------------------------------------------------------------------------------------------
def _show(console: Console, trial: Trial, entries: Sequence[Entry], worth: Sequence[Gain]) -> None:
    table = Table(
        title=f"{trial.name}: pipelines behind {EXACT}, time beside the original", title_justify="left"
    )
    table.add_column("pipeline", overflow="fold")
    for name in (
        *("accuracy %", "agreement %", "SQNR dB", "MACs %", "parameters %", "bytes", "bytes %"),
        *("time %", "minimum %", "seconds"),
    ):
        table.add_column(name, justify="right")
    for name in ("best for", "forms"):
        table.add_column(name)
    whole = entries[0].bytes
    accuracy = next((e.result.accuracy_before for e in entries if e.result is not None), None)
    for entry in entries:
        one = entry.result
        shown = (
            (number(accuracy), *["-"] * 2, *["100.00"] * 2)
            if one is None
            else (
                *(number(value) for value in (one.accuracy, one.agreement, one.sqnr_db)),
                *(number(value, 100) for value in (one.macs_share, one.parameters_share)),
            )
        )
        share = entry.bytes / whole if entry.bytes is not None and whole else None
        table.add_row(
            entry.name,
            *shown,
            number(entry.bytes, digits=0),
            *(number(value, 100, 1) for value in (share, entry.time, entry.minimum)),
            number(None if one is None else one.seconds, digits=1),
            ", ".join(entry.best),
            "" if one is None else forms_text(one),
        )
    console.print(table)
    lines = [
        f"{gain.name} {gain.quality:.2f}, {gain.points:+.2f} points beside {gain.alone}" for gain in worth
    ]
    say(console, [f"{trial.name}: {line}" for line in lines])
    results = [(entry.name, entry.result) for entry in entries if entry.result is not None]
    say(console, [f"{trial.name}, {name}: {one.failure}" for name, one in results if one.failure is not None])


# --- the command line ------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = common.new_parser("pipelines", __doc__)
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME|FILE",
        help=f"what to try on: {', '.join(SUBJECTS)}, or a file (default: {', '.join(USUAL_MODELS)})",
    )
    common.add_rows(parser, dict.fromkeys(one.name for s in SUBJECTS.values() for one in s.tries))
    parser.add_argument(
        "--passes",
        action="append",
        default=[],
        metavar="TEXT",
        help=f"one more pipeline, which runs behind the exact passes; alone with --rows {FOLDED.name}",
    )
    parser.add_argument("--calibration", metavar="DATA", help="samples to calibrate on; a file needs it")
    parser.add_argument("--evaluation", metavar="DATA", help="samples to judge on; a file needs it")
    common.add_samples(parser, "what is usual for the network")
    common.add_seed(parser)
    parser.add_argument(
        "--rounds", type=common.count, default=30, help="turns of every file while they are timed"
    )
    common.add_threads(parser)
    common.add_shared(parser)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the files and reports here")
    common.add_json(parser)
    return parser


def _trials(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Trial]:
    """Return what to try on; ends the program where a name, a file or a pipeline is wrong."""
    trials = [_trial(parser, options, name) for name in options.model or USUAL_MODELS]
    known = sorted({one.name for trial in trials for one in trial.tries})
    chosen = common.chosen_names(parser, options.rows, known, "pipeline")
    own = tuple(Try(text, text) for text in dict.fromkeys(options.passes))
    for one in own:
        try:
            Pipeline.parse(one.passes)
        except UsageError as problem:
            parser.error(str(problem).splitlines()[0])
    return [
        replace(trial, tries=(*(one for one in trial.tries if one.name in chosen), *own)) for trial in trials
    ]


def _trial(parser: argparse.ArgumentParser, options: argparse.Namespace, name: str) -> Trial:
    subject = SUBJECTS.get(name)
    if subject is None and not name.endswith(".onnx"):
        parser.error(f"there is no network '{name}'; give a file, or one of {', '.join(SUBJECTS)}")
    shared = options.shared.resolve()
    model = Path(name).resolve() if subject is None else subject.network.model_path(shared)
    data = {
        role: getattr(options, role) or _data(subject, shared, role) for role in ("calibration", "evaluation")
    }
    for role, given in data.items():
        if given is None:
            parser.error(f"{name} needs --{role} DATA")
    for path in (model, *(Path(str(text)) for text in data.values() if str(text).endswith(".npz"))):
        if not path.exists():
            parser.error(f"{path} {common.ABSENT}")
    try:
        # What cannot be timed in the end is refused before the first run.
        batch_feeds(onnxcomp.load(model), (1,))
    except OnnxcompError as problem:
        parser.error(f"{name}: {str(problem).splitlines()[0]}")
    return Trial(
        model.stem if subject is None else subject.name,
        model,
        str(data["calibration"]),
        str(data["evaluation"]),
        tries_for(name),
        options.samples or (None if subject is None else subject.samples),
        subject is not None and subject.by_agreement,
        options.seed,
        options.threads,
    )


def _data(subject: Subject | None, shared: Path, role: str) -> str | None:
    return None if subject is None else str(subject.network.data_path(shared, role))


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the pipelines, print a table for each network and write the document; return 1 where a run fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    trials = _trials(parser, options)
    console = common.console()
    records: list[dict[str, object]] = []
    met = True
    for trial in trials:
        with tempfile.TemporaryDirectory(prefix="try-pipelines-") as scratch:
            folder = Path(scratch) if options.keep is None else options.keep.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            entries = try_all(trial, folder, options.rounds, lambda line: print(line, file=sys.stderr))
        worth = gains(entries, trial.tries)
        _show(console, trial, entries, worth)
        met = met and all(one.result is None or one.result.failure is None for one in entries)
        records.append(
            {
                "name": trial.name,
                "entries": [asdict(one) for one in entries],
                "gains": [asdict(g) for g in worth],
            }
        )
    if options.json is not None:
        write_document(options.json, "pipelines", {"networks": records})
    return 0 if met else 1
