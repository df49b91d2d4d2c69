"""Prune trained networks with the whole command, and print what was reached beside what is to be reached.

    python -m tools.bench prune [--rows NAME,...] [--samples N] [--repeat-with-seed 0,1,2] [--options TEXT]
                                [--memory] [--threads N] [--shared FOLDER] [--json FILE]

Every row (see `tools.bench.prune_cases`) is one run of `python -m onnxcomp optimize` in a process of its own: wall time and peak
memory are measured from outside; where a latency is to be reached, the file that was written is timed beside the original
afterwards; all else is read from the run's report. The networks and the data are those of `../shared` or `--shared`; no
labels reach the run, and nothing is trained. Exit code 1 where a figure is missed or a run fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

import onnxcomp
from onnxcomp.runtime.bench import batch_feeds
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.steady import steady_ratio
from tools.bench.child import Usage, run_measured
from tools.bench.document import write_document
from tools.bench.prune_cases import BUDGETS, CASES, SAMPLES, Case

__all__ = ["Figure", "Result", "Setting", "figures", "measure", "measure_latency", "pipeline", "spread"]

ROOT = Path(__file__).resolve().parent.parent.parent

EXACT = "fold-constants,fold-batchnorm,remove-dead"

Bound = Literal[">=", "<="]

FLAT = 1.1
"""Peak memory with twice the samples to that with once: what counts as flat. Allocators are not exact."""


@dataclass(frozen=True)
class Setting:
    """How the rows are run: where models and data are, how many samples, and options that win over those of every case."""

    shared: Path
    samples: int = SAMPLES
    threads: int = 0
    options: Mapping[str, str] | None = None

    def model(self, case: Case) -> Path:
        """Return the network that is pruned."""
        return self.shared / "models" / f"{case.model}.onnx"

    def calibration(self, case: Case) -> Path:
        """Return the unlabelled samples that the run may see."""
        return self.shared / "data" / f"{case.data}_calibration.npz"

    def evaluation(self, case: Case) -> Path:
        """Return the labelled samples that judge the result, all of them."""
        return self.shared / "data" / f"{case.data}_evaluation.npz"

    def pruning(self, case: Case) -> dict[str, str]:
        """Return the options of prune-filters; a budget that is given stands in the place of the one of `case`."""
        given = self.options or {}
        replaced = set(BUDGETS) - set(given) if set(BUDGETS) & set(given) else set()
        return {name: value for name, value in case.options.items() if name not in replaced} | dict(given)


@dataclass(frozen=True)
class Figure:
    """A target beside what was reached; `bound` says on which side of the target it must be."""

    name: str
    bound: Bound
    target: float
    reached: float | None

    @property
    def met(self) -> bool:
        """Whether the target is reached; what was not measured is not."""
        if self.reached is None:
            return False
        return self.reached >= self.target if self.bound == ">=" else self.reached <= self.target


@dataclass(frozen=True)
class Result:
    """One run of one case: accuracies and agreement in percent, MACs, parameters and latency as shares of the original's.

    `samples` are those that the run calibrated on, which are fewer than wanted where the data holds no more. `failure`
    is what a run said that did not end with 0, and what was not measured is None.
    """

    case: str
    pipeline: str
    seed: int
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    samples: int | None = None
    accuracy_before: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    macs_share: float | None = None
    parameters_share: float | None = None
    latency_share: float | None = None
    pass_seconds: Mapping[str, float] | None = None
    figures: tuple[Figure, ...] = ()
    failure: str | None = None

    @property
    def met(self) -> bool:
        """Whether the run went through and every target was reached."""
        return self.failure is None and all(figure.met for figure in self.figures)


def pipeline(case: Case, setting: Setting) -> str:
    """Return the text of the pipeline that `case` runs."""
    options = setting.pruning(case).items()
    return f"{EXACT},prune-filters{{{' '.join(f'{name}={value}' for name, value in options)}}}"


def measure(case: Case, setting: Setting, seed: int = 0) -> Result:
    """Run the whole command on `case` and return what came of it.

    Raises:
        OSError: where python cannot be started.
    """
    passes = pipeline(case, setting)
    with tempfile.TemporaryDirectory(prefix="bench-prune-") as name:
        folder = Path(name)
        report, pruned = folder / "report.json", folder / "small.onnx"
        usage = run_measured(_command(case, setting, passes, seed, folder, report), ROOT)
        document = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
        facts = _facts(document) if document is not None else {}
        if pruned.exists() and _latency_target(case, setting) is not None:
            facts["latency_share"] = measure_latency(setting.model(case), pruned)
    return Result(
        case=case.name,
        pipeline=passes,
        seed=seed,
        exit_code=usage.exit_code,
        seconds=usage.seconds,
        cpu_seconds=usage.cpu_seconds,
        peak_bytes=usage.peak_bytes,
        **facts,
        figures=figures(case, setting, usage, facts),
        failure=_failure(usage) if usage.exit_code else None,
    )


def measure_latency(original: Path, pruned: Path) -> float:
    """Return the time of `pruned` as a share of that of `original`: batch 1, one thread, measured in turns.

    It is measured as prune-filters measures what a budget of latency asks for, but on the files.
    """
    model = onnxcomp.load(original)
    reference, candidate = (Session(one, threads=1) for one in (model, onnxcomp.load(pruned)))
    return steady_ratio(reference, candidate, batch_feeds(model, (1,))[1]).ratio


def _command(
    case: Case, setting: Setting, passes: str, seed: int, folder: Path, report: Path
) -> tuple[str, ...]:
    extra: tuple[str, ...] = ()
    if case.preprocess is not None:
        table = folder / "preprocess.json"
        table.write_text(json.dumps(case.preprocess), encoding="utf-8")
        extra = ("--preprocess", str(table))
    return (
        *(sys.executable, "-m", "onnxcomp", "optimize", "-q"),
        *(str(setting.model(case)), "-o", str(folder / "small.onnx")),
        *("--passes", passes),
        *_calibration(case, setting),
        *("--evaluation", str(setting.evaluation(case))),
        *("--seed", str(seed), "--threads", str(setting.threads), "--report", str(report)),
        *extra,
    )


def _calibration(case: Case, setting: Setting) -> tuple[str, ...]:
    if case.calibration is not None:
        return ("--calibration", case.calibration)
    return ("--calibration", str(setting.calibration(case)), "--samples", str(setting.samples))


def _facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Result that stand in the report of a run."""
    before, after = document["before"], document["after"]
    comparison = document["comparison"] or {}
    return {
        "samples": next((d["samples"] for d in document["data"] if d["role"] == "calibration"), None),
        "accuracy_before": comparison.get("accuracy_before"),
        "accuracy": comparison.get("accuracy_after"),
        "agreement": comparison.get("agreement"),
        "sqnr_db": comparison.get("sqnr_db"),
        "macs_share": after["macs"] / before["macs"],
        "parameters_share": after["parameters"] / before["parameters"],
        "pass_seconds": {run["name"]: run["seconds"] for run in document["runs"]},
    }


