"""The result against the original, and against what was asked for."""

from __future__ import annotations

from onnxcomp.compiler.cost.latency import structure
from onnxcomp.compiler.run.pipeline import Listener
from onnxcomp.compiler.run.prepare import Prepared
from onnxcomp.compiler.run.report import Condition
from onnxcomp.ir.files import load
from onnxcomp.ir.model import Model
from onnxcomp.ir.randomness import random_nodes, with_seeds
from onnxcomp.runtime.compare import Comparison, compare_models
from onnxcomp.runtime.data.samples import Samples
from onnxcomp.runtime.inputs import PIECE_LIMIT, noise
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.steady import steady_ratio

__all__ = ["compare_with_original", "judge"]


def compare_with_original(
    prepared: Prepared, result: Model | str, listener: Listener, made: Samples | None = None
) -> tuple[Comparison | None, str | None]:
    """Return how `result` (a model, or the path of one) differs from the original, and on which data.

    The samples are those for evaluation, else those held back, else those for calibration (without data, those `made`
    from the model), else noise. Both are None for a model that is not run.

    Raises:
        SessionError: where `result` does not run on one of the samples.
    """
    if not prepared.verifier.runs:
        return None, None
    request, data = prepared.request, prepared.data
    judge = data.judge if data.judge is not None else made
    role = next((f.role for f in reversed(data.facts)), "noise" if made is None else "calibration")
    total = len(judge) if judge is not None else len(data.feeds)
    if random_nodes(prepared.original):
        result = with_seeds(
            load(result, allow_links=request.allow_links) if isinstance(result, str) else result
        )
    before, after = (
        Session(source, threads=request.threads, custom_op_libs=request.custom_op_libs)
        for source in (_original(prepared), result)
    )
    comparison = compare_models(
        before,
        after,
        judge.batches(data.batch) if judge is not None else data.feeds,
        labels=judge.labels() if judge is not None else None,
        output=prepared.decision,
        counts=None if judge is None else (min(data.batch, total - n) for n in range(0, total, data.batch)),
        progress=lambda done: listener.progress("comparing", done, total),
    )
    for note in comparison.notes:
        listener.note(note)
    return comparison, role


def _original(prepared: Prepared) -> Model | str:
    if prepared.original.weight_bytes > PIECE_LIMIT:
        return str(prepared.request.source)
    return prepared.original


def judge(
    prepared: Prepared,
    comparison: Comparison | None,
    size: int | None,
    model: Model,
    result: Model | str,
    listener: Listener,
) -> tuple[Condition, ...]:
    """Return the conditions of the run, each with the value reached; `size` is that of the output in bytes.

    `result` is `model` or the path of its file, which is what the clock is held to.

    Raises:
        UsageError: where a replay of timings is strict and lacks that of the result.
    """
    request = prepared.request
    found: list[Condition] = []
    if request.max_drop is not None:
        drop = _drop(prepared, comparison)
        unit = f"percentage points of {prepared.metric} lost"
        found.append(
            Condition("max-drop", request.max_drop, drop, unit, drop is not None and drop <= request.max_drop)
        )
    if request.min_sqnr is not None:
        value = comparison.sqnr_db if comparison is not None else None
        # What cannot be compared has not missed anything; a note has said so.
        unjudged = comparison is not None and comparison.unjudged
        met = unjudged or (value is not None and value >= request.min_sqnr)
        found.append(Condition("min-sqnr", request.min_sqnr, value, "dB", met))
    if request.require_smaller and prepared.loaded.facts is not None and size is not None:
        limit = prepared.loaded.facts.bytes
        found.append(Condition("require-smaller", limit, size, "bytes", size < limit))
    if request.require_speedup is not None:
        speedup = _speedup(prepared, model, result, listener)
        met = speedup >= request.require_speedup
        found.append(Condition("require-speedup", request.require_speedup, speedup, "times as fast", met))
    return tuple(found)


def _speedup(prepared: Prepared, model: Model, result: Model | str, listener: Listener) -> float:
    """Return the time of the original as a multiple of that of `result`, at batch 1 on one thread; replayed where known."""
    shapes, libraries = prepared.data.shapes, prepared.request.custom_op_libs

    def measure() -> float:
        listener.stage("measuring how fast the result is")
        before, after = (
            Session(source, threads=1, custom_op_libs=libraries) for source in (_original(prepared), result)
        )
        feed = noise(prepared.original, shapes, prepared.request.seed)
        return 1 / steady_ratio(before, after, feed).ratio

    first, second = (structure(m, shapes) for m in (prepared.original, model))
    return 1.0 if first == second else prepared.timings.get(f"speed of {second} over {first}", measure)


def _drop(prepared: Prepared, comparison: Comparison | None) -> float | None:
    """Return the percentage points lost, rounded so that equal counts give equal numbers."""
    if comparison is None:
        return None
    if prepared.metric == "top1":
        if comparison.accuracy_before is None or comparison.accuracy_after is None:
            return None
        return round(comparison.accuracy_before - comparison.accuracy_after, 9)
    return None if comparison.agreement is None else round(100.0 - comparison.agreement, 9)
