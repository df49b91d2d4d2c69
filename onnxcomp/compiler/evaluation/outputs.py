"""Outputs of a model on held-back samples, and their distance to a reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcomp.compiler.evaluation.divergence import Reference
from onnxcomp.compiler.evaluation.trials import together
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.model import Model
from onnxcomp.ir.segment import model_bytes
from onnxcomp.runtime.data.samples import Samples

__all__ = ["judge", "outputs_on"]


FEW = 64
"""Fewer samples than this are said to be few: with 32 ResNet-20 at half the MACs lost ten points against 512."""


HELD_BACK = 0.125
"""Share of the calibration samples that decides whether another sweep or a matching of variances is kept."""


def outputs_on(model: Model, samples: Samples, context: Context) -> list[dict[str, NDArray[np.generic]]]:
    """Return the outputs of `model` for all `samples`, batch by batch."""
    session = context.session(model_bytes(model))
    return [session.run(feed) for feed in samples.batches(together(context))]


def judge(model: Model, reference: Reference, samples: Samples, context: Context) -> float:
    """Return how far the outputs of `model` are from `reference`, which holds those of the original on `samples`."""
    return reference.distance(outputs_on(model, samples, context))