def figures(case: Case, setting: Setting, usage: Usage, facts: Mapping[str, Any]) -> tuple[Figure, ...]:
    """Return what `case` is to reach beside what it reached; `facts` are the fields of a Result read from a report."""
    macs = setting.pruning(case).get("macs")
    wanted: tuple[tuple[str, Bound, float | None, float | None], ...] = (
        ("macs_share", "<=", None if macs is None else float(macs), facts.get("macs_share")),
        ("peak_bytes", "<=", case.peak_bytes, usage.peak_bytes),
        ("accuracy", ">=", case.accuracy, facts.get("accuracy")),
        ("agreement", ">=", case.agreement, facts.get("agreement")),
        ("latency_share", "<=", _latency_target(case, setting), facts.get("latency_share")),
        ("seconds", "<=", case.seconds, usage.seconds),
    )
    return tuple(
        Figure(name, bound, target, got) for name, bound, target, got in wanted if target is not None
    )


def _latency_target(case: Case, setting: Setting) -> float | None:
    """Return the budget of latency where there is one, what the row asks for otherwise."""
    budget = setting.pruning(case).get("latency")
    return case.latency if budget is None else float(budget)


def _failure(usage: Usage) -> str:
    """Return the exit code and the end of what the run said; errors in the text of a pipeline take several lines."""
    said = "\n".join(usage.stderr.strip().splitlines()[-5:])
    return f"exit {usage.exit_code}: {said or 'it said nothing'}"


