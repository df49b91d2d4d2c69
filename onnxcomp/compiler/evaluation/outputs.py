"""Outputs of a model on samples, and their divergence from a reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.trials import together
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.ir.model import Model
from onnxcomp.ir.segment import model_bytes
from onnxcomp.runtime.data.samples import Samples

__all__ = ["judge", "note_few_samples", "outputs_on"]


FEW = 64
"""Fewer samples than this are said to be few: with 32 ResNet-20 at half the MACs lost ten points against 512."""


def outputs_on(model: Model, samples: Samples, context: Context) -> list[dict[str, NDArray[np.generic]]]:
    """Return the outputs of `model` for all `samples`, batch by batch."""
    session = context.session(model_bytes(model))
    return [session.run(feed) for feed in samples.batches(together(context))]


def judge(model: Model, reference: Reference, samples: Samples, context: Context) -> float:
    """Return how far the outputs of `model` are from `reference`, which holds those of the original on `samples`."""
    return reference.distance(outputs_on(model, samples, context))


def note_few_samples(context: Context, log: PassLog) -> int:
    """Return how many calibration samples there are; the log notes where they are few for fitting weights to them."""
    count = len(context.calibration) if context.calibration is not None else 0
    if count < FEW:
        log.note(
            f"{count} calibration samples are few: refitted weights stay close to what they were, and the errors reported "
            f"are of these samples alone; {FEW} or more are advised"
        )
    return count
