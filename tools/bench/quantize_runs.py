"""What `tools.bench.quantize` measures: one run of each candidate, its judgement beside the original, costs and memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import onnxcomp
from onnxcomp.runtime.bench import Turns, bench_models
from onnxcomp.runtime.compare import compare_models
from onnxcomp.runtime.fusion import fusion_of
from onnxcomp.runtime.session import Session
from tools.bench.child import Usage, run_measured
from tools.bench.peers import samples_of
from tools.bench.prune import Bound, Figure
from tools.bench.quantize_cases import Case

__all__ = [
    "CANDIDATES",
    "MEMORY_SAMPLES",
    "Cost",
    "Fused",
    "Memory",
    "Result",
    "Row",
    "Setting",
    "calibration_cost",
    "details_of",
    "figures",
    "measure",
    "measure_memory",
    "pipeline",
]

ROOT = Path(__file__).resolve().parent.parent.parent

CANDIDATES = ("ours", "percentile", "minmax")
"""What quantizes: the whole command, and onnxruntime's quantizer with two ways of choosing ranges."""

EXACT = "fold-constants,fold-batchnorm,remove-dead"

MEMORY_SAMPLES = (100, 400)
"""Numbers of samples whose peaks are compared."""

MEMORY_LIMIT = 4 * 10**8
"""Bytes that a run may take above the interpreter with all that is imported."""

FLAT = 1.1
"""Peak memory with more samples to that with fewer: what counts as equal. Allocators are not exact."""

COST_LIMITS = {"minmax": 1.5}
COST_LIMIT = 3.0
"""Times plain inference that the calibration stage may take, by observer and otherwise."""

COMMAND_LIMIT = 0.5
"""Share of the time of onnxruntime's percentile that our whole command may take."""

_JUDGE_BATCH = 16


@dataclass(frozen=True)
class Setting:
    """How the rows are run; `samples` and `options` win over those of every case, `folder` takes what is written."""

    shared: Path
    folder: Path = Path()
    candidates: tuple[str, ...] = CANDIDATES
    samples: int | None = None
    threads: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    latency: bool = True

    def count(self, case: Case) -> int:
        """Return how many samples calibrate `case`."""
        return case.samples if self.samples is None else self.samples


