"""What `tools.bench.structure` and `tools.bench.pipelines` measure: one run of the whole command, and its time afterwards."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxcomp
from onnxcomp.runtime.bench import batch_feeds
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.steady import steady_ratio
from tools.bench import prune as bench_prune
from tools.bench.child import Usage, run_measured
from tools.bench.prune import EXACT, ROOT, Bound, Figure
from tools.bench.structure_cases import Case

__all__ = [
    "GOALS",
    "STRUCTURAL",
    "Result",
    "Setting",
    "Work",
    "drop_of",
    "figures",
    "folded_ratio",
    "measure",
    "pipeline",
    "run_command",
    "with_options",
]

STRUCTURAL = ("split-svd", "substitute-depthwise")
"""The passes that change the shape of layers; `--options` are theirs."""

GOALS = ("macs", "params", "latency", "rank", "energy", "max-error")
"""Their options of which a run has one."""

_STEP = re.compile(rf"\b({'|'.join(STRUCTURAL)})(?![\w-])(?:\{{([^}}]*)\}})?")


@dataclass(frozen=True)
class Setting:
    """How the rows are run.

    Attributes:
        shared: where models/ and data/ are.
        samples: how many calibrate, where not None in the place of what a row says.
        threads: of onnxruntime while the command runs; 0 = all cores.
        passes: what runs in the place of the passes of every row.
        options: of split-svd and substitute-depthwise, which win over those of every row.
        time_all: whether every row is timed, not only those about time; None where none is.
        keep: where files, reports and what is left of crashes stay; None for nowhere.
    """

    shared: Path
    samples: int | None = None
    threads: int = 0
    passes: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    time_all: bool | None = False
    keep: Path | None = None

    def count(self, case: Case) -> int:
        """Return how many samples calibrate `case`."""
        return case.samples if self.samples is None else self.samples

    def times(self, case: Case) -> bool:
        """Return whether what comes of `case` is timed."""
        return self.time_all is not None and (self.time_all or case.latency is not None)


@dataclass(frozen=True)
class Work:
    """One run of the whole command: `passes` are all of the pipeline; `samples` is None where calibration is no file."""

    name: str
    model: Path
    passes: str
    calibration: str
    evaluation: str
    samples: int | None = None
    seed: int = 0
    threads: int = 0
    preprocess: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Result(bench_prune.Result):
    """One run: what bench_prune tells of one, the size of the file, and what became of the layers.

    `latency_share` is of the folded original. `forms` counts what layers were replaced by, `left` those that were not.
    """

    bytes_before: int | None = None
    bytes: int | None = None
    forms: Mapping[str, int] = field(default_factory=dict)
    left: int | None = None


def with_options(passes: str, options: Mapping[str, str]) -> str:
    """Return the pipeline text with `options` given to every pass that changes shapes.

    They win over those that stand there; where a goal is given, it stands in the place of the one there.
    """
    replaced = set(options) | (set(GOALS) if set(GOALS) & set(options) else set())

    def renewed(found: re.Match[str]) -> str:
        words = [word for word in (found[2] or "").split() if word.partition("=")[0] not in replaced]
        return f"{found[1]}{{{' '.join([*words, *(f'{name}={value}' for name, value in options.items())])}}}"

    return _STEP.sub(renewed, passes) if options else passes


def pipeline(case: Case, setting: Setting) -> str:
    """Return the text of the pipeline that `case` runs."""
    given = case.passes if setting.passes is None else setting.passes
    return f"{EXACT},{with_options(given, setting.options)}"


def measure(case: Case, setting: Setting, seed: int = 0) -> Result:
    """Run the whole command on `case`, time what was written where that is wanted, and return what came of it.

    Raises:
        OSError: where python cannot be started.
    """
    free = case.calibration is not None
    work = Work(
        case.name,
        case.model_path(setting.shared),
        pipeline(case, setting),
        case.calibration or str(case.data_path(setting.shared, "calibration")),
        str(case.data_path(setting.shared, "evaluation")),
        None if free else setting.count(case),
        seed,
        setting.threads,
        case.preprocess,
    )
    with tempfile.TemporaryDirectory(prefix="bench-structure-") as name:
        result, written = run_command(work, Path(name) if setting.keep is None else setting.keep)
        if written is not None and setting.times(case):
            result = replace(result, latency_share=folded_ratio(work.model, written))
    return replace(result, figures=figures(case, setting, result))


def run_command(work: Work, folder: Path) -> tuple[Result, Path | None]:
    """Run the whole command in a child; return what came of it and the file that it wrote into `folder`, if any.

    Where a budget was not met, that is the best there was, and the result has both its figures and the failure.

    Raises:
        OSError: where python cannot be started.
    """
    output, report = folder / f"{work.name}.onnx", folder / f"{work.name}.json"
    # A report of an earlier run in the same folder would be read for one that this run has not written.
    report.unlink(missing_ok=True)
    usage = run_measured(_command(work, output, report), ROOT)
    document = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    result = Result(
        case=work.name,
        pipeline=work.passes,
        seed=work.seed,
        exit_code=usage.exit_code,
        seconds=usage.seconds,
        cpu_seconds=usage.cpu_seconds,
        peak_bytes=usage.peak_bytes,
        failure=_failure(usage) if usage.exit_code else None,
    )
    if document is None:
        return result, None
    written = document["output"]
    return replace(result, **_facts(document)), None if written is None else Path(written["path"])


def _command(work: Work, output: Path, report: Path) -> tuple[str, ...]:
    extra: tuple[str, ...] = () if work.samples is None else ("--samples", str(work.samples))
    if work.preprocess is not None:
        table = report.with_suffix(".preprocess.json")
        table.write_text(json.dumps(work.preprocess), encoding="utf-8")
        extra += ("--preprocess", str(table))
    return (
        *(sys.executable, "-m", "onnxcomp", "optimize", "-q", "--allow-noop", "--force"),
        *(str(work.model), "-o", str(output), "--passes", work.passes),
        *("--calibration", work.calibration, "--evaluation", work.evaluation),
        *("--seed", str(work.seed), "--threads", str(work.threads), "--report", str(report)),
        *extra,
    )


def _failure(usage: Usage) -> str:
    """Return the exit code and the end of what the run said; errors in the text of a pipeline take several lines."""
    said = "\n".join(usage.stderr.strip().splitlines()[-5:])
    return f"exit {usage.exit_code}: {said or 'it said nothing'}"


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


def folded_ratio(original: Path, written: Path) -> float:
    """Return the time of `written` as a share of that of the folded original: batch 1, one thread, in turns."""
    folded = onnxcomp.optimize(original, EXACT, threads=1).model
    reference, candidate = (Session(one, threads=1) for one in (folded, onnxcomp.load(written)))
    return steady_ratio(reference, candidate, batch_feeds(folded, (1,))[1]).ratio


def drop_of(result: Result) -> float | None:
    """Return the points of top-1 that were lost; None where there are no labels or no result."""
    before, after = result.accuracy_before, result.accuracy
    # 91.9 - 90.3 is a little more than 1.6 in floats.
    return None if before is None or after is None else round(before - after, 9)


def figures(case: Case, setting: Setting, result: Result) -> tuple[Figure, ...]:
    """Return what `case` is to reach beside what `result` reached; a latency only where it is timed."""
    wanted: tuple[tuple[str, Bound, float | None, float | None], ...] = (
        ("macs_share", "<=", case.macs, result.macs_share),
        ("parameters_share", "<=", case.params, result.parameters_share),
        ("drop", "<=", case.drop, drop_of(result)),
        ("agreement", ">=", case.agreement, result.agreement),
        ("latency_share", "<=", case.latency if setting.times(case) else None, result.latency_share),
        ("seconds", "<=", case.seconds, result.seconds),
    )
    return tuple(
        Figure(name, bound, target, got) for name, bound, target, got in wanted if target is not None
    )
