"""Everything a run needs before its first pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.compiler.node_patterns import excluded_nodes
from onnxcomp.compiler.passbase import Context, Progress
from onnxcomp.compiler.run.loading import Loaded, load_request
from onnxcomp.compiler.run.request import Metric, Request, preflight
from onnxcomp.compiler.run.samples import Data, open_data
from onnxcomp.compiler.run.synthetic_samples import check_makeable
from onnxcomp.compiler.run.verify import Outputs, Verifier
from onnxcomp.compiler.target.files import load_target
from onnxcomp.errors import DataError, UsageError
from onnxcomp.ir.model import Model
from onnxcomp.ir.randomness import random_nodes
from onnxcomp.runtime.compare import decision_output, numbers
from onnxcomp.runtime.range_files import Ranges, read_ranges
from onnxcomp.runtime.timings import Timings, read_timings

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start.

    `outputs` are what the original gives on the feeds of `verifier`, None where it is not run; `decision` is the output
    on which classes are chosen, `metric` what the result is judged by, `excluded` the nodes to leave alone, `timings` what
    the clock says or said, `ranges` those of values that are not to be observed.
    """

    request: Request
    loaded: Loaded
    data: Data
    verifier: Verifier
    outputs: Outputs | None
    decision: str | None
    metric: Metric | None
    excluded: frozenset[str]
    timings: Timings
    ranges: Ranges

    @property
    def original(self) -> Model:
        """The model that the pipeline receives; read only."""
        return self.loaded.model

    def context(self, progress: Progress) -> Context:
        """Return what the passes are given to work with."""
        return Context(
            original=self.original,
            calibration=self.data.calibration,
            data_mode=self.data.mode,
            input_shapes=dict(self.data.shapes),
            excluded=self.excluded,
            seed=self.request.seed,
            threads=self.request.threads,
            custom_op_libs=self.request.custom_op_libs,
            timings=self.timings,
            ranges=self.ranges,
            target=load_target(self.request.target),
            progress=progress,
        )


def prepare(request: Request, model: Model | None = None) -> Prepared:
    """Check, load, open and measure what `request` is about; `model` stands in for a file and is not edited.

    Raises:
        UsageError, ModelError, DataError: for whatever cannot work, before any pass has run.
    """
    preflight(request)
    known = None if request.timings is None else read_timings(request.timings)
    ranges = {} if request.ranges is None else read_ranges(request.ranges)
    loaded = load_request(request, model)
    excluded = excluded_nodes(loaded.model, request.exclude)
    data = open_data(request, loaded)
    _check_needs(request, loaded.model, data)
    verifier = Verifier(loaded.model, data.feeds, request.threads, request.custom_op_libs)
    # A session that has drawn numbers goes on from there, and a fresh one begins anew.
    outputs = verifier.baseline(None if random_nodes(loaded.model) else loaded.session)
    decision = _decision(request, loaded.model, outputs)
    metric = _metric(request, data, decision, outputs)
    _check_bounds(request, metric, outputs)
    timings = Timings(known, strict=request.strict)
    return Prepared(request, loaded, data, verifier, outputs, decision, metric, excluded, timings, ranges)


def _check_needs(request: Request, model: Model, data: Data) -> None:
    for step in request.passes:
        needs = step.needs()
        if "shapes" in needs and not data.shapes and model.graph.inputs:
            free = next(v for v in model.graph.inputs)
            raise UsageError(
                f"{step.name} needs to know the sizes of the inputs; give --set-shape {free.name}=SIZE,SIZE,..."
            )
        if "calibration" in needs and request.data_free:
            _check_made(step.name, model, data)
        if "labels" in needs and (data.calibration is None or data.calibration.labels() is None):
            raise UsageError(f"{step.name} needs labels; add an int64 array 'labels' to the calibration data")


def _check_made(name: str, model: Model, data: Data) -> None:
    """Refuse what samples cannot be made for, before the first pass runs."""
    check_makeable(model)
    if not data.feeds:
        raise UsageError(
            f"{name} needs samples, and the model does not run here, so that none can be made for it"
        )


def _decision(request: Request, model: Model, outputs: Outputs | None) -> str | None:
    names = [v.name for v in model.graph.outputs]
    if request.decision is not None and request.decision not in names:
        raise UsageError(f"--output '{request.decision}' is no output; known: {', '.join(names)}")
    return decision_output(outputs[-1], request.decision) if outputs else request.decision


def _metric(request: Request, data: Data, decision: str | None, outputs: Outputs | None) -> Metric | None:
    """Return what the result is judged by: what was asked for where that is possible, else the best there is."""
    labelled = any(f.role == "evaluation" and f.labelled for f in data.facts)
    if outputs is not None and decision is not None and labelled and data.judge is not None:
        _check_labels(data, outputs, decision)
    if request.metric is None:
        if outputs is None:
            return None
        if decision is None:
            return "agreement" if _whole_only(outputs) else "sqnr"
        return "top1" if labelled else "agreement"
    if request.metric == "top1" and not labelled:
        raise UsageError("--metric top1 needs labels; add an int64 array 'labels' to the evaluation data")
    if request.metric == "agreement" and outputs is not None and _whole_only(outputs):
        return request.metric
    if request.metric in ("top1", "agreement") and decision is None and outputs is not None:
        raise UsageError(
            f"--metric {request.metric} needs an output of shape [N, C >= 2]; the model has none, use --metric sqnr"
        )
    return request.metric


def _whole_only(outputs: Outputs) -> bool:
    """Return whether the model gives whole numbers and truth values alone: those are equal or not, and never near."""
    kinds = {
        value.dtype.kind for given in outputs[-1].values() if isinstance(value := numbers(given), np.ndarray)
    }
    return bool(kinds) and kinds <= set("biu")


def _check_labels(data: Data, outputs: Outputs, decision: str) -> None:
    labels = data.judge.labels() if data.judge is not None else None
    classes = outputs[-1][decision].shape[1]
    if labels is not None and labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"the labels run from {labels.min()} to {labels.max()}, output '{decision}' has {classes} classes; "
            "labels are class indices from 0"
        )


def _check_bounds(request: Request, metric: Metric | None, outputs: Outputs | None) -> None:
    if (request.judged or request.require_speedup is not None) and outputs is None:
        raise UsageError("a bound cannot be judged, because the model does not run here; leave out the bound")
    if request.min_sqnr is not None and outputs is not None and _whole_only(outputs):
        raise UsageError(
            "--min-sqnr is for outputs of floats, and this model gives whole numbers alone, which are equal or not; "
            "use --max-drop, which counts those that differ"
        )
    if request.max_drop is not None and metric not in ("top1", "agreement"):
        raise UsageError(
            "--max-drop needs an output of shape [N, C >= 2] on which classes are chosen; use --min-sqnr"
        )
