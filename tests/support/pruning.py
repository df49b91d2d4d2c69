"""What tests of pruning and repair share: contexts, the shipped nets with their data, models whose algebra is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import from_proto
from onnxcomp.runtime.data import Samples, open_samples
from onnxcomp.runtime.inputs import input_specs
from onnxcomp.runtime.session import Session

__all__ = ["NETS", "ZOO", "accuracy", "context_for", "noise", "outputs", "zoo", "zoo_context"]

ZOO = Path(__file__).parents[2] / "models"
NETS = ("digits_resnet", "digits_mobilenet", "digits_mlp")


def noise(model: Model, count: int = 48, seed: int = 0) -> dict[str, Array]:
    """Return `count` normal samples for each input of `model`, whose free axis is the first."""
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal((count, *v.shape[1:])).astype(np.float32) for v in model.graph.inputs}


def context_for(model: Model, feeds: Mapping[str, Array] | None = None, **given: Any) -> Context:
    """Return a context with `feeds` (by default noise) as calibration samples."""
    samples = open_samples(dict(feeds or noise(model)), input_specs(model))
    return _context(model, samples, **given)


def _context(model: Model, samples: Samples, **given: Any) -> Context:
    shapes = {name: array.shape for name, array in next(iter(samples.batches(1))).items()}
    return Context(model.clone(), calibration=samples, input_shapes=shapes, threads=1, **given)


def zoo(name: str) -> Model:
    """Return a fresh model of a shipped net."""
    return from_proto(onnx.load(ZOO / f"{name}.onnx"))


def zoo_context(model: Model, count: int = 128, **given: Any) -> Context:
    """Return a context with the first calibration images of the shipped nets."""
    samples = open_samples(str(ZOO / "digits_calibration.npz"), input_specs(model), limit=count)
    return _context(model, samples, **given)


def accuracy(model: Model) -> float:
    """Return the percentage of held-out images that a shipped net classifies rightly."""
    samples = open_samples(str(ZOO / "digits_evaluation.npz"), input_specs(model))
    labels = samples.labels()
    assert labels is not None
    session = Session(model, threads=1)
    guesses = np.concatenate([session.run(f)["logits"].argmax(1) for f in samples.batches(150)])
    return 100 * float((guesses == labels).mean())


def outputs(model: Model, feeds: Mapping[str, Array]) -> Array:
    """Return the only output of `model` on `feeds`, without onnxruntime's optimizations."""
    (found,) = Session(model, optimize=False, threads=1).run(feeds).values()
    return found