@dataclass(frozen=True)
class Fused:
    """What onnxruntime makes of a file: nodes on integers, nodes meant to be, other float nodes, and islands by name."""

    fused: int
    unfused: int
    floats: int
    islands: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """One candidate of one row: accuracies and agreement in percent, latency as a share of the original's.

    What was not measured is None; `failure` is what a run said that did not end with 0. `calibration_seconds` and
    `inference_seconds` are those that our report tells.
    """

    candidate: str
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    bytes: int | None = None
    accuracy_before: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_share: float | None = None
    latency_minimum: float | None = None
    fused: Fused | None = None
    calibration_seconds: float | None = None
    inference_seconds: float | None = None
    notes: tuple[str, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class Row:
    """All candidates of one case beside what ours is to reach."""

    case: str
    pipeline: str
    samples: int
    bytes_before: int
    results: tuple[Result, ...]
    figures: tuple[Figure, ...]

    @property
    def met(self) -> bool:
        """Whether all runs went through and ours reached every target; without ours there is none to reach."""
        ran = all(result.failure is None for result in self.results)
        return ran and all(figure.met for figure in self.figures)


@dataclass(frozen=True)
class Cost:
    """What calibration costs, in seconds: plain inference of the samples, our stage, our command, the peer's command."""

    case: str
    samples: int
    plain: float | None
    calibration: float | None
    command: float | None
    percentile: float | None


@dataclass(frozen=True)
class Memory:
    """Peaks of our command in bytes by number of samples, and that of the interpreter with all that is imported."""

    case: str
    interpreter: int
    peaks: Mapping[int, int]
    failure: str | None = None

    @property
    def met(self) -> bool:
        """Whether no peak is above the limit, and more samples take no more than fewer."""
        most = max(self.peaks.values(), default=0)
        fits = most - self.interpreter <= MEMORY_LIMIT
        return self.failure is None and fits and most <= FLAT * min(self.peaks.values())


def pipeline(case: Case, setting: Setting) -> str:
    """Return the text of the pipeline that ours runs."""
    options = " ".join(f"{name}={value}" for name, value in {**case.options, **setting.options}.items())
    return f"{EXACT},insert-qdq" + (f"{{{options}}}" if options else "")


def measure(case: Case, setting: Setting) -> Row:
    """Quantize `case` with every candidate, judge and time what was written."""
    names = [name for name in setting.candidates if name == "ours" or case.calibration is None]
    results = {name: _run(name, case, setting) for name in names}
    written = {name: _output(name, case, setting) for name, one in results.items() if one.failure is None}
    if setting.latency and written:
        for name, (paired, minimum) in _latencies(case, setting, written).items():
            results[name] = replace(results[name], latency_share=paired, latency_minimum=minimum)
    ours = results.get("ours")
    return Row(
        case.name,
        pipeline(case, setting),
        setting.count(case),
        case.model_path(setting.shared).stat().st_size,
        tuple(results.values()),
        () if ours is None else figures(case, setting, ours),
    )


def _output(name: str, case: Case, setting: Setting) -> Path:
    return setting.folder / f"{case.name}.{name}.onnx"


def _run(name: str, case: Case, setting: Setting) -> Result:
    """Return what came of one candidate, without its latency."""
    output, report = _output(name, case, setting), setting.folder / f"{case.name}.{name}.json"
    command = _ours(case, setting, output, report) if name == "ours" else _peer(name, case, setting, output)
    usage = run_measured(command, ROOT)
    base = Result(name, usage.exit_code, usage.seconds, usage.cpu_seconds, usage.peak_bytes)
    if usage.exit_code or not output.exists():
        return replace(base, failure=_failure(usage))
    facts = _judge(case, setting, output)
    if name == "ours":
        facts |= details_of(json.loads(report.read_text(encoding="utf-8")))
    return replace(base, bytes=output.stat().st_size, **facts)


def _failure(usage: Usage) -> str:
    """Return the exit code and the end of what the run said; errors in the text of a pipeline take several lines."""
    said = "\n".join(usage.stderr.strip().splitlines()[-5:])
    return f"exit {usage.exit_code}: {said or 'it said nothing'}"


def _ours(
    case: Case, setting: Setting, output: Path, report: Path, data: Path | None = None
) -> tuple[str, ...]:
    calibration = str(data or case.data_path(setting.shared, "calibration"))
    samples = ("--calibration", calibration, "--samples", str(setting.count(case)))
    return (
        *(sys.executable, "-m", "onnxcomp", "optimize", "-q", "--force"),
        *(str(case.model_path(setting.shared)), "-o", str(output)),
        *("--passes", pipeline(case, setting)),
        *(samples if case.calibration is None else ("--calibration", case.calibration)),
        *("--threads", str(setting.threads), "--report", str(report)),
        *_preprocess(case, setting),
    )


def _peer(name: str, case: Case, setting: Setting, output: Path) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "tools.bench.peers", name, str(case.model_path(setting.shared))),
        *("-o", str(output)),
        *("--calibration", str(case.data_path(setting.shared, "calibration"))),
        *("--samples", str(setting.count(case))),
        *_preprocess(case, setting),
    )


def _preprocess(case: Case, setting: Setting) -> tuple[str, ...]:
    table = _table(case, setting)
    return () if table is None else ("--preprocess", str(table))


def _table(case: Case, setting: Setting) -> Path | None:
    """Return the file of the preprocess table of `case`, written where it has one of its own."""
    if case.preprocess is None:
        return None
    table = setting.folder / f"{case.name}.preprocess.json"
    table.write_text(json.dumps(case.preprocess), encoding="utf-8")
    return table


def details_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Result that the report of our run tells of insert-qdq.

    `calibration_seconds` and `inference_seconds` are taken from the details of whichever change has them.
    """
    runs = [run for run in report["runs"] if run["name"] == "insert-qdq"]
    found: dict[str, Any] = {"notes": tuple(note for run in runs for note in run["notes"])}
    for change in (change for run in runs for change in run["changes"]):
        for name in ("calibration_seconds", "inference_seconds"):
            if name in change["details"]:
                found[name] = float(change["details"][name])
    return found


# --- judgement -------------------------------------------------------------------------------------------------------
def _judge(case: Case, setting: Setting, output: Path) -> dict[str, Any]:
    """Return how `output` does on the evaluation samples, beside the original, and what fuses in it."""
    original = case.model_path(setting.shared)
    samples = samples_of(original, case.data_path(setting.shared, "evaluation"), None, _table(case, setting))
    found = compare_models(
        Session(str(original), threads=setting.threads),
        Session(str(output), threads=setting.threads),
        samples.batches(_JUDGE_BATCH),
        labels=samples.labels(),
    )
    return {
        "accuracy_before": found.accuracy_before,
        "accuracy": found.accuracy_after,
        "agreement": found.agreement,
        "sqnr_db": found.sqnr_db,
        "fused": _fused(output),
    }


def _fused(path: Path) -> Fused:
    """Return what onnxruntime makes of the file at `path`."""
    found = fusion_of(onnxcomp.load(path))
    islands = tuple(f"{node.op} {node.name}" for node in found.islands)
    return Fused(len(found.fused), len(found.unfused), len(found.floats), islands)


def _latencies(case: Case, setting: Setting, written: Mapping[str, Path]) -> dict[str, tuple[float, float]]:
    """Return by candidate the time as a share of the original's, by round and of the minima: batch 1, one thread."""
    models = {"original": onnxcomp.load(case.model_path(setting.shared))}
    models |= {name: onnxcomp.load(path) for name, path in written.items()}
    bench = bench_models(models, Turns(40, 5), threads=1)
    return {name: (one.ratio_paired, one.ratio_minimum) for name in written for one in (bench.at(name, 1),)}


