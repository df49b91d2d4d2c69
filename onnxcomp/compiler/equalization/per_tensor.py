"""Channels brought into a form that one scale for a whole weight suits: equalized, and outliers split.

Both leave what the network computes as it is. Whether equalization pays is measured: the network is quantized with and
without, on a few samples, and the results are compared on samples that neither has seen.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from onnxcomp.compiler.equalization.cross_layer import equalize_layers
from onnxcomp.compiler.equalization.outlier_split import split_channels
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.formats import Formats
from onnxcomp.compiler.quantization.plan import Settings
from onnxcomp.compiler.quantization.quantizer import apply_plan, plan
from onnxcomp.ir.model import Model
from onnxcomp.runtime.data.samples import Samples

__all__ = ["Equalization", "channel_forms"]

Equalization: TypeAlias = Literal["auto", "true", "false"]
"""Whether channels are equalized: where it pays, always, or never."""

TRIED = 32
"""Samples that the trial is calibrated with, and at most as many that judge it."""

MARGIN = 0.2
"""Decibels that equalization must bring: below, the network stays as it was."""


@dataclass(frozen=True)
class _Quantizing:
    """How a network is quantized: `samples` of `context` calibrate it.

    NOTE: why the trial quantizes as the pass will, and not more quickly: ranges of least error of the values themselves
    turned the verdict around (EfficientNet-Lite0: 18.1 dB against 18.3, where the real ranges give 18.8 against 17.3).
    """

    formats: Formats
    settings: Settings
    context: Context


def channel_forms(
    model: Model,
    equalization: Equalization,
    split: float,
    formats: Formats,
    settings: Settings,
    context: Context,
    log: PassLog,
) -> Model:
    """Return `model` with channels equalized and the part `split` of them split, or `model` itself where nothing is done.

    `auto` equalizes where a weight has one scale for all its channels and the quantized network comes closer to the original
    by it. `model` may be edited.
    """
    if equalization != "true" and formats.per_channel:
        equalization = "false"
    if equalization == "false" and not split:
        return model
    if settings.given and equalization != "false":
        log.note("channels are not equalized: the ranges that are given are those of the values as they are")
        equalization = "false"
    alone = {
        *context.left_alone(model),
        *(n.name for n in model.graph.nodes if settings.only(n) is not None),
    }
    shapes = context.shapes(model)
    if equalization != "false":
        how = _Quantizing(formats, settings, context)
        model = _equalized(model, how, alone, log, always=equalization == "true")
    if split:
        levels = formats.weights.high - formats.weights.middle
        if not split_channels(model, split, levels, shapes, alone, log):
            log.note("no channels are split: nowhere do two layers alone share channels that can be copied")
    return model


def _equalized(
    model: Model, how: _Quantizing, alone: Collection[str], log: PassLog, *, always: bool
) -> Model:
    """Return `model` equalized where that can be done and, unless `always`, brings the outputs closer, or `model` itself."""
    changed, done = model.clone(), PassLog()
    shapes = how.context.shapes(model)
    if not equalize_layers(changed, shapes, alone, how.formats, how.context, done):
        if always:
            log.note(
                "no channels are equalized: nowhere do two layers alone share channels that can be scaled"
            )
        return model
    if not always:
        trial, judge = _split(how)
        before, after = (_closeness(model, each, trial, judge) for each in (model, changed))
        words = f"on held-back samples the quantized network comes to {after:.1f} dB with it and {before:.1f} without"
        if not after > before + MARGIN:
            log.note(f"channels are not equalized: {words}")
            return model
        log.note(f"channels are equalized: {words}")
    log.changes.extend(done.changes)
    for skip in done.skips:
        log.skip(skip.where, skip.reason)
    for note in done.notes:
        log.note(note)
    return changed


def _split(how: _Quantizing) -> tuple[_Quantizing, Samples]:
    """Return `how` with a few samples to calibrate a trial with, and the samples that judge it."""
    samples = how.context.samples
    few = min(TRIED, max(1, len(samples) // 2))
    context = replace(how.context, calibration=samples.take(few), progress=lambda what, done, total: None)
    return replace(how, context=context), samples.after(few).take(TRIED)


def _closeness(original: Model, model: Model, trial: _Quantizing, judge: Samples) -> float:
    """Return how close `model` comes to `original` when it is quantized, in dB over all outputs of floats."""
    found = plan(model.clone(), trial.formats, trial.settings, trial.context, PassLog())
    if found is None:
        return math.inf
    quantized = apply_plan(found, trial.settings, trial.context, PassLog())
    sessions = [trial.context.session(m) for m in (original, quantized)]
    sums: dict[str, list[float]] = {}
    for feed in judge.batches(8):
        first, second = (session.run(feed) for session in sessions)
        for name, value in first.items():
            if value.dtype.kind == "f" and value.shape == second[name].shape:
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += float(np.square(value.astype(np.float64)).sum())
                pair[1] += float(np.square(value.astype(np.float64) - second[name]).sum())
    return min((10 * math.log10(max(s, 1e-300) / max(n, 1e-300)) for s, n in sums.values()), default=math.inf)
