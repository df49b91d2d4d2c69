"""What is asked of a run, and what can be refused before anything heavy is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from onnxcomp.compiler.node_patterns import check_pattern
from onnxcomp.compiler.passbase import Pass
from onnxcomp.compiler.spec import Pipeline
from onnxcomp.compiler.target.files import DEFAULT_TARGET, load_target
from onnxcomp.errors import UsageError
from onnxcomp.ir.atomic import check_output
from onnxcomp.runtime.data.preprocess import Preprocess
from onnxcomp.runtime.data.samples import SampleSource

__all__ = ["Metric", "Request", "preflight"]

Metric: TypeAlias = Literal["top1", "agreement", "mse", "sqnr"]
"""What a result is judged by."""


@dataclass(frozen=True)
class Request:
    """One run of a pipeline over one model, or one look at it.

    Attributes:
        pipeline: the passes; None where a model is only read.
        source: the model's file; None where the model is handed over in memory.
        output: the file to write; None to write nothing.
        calibration: samples for the passes; the text `none` asks for their data-free mode, None gives nothing.
        evaluation: samples, with labels or without, that judge the result.
        preprocess: wins over what the data says of itself; `none` feeds it as it is.
        samples: use only the first so many calibration samples.
        metric: what the result is judged by; by default top1 with labels, else agreement, else sqnr.
        max_drop: percentage points of top1 or agreement that may be lost.
        min_sqnr: decibels that the worst output must reach.
        require_smaller: whether the output file must be smaller than the input file.
        require_speedup: how many times as fast as the original the result must be, at batch 1 on one thread.
        target: the toolchain the result is made for, by name.
        exclude: patterns of nodes to leave alone, see `compiler/node_patterns.py`.
        set_shape: sizes by input name, None for an axis that stays as it is; they are written into the file.
        opset, ir_version: versions that the output file shall have; None keeps those of the input.
        decision: the output on which classes are chosen; found by its shape if None.
        reports: JSON files to write.
        ranges: a file of ranges, or the report of a run, whose ranges insert-qdq takes; None observes all values.
        timings: a file of timings, or the report of a run, whose measurements are replayed; None measures.
        seed: every random choice derives from it.
        threads: of onnxruntime, 0 for all cores.
        custom_op_libs: shared libraries with operators of the model.
        allow_code, allow_links: trust `module:function` data, and external data behind links.
        allow_noop: write a copy where nothing changed.
        accept_ruin: write a result whose verdict is `ruined` too.
        strict: stop at the first pass that fails verification, and at a timing that `timings` lacks.
        force: replace existing outputs.
    """

    pipeline: Pipeline | None = None
    source: Path | None = None
    output: Path | None = None
    calibration: SampleSource | None = None
    evaluation: SampleSource | None = None
    preprocess: Preprocess | Literal["none"] | None = None
    samples: int | None = None
    metric: Metric | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    require_smaller: bool = False
    require_speedup: float | None = None
    target: str = DEFAULT_TARGET
    exclude: tuple[str, ...] = ()
    set_shape: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    opset: int | None = None
    ir_version: int | None = None
    decision: str | None = None
    reports: tuple[Path, ...] = ()
    ranges: Path | None = None
    timings: Path | None = None
    seed: int = 0
    threads: int = 0
    custom_op_libs: tuple[str, ...] = ()
    allow_code: bool = False
    allow_links: bool = False
    allow_noop: bool = False
    accept_ruin: bool = False
    strict: bool = False
    force: bool = False

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes of the pipeline; none where a model is only read."""
        return self.pipeline.passes if self.pipeline is not None else ()

    @property
    def data_free(self) -> bool:
        """Whether the data-free mode of the passes was asked for."""
        return isinstance(self.calibration, str) and self.calibration == "none"

    @property
    def best_effort(self) -> Path | None:
        """Where the model goes if a condition is not met: `small.best.onnx` for `small.onnx`."""
        return self.output and self.beside(".best.onnx")

    def beside(self, ending: str) -> Path:
        """Return the path of the output with `ending` in place of `.onnx`."""
        if self.output is None:
            raise UsageError("nothing is written beside an output that was not asked for")
        return self.output.with_name(self.output.name.removesuffix(".onnx") + ending)

    @property
    def judged(self) -> bool:
        """Whether a bound on the distance to the original was asked for."""
        return self.max_drop is not None or self.min_sqnr is not None