def spread(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return mean, least, most and standard deviation of the accuracy of each case that ran with several seeds."""
    found: dict[str, dict[str, float]] = {}
    for case in dict.fromkeys(result.case for result in results):
        values = [r.accuracy for r in results if r.case == case and r.accuracy is not None]
        if len(values) > 1:
            found[case] = {
                "runs": len(values),
                "mean": statistics.mean(values),
                "least": min(values),
                "most": max(values),
                "deviation": statistics.stdev(values),
            }
    return found


# --- what is shown ---------------------------------------------------------------------------------------------------
def _show_results(console: Console, results: Sequence[Result]) -> None:
    table = Table(title="prune-filters, the whole command", title_justify="left")
    table.add_column("row")
    for name in (
        *("seed", "samples", "original %", "accuracy %", "agreement %", "SQNR dB", "MACs %"),
        *("parameters %", "latency %", "seconds", "peak MB", "met"),
    ):
        table.add_column(name, justify="right")
    for result in results:
        targets = {figure.name: figure for figure in result.figures}
        table.add_row(
            result.case,
            str(result.seed),
            _number(result.samples, digits=0),
            _number(result.accuracy_before),
            _cell(result.accuracy, targets.get("accuracy")),
            _cell(result.agreement, targets.get("agreement")),
            _number(result.sqnr_db),
            _number(result.macs_share, 100),
            _number(result.parameters_share, 100),
            _cell(result.latency_share, targets.get("latency_share"), 100),
            _cell(result.seconds, targets.get("seconds"), digits=1),
            _cell(result.peak_bytes, targets.get("peak_bytes"), 1e-6, 0),
            "yes" if result.met else "no",
        )
    console.print(table)
    for result in results:
        if result.failure is not None:
            console.print(f"{result.case} (seed {result.seed}): {result.failure}", markup=False)


def _show_spread(console: Console, found: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(title="accuracy % over seeds", title_justify="left")
    for name in ("row", "runs", "mean", "least", "most", "deviation"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for case, numbers in found.items():
        rest = (_number(numbers[name]) for name in ("mean", "least", "most", "deviation"))
        table.add_row(case, f"{numbers['runs']:g}", *rest)
    console.print(table)


def _number(value: float | None, factor: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _cell(value: float | None, figure: Figure | None, factor: float = 1, digits: int = 2) -> str:
    """Return what was reached, and in brackets what is to be reached."""
    return _number(value, factor, digits) + ("" if figure is None else f" ({_target(figure, factor)})")


def _target(figure: Figure, factor: float = 1) -> str:
    return f"{figure.bound} {figure.target * factor:g}"


# --- the command line ------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--rows", type=_words, metavar="NAME,...", help=f"rows to run, of: {names}")
    parser.add_argument("--shared", type=Path, default=ROOT / "../shared", help="folder of models/ and data/")
    parser.add_argument(
        "--samples", type=int, help=f"calibration samples (default {SAMPLES}, or what the row says)"
    )
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 = all cores (default)")
    parser.add_argument(
        "--repeat-with-seed", type=_numbers, default=[0], metavar="0,1,2", help="run every row with each seed"
    )
    parser.add_argument(
        "--options",
        type=_options,
        default={},
        metavar="TEXT",
        help="options of prune-filters for every row, which win over its own: 'criterion=l2 align=8'",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="run one row (resnet20-50) with N and 2 N samples for their peaks",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _options(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split()]
    if not all(name and equals and value for name, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE NAME=VALUE")
    for name, _, value in pairs:
        if name in BUDGETS and not _is_number(value):
            raise argparse.ArgumentTypeError(f"{name}={value} is no budget; give a number, as in {name}=0.5")
    return {name: value for name, _, value in pairs}


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Case]:
    """Return the rows to run; ends the program where a name or a file is not there, or options do not go together."""
    if options.memory and len(options.repeat_with_seed) > 1:
        parser.error("--memory runs with one seed; give one to --repeat-with-seed")
    cases = {case.name: case for case in CASES}
    names = options.rows or (["resnet20-50"] if options.memory else list(cases))
    for name in names:
        if name not in cases:
            parser.error(f"there is no row '{name}'; rows are {', '.join(cases)}")
    chosen = [cases[name] for name in names]
    setting = _setting(options, SAMPLES)
    for path in dict.fromkeys(path for case in chosen for path in _read(case, setting)):
        if not path.exists():
            parser.error(f"{path} does not exist; say with --shared where models/ and data/ are")
    return chosen


def _read(case: Case, setting: Setting) -> list[Path]:
    """Return the files that a run of `case` reads."""
    samples = [setting.calibration(case)] if case.calibration is None else []
    return [setting.model(case), *samples, setting.evaluation(case)]


def _setting(options: argparse.Namespace, samples: int) -> Setting:
    return Setting(options.shared.resolve(), samples, options.threads, options.options)


def _memory_figures(results: Sequence[Result]) -> dict[str, Figure]:
    """Return by case the peak with twice the samples as a share of that with once."""
    found: dict[str, Figure] = {}
    for once, twice in zip(results[::2], results[1::2], strict=True):
        doubled = once.samples is not None and twice.samples == 2 * once.samples
        ratio = twice.peak_bytes / once.peak_bytes if doubled else None
        found[once.case] = Figure("peak_with_twice_the_samples", "<=", FLAT, ratio)
    return found


def _runs(cases: Sequence[Case], options: argparse.Namespace) -> Iterator[tuple[Case, int, int]]:
    """Yield case, samples and seed of every run."""
    for case in cases:
        once = case.samples if options.samples is None else options.samples
        for samples in (once, 2 * once) if options.memory else (once,):
            yield from ((case, samples, seed) for seed in options.repeat_with_seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print the tables and write the document; return 1 where a figure is missed or a run fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    cases = _chosen(parser, options)
    results: list[Result] = []
    for case, samples, seed in _runs(cases, options):
        print(f"{case.name}: {samples} samples, seed {seed}", file=sys.stderr)
        results.append(measure(case, _setting(options, samples), seed))
    # Where there is no terminal, rich would wrap the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 180)
    _show_results(console, results)
    seeds, memory = spread(results), _memory_figures(results) if options.memory else {}
    if seeds and not options.memory:
        _show_spread(console, seeds)
    for name, figure in memory.items():
        reached = "not measured" if figure.reached is None else f"{figure.reached:.3f}"
        console.print(f"{name}: peak memory with twice the samples / once: {reached} ({_target(figure)})")
    if options.json is not None:
        content = {
            "rows": [asdict(r) | {"met": r.met, "figures": [_record(f) for f in r.figures]} for r in results],
            "spread": {} if options.memory else seeds,
            "memory": {name: _record(figure) for name, figure in memory.items()},
        }
        write_document(options.json, "prune", content)
    met = all(result.met for result in results) and all(figure.met for figure in memory.values())
    return 0 if met else 1


def _record(figure: Figure) -> dict[str, object]:
    return asdict(figure) | {"met": figure.met}
