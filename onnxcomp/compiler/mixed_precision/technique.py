"""The technique `insert-qdq`: what each node does to the outputs when it alone is computed in integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxcomp.analysis.cost import node_macs
from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.evaluation.technique import Candidate, Technique
from onnxcomp.compiler.mixed_precision.site_trials import node_trial
from onnxcomp.compiler.mixed_precision.sites import melted
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.quantization.formats import formats
from onnxcomp.compiler.quantization.plan import QuantizationPlan, Settings
from onnxcomp.compiler.quantization.quantizer import plan
from onnxcomp.compiler.target.files import DEFAULT_TARGET
from onnxcomp.errors import UsageError
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import QUANTIZATION

__all__ = ["QuantizeNodes"]

FLOAT_BITS = 32


@dataclass(frozen=True)
class QuantizeNodes(Technique):
    """What a node reads and its weight stored in integers of `target`, on the scales that insert-qdq would choose.

    Weights are rounded to the nearest. Operators that only move values are left out: what they read is counted where it
    is computed with.
    """

    name: ClassVar[str] = "insert-qdq"

    target: str = DEFAULT_TARGET

    def candidates(self, model: Model, context: Context, log: PassLog) -> Iterator[Sequence[Candidate]]:
        """Yield one candidate per node, in the order of the network; what stays float is a skip in `log`.

        Raises:
            UsageError: where the target quantizes by itself.
        """
        if context.target.family == "float":
            raise UsageError(
                f"target {context.target.name} has its own quantizer; name one that reads pairs, such as ort-cpu"
            )
        if any(node.op in QUANTIZATION for node in model.graph.nodes):
            log.note("the model is quantized already; measure the float model that it was made from")
            return
        settings = Settings(edges="integers", rewrite=False)
        found = plan(model, formats(context.target, {}), settings, context, log)
        if found is None:
            return
        for name, reason in found.placement.reasons.items():
            log.skip(name, reason)
        followers = set(melted(found.model, context.target).values())
        inside = set(found.placement.nodes) - followers
        yield [
            _candidate(found, node)
            for node in model.graph.nodes
            if node.name in inside and context.target.role(node) != "same-scale" and _changes(found, node)
        ]


def _changes(found: QuantizationPlan, node: Node) -> bool:
    """Return whether anything that `node` reads is stored."""
    weighted = any(site.node == node.name for site in found.placement.weights)
    return weighted or any(v.name in found.chosen.affines for v in node.inputs)


def _candidate(found: QuantizationPlan, node: Node) -> Candidate:
    weighted = any(site.node == node.name for site in found.placement.weights)
    linear = linear_node(node) if weighted else None
    grid = found.formats.weights if linear is not None else found.formats.activations
    bits = 8 * np.dtype(grid.dtype).itemsize
    return Candidate(
        node.name,
        None,
        FLOAT_BITS - bits,
        FLOAT_BITS,
        node_macs(node, found.shapes),
        0 if linear is None else int(linear.weight_array().size),
        node_trial(found, node),
    )
