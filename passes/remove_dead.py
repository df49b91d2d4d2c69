"""Remove what does nothing: unused nodes and constants, nodes that hand a value through, and what is there twice."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.analysis.duplicates import equal_constants, equal_nodes
from onnxcomp.analysis.merges import cancelled, merge
from onnxcomp.analysis.noops import handed_through
from onnxcomp.compiler.passbase import Context, Pass, PassLog, PassResult
from onnxcomp.ir.edits import bypass, remove_dead_nodes
from onnxcomp.ir.graph import Node, Value, Variable
from onnxcomp.ir.liveness import dead_nodes, pinned_names, unread_constants
from onnxcomp.ir.model import Model
from onnxcomp.ir.shapes import ValueType, infer_types

__all__ = ["RemoveDead"]


@dataclass(frozen=True)
class RemoveDead(Pass):
    """Remove what does nothing: unused nodes and constants, no-ops, duplicates.

    No-ops are Identity, Dropout in inference, Casts, Transposes, Reshapes, Slices, Pads and the like that change
    nothing, and arithmetic with zero or one. Transposes, Slices and Reshapes in a row become one. Constants with equal
    contents are stored once, and nodes that compute the same from the same are computed once. Graph inputs stay, used
    or not.
    """

    name = "remove-dead"
    exact = True
    stage = "cleanup"

    def run(self, model: Model, context: Context) -> PassResult:
        """Remove until nothing is left to remove."""
        log = PassLog()
        work = _Removal(model, context, log)
        while work.round():
            pass
        for where, reason in work.skips.items():
            log.skip(where, reason)
        return log.result(model)


class _Removal:
    """One run of the pass: the model, and what was declined in the current round."""

    def __init__(self, model: Model, context: Context, log: PassLog) -> None:
        self.model, self.context, self.log = model, context, log
        self.graph = model.graph
        self.skips: dict[str, str] = {}

    def round(self) -> bool:
        """Do everything once; return whether the model changed."""
        done = len(self.log.changes)
        self.skips.clear()
        self._dead_nodes()
        types = infer_types(self.model)
        for node in list(self.graph.nodes):
            # A node may have been removed since the list was made.
            if node.outputs and not self._no_op(node, types):
                self._merge(node, types)
        self._equal_constants()
        self._equal_nodes()
        self._unread_constants()
        return len(self.log.changes) > done

    def _excluded(self, *nodes: Node) -> bool:
        """Whether the user wants one of `nodes` left alone, which is then noted for the first of them."""
        if not any(self.context.is_excluded(self.model, node.name) for node in nodes):
            return False
        self.skips[nodes[0].name] = "it, or the node it would be joined with, is excluded by the user"
        return True

    def _dead_nodes(self) -> None:
        keep = [node for node in dead_nodes(self.graph) if self._excluded(node)]
        for name in remove_dead_nodes(self.model, keep):
            self.log.change(name, "nothing reads its result")

    def _no_op(self, node: Node, types: dict[str, ValueType]) -> bool:
        """Let the readers of `node` read what it hands through; return whether it is gone."""
        index = handed_through(node, types)
        source = node.input(index) if index is not None else cancelled(node)
        if source is None or self._further_outputs(node) or self._excluded(node):
            return False
        if not bypass(self.model, node.output, source):
            self.skips[node.name] = (
                "its result bears a name that must stay, and so does what it hands through"
            )
            return False
        self._remove(node, "", f"{node.op} hands {source.name!r} through")
        return True

    def _merge(self, node: Node, types: dict[str, ValueType]) -> None:
        """Let `node` do the work of the node before it, if nobody else needs that."""
        found = merge(node, types)
        if found is None or self.graph.sole_use(found.first.output) is not node:
            return
        if self._excluded(node, found.first):
            return
        node.attrs.update(found.attrs)
        for index, values in found.constants.items():
            self.graph.set_constant(node, index, values, suffix=RemoveDead.name)
        self.graph.set_input(node, 0, found.first.inputs[0])
        self._remove(found.first, node.name, f"{found.first.op} is done by {node.op} {node.name!r}")

    def _further_outputs(self, node: Node) -> bool:
        """Whether anybody needs more than the first output of `node`."""
        pinned = pinned_names(self.model)
        return any(v.name and (v.outputs or v.name in pinned) for v in node.outputs[1:])

    def _remove(self, node: Node, successor: str, what: str) -> None:
        self.graph.remove_nodes([node])
        self.model.rename_node(node.name, successor)
        self.log.change(node.name, what)

    def _equal_constants(self) -> None:
        """Keep one constant of each group of equals: one whose name must stay, else the first."""
        pinned = pinned_names(self.model)
        for group in equal_constants(self.graph):
            kept = next((c for c in group if c.name in pinned), group[0])
            for constant in group:
                if constant is kept or constant.name in pinned:
                    continue
                self._read_instead(constant, kept)
                del self.graph.constants[constant.name]
                self.log.change(constant.name, f"equal to {kept.name!r}, which is read instead")

    def _read_instead(self, old: Value, new: Value) -> None:
        for node, index in list(self.graph.uses(old)):
            self.graph.set_input(node, index, new)

    def _equal_nodes(self) -> None:
        """Keep the first node of each group that computes the same."""
        for kept, *others in equal_nodes(self.graph):
            for node in others:
                if not self._excluded(node, kept):
                    self._join(kept, node)

    def _join(self, kept: Node, node: Node) -> None:
        """Let the readers of `node` read the outputs of `kept`, all or none."""
        pairs: list[tuple[Variable, Variable]] = [
            (old, new) for old, new in zip(node.outputs, kept.outputs, strict=True) if old.name
        ]
        pinned = pinned_names(self.model)
        if len(pairs) > 1 and any(old.name in pinned for old, _ in pairs):
            self.skips[node.name] = (
                f"it computes what {kept.name!r} does, but its results bear names that must stay"
            )
            return
        if not all(bypass(self.model, old, new) for old, new in pairs):
            self.skips[node.name] = (
                f"it computes what {kept.name!r} does, but both results bear names that must stay"
            )
            return
        self._remove(node, kept.name, f"{node.op} computes what {kept.name!r} does")

    def _unread_constants(self) -> None:
        for constant in unread_constants(self.model):
            del self.graph.constants[constant.name]
            self.log.change(constant.name, "nothing reads this constant")
