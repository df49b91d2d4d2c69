"""One run of the whole command in a process of its own: what it took, what its report says, and the file that it wrote."""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxcomp
from onnxcomp.runtime.bench import Turns, batch_feeds, bench_models
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.steady import steady_ratio
from tools.bench.cases import EXACT, ROOT, Case, Setting
from tools.bench.child import Usage, run_measured
from tools.bench.figures import Bound, Figure, drop_of, record

__all__ = [
    "STRUCTURAL",
    "Result",
    "Work",
    "command_of",
    "failure_of",
    "figures",
    "latency_shares",
    "only",
    "record_of",
    "run_command",
    "spread",
    "time_ratio",
    "work_of",
]

STRUCTURAL = ("split-svd", "substitute-depthwise")
"""The passes that change the shape of layers, whose forms are counted."""


@dataclass(frozen=True)
class Work:
    """One run of the whole command.

    Attributes:
        name: what the files that are written are called.
        model: the network.
        passes: all of the pipeline.
        calibration: a file of samples or what else `--calibration` takes.
        evaluation: the samples that judge the result; None where others judge it.
        samples: how many calibrate; None where calibration is no file.
        seed: of every random choice; None for the command's own.
        threads: of onnxruntime; 0 = all cores.
        preprocess: the table to use in place of that of the data.
        flags: further options without a value.
    """

    name: str
    model: Path
    passes: str
    calibration: str
    evaluation: str | None
    samples: int | None = None
    seed: int | None = 0
    threads: int = 0
    preprocess: Mapping[str, object] | None = None
    flags: tuple[str, ...] = ("--allow-noop", "--accept-ruin", "--force")


@dataclass(frozen=True)
class Result:
    """One run of one case: accuracies and agreement in percent, MACs, parameters and latency as shares of the original's.

    `samples` are those that the run calibrated on, which are fewer than wanted where the data holds no more. `failure`
    is what a run said that did not end with 0, and what was not measured is None. `forms` counts what layers were replaced
    by, `left` those that were not.
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
    bytes_before: int | None = None
    bytes: int | None = None
    forms: Mapping[str, int] = field(default_factory=dict)
    left: int | None = None

    @property
    def met(self) -> bool:
        """Whether the run went through and every target was reached."""
        return self.failure is None and all(figure.met for figure in self.figures)


def record_of(result: Result) -> dict[str, object]:
    """Return what the JSON document holds of `result`."""
    return asdict(result) | {"met": result.met, "figures": [record(figure) for figure in result.figures]}


def work_of(case: Case, setting: Setting, seed: int | None) -> Work:
    """Return the run of `case` as `setting` has it, judged on the evaluation samples of its network."""
    network, shared = case.network, setting.shared
    return Work(
        case.name,
        network.model_path(shared),
        case.pipeline,
        case.calibration or str(network.data_path(shared, "calibration")),
        str(network.data_path(shared, "evaluation")),
        None if case.calibration is not None else setting.count(case),
        seed,
        setting.threads,
        network.preprocess,
    )


def command_of(work: Work, output: Path, report: Path) -> tuple[str, ...]:
    """Return the command line of `work`; a preprocess table is written beside the report."""
    extra: list[str] = []
    for option, value in (
        ("--evaluation", work.evaluation),
        ("--samples", work.samples),
        ("--seed", work.seed),
    ):
        extra += [] if value is None else [option, str(value)]
    if work.preprocess is not None:
        table = report.with_suffix(".preprocess.json")
        table.write_text(json.dumps(work.preprocess), encoding="utf-8")
        extra += ["--preprocess", str(table)]
    return (
        *(sys.executable, "-m", "onnxcomp", "optimize", "-q", *work.flags),
        *(str(work.model), "-o", str(output), "--passes", work.passes),
        *("--calibration", work.calibration),
        *("--threads", str(work.threads), "--report", str(report)),
        *extra,
    )


def run_command(work: Work, folder: Path) -> tuple[Result, Path | None]:
    """Run the whole command in a child; return the result and the file that it wrote into `folder`, if any.

    Where a budget was not met, that is the best there was, and the result has both its figures and the failure.

    Raises:
        OSError: where python cannot be started.
    """
    output, report = folder / f"{work.name}.onnx", folder / f"{work.name}.json"
    # A report of an earlier run in the same folder would be read for one that this run has not written.
    report.unlink(missing_ok=True)
    usage = run_measured(command_of(work, output, report), ROOT)
    document = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    result = Result(
        case=work.name,
        pipeline=work.passes,
        seed=work.seed or 0,
        exit_code=usage.exit_code,
        seconds=usage.seconds,
        cpu_seconds=usage.cpu_seconds,
        peak_bytes=usage.peak_bytes,
        failure=failure_of(usage),
    )
    if document is None:
        return result, None
    written = document["output"]
    return replace(result, **_facts(document)), None if written is None else Path(written["path"])


def failure_of(usage: Usage) -> str | None:
    """Return the exit code and the end of what a run said; None where it ended with 0.

    Errors in the text of a pipeline take several lines.
    """
    said = "\n".join(usage.stderr.strip().splitlines()[-5:])
    return f"exit {usage.exit_code}: {said or 'it said nothing'}" if usage.exit_code else None


def _facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Result that stand in the report of a run."""
    before, after = document["before"], document["after"]
    comparison = document["comparison"] or {}
    seconds: Counter[str] = Counter()
    for run in document["runs"]:
        seconds[run["name"]] += run["seconds"]
    runs = [run for run in document["runs"] if run["name"] in STRUCTURAL]
    forms = Counter(str(change["details"].get("form", "other")) for run in runs for change in run["changes"])
    return {
        "samples": next((d["samples"] for d in document["data"] if d["role"] == "calibration"), None),
        "accuracy_before": comparison.get("accuracy_before"),
        "accuracy": comparison.get("accuracy_after"),
        "agreement": comparison.get("agreement"),
        "sqnr_db": comparison.get("sqnr_db"),
        "macs_share": after["macs"] / before["macs"]
        if before["macs"] and after["macs"] is not None
        else None,
        "parameters_share": after["parameters"] / before["parameters"] if before["parameters"] else None,
        "pass_seconds": dict(seconds),
        "bytes_before": document["input"]["bytes"],
        "bytes": None if document["output"] is None else document["output"]["bytes"],
        "forms": dict(forms.most_common()),
        "left": sum(len(run["skips"]) for run in runs),
    }


