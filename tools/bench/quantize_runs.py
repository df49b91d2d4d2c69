"""What `tools.bench.quantize` measures: one run of each candidate, its judgement beside the original, costs and memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import onnxcomp
from onnxcomp.runtime.compare import compare_models
from onnxcomp.runtime.fusion import fusion_of
from onnxcomp.runtime.session import Session
from tools.bench.cases import ROOT, Case, Setting
from tools.bench.child import run_measured
from tools.bench.figures import FLAT, Figure, record
from tools.bench.peers import samples_of
from tools.bench.runs import Result, command_of, failure_of, figures, latency_shares, work_of

__all__ = [
    "CANDIDATES",
    "MEMORY_SAMPLES",
    "PASSES",
    "CandidateResult",
    "Cost",
    "Fused",
    "Memory",
    "Row",
    "calibration_cost",
    "details_of",
    "measure",
    "measure_memory",
    "record_of_row",
]

CANDIDATES = ("ours", "percentile", "minmax")
"""What quantizes: the whole command, and onnxruntime's quantizer with two ways of choosing ranges."""

PASSES = ("insert-qdq",)
"""What is measured; `--options` are its."""

MEMORY_SAMPLES = (100, 400)
"""Numbers of samples whose peaks are compared."""

MEMORY_LIMIT = 4 * 10**8
"""Bytes that a run may take above the interpreter with all that is imported."""

COST_LIMITS = {"minmax": 1.5}
COST_LIMIT = 3.0
"""Times plain inference that the calibration stage may take, by observer and otherwise."""

COMMAND_LIMIT = 0.5
"""Share of the time of onnxruntime's percentile that our whole command may take."""

_JUDGE_BATCH = 16


@dataclass(frozen=True)
class Fused:
    """What onnxruntime makes of a file: nodes on integers, nodes meant to be, other float nodes, and islands by name."""

    fused: int
    unfused: int
    floats: int
    islands: tuple[str, ...]


@dataclass(frozen=True)
class CandidateResult(Result):
    """One candidate of one row: its run, beside it what the judgement of the written file adds.

    `calibration_seconds` and `inference_seconds` are those of our report; `latency_minimum` is the ratio of the minima.
    """

    candidate: str = "ours"
    latency_minimum: float | None = None
    fused: Fused | None = None
    calibration_seconds: float | None = None
    inference_seconds: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """All candidates of one case beside what ours is to reach."""

    case: str
    pipeline: str
    samples: int
    bytes_before: int
    results: tuple[CandidateResult, ...]
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


def record_of_row(row: Row) -> dict[str, object]:
    """Return what the JSON document holds of `row`."""
    return asdict(row) | {"met": row.met, "figures": [record(figure) for figure in row.figures]}


def measure(case: Case, setting: Setting, folder: Path, candidates: Sequence[str] = CANDIDATES) -> Row:
    """Quantize `case` with every candidate, judge and time what was written into `folder`."""
    case = setting.applied(case, PASSES)
    names = [name for name in candidates if name == "ours" or case.calibration is None]
    results = {name: _run(name, case, setting, folder) for name in names}
    written = {name: _output(name, case, folder) for name, one in results.items() if one.failure is None}
    timed = setting.timed != "none"
    if timed and written:
        shares = latency_shares(case.network.model_path(setting.shared), written)
        for name in written:
            paired, minimum = shares[name]
            results[name] = replace(results[name], latency_share=paired, latency_minimum=minimum)
    ours = results.get("ours")
    return Row(
        case.name,
        case.pipeline,
        setting.count(case),
        case.network.model_path(setting.shared).stat().st_size,
        tuple(results.values()),
        () if ours is None else figures(case, ours, timed=timed),
    )


def _output(name: str, case: Case, folder: Path) -> Path:
    return folder / f"{case.name}.{name}.onnx"


def _run(name: str, case: Case, setting: Setting, folder: Path) -> CandidateResult:
    """Return the result of one candidate, without its latency."""
    output, report = _output(name, case, folder), folder / f"{case.name}.{name}.json"
    ours = name == "ours"
    command = (
        _ours(case, setting, output, report)
        if ours
        else (*_peer(name, case, setting, folder), "-o", str(output))
    )
    usage = run_measured(command, ROOT)
    measured = (usage.exit_code, usage.seconds, usage.cpu_seconds, usage.peak_bytes)
    base = CandidateResult(case.name, case.pipeline if ours else name, 0, *measured, candidate=name)
    if usage.exit_code or not output.exists():
        return replace(base, failure=failure_of(usage) or "exit 0: nothing was written")
    facts = _judge(case, setting, output, folder)
    if ours:
        facts |= details_of(json.loads(report.read_text(encoding="utf-8")))
    return replace(base, bytes=output.stat().st_size, **facts)


