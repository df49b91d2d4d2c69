"""What tests of scores share: scoring a whole model, and the values that brute force looks at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import channel_groups, default_shapes
from onnxcomp.compiler.channel_pruning.criteria import Scored, score_groups
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.segment import with_outputs
from onnxcomp.runtime.session import Session
from tests.support.pruning import context_for, noise
from tests.support.text import net

__all__ = ["PLAIN", "Array64", "norm_of", "only", "scaled", "score", "values"]

Array64 = NDArray[np.float64]

PLAIN = net(
    "(float[N,3,8,8] x) => (float[N,5,6,6] y)",
    "float[8,3,3,3] a, float[8] p, float[5,8,1,1] b, float[5] q",
    "h = Conv(x, a, p) r = Relu(h) y = Conv(r, b, q)",
)


def score(model: Model, criterion: str, **given: Any) -> Scored:
    """Score all open groups of `model`, on 48 normal samples unless `context` is given."""
    groups = channel_groups(model)
    context = given.pop("context", None) or context_for(model, **given)
    chosen = [g for g in groups if not g.blocked]
    return score_groups(model, groups, chosen, criterion, context, default_shapes(model))


def only(found: Scored) -> Array64:
    (scores,) = found.scores.values()
    return scores


def values(model: Model, name: str) -> Array:
    """All values `name` at once, on the samples that `context_for` gives."""
    return Session(with_outputs(model, [name]), optimize=False, threads=1).run(noise(model), [name])[name]


def scaled(scores: Array64) -> Array64:
    result: Array64 = np.asarray(scores, np.float64) / np.mean(scores)
    return result


def norm_of(model: Model, name: str, axis: int = 0) -> Array64:
    weight = np.moveaxis(model.graph.constants[name].values.astype(np.float64), axis, 0)
    result: Array64 = (weight.reshape(len(weight), -1) ** 2).sum(1)
    return scaled(result)
