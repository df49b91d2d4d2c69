"""What the rules of label propagation share: the state of one walk over a graph, and how a rule declines a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.labels import Blocked, Ids, LabelMap, Labels, Role
from onnxcomp.ir.graph import Constant, Graph, Node, Value
from onnxcomp.numerics.arrays import Shapes

__all__ = ["Blocked", "Flow", "Leaf", "Rule", "Shapes", "Size", "SizeArray", "Weight"]


Leaf = tuple[str, str, int]
"""A number of channels that is read: the node that reads it, the value, and the axis."""


@dataclass(frozen=True)
class Size:
    """What is known of one element of a tensor of sizes.

    Attributes:
        leaves: the numbers of channels that it depends on.
        copy: the one that it equals, or None.
        fixed: whether it depends on nothing but those and stored numbers.
    """

    leaves: frozenset[Leaf] = frozenset()
    copy: Leaf | None = None
    fixed: bool = False


SizeArray = NDArray[np.object_]
"""One :class:`Size` per element of an integer tensor."""


@dataclass(frozen=True)
class Weight:
    """A stored tensor as a node sees it, which may be through Identity, Cast, Transpose or a quantization.

    Attributes:
        constant: the tensor in the file.
        axes: for each axis that the node sees, the tensor's own.
        scales: scales and zero points with one element per position, and the axis (as the node sees it) they lie along.
        zero: what stands for zero in the tensor and the axis of the tensor along which that varies; None where 0 does.
    """

    constant: Constant
    axes: tuple[int, ...]
    scales: tuple[tuple[Constant, int], ...] = ()
    zero: tuple[Constant, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the node sees."""
        return tuple(self.constant.values.shape[axis] for axis in self.axes)


@dataclass
class Flow:
    """The state of one propagation, as the rules see it.

    Attributes:
        graph: the graph that is read.
        shapes: concrete shapes by value name.
        map: the labels found so far.
        weights: computed values that are stored tensors seen through other nodes, and only ever read as weights.
        opaque: values that would be such but for what they say.
        sizes: tensors of sizes, by name.
        sure: whether the shapes are those of a run; where they are not, they may contradict each other.
        soft: computed values that depend on stored tensors alone, which can be cut wherever others have channels.
    """

    graph: Graph
    shapes: Shapes
    map: LabelMap
    weights: dict[str, Weight] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, SizeArray] = field(default_factory=dict)
    soft: set[str] = field(default_factory=set)
    sure: bool = True

    def labels(self, value: Value) -> Labels:
        """Return the labels of an input of a node; the node is declined where the value holds nothing."""
        found = self.map.of_constant(value) if isinstance(value, Constant) else self.map.values[value.name]
        if 0 in found.shape:
            raise Blocked(f"it meets the empty value {value.name!r}")
        return found

    def shape(self, node: Node, index: int = 0) -> tuple[int, ...]:
        """Return the concrete shape of an output; the node is declined where nothing comes out."""
        found = self.shapes[node.outputs[index].name]
        if 0 in found:
            raise Blocked(f"{node.op} {node.name!r} makes an empty value")
        return found

    def knows(self, node: Node) -> bool:
        """Return whether the shapes of all inputs and outputs of `node` are known."""
        return all(not v.name or v.name in self.shapes for v in [*node.inputs, *node.outputs])

    def channels(self, node: Node, axis: int, index: int = 0) -> Ids:
        """Return the labels of an input along `axis`; what lies at one position there is tied.

        The node is declined where labels differ along other axes only.
        """
        labels = self.labels(node.inputs[index])
        axis %= max(1, len(labels.shape))
        ids = labels.along(axis)
        if ids is None:
            if axis not in labels.axes:
                raise Blocked(f"{node.op} {node.name!r} reads channels that lie along another axis")
            flat = self.map.flatten(labels.ids, set(labels.axes) - {axis})
            ids = np.broadcast_to(flat.reshape(-1), (labels.shape[axis],))
        return ids

    def mixed(self, labels: Labels, axes: Iterable[int], reason: str) -> Labels:
        """Return `labels` of a value whose elements are mixed along `axes`: what is mixed goes together.

        The node is declined, with `reason`, where there are channels along those axes and along no other.
        """
        mixed = set(axes) & set(labels.axes)
        if not mixed:
            return labels
        if mixed == set(labels.axes):
            raise Blocked(reason)
        self.map.hint(labels.ids, reason)
        return Labels(self.map.flatten(labels.ids, mixed), labels.shape)

    def is_stored(self, value: Value) -> bool:
        """Return whether `value` depends on stored tensors alone: it can be cut wherever others have channels."""
        return isinstance(value, Constant) or value.name in self.soft

    def behind(self, value: Value | None) -> Weight | None:
        """Return the stored tensor that `value` is, possibly through other nodes, or None."""
        if isinstance(value, Constant):
            return Weight(value, tuple(range(value.values.ndim)))
        return self.weights.get(value.name) if value is not None else None

    def weight(self, node: Node, index: int) -> Weight:
        """Return the stored tensor that `node` reads as input `index`; the node is declined where it is computed."""
        found = self.behind(node.input(index))
        if found is None:
            value = node.input(index)
            known = self.opaque.get(value.name) if value is not None else None
            raise Blocked(known or f"{node.op} {node.name!r} has a computed weight")
        return found

    def use(self, node: Node, weight: Weight, axis: int, ids: Ids | None, role: Role) -> Ids:
        """Tie an axis of a weight to `ids` (new ones where None), its scales along, and return its labels."""
        own = weight.axes[axis]
        made = self.map.use_axis(node, weight.constant, own, ids, role, zero=weight.zero)
        for scale, along in weight.scales:
            if along == axis:
                self.map.use_axis(node, scale, 0, made, "follows")
        return made

    def whole(self, node: Node, indices: Iterable[int], reason: str) -> None:
        """Keep the stored tensors that `node` reads at `indices` as they are."""
        for index in indices:
            found = self.behind(node.input(index))
            if found is not None:
                self.map.foreign.setdefault(found.constant.name, reason)


Rule = Callable[[Flow, Node], "list[Labels]"]
"""Returns the labels of every output of a node; raises Blocked where it cannot say."""