def _ours(
    case: Case, setting: Setting, output: Path, report: Path, data: Path | None = None
) -> tuple[str, ...]:
    """Return our command on `case`, with the samples in `data` where that is given; others judge what it writes."""
    work = replace(work_of(case, setting, None), evaluation=None, flags=("--force",))
    return command_of(work if data is None else replace(work, calibration=str(data)), output, report)


def _peer(what: str, case: Case, setting: Setting, folder: Path) -> tuple[str, ...]:
    table = _table(case, folder)
    return (
        *(sys.executable, "-m", "tools.bench.peers", what, str(case.network.model_path(setting.shared))),
        *("--calibration", str(case.network.data_path(setting.shared, "calibration"))),
        *("--samples", str(setting.count(case))),
        *(() if table is None else ("--preprocess", str(table))),
    )


def _table(case: Case, folder: Path) -> Path | None:
    """Return the file of the preprocess table of the network of `case`, written where it has one of its own."""
    if case.network.preprocess is None:
        return None
    table = folder / f"{case.name}.preprocess.json"
    table.write_text(json.dumps(case.network.preprocess), encoding="utf-8")
    return table


def details_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a result that the report of our run holds about insert-qdq.

    `calibration_seconds` and `inference_seconds` are read from the details of whichever change has them.
    """
    runs = [run for run in report["runs"] if run["name"] == "insert-qdq"]
    found: dict[str, Any] = {"notes": tuple(note for run in runs for note in run["notes"])}
    for change in (change for run in runs for change in run["changes"]):
        for name in ("calibration_seconds", "inference_seconds"):
            if name in change["details"]:
                found[name] = float(change["details"][name])
    return found


# --- judgement -------------------------------------------------------------------------------------------------------
def _judge(case: Case, setting: Setting, output: Path, folder: Path) -> dict[str, Any]:
    """Return how `output` does on the evaluation samples, beside the original, and what fuses in it."""
    original = case.network.model_path(setting.shared)
    evaluation = case.network.data_path(setting.shared, "evaluation")
    samples = samples_of(original, evaluation, None, _table(case, folder))
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


# --- cost and memory -------------------------------------------------------------------------------------------------
def calibration_cost(case: Case, setting: Setting, folder: Path, row: Row, batch: int = 32) -> Cost:
    """Return what calibration costs in `row`, beside plain inference of the same samples in batches of `batch`."""
    answer = folder / f"{case.name}.plain.json"
    command = (
        *_peer("plain", case, setting, folder),
        *("--batch", str(batch), "--threads", str(setting.threads), "--result", str(answer)),
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


def measure_memory(
    case: Case, setting: Setting, folder: Path, counts: Sequence[int] = MEMORY_SAMPLES
) -> Memory:
    """Return the peaks of our command with each of `counts` samples; where there are fewer, they are repeated."""
    idle = "import numpy, scipy, onnx, onnxruntime, onnxcomp.cli.main, onnxcomp.api"
    interpreter = run_measured((sys.executable, "-c", idle), ROOT).peak_bytes
    peaks: dict[int, int] = {}
    failure = None
    case = setting.applied(case, PASSES)
    for count, data in _repeated(case, setting, folder, counts):
        output = folder / f"{case.name}.memory.onnx"
        report = folder / f"{case.name}.memory.json"
        usage = run_measured(_ours(case, replace(setting, samples=count), output, report, data), ROOT)
        peaks[count] = usage.peak_bytes
        failure = failure or failure_of(usage)
    return Memory(case.name, interpreter, peaks, failure)


def _repeated(
    case: Case, setting: Setting, folder: Path, counts: Sequence[int]
) -> Iterator[tuple[int, Path]]:
    """Yield each count with a file of at least as many samples."""
    given = case.network.data_path(setting.shared, "calibration")
    with np.load(given, allow_pickle=False) as archive:
        arrays = dict(archive)
    held = min(len(array) for array in arrays.values() if array.ndim)
    for count in counts:
        if count <= held:
            yield count, given
            continue
        longer = folder / f"{case.name}.{count}.npz"
        rows = np.arange(count) % held
        np.savez(longer, **{name: array[rows] if array.ndim else array for name, array in arrays.items()})
        yield count, longer
