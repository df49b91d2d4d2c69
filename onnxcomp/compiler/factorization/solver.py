"""The solver that fits chains on the repair walk: both, or all three, of their factors at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.compiler.factorization.candidates import damped, damping_of
from onnxcomp.compiler.factorization.chain import Chain
from onnxcomp.compiler.repair.refit import Solution, Visit, refit, ridge_strength
from onnxcomp.numerics.arrays import Array
from onnxcomp.numerics.factoring import Metric, fit
from onnxcomp.numerics.moments import ridge

__all__ = ["FitChains"]


FIRST_STEPS = 150
"""Steps of the first fit at a chain."""

MORE_STEPS = 40
"""Steps of each fit that sharpens the first, which it goes on from."""


@dataclass
class FitChains:
    """Refits what is visited: a chain by fitting its factors, any other node by ridge regression.

    `weights` are the dense weights `[g, o, d]` that chains stand in for, by name, and `outputs` what errors of their
    outputs weigh, `[g, o, o]`, where that is known.
    """

    chains: Mapping[str, Chain]
    weights: Mapping[str, Array]
    outputs: Mapping[str, Array] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def __call__(self, visit: Visit) -> Solution | None:
        """Return the product of the factors fitted at `visit`, which its chain then holds, and the bias."""
        name = visit.site.name
        chain = self.chains.get(name)
        if chain is None:
            return refit(visit)
        moments, prior = visit.moments, self.weights[name]
        strength = ridge_strength(visit)
        H, G = (moments.covariance(), moments.cross()) if chain.has_bias else moments.second()
        wanted = ridge(H, G, prior, strength)
        damping = damping_of(H.shape[1], visit.independent)
        again = name in self.seen
        steps = MORE_STEPS if again else FIRST_STEPS
        self.seen.add(name)
        blocks, products = [], []
        weigh = self.outputs.get(name)
        for block in range(len(H)):
            metric = Metric(damped(H[block], damping), None if weigh is None else weigh[block])
            start = chain.blocks[block] if again else None
            found = fit(chain.form, wanted[block], metric, steps, start)
            blocks.append(found.factors)
            products.append(found.product)
        matrix = np.stack(products)
        chain.blocks = blocks
        bias = None
        if chain.has_bias:
            bias = (moments.mean_y - np.einsum("god,gd->go", matrix, moments.mean_x)).reshape(-1)
        return Solution(matrix, bias)
