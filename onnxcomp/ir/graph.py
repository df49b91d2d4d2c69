"""The mutable graph: onnx-graphsurgeon's containers with identity semantics, and named edits.

graphsurgeon compares tensors by name and nodes by content, which makes both unhashable and membership tests slow or
wrong; the subclasses here compare and hash by identity. Names are labels: unique, but not keys of equality. Passes edit
only through the methods of :class:`Graph`, which keep producers, consumers, graph outputs and subgraph captures right.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcomp.errors import ModelError

__all__ = [
    "Array",
    "Constant",
    "Graph",
    "Lookup",
    "Node",
    "Taken",
    "Value",
    "Variable",
    "frozen",
    "is_default_domain",
]

Array: TypeAlias = NDArray[Any]
"""Stored or computed tensor data of any dtype."""


def is_default_domain(domain: str | None) -> bool:
    """Return whether `domain` names the standard operators (two spellings are in use)."""
    return not domain or domain == "ai.onnx"


class Variable(gs.Variable):
    """A value computed at run time: `dtype` and `shape` are what the file declared, both may be None."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def producer(self) -> Node | None:
        """The node that makes this value; None for a graph input or an omitted optional."""
        return self.inputs[0] if self.inputs else None

    @property
    def consumers(self) -> list[Node]:
        """The nodes that read this value, each once, in order of first use."""
        return list(dict.fromkeys(self.outputs))


class Constant(gs.Constant):
    """A value stored in the file; its array is shared between clones and must never be written in place."""

    __hash__ = object.__hash__

    def __init__(self, name: str, values: Array, doc_string: str = "") -> None:
        super().__init__(name, frozen(values))
        self.doc_string = doc_string
        self.metadata: dict[str, str] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    producer: None = None

    @property
    def consumers(self) -> list[Node]:
        """The nodes that read this value, each once, in order of first use."""
        return list(dict.fromkeys(self.outputs))


Value: TypeAlias = Variable | Constant
"""A named edge of the graph."""


def frozen(values: Array) -> Array:
    """Return a read-only view of `values`: arrays are shared between clones."""
    view = np.asarray(values).view()
    view.flags.writeable = False
    return view


class Node(gs.Node):
    """One operator call. `captures` names the outer values that its subgraphs read, `scoped` those they define.

    `attr_docs` are the doc strings of attributes, `empty_lists` the types of those that are empty lists, by name: they
    come to nothing, and are written again.
    """

    __hash__ = object.__hash__

    def __init__(
        self,
        op: str,
        name: str = "",
        attrs: dict[str, Any] | None = None,
        inputs: Sequence[Value] = (),
        outputs: Sequence[Variable] = (),
        domain: str | None = None,
    ) -> None:
        super().__init__(op, name, dict(attrs or {}), list(inputs), list(outputs), domain)
        self.captures: tuple[str, ...] = ()
        self.scoped: frozenset[str] = frozenset()
        self.attr_docs: dict[str, str] = {}
        self.empty_lists: dict[str, int] = {}
        self.doc_string = ""
        self.metadata: dict[str, str] = {}
        self.overload = ""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<{self.op} {self.name!r}>"

    @property
    def standard(self) -> bool:
        """Whether the operator belongs to the standard domain."""
        return is_default_domain(self.domain)

    def is_op(self, *ops: str) -> bool:
        """Return whether this is a standard operator named in `ops`."""
        return self.op in ops and self.standard

    def input(self, index: int) -> Value | None:
        """Return input `index`, or None where it is absent or an omitted optional."""
        if index >= len(self.inputs) or not self.inputs[index].name:
            return None
        value: Value = self.inputs[index]
        return value

    def constant(self, index: int) -> Array | None:
        """Return the array of input `index` where that is a constant, else None."""
        value = self.input(index)
        return value.values if isinstance(value, Constant) else None

    @property
    def output(self) -> Variable:
        """The first output."""
        value: Variable = self.outputs[0]
        return value


@dataclass
class Taken:
    """The names that a graph bears at one time, for runs of edits that would gather them anew at every one.

    Attributes:
        names: those of values and nodes in any scope; what is stored with its help is added.
        captured: those of values that subgraphs read.
    """

    names: set[str]
    captured: set[str]