def preflight(request: Request) -> None:
    """Refuse what can be refused without reading the model or the data.

    Raises:
        UsageError: for files that are missing or in the way, needs that are not met, options that contradict.
    """
    _check_numbers(request)
    _check_target(request)
    for pattern in request.exclude:
        check_pattern(pattern)
    if request.source is not None and not request.source.is_file():
        kind = "a folder" if request.source.is_dir() else "missing"
        raise UsageError(f"the model {request.source} is {kind}; give the path of an .onnx file")
    for library in request.custom_op_libs:
        if not Path(library).is_file():
            raise UsageError(f"--custom-op-lib {library} does not exist")
    _check_needs(request)
    _check_judging(request)
    _check_outputs(request)


def _check_numbers(request: Request) -> None:
    if request.max_drop is not None and not 0 <= request.max_drop <= 100:
        raise UsageError(f"--max-drop {request.max_drop:g} is not between 0 and 100 percentage points")
    if request.min_sqnr is not None and request.min_sqnr != request.min_sqnr:
        raise UsageError("--min-sqnr is not a number; give decibels, such as 20")
    if request.require_speedup is not None and not 0 < request.require_speedup < math.inf:
        raise UsageError(
            f"--require-speedup {request.require_speedup:g}: give a number above 0, such as 1.2 for 1.2 times as fast"
        )
    for name, value, least in (("seed", request.seed, 0), ("threads", request.threads, 0)):
        if value < least:
            raise UsageError(f"--{name} {value}: give {least} or more")
    if request.samples is not None and request.samples < 1:
        raise UsageError(f"--samples {request.samples}: give 1 or more")
    if request.samples is not None and request.data_free:
        raise UsageError(
            "--samples limits calibration data, and --calibration none has none; give one of them"
        )
    if request.samples is not None and request.calibration is None:
        raise UsageError("--samples limits calibration data; give --calibration too")


def _check_target(request: Request) -> None:
    """Refuse an unknown target, quantizing for one that quantizes by itself, and ranges where nothing is quantized."""
    target = load_target(request.target)
    step = next((s for s in request.passes if s.stage == "quantization"), None)
    if step is not None and target.family == "float":
        raise UsageError(
            f"target {target.name} has its own quantizer and wants a clean float file; leave out {step.name}"
        )
    if step is None and request.ranges is not None:
        raise UsageError("--ranges is for insert-qdq; add it to the passes, or leave --ranges out")


def _check_needs(request: Request) -> None:
    """Every pass gets what it needs, or the run does not start."""
    for step in request.passes:
        if "calibration" not in step.needs():
            continue
        if request.data_free and not step.data_free:
            raise UsageError(
                f"{step.name} has no data-free mode; "
                "give --calibration samples, or --calibration random for noise"
            )
        if request.calibration is None:
            sample_free = step.without_samples()
            ways = "an .npz, a folder of images, " + (
                "random for noise, or none to have them made" if step.data_free else "or random for noise"
            )
            raise UsageError(
                f"{step.name} needs samples; give --calibration with {ways}"
                + (f"; with {sample_free} it needs none" if sample_free else "")
            )


def _check_judging(request: Request) -> None:
    if request.metric == "top1" and request.evaluation is None:
        raise UsageError("--metric top1 needs --evaluation with labels")
    if request.max_drop is not None and request.metric in ("mse", "sqnr"):
        raise UsageError(
            f"--max-drop counts percentage points of top1 or agreement, not {request.metric}; use --min-sqnr"
        )
    if request.judged and request.evaluation is None and (request.calibration is None or request.data_free):
        bound = "max-drop" if request.max_drop is not None else "min-sqnr"
        raise UsageError(
            f"--{bound} needs samples to judge on; give --evaluation, or --calibration to hold some back"
        )
    if request.require_smaller and request.source is None:
        raise UsageError("a smaller file can be required only of a model that is read from a file")


def _check_outputs(request: Request) -> None:
    targets = [("output", request.output), *(("report", r) for r in request.reports)]
    bounded = (
        request.judged
        or request.require_smaller
        or request.require_speedup is not None
        or any(step.may_fall_short() for step in request.passes)
    )
    if request.output is not None and bounded:
        targets.append(("best effort", request.best_effort))
    seen: set[Path] = set()
    # Not even --force may write over what this very run reads.
    data = [Path(d) for d in (request.calibration, request.evaluation) if isinstance(d, str | Path)]
    read = [
        p for p in (request.source, request.ranges, request.timings, *data) if p is not None and p.is_file()
    ]
    for role, path in targets:
        if path is None:
            continue
        if role == "report" and path.suffix != ".json":
            raise UsageError(f"--report {path}: reports are written as JSON; end the name in .json")
        if path.resolve() in seen:
            raise UsageError(f"{path} is given for two outputs; choose different names")
        seen.add(path.resolve())
        check_output(path, force=request.force, sources=tuple(read))
