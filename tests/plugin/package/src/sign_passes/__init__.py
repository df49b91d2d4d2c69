"""Passes about signs."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp import Pass
from onnxcomp.compiler.passbase import Context, PassLog, PassResult, option
from onnxcomp.ir import Model

__all__ = ["CancelNegations"]


@dataclass(frozen=True)
class CancelNegations(Pass):
    """Remove two negations in a row."""

    name = "cancel-negations"
    exact = True
    stage = "cleanup"

    most: int = option(100, "pairs removed at most")

    def run(self, model: Model, context: Context) -> PassResult:
        """Remove up to `most` pairs of Neg nodes that cancel out."""
        log, graph = PassLog(), model.graph
        for second in [node for node in graph.nodes if node.is_op("Neg")]:
            value = second.input(0)
            first = value.producer if value is not None else None
            if first is None or not first.is_op("Neg") or len(log.changes) == self.most:
                continue
            source = first.inputs[0]
            if graph.replace_all_uses(second.output, source):
                graph.remove_nodes([second])
                log.change(second.name, f"cancels out with {first.name}")
            else:
                log.skip(second.name, "its output must keep its name")
        return log.result(model)