# --- figures ---------------------------------------------------------------------------------------------------------
def figures(case: Case, result: Result, *, timed: bool = True) -> tuple[Figure, ...]:
    """Return what `case` is to reach beside what `result` reached; a latency only where it is `timed`."""
    drop = drop_of(result.accuracy_before, result.accuracy)
    wanted: Iterable[tuple[str, Bound, float | None, float | None]] = (
        ("macs_share", "<=", case.macs, result.macs_share),
        ("parameters_share", "<=", case.params, result.parameters_share),
        ("accuracy", ">=", case.accuracy, result.accuracy),
        ("drop", "<=", case.drop, drop),
        ("agreement", ">=", case.agreement, result.agreement),
        ("sqnr_db", ">=", case.sqnr_db, result.sqnr_db),
        ("bytes", "<=", case.bytes, result.bytes),
        ("latency_share", "<=", case.latency if timed else None, result.latency_share),
        ("seconds", "<=", case.seconds, result.seconds),
        ("peak_bytes", "<=", case.peak_bytes, result.peak_bytes),
    )
    return tuple(
        Figure(name, bound, target, got) for name, bound, target, got in wanted if target is not None
    )


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


def only(result: Result, names: Sequence[str] = ()) -> Result:
    """Return `result` with only the figures called `names`: what it was not run for is not judged."""
    return replace(result, figures=tuple(figure for figure in result.figures if figure.name in names))


# --- time ------------------------------------------------------------------------------------------------------------
def time_ratio(original: Path, written: Path, *, folded: bool = False) -> float:
    """Return the time of `written` as a share of that of `original`, or of the folded original, in turns.

    Batch 1, one thread: as a budget of latency is measured, but on the files.
    """
    model = onnxcomp.optimize(original, EXACT, threads=1).model if folded else onnxcomp.load(original)
    reference, candidate = (Session(one, threads=1) for one in (model, onnxcomp.load(written)))
    return steady_ratio(reference, candidate, batch_feeds(model, (1,))[1]).ratio


def latency_shares(
    original: Path, written: Mapping[str, Path], rounds: int = 40
) -> dict[str, tuple[float, float]]:
    """Return by name the share of the original's time by rounds and of the minima, the original among them as `original`.

    All are measured in one run, in turns: batch 1, one thread.
    """
    models = {"original": onnxcomp.load(original)}
    models |= {name: onnxcomp.load(path) for name, path in written.items()}
    found = bench_models(models, Turns(rounds, 5), threads=1)
    return {name: (one.ratio_paired, one.ratio_minimum) for name in models for one in (found.at(name, 1),)}
