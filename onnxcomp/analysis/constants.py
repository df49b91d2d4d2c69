"""Islands of constants: which nodes depend on stored tensors alone, and what storing their results would cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.ir.graph import Constant, Node, Value, Variable
from onnxcomp.ir.liveness import has_subgraphs, pinned_names
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import DATA_SIZED, NONDETERMINISTIC, QUANTIZATION
from onnxcomp.ir.proto import write_node
from onnxcomp.ir.shapes import ValueType

__all__ = ["Island", "Plan", "Survey", "affordable", "constant_islands"]

_SHARED = 1024
"""A constant of fewer bytes (an axis, a shape) that several islands read does not make them one."""

_EFFORT = 64
"""How many times what it reads, and what it may add, an island may compute on the way: many values that are fine one by
one can still fill the memory."""


@dataclass(frozen=True)
class Island:
    """Connected nodes that depend on constants alone.

    Attributes:
        nodes: in graph order.
        results: the values that the rest of the graph reads and that would be stored.
        growth: bytes that storing the results adds to the file, less the nodes and constants that disappear.
        reads: bytes of the constants that the nodes read.
        effort: bytes of all values that the nodes compute, which may all be in memory at once.
    """

    nodes: tuple[Node, ...]
    results: tuple[Variable, ...]
    growth: int
    reads: int
    effort: int


@dataclass
class Survey:
    """What `constant_islands` found: the `islands`, and why other nodes that read constants alone are not in one."""

    islands: tuple[Island, ...] = ()
    declined: dict[Node, str] = field(default_factory=dict)


def constant_islands(
    model: Model, types: Mapping[str, ValueType], keep: Mapping[Node, str], max_growth: int
) -> Survey:
    """Return the islands of constants in `model`, and a reason for every node that is left out of one.

    Nodes in `keep` are left out for the reason given there. No single value of an island, inner ones included, takes
    more bytes than the constants it is computed from plus `max_growth`: sizes come from `types`, so that a fill of a
    petabyte is refused without being allocated.
    """
    survey = Survey()
    sources: dict[Value, frozenset[Constant]] = {}
    members: list[Node] = []
    outputs = set(model.graph.outputs)
    for node in model.graph.nodes:
        inputs = [v for v in node.inputs if v.name]
        if any(not isinstance(v, Constant) and v not in sources for v in inputs):
            continue
        reads = frozenset(v for v in inputs if isinstance(v, Constant)).union(
            *(sources[v] for v in inputs if v in sources)
        )
        limit = max_growth + sum(c.values.nbytes for c in reads)
        reason = keep.get(node) or _unsuitable(node, outputs) or _size_reason(node, types, limit)
        if reason:
            survey.declined[node] = reason
            continue
        members.append(node)
        sources.update((v, reads) for v in node.outputs if v.name)
    pinned = pinned_names(model)
    survey.islands = tuple(_island(part, pinned, types) for part in _connected(members))
    return survey


def _unsuitable(node: Node, outputs: set[Value]) -> str | None:
    if not node.standard:
        return f"{node.domain}.{node.op} is a custom operator, whose results may differ from run to run"
    if node.op in NONDETERMINISTIC:
        return f"{node.op} may give another result at every run"
    if node.op in QUANTIZATION:
        return f"{node.op} is how a quantized model stores its weights; it is never evaluated"
    if has_subgraphs(node):
        return f"the subgraphs of {node.op} are left untouched"
    if any(v in outputs for v in node.outputs):
        return "its result is a graph output, which a node has to compute"
    return None


def _size_reason(node: Node, types: Mapping[str, ValueType], limit: int) -> str | None:
    for value in node.outputs:
        if not value.name:
            continue
        kind = types.get(value.name)
        if kind is not None and kind.dtype is not None and not _native(kind.dtype):
            return f"onnxruntime does not hand out results of type {kind.dtype}"
        size = _bytes(node, value, types)
        if size is None:
            return "the size of its result is not known before it runs"
        if size > limit:
            return f"its result takes {size:,} bytes, more than its inputs and max-growth allow ({limit:,})"
        if size < 0:
            return "its result has a negative size"
    return None


def _native(dtype: np.dtype[np.generic]) -> bool:
    """Whether numpy itself knows `dtype`: bfloat16, float8 and int4 come from an extension."""
    return dtype.isbuiltin == 1


def _bytes(node: Node, value: Variable, types: Mapping[str, ValueType]) -> int | None:
    """Return the bytes that `value` takes, or at most takes; None where that is unknown."""
    kind = types.get(value.name)
    if kind is None or kind.dtype is None:
        return None
    if kind.static is not None:
        # Python integers: the product of a malicious shape overflows any other kind.
        return math.prod(kind.static) * kind.dtype.itemsize if min(kind.static, default=0) >= 0 else -1
    if node.op in DATA_SIZED:
        source = types.get(node.inputs[0].name)
        if source is not None and source.static is not None:
            return math.prod(source.static) * max(1, len(source.static)) * 8
    return None


def _connected(members: Iterable[Node]) -> list[list[Node]]:
    """Return `members` in groups that share a computed value or a large constant, each in the given order."""
    group: dict[Node, list[Node]] = {}
    seen: dict[Value, Node] = {}
    for node in members:
        group[node] = [node]
        linked = [v for v in node.inputs if isinstance(v, Variable) or v.values.nbytes >= _SHARED]
        for value in [*linked, *node.outputs]:
            if not value.name:
                continue
            other = group[seen.setdefault(value, node)]
            own = group[node]
            if other is not own:
                other.extend(own)
                group.update((n, other) for n in own)
    order = {node: place for place, node in enumerate(group)}
    groups = {id(part): part for part in group.values()}
    return [sorted(part, key=order.__getitem__) for part in groups.values()]


def _island(nodes: list[Node], pinned: set[str], types: Mapping[str, ValueType]) -> Island:
    own = set(nodes)
    results = tuple(
        value
        for node in nodes
        for value in node.outputs
        if value.name and (value.name in pinned or any(reader not in own for reader in value.outputs))
    )
    size = {v: _bytes(node, v, types) or 0 for node in nodes for v in node.outputs if v.name}
    stored = sum(size[v] for v in results)
    freed = sum(c.values.nbytes for c in _private(nodes, own, pinned)) + sum(
        write_node(node).ByteSize() for node in nodes
    )
    reads = sum(c.values.nbytes for c in {v for n in nodes for v in n.inputs if isinstance(v, Constant)})
    return Island(tuple(nodes), results, stored - freed, reads, sum(size.values()))


def _private(nodes: list[Node], own: set[Node], pinned: set[str]) -> set[Constant]:
    """Return the constants that only the nodes in `own` read."""
    read = {v for node in nodes for v in node.inputs if isinstance(v, Constant)}
    return {c for c in read if c.name not in pinned and all(reader in own for reader in c.outputs)}


@dataclass(frozen=True)
class Plan:
    """Which islands to store: `free` ones make the file no larger, `growing` ones do; `declined` says why not others."""

    free: tuple[Island, ...]
    growing: tuple[Island, ...]
    declined: dict[Node, str]


def affordable(islands: Iterable[Island], max_growth: int, spent: int = 0) -> Plan:
    """Return which `islands` may be stored so that the file grows by at most `max_growth` bytes.

    `spent` bytes of that are gone already. Islands that make the file larger pass all together or not at all, after
    those that are too large alone: a choice among them would be made anew by the next run, which could then grow the
    file once more.
    """
    free: list[Island] = []
    growing: list[Island] = []
    declined: dict[Node, str] = {}
    for island in islands:
        last = island.nodes[-1]
        if island.effort > _EFFORT * (island.reads + max(max_growth, 1 << 20)):
            declined[last] = (
                f"evaluating it takes {island.effort:,} bytes, out of proportion to what it reads"
            )
        elif island.growth > max_growth:
            declined[last] = (
                f"storing its result would add {island.growth:,} bytes, more than max-growth ({max_growth:,})"
            )
        else:
            (growing if island.growth > 0 else free).append(island)
    total = spent + sum(i.growth for i in growing)
    if total > max_growth:
        reason = (
            f"it is one of {len(growing)} results that would add {total:,} bytes together, "
            f"more than max-growth ({max_growth:,})"
        )
        declined |= {i.nodes[-1]: reason for i in growing}
        growing = []
    return Plan(tuple(free), tuple(growing), declined)
