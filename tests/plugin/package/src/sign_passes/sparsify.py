"""A lossy pass with a budget: weights that matter least become zero, the others are refitted on the walk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.options import in_range, option
from onnxcomp.compiler.pass_options import RepairOptions
from onnxcomp.compiler.passbase import Context, PassLog, PassResult
from onnxcomp.compiler.repair.refit import Site, Solution, Visit, refit, too_wide
from onnxcomp.compiler.repair.sites import shared_weight
from onnxcomp.compiler.repair.walk import Walk
from onnxcomp.ir import Model
from onnxcomp.numerics.arrays import Array

__all__ = ["Sparsify"]


@dataclass(frozen=True)
class Sparsify(RepairOptions):
    """Set the smallest weights of the whole model to zero, and refit those that stay."""

    name = "sparsify"
    stage = "numbers"
    data_free = True

    nonzero: float = option(0.5, "share of the weights that may remain, 0 < nonzero <= 1")

    def check(self) -> None:
        """Raise UsageError where an option is out of range."""
        super().check()
        in_range(self.name, "nonzero", self.nonzero, 0, 1, open_low=True)

    def run(self, model: Model, context: Context) -> PassResult:
        """Zero and refit the weights of `model`."""
        log, original = PassLog(), model.clone()
        nodes = self._nodes(model, context, log)
        if not nodes:
            return log.result(model)
        # Weights of different layers compare once each layer's are brought to the same size.
        sizes = {
            name: abs(W) / np.sqrt((W**2).mean()) for name, W in ((n, v.matrix()) for n, v in nodes.items())
        }
        least = np.quantile(np.concatenate([size.ravel() for size in sizes.values()]), 1 - self.nonzero)
        masks = {name: size >= least for name, size in sizes.items()}
        for name, node in nodes.items():
            node.install(model, node.matrix() * masks[name], None, self.name)
            log.change(name, f"{masks[name].mean():.0%} of its weights stay", kept=int(masks[name].sum()))
        if self.refits:
            sites = [Site(name, np.arange(masks[name].shape[0] * masks[name].shape[1])) for name in nodes]
            walk = Walk(original, model, context)
            errors = walk.visit(sites, lambda visit: _masked(visit, masks[visit.site.name]), "refitting")
            log.note(f"largest relative error of a layer: {max(error for _, error in errors):.1%}")
        return log.result(model)

    def _nodes(self, model: Model, context: Context, log: PassLog) -> dict[str, LinearNode]:
        found = {}
        for node in model.graph.nodes:
            linear = linear_node(node)
            if linear is None:
                continue
            excluded = "it is excluded by the user" if context.is_excluded(model, node.name) else None
            if reason := excluded or shared_weight(model, linear) or too_wide(linear):
                log.skip(node.name, reason)
            else:
                found[node.name] = linear
        return found


def _masked(visit: Visit, mask: Array) -> Solution:
    """Return the least squares solution in which only the weights of `mask` `[g, o, d]` differ from zero."""
    dense, moments = refit(visit), visit.moments
    H = moments.covariance() if visit.node.has_bias else moments.second()[0]
    matrix = np.zeros_like(dense.matrix)
    for block, row in np.ndindex(*mask.shape[:2]):
        kept = np.flatnonzero(mask[block, row])
        # What is zeroed is made up for by those that stay: W_kept = W H[:, kept] H[kept, kept]^-1.
        inner = H[block][np.ix_(kept, kept)] + 1e-6 * np.trace(H[block]) / len(H[block]) * np.eye(len(kept))
        matrix[block, row, kept] = np.linalg.solve(inner, H[block][kept] @ dense.matrix[block, row])
    if dense.bias is None:
        return Solution(matrix, None)
    return Solution(matrix, (moments.mean_y - np.einsum("god,gd->go", matrix, moments.mean_x)).reshape(-1))
