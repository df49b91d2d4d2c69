"""Fold BatchNormalization, per-channel arithmetic and zero padding into the linear nodes beside them."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.analysis.affine import Refusal, Step, Types, affine_step, combined
from onnxcomp.analysis.folding import Rewrite, fold_after, fold_before
from onnxcomp.analysis.padding import merged_pads, zero_pads
from onnxcomp.compiler.passbase import Context, Pass, PassLog, PassResult
from onnxcomp.ir.edits import absorb, drop_orphans, give_padding
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.liveness import unread_constants
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import LINEAR
from onnxcomp.ir.shapes import infer_types
from onnxcomp.numerics.affine_fold import rounded

__all__ = ["FoldBatchnorm"]


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """Fold BatchNormalization and per-channel Mul, Add, Sub, Div into the linear node before or after them.

    Linear nodes are Conv, ConvTranspose, Gemm and MatMul with constant weights; a BatchNormalization that stays takes
    in its neighbours likewise, and elementwise steps in a row become one. Before a linear node only what reaches every
    output position alike is folded: a shift does not pass zero padding. A Pad of zeros becomes padding of the
    convolution or mean behind it, and MatMul with a bias on a matrix becomes Gemm. Shared weights are copied for the
    node that changes.
    """

    name = "fold-batchnorm"
    exact = True
    stage = "cleanup"

    def run(self, model: Model, context: Context) -> PassResult:
        """Fold until nothing folds any more."""
        log = PassLog()
        unread = {c.name for c in unread_constants(model)}
        edits = _Edits(model, context, log)
        steps, pads = _StepFolding(edits), _PadFolding(edits)
        while True:
            done = len(log.changes)
            edits.skips.clear()
            for node in list(model.graph.nodes):
                # A node may have been folded away since the list was made.
                if node.outputs:
                    (pads if node.is_op("Pad") else steps).visit(node)
            if len(log.changes) == done:
                break
        drop_orphans(model, unread)
        for where, reason in edits.skips.items():
            log.skip(where, reason)
        if log.changes:
            # Stored tensors that are not graph inputs need IR version 4.
            model.ir_version = max(model.ir_version, 4)
        edits.note_copies()
        return log.result(model)


class _Edits:
    """One run of the pass: the model, what is known of its values, and what was declined in the current round."""

    def __init__(self, model: Model, context: Context, log: PassLog) -> None:
        self.model, self.graph, self.log = model, model.graph, log
        self._context = context
        # Names keep their meaning through every fold, so that one inference serves the whole run.
        self.types: Types = infer_types(model)
        # So do they with subgraphs: what those read is known once.
        self.taken = self.graph.taken()
        self.skips: dict[str, str] = {}
        self._copied: list[tuple[Constant, int]] = []

    def excluded(self, *nodes: Node) -> Refusal | None:
        """Return the refusal where the user excluded one of `nodes`."""
        for node in nodes:
            if self._context.is_excluded(self.model, node.name):
                return Refusal(f"{node.op} {node.name!r} is excluded by the user")
        return None

    def apply(self, node: Node, rewrite: Rewrite) -> None:
        """Give `node` the weights and the operator of `rewrite`."""
        for index, values in rewrite.inputs.items():
            old = node.input(index)
            new = self.graph.set_constant(node, index, values, "fold-batchnorm", self.taken)
            if isinstance(old, Constant) and old.outputs:
                self._copied.append((old, new.values.nbytes))
        node.op = rewrite.op
        for name in rewrite.dropped:
            node.attrs.pop(name, None)

    def record(self, gone: Node, kept: Node) -> None:
        """Record that `gone` has become a part of `kept`."""
        self.model.rename_node(gone.name, kept.name)
        self.log.change(gone.name, f"{gone.op} folded into {kept.op} {kept.name!r}")

    def note_copies(self) -> None:
        """Say how much larger the file became because nodes that shared weights have their own now."""
        originals: dict[Constant, int] = {}
        for old, size in self._copied:
            originals[old] = originals.get(old, -0) + size
        stored = self.graph.constants
        more = sum(
            size - (0 if stored.get(c.name) is c else c.values.nbytes) for c, size in originals.items()
        )
        if more > 0:
            self.log.note(
                f"weights that several nodes shared were copied for those that changed: {more:,} bytes more"
            )


class _StepFolding:
    """Folds BatchNormalization and per-channel arithmetic into the nodes before or behind."""

    def __init__(self, edits: _Edits) -> None:
        self._edits, self._graph = edits, edits.graph

    def visit(self, node: Node) -> None:
        """Fold `node` into a neighbour, or note why it stays."""
        step = affine_step(node)
        if step is None:
            return
        refusal = step if isinstance(step, Refusal) else self._fold(step)
        if refusal is not None:
            self._edits.skips[node.name] = refusal.reason

    def _fold(self, step: Step) -> Refusal | None:
        """Fold `step` backwards or forwards; return why not, None also where nobody would expect it to fold."""
        back = self._fold_back(step)
        if back is None:
            return None
        forth = self._fold_forth(step)
        if forth is None:
            return None
        linear = [r for r in (back, forth) if not isinstance(r, _NoNeighbour)]
        if not linear and not step.is_batchnorm:
            return None
        return Refusal("; ".join(dict.fromkeys(r.reason for r in linear or [back, forth])))

    # --- backwards -----------------------------------------------------------------------------------------------
    def _fold_back(self, step: Step) -> Refusal | None:
        """Fold `step` into the node that computes what it reads."""
        producer = step.value.producer
        if producer is None:
            return _NoNeighbour("it reads a graph input")
        if not self._takes_steps(producer):
            return _NoNeighbour(f"{producer.op} {producer.name!r} before it has no weights to fold into")
        if refusal := self._edits.excluded(step.node, producer):
            return refusal
        if self._graph.sole_use(step.value, self._edits.taken.captured) is not step.node:
            return Refusal(f"the output of {producer.op} {producer.name!r} is needed elsewhere too")
        rewrite = self._rewritten(producer, step)
        if isinstance(rewrite, Refusal):
            return rewrite
        self._edits.apply(producer, rewrite)
        absorb(self._graph, producer, step.node)
        self._edits.record(step.node, producer)
        return None

    def _takes_steps(self, node: Node) -> bool:
        """Whether `node` is of a kind that steps fold into."""
        return node.is_op(*LINEAR) or isinstance(affine_step(node), Step)

    def _rewritten(self, producer: Node, step: Step) -> Rewrite | Refusal:
        first = affine_step(producer)
        if not isinstance(first, Step) or first.is_batchnorm:
            return fold_after(producer, step, self._edits.types)
        both = combined(first, step)
        if both is None:
            return _NoNeighbour(f"{producer.op} {producer.name!r} and it have no common form")
        values = rounded(both[1], first.factor.dtype)
        if values is None:
            return Refusal(f"its product with {producer.op} {producer.name!r} would overflow")
        return Rewrite(both[0], {1 - first.data: values})

    # --- forwards ------------------------------------------------------------------------------------------------
    def _fold_forth(self, step: Step) -> Refusal | None:
        """Fold `step` into every node that reads it."""
        node = step.node
        uses = list(self._graph.uses(node.output))
        others = [r for r, index in uses if index != 0 or not (r.is_op(*LINEAR) or self._is_batchnorm(r))]
        if not uses or self._graph.is_output(node.output) or node.output.name in self._edits.taken.captured:
            return _NoNeighbour("its result is a graph output or read by a subgraph")
        if others:
            return _NoNeighbour(
                f"{others[0].op} {others[0].name!r} behind it reads it otherwise than by weights"
            )
        rewrites: list[tuple[Node, Rewrite]] = []
        for reader, _ in uses:
            if refusal := self._edits.excluded(node, reader):
                return refusal
            rewrite = fold_before(reader, step, self._edits.types)
            if isinstance(rewrite, Refusal):
                return rewrite
            rewrites.append((reader, rewrite))
        for reader, rewrite in rewrites:
            self._edits.apply(reader, rewrite)
            self._graph.set_input(reader, 0, step.value)
        self._graph.remove_nodes([node])
        self._edits.record(node, rewrites[0][0])
        return None

    def _is_batchnorm(self, node: Node) -> bool:
        step = affine_step(node)
        return isinstance(step, Step) and step.is_batchnorm


class _PadFolding:
    """Folds zeros that a Pad adds into the padding of the nodes behind."""

    def __init__(self, edits: _Edits) -> None:
        self._edits, self._graph = edits, edits.graph

    def visit(self, node: Node) -> None:
        """Fold the Pad `node` into what reads it, or note why it stays."""
        uses = list(self._graph.uses(node.output))
        readers = [r for r, index in uses if index == 0 and r.is_op("Conv", "AveragePool")]
        if not readers:
            return
        refusal = self._fold(node, readers, len(uses))
        if refusal is not None:
            self._edits.skips[node.name] = refusal.reason

    def _fold(self, node: Node, readers: list[Node], uses: int) -> Refusal | None:
        kind = self._edits.types.get(node.inputs[0].name)
        pads = zero_pads(node, len(kind.shape)) if kind is not None and kind.shape is not None else None
        if pads is None:
            return Refusal("it does more than add a known number of zeros")
        if (
            self._graph.is_output(node.output)
            or node.output.name in self._edits.taken.captured
            or len(readers) < uses
        ):
            return Refusal("its result is needed elsewhere too")
        merged: list[tuple[Node, list[int]]] = []
        for reader in readers:
            own = self._edits.excluded(node, reader) or merged_pads(reader, pads)
            if isinstance(own, Refusal):
                return own
            merged.append((reader, own))
        give_padding(self._graph, node, merged)
        self._edits.record(node, readers[0])
        return None


class _NoNeighbour(Refusal):
    """There is nothing to fold into, which is worth a word for a BatchNormalization only."""
