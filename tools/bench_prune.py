"""Prune trained networks with the whole command, and print what was reached beside what is to be reached.

    python -m tools.bench_prune [--rows NAME,...] [--samples N] [--repeat-with-seed 0,1,2] [--options TEXT]
                                [--memory] [--threads N] [--shared FOLDER] [--json FILE]

Every row is one run of `python -m onnxcomp optimize` in a process of its own: wall time and peak memory are measured from
outside, all else is read from the run's report. The networks and the data are those of `../shared` or `--shared`; no
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

from tools.bench_output import write_document
from tools.child_usage import Usage, run_measured

__all__ = ["CASES", "Case", "Figure", "Result", "Setting", "figures", "measure", "pipeline", "spread"]

ROOT = Path(__file__).resolve().parent.parent

EXACT = "fold-constants,fold-batchnorm,remove-dead"

PEAK_BYTES = 10**9
"""What the whole command may take in memory."""

FLAT = 1.1
"""Peak memory with twice the samples to that with once: what counts as flat. Allocators are not exact."""

RAW = {"layout": "NHWC->NCHW", "scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}
"""The preprocess table of a network that takes the values 0..255 as they are."""


@dataclass(frozen=True)
class Case:
    """A network, what may remain of its MACs, pass options, and the accuracy (%) and seconds to reach, if any.

    `calibration` is given to the run in place of the unlabelled samples.
    """

    name: str
    model: str
    macs: float
    options: Mapping[str, str]
    accuracy: float | None = None
    seconds: float | None = None
    preprocess: Mapping[str, object] | None = None
    calibration: str | None = None


CASES = (
    Case("resnet20-50-control", "cifar10_resnet20_bn", 0.5, {"criterion": "l1", "repair": "none"}),
    Case("resnet20-50", "cifar10_resnet20_bn", 0.5, {}, accuracy=82.5, seconds=40),
    Case("resnet20-75", "cifar10_resnet20_bn", 0.75, {}, accuracy=89.8, seconds=40),
    Case("resnet56-50", "cifar10_resnet56_bn", 0.5, {}, accuracy=90.3, seconds=120),
    Case(
        "resnet56-50-free",
        "cifar10_resnet56_bn",
        0.5,
        {"scope": "uniform"},
        accuracy=75.0,
        calibration="none",
    ),
    Case("resnet8-75", "mlperftiny_resnet8_cifar10", 0.75, {}, accuracy=83.0, preprocess=RAW),
    Case("vgg9-50", "cifar10_vgg9_bn", 0.5, {}),
)
"""The rows. The control has nothing to reach: it shows what is lost where nothing is repaired; VGG-9 is for information."""


@dataclass(frozen=True)
class Setting:
    """How the rows are run: where models and data are, and options that are added to those of every case, and win."""

    shared: Path
    samples: int = 512
    threads: int = 0
    options: Mapping[str, str] | None = None

    @property
    def calibration(self) -> Path:
        """The unlabelled samples that the run may see."""
        return self.shared / "data" / "cifar10_calibration.npz"

    @property
    def evaluation(self) -> Path:
        """The labelled samples that judge the result, all of them."""
        return self.shared / "data" / "cifar10_evaluation.npz"


@dataclass(frozen=True)
class Figure:
    """A target beside what was reached; `bound` says on which side of the target it must be."""

    name: str
    bound: Literal[">=", "<="]
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
    """One run of one case: accuracies and agreement in percent, shares of the original.

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
    pass_seconds: Mapping[str, float] | None = None
    figures: tuple[Figure, ...] = ()
    failure: str | None = None

    @property
    def met(self) -> bool:
        """Whether the run went through and every target was reached."""
        return self.failure is None and all(figure.met for figure in self.figures)


def pipeline(case: Case, setting: Setting) -> str:
    """Return the text of the pipeline that `case` runs."""
    options = {"macs": f"{case.macs:g}", **case.options, **(setting.options or {})}
    return f"{EXACT},prune-filters{{{' '.join(f'{name}={value}' for name, value in options.items())}}}"


def measure(case: Case, setting: Setting, seed: int = 0) -> Result:
    """Run the whole command on `case` and return what came of it.

    Raises:
        OSError: where python cannot be started.
    """
    passes = pipeline(case, setting)
    with tempfile.TemporaryDirectory(prefix="bench-prune-") as name:
        folder = Path(name)
        report = folder / "report.json"
        usage = run_measured(_command(case, setting, passes, seed, folder, report), ROOT)
        document = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    facts = _facts(document) if document is not None else {}
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
        *(str(setting.shared / "models" / f"{case.model}.onnx"), "-o", str(folder / "small.onnx")),
        *("--passes", passes),
        *_calibration(case, setting),
        *("--evaluation", str(setting.evaluation)),
        *("--seed", str(seed), "--threads", str(setting.threads), "--report", str(report)),
        *extra,
    )


def _calibration(case: Case, setting: Setting) -> tuple[str, ...]:
    if case.calibration is not None:
        return ("--calibration", case.calibration)
    return ("--calibration", str(setting.calibration), "--samples", str(setting.samples))


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
    share = float((setting.options or {}).get("macs", case.macs))
    found = [
        Figure("macs_share", "<=", share, facts.get("macs_share")),
        Figure("peak_bytes", "<=", PEAK_BYTES, usage.peak_bytes),
    ]
    if case.accuracy is not None:
        found.append(Figure("accuracy", ">=", case.accuracy, facts.get("accuracy")))
    if case.seconds is not None:
        found.append(Figure("seconds", "<=", case.seconds, usage.seconds))
    return tuple(found)


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
        *(
            "seed",
            "samples",
            "original %",
            "accuracy %",
            "to reach",
            "agreement %",
            "SQNR dB",
            "MACs %",
            "parameters %",
        ),
        *("seconds", "to reach", "peak MB", "to reach", "met"),
    ):
        table.add_column(name, justify="right")
    for result in results:
        targets = {figure.name: figure for figure in result.figures}
        table.add_row(
            result.case,
            str(result.seed),
            _number(result.samples, digits=0),
            _number(result.accuracy_before),
            _number(result.accuracy),
            _target(targets.get("accuracy")),
            _number(result.agreement),
            _number(result.sqnr_db),
            _number(result.macs_share, 100),
            _number(result.parameters_share, 100),
            _number(result.seconds, digits=1),
            _target(targets.get("seconds")),
            _number(result.peak_bytes, 1e-6, digits=0),
            _target(targets.get("peak_bytes"), 1e-6),
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


def _target(figure: Figure | None, factor: float = 1) -> str:
    return "" if figure is None else f"{figure.bound} {figure.target * factor:g}"


# --- the command line ------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--rows", type=_words, metavar="NAME,...", help=f"rows to run, of: {names}")
    parser.add_argument("--shared", type=Path, default=ROOT / "../shared", help="folder of models/ and data/")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples (default 512)")
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


def _options(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split()]
    if not all(name and equals and value for name, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE NAME=VALUE")
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
    setting = _setting(options, options.samples)
    models = {options.shared / "models" / f"{case.model}.onnx" for case in chosen}
    for path in (*sorted(models), setting.calibration, setting.evaluation):
        if not path.exists():
            parser.error(f"{path} does not exist; say with --shared where models/ and data/ are")
    return chosen


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
        if options.memory:
            seed = options.repeat_with_seed[0]
            yield from ((case, samples, seed) for samples in (options.samples, 2 * options.samples))
        else:
            yield from ((case, options.samples, seed) for seed in options.repeat_with_seed)


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


if __name__ == "__main__":
    sys.exit(main())
