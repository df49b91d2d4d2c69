"""Sites of a repair: the linear nodes whose inputs differ from the original's, and the model that they are refitted towards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.linear import LinearNode, linear_node, not_refitted
from onnxcomp.compiler.passbase import Context
from onnxcomp.compiler.repair.refit import Site, too_wide
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import WEIGHTED

__all__ = [
    "biases_to_come",
    "damaged_sites",
    "kept_positions",
    "replaced_sites",
    "shared_weight",
    "teacher_of",
]

Rows = NDArray[np.int64]
Keep = Mapping[str, NDArray[np.bool_]]


def kept_positions(groups: ChannelGroups, keep: Keep) -> dict[tuple[str, int], Rows]:
    """Return, for every axis of a stored tensor that a cut touches, the positions that stay."""
    stays: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for name, mask in keep.items():
        for member in groups[name].members:
            here = (member.units < 0) | mask[member.units]
            key = (member.name, member.axis)
            stays[key] = stays[key] & here if key in stays else here
    return {key: np.flatnonzero(mask) for key, mask in stays.items()}


class _Changed:
    """Values that differ from the original's, as they spread through the nodes of a graph in topological order."""

    def __init__(self, values: Collection[str] = ()) -> None:
        self._values = set(values)

    def reach(self, node: Node) -> bool:
        """Return whether `node` reads one, in a subgraph or directly."""
        return any(v.name in self._values for v in node.inputs) or bool(self._values & set(node.captures))

    def spread(self, node: Node) -> None:
        """Take in what `node` makes."""
        self._values.update(v.name for v in node.outputs if v.name)


def damaged_sites(
    original: Model,
    cut: Model,
    kept: Mapping[tuple[str, int], Rows],
    left_alone: Callable[[str], str | None],
    touched: Collection[str] = (),
) -> tuple[list[Site], dict[str, str]]:
    """Return the linear nodes of `cut` to refit, in order, and those that cannot be, with reasons.

    A node is to be refitted where its input was cut or comes from a node that was cut or is to be refitted. `left_alone`
    gives the reason why a node must keep its weights, or None; `touched` names values that differ for another reason.
    """
    before = {node.name: node for node in original.graph.nodes}
    changed = _Changed(touched)
    sites: list[Site] = []
    refused: dict[str, str] = {}
    for node in cut.graph.nodes:
        dirty = changed.reach(node)
        linear = linear_node(node)
        # A cut may add nodes: a Concat of sizes of its own for a reader of one that others share.
        was = linear_node(before[node.name]) if node.name in before else None
        if linear is not None and was is not None:
            name = was.node.inputs[was.weight].name
            sliced = (name, was.out_axis) in kept
            if dirty or (name, was.in_axis) in kept:
                reason = left_alone(node.name) or shared_weight(original, was) or too_wide(linear)
                if reason:
                    refused[node.name] = reason
                else:
                    sites.append(Site(node.name, kept.get((name, was.out_axis), _all_rows(was))))
            dirty = dirty or sliced or (name, was.in_axis) in kept
        else:
            cut_here = any((v.name, axis) in kept for v in node.inputs for axis in range(len(v.shape or ())))
            reason = not_refitted(node)
            if reason is None and node.is_op(*WEIGHTED) and any(isinstance(v, Constant) for v in node.inputs):
                reason = f"there is no refit for such a {node.op}"
            if reason and (dirty or cut_here):
                refused[node.name] = left_alone(node.name) or reason
            dirty = dirty or cut_here
        if dirty:
            changed.spread(node)
    return sites, refused


def replaced_sites(
    original: Model, replaced: Collection[str], left_alone: Callable[[str], str | None]
) -> tuple[list[Site], dict[str, str]]:
    """Return the linear nodes to refit, in order, where the nodes `replaced` of `original` are, and those that cannot be.

    Those are the replaced nodes and the linear nodes that read what follows from them. `left_alone` gives the reason why a
    node must keep its weights, or None.
    """
    changed = _Changed()
    sites: list[Site] = []
    refused: dict[str, str] = {}
    for node in original.graph.nodes:
        dirty = changed.reach(node) or node.name in replaced
        linear = linear_node(node)
        reason = None
        if dirty and linear is not None and node.name not in replaced:
            reason = left_alone(node.name) or shared_weight(original, linear) or too_wide(linear)
        elif dirty and linear is None:
            reason = not_refitted(node)
        if reason:
            refused[node.name] = reason
        elif dirty and linear is not None:
            sites.append(Site(node.name, _all_rows(linear)))
        if dirty:
            changed.spread(node)
    return sites, refused


def _all_rows(node: LinearNode) -> Rows:
    return np.arange(node.weight_array().shape[node.out_axis])


def biases_to_come(model: Model) -> list[tuple[str, int]]:
    """Return the weights, with their axes of output channels, of nodes that a refit may give the bias they lack."""
    found = (linear_node(node) for node in model.graph.nodes)
    return [
        (str(n.node.inputs[n.weight].name), n.out_axis)
        for n in found
        if n and n.has_bias and n.node.input(2) is None
    ]


def shared_weight(model: Model, node: LinearNode) -> str | None:
    """Return why the weight of `node` is not changed, or None: another node reads it, too."""
    weight = node.node.inputs[node.weight]
    if model.graph.sole_use(weight) is None:
        return f"its weight {weight.name!r} is shared, and a refit would make a copy of it"
    return None


def teacher_of(
    model: Model, nodes: Collection[str], context: Context, shapes: Mapping[str, tuple[int, ...]]
) -> Model:
    """Return the model that repairing the `nodes` of `model` works towards: the pipeline's, or `model` itself.

    The pipeline's serves where something has been lost before, it has the outputs of all `nodes`, and no value that both
    have differs in its shape (`shapes` are those of `model`): a pass that removed channels leaves others that mean
    something else.
    """
    if not context.damaged:
        return model
    known = context.original.graph.values()
    if any(node.output.name not in known for node in model.graph.nodes if node.name in nodes):
        return model
    theirs = context.shapes(context.original)
    same = all(theirs[name] == shape for name, shape in shapes.items() if name in theirs)
    return context.original if same else model
