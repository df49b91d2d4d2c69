"""What tests of pruning and repair share: contexts, the shipped nets with their data, models whose algebra is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcomp.analysis.channels import default_shapes
from onnxcomp.analysis.cost import Cost, model_cost
from onnxcomp.compiler.passbase import Context, PassResult
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.proto import from_proto
from onnxcomp.passes.prune_filters import PruneFilters
from onnxcomp.runtime.data.samples import Samples, open_samples
from onnxcomp.runtime.inputs import input_specs
from onnxcomp.runtime.session import Session
from onnxcomp.testing import assert_valid
from tests.support.text import net

__all__ = [
    "CHAIN",
    "NETS",
    "ZOO",
    "accuracy",
    "context_for",
    "cost",
    "kept",
    "noise",
    "outputs",
    "prune",
    "share",
    "zoo",
    "zoo_context",
]

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


CHAIN = net(
    "(float[N,3,8,8] x) => (float[N,5] y)",
    "float[16,3,3,3] a, float[16] p, float[24,16,3,3] b, float[24] q, float[384,20] c, float[20,5] d",
    "h = Conv(x, a, p) k = Relu(h) i = Conv(k, b, q) l = Relu(i) f = Flatten(l) g = Gemm(f, c) m = Relu(g)"
    " y = MatMul(m, d)",
)


def cost(model: Model) -> Cost:
    return model_cost(model, default_shapes(model))


def share(before: Model, after: Model, what: str = "macs") -> float:
    old, new = (getattr(cost(m), "macs" if what == "macs" else "parameters") for m in (before, after))
    return float(new / old)


def prune(model: Model, step: PruneFilters, **given: object) -> PassResult:
    """Run the pass, on calibration images for the shipped nets and on noise for others."""
    step.check()
    shipped = model.graph.outputs[0].name == "logits"
    context = zoo_context(model, **given) if shipped else context_for(model, **given)  # type: ignore[arg-type]
    result = step.run(model.clone(), context)
    assert_valid(result.model, like=model)
    assert result.changed == bool(result.changes)
    return result


def kept(result: PassResult) -> dict[str, tuple[int, int]]:
    """Channels before and after, by group."""
    return {c.where: (c.details["before"], c.details["after"]) for c in result.changes}
