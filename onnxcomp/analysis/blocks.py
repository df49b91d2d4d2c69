"""Residual blocks: branches that are added to a value which does without them, so that they can go whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.linear import linear_node
from onnxcomp.ir.graph import Array, Constant, Graph, Node, Value, Variable
from onnxcomp.ir.liveness import dead_nodes
from onnxcomp.ir.model import Model

__all__ = ["Block", "drop_block", "residual_blocks"]


@dataclass(frozen=True)
class Block:
    """A branch of a residual block.

    Attributes:
        name: the node that adds the branch.
        branch: the value that is added.
        stays: the value that it is added to.
        nodes: names of the nodes that serve the branch alone, in order.
        groups: names of the channel groups that lie inside the branch.
    """

    name: str
    branch: str
    stays: str
    nodes: tuple[str, ...]
    groups: tuple[str, ...]


def residual_blocks(model: Model, groups: ChannelGroups, excluded: Iterable[str] = ()) -> list[Block]:
    """Return the branches of `model` that can be removed whole, in order.

    A branch can go where what it reads is also what the other operand comes from, where nothing else reads it, and where
    every node in it that multiplies has channels inside it, so that the branch without channels costs nothing. Of two
    branches that meet (a shortcut with a convolution), the one with more nodes is meant. No branch holds a node of
    `excluded`.
    """
    found = []
    places = {node.name: place for place, node in enumerate(model.graph.nodes)}
    for node in model.graph.nodes:
        if not node.is_op("Add") or any(isinstance(v, Constant) for v in node.inputs):
            continue
        first, second = node.inputs
        candidates = [
            (branch, stays, cone)
            for branch, stays in ((first, second), (second, first))
            if branch is not stays and (cone := _cone(model, node, branch))
        ]
        known = {id(stays): _ancestors(stays) for _, stays, _ in candidates}
        candidates = [
            (branch, stays, cone)
            for branch, stays, cone in candidates
            if _outside(cone) <= known[id(stays)] and _same_shape(groups, branch, stays)
        ]
        for branch, stays, cone in sorted(candidates, key=lambda c: -len(c[2]))[:1]:
            names = {n.name for n in cone}
            inside = _inside(groups, names)
            if inside and not names & set(excluded) and _all_cut(groups, cone, inside):
                ordered = tuple(sorted(names, key=places.__getitem__))
                found.append(Block(node.name, branch.name, stays.name, ordered, inside))
    return found


def drop_block(model: Model, block: Block, constant: Array) -> None:
    """Replace the branch of `block` in `model` by `constant` (its mean, broadcast by the addition), in place."""
    adder = next(node for node in model.graph.nodes if node.name == block.name)
    index = next(i for i, value in enumerate(adder.inputs) if value.name == block.branch)
    model.graph.set_input(adder, index, model.graph.add_constant(f"{block.name}.mean", constant))
    model.graph.remove_nodes(dead_nodes(model.graph))


def _cone(model: Model, adder: Node, branch: Value) -> list[Node]:
    """Return the nodes whose outputs reach nothing but `branch` and through it `adder`."""
    graph = model.graph
    if model.graph.sole_use(branch) is not adder:
        return []
    cone: dict[Node, None] = {}
    queue = [branch.producer] if isinstance(branch, Variable) else []
    while queue:
        node = queue.pop()
        if node is None or node in cone:
            continue
        cone[node] = None
        for value in node.inputs:
            maker = value.producer if isinstance(value, Variable) else None
            if maker is not None and all(_within(graph, out, cone) for out in maker.outputs):
                queue.append(maker)
    return list(cone) if all(not node.captures for node in cone) else []


def _within(graph: Graph, value: Variable, cone: dict[Node, None]) -> bool:
    """Return whether nothing outside `cone` reads `value`."""
    uses = value.consumers
    if not uses or graph.is_output(value) or value.name in graph.captured():
        return False
    return all(user in cone for user in uses)


def _outside(cone: list[Node]) -> set[str]:
    made = {v.name for node in cone for v in node.outputs}
    return {
        v.name
        for node in cone
        for v in node.inputs
        if v.name and not isinstance(v, Constant) and v.name not in made
    }


def _ancestors(value: Value) -> set[str]:
    """Return the names of `value` and of everything it is computed from."""
    found: set[str] = set()
    queue = [value]
    while queue:
        here = queue.pop()
        if here.name in found or isinstance(here, Constant):
            continue
        found.add(here.name)
        maker = here.producer if isinstance(here, Variable) else None
        queue.extend(maker.inputs if maker is not None else ())
    return found


def _same_shape(groups: ChannelGroups, first: Value, second: Value) -> bool:
    a, b = (groups.labels.values.get(v.name) for v in (first, second))
    return a is not None and b is not None and a.shape == b.shape


def _inside(groups: ChannelGroups, names: set[str]) -> tuple[str, ...]:
    return tuple(
        g.name for g in groups if not any(g.reasons) and all(member.node in names for member in g.members)
    )


def _all_cut(groups: ChannelGroups, cone: list[Node], inside: tuple[str, ...]) -> bool:
    """Return whether every node of `cone` that multiplies loses all its work with the channels of `inside`."""
    cut = {member.node for name in inside for member in groups[name].members}
    return all(node.name in cut for node in cone if linear_node(node) is not None)