def figures(case: Case, setting: Setting, ours: Result) -> tuple[Figure, ...]:
    """Return what `case` is to reach beside what `ours` reached."""
    before, after = ours.accuracy_before, ours.accuracy
    drop = None if before is None or after is None else before - after
    wanted: list[tuple[str, Bound, float | None, float | None]] = [
        ("agreement", ">=", case.agreement, ours.agreement),
        ("sqnr_db", ">=", case.sqnr_db, ours.sqnr_db),
        ("bytes", "<=", case.bytes, ours.bytes),
        ("drop", "<=", case.drop, drop),
    ]
    if setting.latency:
        wanted.append(("latency_share", "<=", case.latency, ours.latency_share))
    return tuple(
        Figure(name, bound, target, got) for name, bound, target, got in wanted if target is not None
    )


# --- cost and memory -------------------------------------------------------------------------------------------------
def calibration_cost(case: Case, setting: Setting, row: Row, batch: int = 32) -> Cost:
    """Return what calibration costs in `row`, beside plain inference of the same samples in batches of `batch`."""
    answer = setting.folder / f"{case.name}.plain.json"
    command = (
        *(sys.executable, "-m", "tools.bench.peers", "plain", str(case.model_path(setting.shared))),
        *("--calibration", str(case.data_path(setting.shared, "calibration"))),
        *("--samples", str(setting.count(case)), "--batch", str(batch)),
        *("--threads", str(setting.threads), "--result", str(answer)),
        *_preprocess(case, setting),
    )
    usage = run_measured(command, ROOT)
    plain = None if usage.exit_code else float(json.loads(answer.read_text())["inference_seconds"])
    results = {result.candidate: result for result in row.results if result.failure is None}
    ours, peer = results.get("ours"), results.get("percentile")
    return Cost(
        case.name,
        setting.count(case),
        plain,
        None if ours is None else ours.calibration_seconds,
        None if ours is None else ours.seconds,
        None if peer is None else peer.seconds,
    )


def measure_memory(case: Case, setting: Setting, counts: Sequence[int] = MEMORY_SAMPLES) -> Memory:
    """Return the peaks of our command with each of `counts` samples; where there are fewer, they are repeated."""
    idle = "import numpy, scipy, onnx, onnxruntime, onnxcomp.cli.main, onnxcomp.api"
    interpreter = run_measured((sys.executable, "-c", idle), ROOT).peak_bytes
    peaks: dict[int, int] = {}
    failure = None
    for count, data in _repeated(case, setting, counts):
        output = setting.folder / f"{case.name}.memory.onnx"
        report = setting.folder / f"{case.name}.memory.json"
        usage = run_measured(_ours(case, replace(setting, samples=count), output, report, data), ROOT)
        peaks[count] = usage.peak_bytes
        failure = failure or (_failure(usage) if usage.exit_code else None)
    return Memory(case.name, interpreter, peaks, failure)


def _repeated(case: Case, setting: Setting, counts: Sequence[int]) -> Iterator[tuple[int, Path]]:
    """Yield each count with a file of at least as many samples."""
    given = case.data_path(setting.shared, "calibration")
    with np.load(given, allow_pickle=False) as archive:
        arrays = dict(archive)
    held = min(len(array) for array in arrays.values() if array.ndim)
    for count in counts:
        if count <= held:
            yield count, given
            continue
        longer = setting.folder / f"{case.name}.{count}.npz"
        rows = np.arange(count) % held
        np.savez(longer, **{name: array[rows] if array.ndim else array for name, array in arrays.items()})
        yield count, longer
