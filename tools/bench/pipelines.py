"""Run pipelines of all lossy passes on a network, and print accuracy, costs, bytes and time of all results side by side.

    python -m tools.bench pipelines [--model NAME|FILE]... [--rows NAME,...] [--passes TEXT]... [--samples N] [--seed N]
                                  [--calibration DATA] [--evaluation DATA] [--rounds N] [--threads N] [--keep FOLDER]
                                  [--shared FOLDER] [--json FILE]

Every pipeline (see `tools.bench.pipeline_cases`; `--passes` adds one's own) is one run of `python -m onnxcomp optimize` in a process
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
from onnxcomp.runtime.bench import Turns, batch_feeds, bench_models
from tools.bench.document import write_document
from tools.bench.pipeline_cases import FOLDED, NETWORKS, Network, Try, tries_for
from tools.bench.prune import EXACT, ROOT
from tools.bench.structure_runs import Result, Work, run_command
from tools.bench.structure_tables import forms_text, line_of, number

__all__ = ["Entry", "Gain", "Subject", "best_for", "gains", "main", "try_all"]

ORIGINAL = "original"

USUAL_MODELS = ("resnet56", "lite0")
"""What is tried on where nothing is said."""


@dataclass(frozen=True)
class Subject:
    """What is tried on: a network, its data, the pipelines, and how they run; see `tools.bench.structure_runs.Work`."""

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
    """One pipeline and what came of it; the original has no result.

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


def try_all(subject: Subject, folder: Path, rounds: int, tell: Callable[[str], None]) -> list[Entry]:
    """Run every pipeline on `subject`, the files into `folder`; return the original's entry, then one for each.

    `tell` gets a line when a run begins and one when it has ended; the times are taken when all have.

    Raises:
        OSError: where python cannot be started.
    """
    results: dict[str, Result] = {}
    written: dict[str, Path] = {}
    for position, one in enumerate(subject.tries, 1):
        tell(f"{subject.name}: {one.name} ({position} of {len(subject.tries)})")
        # A name may be the text of a pipeline, which is none for a file.
        work = Work(
            f"{subject.name}.{position}",
            subject.model,
            ",".join(text for text in (EXACT, one.passes) if text),
            subject.calibration,
            subject.evaluation,
            subject.samples,
            subject.seed,
            subject.threads,
        )
        results[one.name], file = run_command(work, folder)
        tell(f"    {line_of(results[one.name])}")
        if file is not None:
            written[one.name] = file
    times = _times(subject.model, written, rounds)
    return _marked(_entries(subject, results, times))


def _times(model: Path, written: Mapping[str, Path], rounds: int) -> dict[str, tuple[float, float]]:
    """Return by name the share of the original's time by rounds and of the minima, all measured in one run."""
    models = {ORIGINAL: onnxcomp.load(model)} | {name: onnxcomp.load(file) for name, file in written.items()}
    bench = bench_models(models, Turns(rounds, 5), threads=1)
    return {name: (one.ratio_paired, one.ratio_minimum) for name in models for one in (bench.at(name, 1),)}


def _entries(
    subject: Subject, results: Mapping[str, Result], times: Mapping[str, tuple[float, float]]
) -> list[Entry]:
    labelled = next((one for one in results.values() if one.accuracy_before is not None), None)
    by_accuracy = labelled is not None and not subject.by_agreement
    before = labelled.accuracy_before if labelled is not None and by_accuracy else 100.0
    entries = [Entry(ORIGINAL, before, subject.model.stat().st_size, None, *times[ORIGINAL])]
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
def _show(console: Console, subject: Subject, entries: Sequence[Entry], worth: Sequence[Gain]) -> None:
    table = Table(
        title=f"{subject.name}: pipelines behind {EXACT}, time beside the original", title_justify="left"
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
        told = (
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
            *told,
            number(entry.bytes, digits=0),
            *(number(value, 100, 1) for value in (share, entry.time, entry.minimum)),
            number(None if one is None else one.seconds, digits=1),
            ", ".join(entry.best),
            "" if one is None else forms_text(one),
        )
    console.print(table)
    for gain in worth:
        beside = f"{gain.quality:.2f}, {gain.points:+.2f} points beside {gain.alone}"
        console.print(f"{subject.name}: {gain.name} {beside}", markup=False, highlight=False)
    for entry in entries:
        if entry.result is not None and entry.result.failure is not None:
            console.print(
                f"{subject.name}, {entry.name}: {entry.result.failure}", markup=False, highlight=False
            )


# --- the command line ------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME|FILE",
        help=f"what to try on: {', '.join(NETWORKS)}, or a file (default: {', '.join(USUAL_MODELS)})",
    )
    parser.add_argument("--rows", type=_words, metavar="NAME,...", help="pipelines to run, by name")
    parser.add_argument(
        "--passes",
        action="append",
        default=[],
        metavar="TEXT",
        help=f"one more pipeline, which runs behind the exact passes; alone with --rows {FOLDED.name}",
    )
    parser.add_argument("--calibration", metavar="DATA", help="samples to calibrate on; a file needs it")
    parser.add_argument("--evaluation", metavar="DATA", help="samples to judge on; a file needs it")
    parser.add_argument("--samples", type=_count, metavar="N", help="calibration samples")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--rounds", type=_count, default=30, help="turns of every file while they are timed")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime in the runs; 0 = all cores")
    parser.add_argument("--shared", type=Path, default=ROOT / "../shared", help="folder of models/ and data/")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the files and reports here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number; give 1 or more")
    return int(text)


