"""Evaluate what depends on constants alone, once, at compile time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.analysis.constants import Island, affordable, constant_islands
from onnxcomp.compiler.options import option
from onnxcomp.compiler.passbase import Context, Pass, PassLog, PassResult
from onnxcomp.errors import ModelError, UsageError
from onnxcomp.ir.edits import drop_orphans, freeze, remove_dead_nodes
from onnxcomp.ir.graph import Array, Node, Variable
from onnxcomp.ir.liveness import dead_nodes, unread_constants
from onnxcomp.ir.model import Model
from onnxcomp.ir.segment import segment_bytes
from onnxcomp.ir.shapes import ValueType, infer_types
from onnxcomp.ir.sizes import known_sizes
from onnxcomp.runtime.session import Session

__all__ = ["FoldConstants"]


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Evaluate nodes that depend on constants alone; never through DequantizeLinear.

    Sizes of known axes (Shape, Size and the arithmetic on them) are constants too; what depends on a symbolic axis
    stays. Subgraphs, custom operators and operators that may differ from run to run are left as they are. A result
    keeps the name of the value it replaces. Storing results may make a file larger: those that would are stored
    together or not at all, within `max-growth`, and no value beyond it is ever allocated.
    """

    name = "fold-constants"
    exact = True
    stage = "cleanup"

    max_growth: int = option(1 << 20, "bytes the file may grow by, beyond the constants that disappear")

    def check(self) -> None:
        """Raise UsageError for a negative cap."""
        if self.max_growth < 0:
            raise UsageError(f"{self.name}: max-growth={self.max_growth} is negative; give a number of bytes")

    def run(self, model: Model, context: Context) -> PassResult:
        """Fold in rounds: a result that is stored may tell the size of the next one."""
        log = PassLog()
        # What was dead or unread before is for remove-dead; here goes only what folding leaves behind.
        keep = dict.fromkeys(dead_nodes(model.graph), "nothing reads its result; remove-dead removes it")
        for node in model.graph.nodes:
            if context.is_excluded(model, node.name):
                keep[node] = "excluded by the user"
        unread = {c.name for c in unread_constants(model)}
        spent = 0
        while True:
            types = infer_types(model)
            done = len(log.changes)
            skips = _store_sizes(model, types, keep, log)
            remove_dead_nodes(model, keep)
            survey = constant_islands(model, types, keep, self.max_growth)
            plan = affordable([i for i in survey.islands if i.results], self.max_growth, spent)
            # What makes the file larger waits for all that does not, so that it is judged as one.
            chosen = plan.free if plan.free or len(log.changes) > done else plan.growing
            stored, failed = _fold(model, chosen, context.threads, log)
            spent += sum(max(0, island.growth) for island in stored)
            skips |= {
                node.name: reason for node, reason in (survey.declined | plan.declined | failed).items()
            }
            drop_orphans(model, unread)
            if len(log.changes) == done:
                break
        for where, reason in skips.items():
            log.skip(where, reason)
        if log.changes:
            # Stored tensors that are not graph inputs need IR version 4.
            model.ir_version = max(model.ir_version, 4)
        return log.result(model)


def _store_sizes(
    model: Model, types: Mapping[str, ValueType], keep: Collection[Node], log: PassLog
) -> dict[str, str]:
    """Store every known size that a node reads which is not itself a known size; return skips by node name."""
    graph = model.graph
    known = known_sizes(graph, types, keep)
    outputs = [v for v in known if graph.is_output(v)]
    going = known.keys() - outputs
    captured = graph.captured()
    for value, sizes in known.items():
        stays = any(going.isdisjoint(reader.outputs) for reader in value.consumers)
        if value in going and (stays or value.name in captured):
            node = value.inputs[0]
            freeze(graph, value, sizes)
            log.change(node.name, f"{node.op} of known sizes stored as {sizes.tolist()}")
    return {v.inputs[0].name: "its result is a graph output, which a node has to compute" for v in outputs}


def _fold(
    model: Model, islands: Sequence[Island], threads: int, log: PassLog
) -> tuple[list[Island], dict[Node, str]]:
    """Evaluate and store `islands`; return those that were stored, and why the others could not be."""
    results, failed = _evaluate(model, islands, threads)
    stored = [island for island in islands if all(v in results for v in island.results)]
    for island in stored:
        _store(model, island, results, log)
    return stored, failed


def _evaluate(
    model: Model, islands: Sequence[Island], threads: int
) -> tuple[dict[Variable, Array], dict[Node, str]]:
    """Return the results of all `islands` from one run; where that fails, island by island, with the reasons."""
    if not islands:
        return {}, {}
    try:
        return _run(model, islands, threads), {}
    except ModelError as problem:
        if len(islands) == 1:
            return {}, {islands[0].nodes[-1]: f"onnxruntime cannot evaluate it: {problem}"}
    results: dict[Variable, Array] = {}
    failed: dict[Node, str] = {}
    for island in islands:
        found, reasons = _evaluate(model, [island], threads)
        results |= found
        failed |= reasons
    return results, failed


def _run(model: Model, islands: Sequence[Island], threads: int) -> dict[Variable, Array]:
    """Evaluate `islands` in one session, exactly as written."""
    wanted = {v.name: v for island in islands for v in island.results}
    nodes = [node for island in islands for node in island.nodes]
    source = segment_bytes(model, nodes, {}, list(wanted), {})
    found = Session(source, optimize=False, threads=threads).run({})
    for name, values in found.items():
        if not isinstance(values, np.ndarray):
            raise ModelError(f"{name!r} is no dense tensor")
    return {wanted[name]: _as_stored(values) for name, values in found.items()}


def _as_stored(values: Array) -> Array:
    """Return `values` as the graph holds them: strings are bytes there."""
    if values.dtype != object:
        return values
    encoded = np.empty(values.size, object)
    encoded[:] = [v.encode() if isinstance(v, str) else v for v in values.flat]
    return encoded.reshape(values.shape)


def _store(model: Model, island: Island, results: Mapping[Variable, Array], log: PassLog) -> None:
    """Put the results of `island` in the place of its nodes."""
    size = 0
    for value in island.results:
        size += freeze(model.graph, value, results[value]).values.nbytes
    model.graph.remove_nodes(island.nodes)
    for node in island.nodes:
        model.rename_node(node.name, "")
    count = len(island.nodes)
    what = f"{island.nodes[-1].op}" if count == 1 else f"{count} nodes"
    log.change(island.nodes[-1].name, f"{what} evaluated, {size:,} bytes stored", nodes=count, bytes=size)
