"""Edits of several steps that passes share; each leaves the graph consistent."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable

from onnxcomp.ir.graph import Array, Constant, Graph, Node, Value, Variable
from onnxcomp.ir.liveness import dead_nodes, unread_constants
from onnxcomp.ir.model import Model

__all__ = ["absorb", "bypass", "drop_orphans", "freeze", "give_padding", "remove_dead_nodes"]


def absorb(graph: Graph, producer: Node, follower: Node) -> None:
    """Make `producer` compute what `follower` computed, and remove `follower`.

    The value keeps the name it had as the output of `follower`: whoever reads it, by name or by wire, reads on. Only the
    first outputs count. The caller has made sure that nobody but `follower` reads the output of `producer`.
    """
    value = follower.output
    follower.outputs[0] = Variable("")
    follower.inputs.clear()
    producer.outputs[0] = value
    graph.remove_nodes([follower])


def bypass(model: Model, old: Variable, new: Value) -> bool:
    """Make every reader of `old` read `new`, which holds the same; return whether the names allow it.

    Like :meth:`Graph.replace_all_uses`, but a declared type goes along where `new` has to take a name over.
    """
    before = new.name
    if not model.graph.replace_all_uses(old, new):
        return False
    if new.name != before and before in model.declared:
        info = copy.deepcopy(model.declared.pop(before))
        info.name = new.name
        model.declared[new.name] = info
    return True


def give_padding(graph: Graph, pad: Node, merged: Iterable[tuple[Node, list[int]]]) -> None:
    """Let the readers of `pad`, each with the attribute `pads` that `merged` gives it, pad themselves, and remove `pad`."""
    for reader, pads in merged:
        reader.attrs.pop("auto_pad", None)
        reader.attrs["pads"] = pads
        if reader.is_op("AveragePool"):
            reader.attrs["count_include_pad"] = 1
        graph.set_input(reader, 0, pad.inputs[0])
    graph.remove_nodes([pad])


def freeze(graph: Graph, value: Variable, values: Array) -> Constant:
    """Store `values` as a constant that bears the name of `value`, and make every reader read it.

    The producer of `value` stays, without that output. `value` must not be a graph input or output; subgraphs that capture
    it find the constant under its name.
    """
    constant = Constant(value.name, values)
    for node, index in list(graph.uses(value)):
        node.inputs[index] = constant
    producer = value.producer
    if producer is not None:
        producer.outputs[list(producer.outputs).index(value)] = Variable("")
    graph.constants[constant.name] = constant
    return constant


def remove_dead_nodes(model: Model, keep: Collection[Node] = ()) -> list[str]:
    """Remove the nodes that nothing depends on and record that they are gone; return their names, in graph order."""
    doomed = dead_nodes(model.graph, keep)
    model.graph.remove_nodes(doomed)
    for node in doomed:
        model.rename_node(node.name, "")
    return [node.name for node in doomed]


def drop_orphans(model: Model, before: Collection[str]) -> int:
    """Remove constants that nothing reads any more, sparing those in `before`, which nothing read to begin with.

    Returns the bytes that went.
    """
    gone = [c for c in unread_constants(model) if c.name not in before]
    for constant in gone:
        del model.graph.constants[constant.name]
    return sum(c.values.nbytes for c in gone)