def _subjects(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Subject]:
    """Return what to try on; ends the program where a name, a file or a pipeline is wrong."""
    subjects = [_subject(parser, options, name) for name in options.model or USUAL_MODELS]
    known = {one.name for subject in subjects for one in subject.tries}
    for name in options.rows or ():
        if name not in known:
            parser.error(f"there is no pipeline '{name}'; pipelines are {', '.join(sorted(known))}")
    own = tuple(Try(text, text) for text in dict.fromkeys(options.passes))
    for one in own:
        try:
            Pipeline.parse(one.passes)
        except UsageError as problem:
            parser.error(str(problem).splitlines()[0])
    return [
        replace(
            subject,
            tries=(*(one for one in subject.tries if not options.rows or one.name in options.rows), *own),
        )
        for subject in subjects
    ]


def _subject(parser: argparse.ArgumentParser, options: argparse.Namespace, name: str) -> Subject:
    network = NETWORKS.get(name)
    if network is None and not name.endswith(".onnx"):
        parser.error(f"there is no network '{name}'; give a file, or one of {', '.join(NETWORKS)}")
    shared = options.shared.resolve()
    model = Path(name).resolve() if network is None else network.model_path(shared)
    data = {
        role: getattr(options, role) or _data(network, shared, role) for role in ("calibration", "evaluation")
    }
    for role, given in data.items():
        if given is None:
            parser.error(f"{name} needs --{role} DATA")
    for path in (model, *(Path(str(text)) for text in data.values() if str(text).endswith(".npz"))):
        if not path.exists():
            parser.error(f"{path} does not exist; say with --shared where models/ and data/ are")
    try:
        # What cannot be timed in the end is refused before the first run.
        batch_feeds(onnxcomp.load(model), (1,))
    except OnnxcompError as problem:
        parser.error(f"{name}: {str(problem).splitlines()[0]}")
    return Subject(
        model.stem if network is None else network.name,
        model,
        str(data["calibration"]),
        str(data["evaluation"]),
        tries_for(name),
        options.samples or (None if network is None else network.samples),
        network is not None and network.by_agreement,
        options.seed,
        options.threads,
    )


def _data(network: Network | None, shared: Path, role: str) -> str | None:
    return None if network is None else str(network.data_path(shared, role))


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the pipelines, print a table for each network and write the document; return 1 where a run fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    subjects = _subjects(parser, options)
    # Where there is no terminal, rich would wrap the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 200)
    records: list[dict[str, object]] = []
    met = True
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="try-pipelines-") as scratch:
            folder = Path(scratch) if options.keep is None else options.keep.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            entries = try_all(subject, folder, options.rounds, lambda line: print(line, file=sys.stderr))
        worth = gains(entries, subject.tries)
        _show(console, subject, entries, worth)
        met = met and all(one.result is None or one.result.failure is None for one in entries)
        records.append(
            {
                "name": subject.name,
                "entries": [asdict(one) for one in entries],
                "gains": [asdict(g) for g in worth],
            }
        )
    if options.json is not None:
        write_document(options.json, "pipelines", {"networks": records})
    return 0 if met else 1
