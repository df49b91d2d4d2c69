"""What tests of the repairing walk share: cutting, walking with a plain least-squares solver, and the gap that is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.analysis.channels import channel_groups
from onnxcomp.compiler.repair.refit import Site, Solution, Visit
from onnxcomp.compiler.repair.sites import damaged_sites, kept_positions
from onnxcomp.compiler.repair.walk import Walk
from onnxcomp.ir.graph import Array
from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model
from onnxcomp.numerics.moments import ridge
from tests.support.pruning import context_for, noise, outputs
from tests.support.text import net

EXACT = 1e-7
"""A ridge that only keeps the solve from breaking: algebra is to show through."""


def weights(seed: int, *shape: int) -> Array:
    spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.5
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def name_of(model: Model, output: str) -> str:
    return next(node.name for node in model.graph.nodes if node.output.name == output)


def cut(model: Model, keep: Mapping[str, Sequence[int]]) -> tuple[Model, list[Site]]:
    """What is left of `model` with only the units in `keep` (by output of the producer), and what that damages."""
    groups = channel_groups(model)
    masks = {}
    for output, units in keep.items():
        name = name_of(model, output)
        masks[name] = np.isin(np.arange(groups[name].units), units)
    left = model.clone()
    groups.take(left, masks)
    sites, _ = damaged_sites(model, left, kept_positions(groups, masks), lambda name: None)
    return left, sites


def fit(visit: Visit) -> Solution:
    """Centred least squares; plain where the node cannot hold a bias."""
    moments, prior = visit.moments, visit.node.matrix()
    if not visit.node.has_bias:
        return Solution(ridge(*moments.second(), prior, EXACT), None)
    matrix = ridge(moments.covariance(), moments.cross(), prior, EXACT)
    bias = moments.mean_y - np.einsum("god,gd->go", matrix, moments.mean_x)
    return Solution(matrix, bias.reshape(-1))


def repaired(
    original: Model,
    left: Model,
    sites: Sequence[Site],
    solve: Callable[[Visit], Solution | None] = fit,
    feeds: Mapping[str, Array] | None = None,
    **given: Any,
) -> list[tuple[Site, float]]:
    """Walk over `left` in place."""
    context = context_for(original, feeds, **given)
    return Walk(original, left, context).visit(sites, solve, "refit")


def gap(model: Model, other: Model, seed: int = 9) -> float:
    """The largest difference of outputs on samples that calibration has not seen, relative to the largest output."""
    feeds = noise(model, 16, seed=seed)
    wanted = outputs(model, feeds)
    return float(np.abs(outputs(other, feeds) - wanted).max() / np.abs(wanted).max())


SIGNATURE = "(float[N,3,6,6] x) => (float[N,5] y)"


def redundant(activation: str) -> Model:
    """Channels 4 to 7 are made of channels 0 to 3: any sums of them without an activation, multiples with a Relu."""
    a, p = weights(1, 8, 3, 3, 3), weights(2, 8)
    mix = weights(3, 4, 4) if activation == "Identity" else np.diag([0.5, 2.0, 1.0, 3.0]).astype(np.float32)
    a[4:], p[4:] = np.tensordot(mix, a[:4], 1), mix @ p[:4]
    text = net(
        SIGNATURE,
        "float[8,3,3,3] a, float[8] p, float[6,8,3,3] b, float[96,7] c, float[7] r, float[7,5] d",
        f"h = Conv(x, a, p) k = {activation}(h) i = Conv<pads=[1,1,1,1]>(k, b) l = Relu(i) f = Flatten(l)"
        " g = Gemm<alpha=0.5>(f, c, r) m = Relu(g) y = MatMul(m, d)",
    )
    return parse_model(text, {"a": a, "p": p})