class Lookup(gs.Graph):
    """What can be asked of a graph."""

    nodes: list[Node]
    inputs: list[Variable]
    outputs: list[Value]

    def __init__(self, name: str = "", doc_string: str = "", opset: int = 17) -> None:
        super().__init__(name=name, doc_string=doc_string, opset=opset)
        self.constants: dict[str, Constant] = {}

    def values(self) -> dict[str, Value]:
        """Return every named value of the graph by name: inputs, constants, node outputs, in that order."""
        found: dict[str, Value] = {v.name: v for v in self.inputs}
        found.update(self.constants)
        for node in self.nodes:
            found.update((v.name, v) for v in node.outputs if v.name)
            found.update((v.name, v) for v in node.inputs if v.name and v.name not in found)
        return found

    def names(self) -> set[str]:
        """Return the names that values and nodes bear, in any scope."""
        return {
            *self.values(),
            *(n.name for n in self.nodes),
            *(name for n in self.nodes for name in n.scoped),
        }

    def captured(self) -> set[str]:
        """Return the names of values that subgraphs read from this graph: they must keep name and meaning."""
        return {name for node in self.nodes for name in node.captures}

    def is_output(self, value: Value) -> bool:
        """Return whether `value` is a graph output."""
        return any(v is value for v in self.outputs)

    def uses(self, value: Value) -> Iterator[tuple[Node, int]]:
        """Yield `(node, input index)` for every place that reads `value`; subgraph captures are not among them."""
        for node in value.consumers:
            for index, read in enumerate(node.inputs):
                if read is value:
                    yield node, index

    def taken(self) -> Taken:
        """Return the names that are in use now."""
        return Taken(self.names(), self.captured())

    def sole_use(self, value: Value, captured: Collection[str] | None = None) -> Node | None:
        """Return the only reader of `value`, or None where it is read twice, captured, an output or unread.

        `captured` is what `captured()` gave, where that is known.
        """
        if len(value.outputs) != 1 or self.is_output(value):
            return None
        if value.name in (self.captured() if captured is None else captured):
            return None
        node: Node = value.outputs[0]
        return node

    def fresh_name(self, base: str, taken: Collection[str] | None = None) -> str:
        """Return `base`, or `base_2`, `base_3`, ..., whichever no value and no node bears yet, in any scope."""
        used = self.names() if taken is None else taken
        name, count = base, 1
        while name in used:
            count += 1
            name = f"{base}_{count}"
        return name


class Graph(Lookup):
    """The top-level graph. `nodes` is in topological order; `constants` holds every stored tensor by name."""

    def add_constant(self, name: str, values: Array) -> Constant:
        """Register a new stored tensor under `name` (made unique) and return it."""
        constant = Constant(self.fresh_name(name), values)
        self.constants[constant.name] = constant
        return constant

    def set_input(self, node: Node, index: int, value: Value) -> None:
        """Make `node` read `value` as its input `index`, appending omitted optionals in between if needed."""
        while len(node.inputs) <= index:
            node.inputs.append(Variable(""))
        node.inputs[index] = value

    def drop_trailing_inputs(self, node: Node, keep: int) -> None:
        """Keep the first `keep` inputs of `node`."""
        while len(node.inputs) > keep:
            node.inputs.pop()

    def set_constant(
        self, node: Node, index: int, values: Array, suffix: str = "onnxcomp", taken: Taken | None = None
    ) -> Constant:
        """Give `node` its own constant as input `index`.

        The name of the old constant is kept where nothing else reads it; otherwise a new one ends in `__suffix`. `taken`
        are the names in use, where they are known.
        """
        old = node.input(index)
        if isinstance(old, Constant) and self.sole_use(old, taken.captured if taken else None) is node:
            name = old.name
            self.constants.pop(name, None)
        else:
            base = old.name if old is not None else f"{node.name or node.output.name}.{index}"
            name = self.fresh_name(f"{base}__{suffix}", taken.names if taken else None)
            if taken is not None:
                taken.names.add(name)
        constant = Constant(name, values)
        if isinstance(old, Constant):
            constant.doc_string, constant.metadata = old.doc_string, dict(old.metadata)
        self.constants[name] = constant
        self.set_input(node, index, constant)
        return constant

    def insert(self, node: Node, before: Node) -> None:
        """Insert `node` into the order just before `before`."""
        self.nodes.insert(self.nodes.index(before), node)

    def remove_nodes(self, nodes: Iterable[Node]) -> None:
        """Detach and remove `nodes`. Their outputs must have no readers left; constants stay registered.

        Nothing is edited when an error is raised.

        Raises:
            ValueError: if an output of a removed node is a graph output, or still read by a node that stays or by one
                of its subgraphs.
        """
        doomed = set(nodes)
        captured = {name for node in self.nodes if node not in doomed for name in node.captures}
        for node in doomed:
            for value in node.outputs:
                read = any(reader not in doomed for reader in value.outputs) or value.name in captured
                if read or self.is_output(value):
                    raise ValueError(f"{value.name} is still in use")
        for node in doomed:
            node.inputs.clear()
            node.outputs.clear()
        self.nodes[:] = [node for node in self.nodes if node not in doomed]

    def replace_all_uses(self, old: Value, new: Value) -> bool:
        """Make every reader of `old` read `new`; return whether that was possible.

        Where `old` is a graph output or captured by a subgraph, its name must survive: then `new` takes the name
        over, which is possible only if `new` is computed by a node and is not itself an output, input or captured, and
        if `old` is not a graph input, which needs its name. Nothing is edited when False is returned.
        """
        captured = self.captured()
        if self.is_output(old) or old.name in captured:
            if not isinstance(new, Variable) or new.producer is None or any(v is old for v in self.inputs):
                return False
            if self.is_output(new) or new.name in captured or new is old:
                return False
            self._hand_over_name(old, new)
            self.outputs[:] = [new if v is old else v for v in self.outputs]
        for node, index in list(self.uses(old)):
            node.inputs[index] = new
        return True

    def _hand_over_name(self, old: Value, new: Variable) -> None:
        name, spare = old.name, self.fresh_name(f"{old.name}__replaced")
        if isinstance(old, Variable):
            new.dtype, new.shape, new.type = old.dtype, old.shape, old.type
        elif self.constants.pop(name, None) is not None:
            self.constants[spare] = old
        old.name, new.name = spare, name

    def sort(self) -> bool:
        """Bring `nodes` into topological order, keeping the given order where it is one; return whether it changed.

        Raises:
            ModelError: if the graph has a cycle; two of its nodes are named.
        """
        makers = {v.name: n for n in self.nodes for v in n.outputs if v.name}
        place = {node: i for i, node in enumerate(self.nodes)}
        needs = {n: {makers[r] for r in _reads(n) if r in makers} for n in self.nodes}
        if all(place[maker] < place[node] for node, found in needs.items() for maker in found):
            return False
        readers: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for node, found in needs.items():
            for maker in found:
                readers[maker].append(node)
        waiting = {node: len(found) for node, found in needs.items()}
        ready = [place[n] for n in self.nodes if not waiting[n]]
        order: list[Node] = []
        while ready:
            # The earliest of the nodes that can run: nodes that already stood right keep their order.
            node = self.nodes[heapq.heappop(ready)]
            order.append(node)
            for reader in readers[node]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    heapq.heappush(ready, place[reader])
        if len(order) != len(self.nodes):
            names = " and ".join(repr(n.name or n.op) for n in _cycle(needs, set(order))[:2])
            raise ModelError(f"the graph has a cycle through {names}")
        self.nodes[:] = order
        return True


def _reads(node: Node) -> list[str]:
    return [*(v.name for v in node.inputs), *node.captures]


def _cycle(needs: dict[Node, set[Node]], done: set[Node]) -> list[Node]:
    """Return the nodes of one cycle among those not `done`, each of which waits for another one."""
    path: dict[Node, None] = {}
    node = next(n for n in needs if n not in done)
    while node not in path:
        path[node] = None
        node = next(n for n in needs if n in needs[node] and n not in done)
    members = list(path)
    return members[members.index(node) :]
