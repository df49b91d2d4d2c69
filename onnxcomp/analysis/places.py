"""Where the channels of a group show: after which activation, behind which BatchNormalization, at what their readers read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcomp.analysis.channels import ChannelGroup, ChannelGroups
from onnxcomp.analysis.labels import compact
from onnxcomp.ir.graph import Constant, Graph, Node, Variable
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import ACTIVATIONS, LINEAR, SCALE_OR_SHIFT

__all__ = ["Place", "Places", "earlier_gamma"]

Array = NDArray[np.floating]
Units = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """A value that holds channels of a group: `units[i]` is the unit of position i along `axis`, -1 for none."""

    value: str
    axis: int
    units: Units


class Places:
    """The places of one group in `model`, which is the analysed model itself."""

    def __init__(self, model: Model, groups: ChannelGroups, group: ChannelGroup) -> None:
        self._graph: Graph = model.graph
        self._groups = groups
        self._classes = groups.classes[group.view]
        self._nodes: Mapping[str, Node] = {node.name: node for node in model.graph.nodes}
        self._unit_of = np.full(int(groups.classes.max(initial=-1)) + 1, -1, np.int64)
        self._unit_of[group.roots] = np.arange(group.units)

    def of(self, value: str) -> Place | None:
        """Return where `value` holds channels of the group, or None where it holds none, or all along several axes."""
        labels = self._groups.labels.values.get(value)
        if labels is None:
            return None
        units = self._unit_of[compact(self._classes[labels.ids])]
        varying = [axis for axis, size in enumerate(units.shape) if size > 1]
        if len(varying) != 1 or (units < 0).all():
            return None
        return Place(value, varying[0], units.reshape(-1))

    def output(self, producer: str) -> Place | None:
        """Return the place of the first output of the node `producer` that holds channels of the group."""
        found = (self.of(value.name) for value in self._nodes[producer].outputs)
        return next((place for place in found if place is not None), None)

    def activation(self, producer: str) -> Place | None:
        """Return the place of the nearest activation's output behind `producer`, or None where there is none.

        What a value is multiplied with that was made of it (`x * sigmoid(x)`) is part of its activation.
        """
        node, passed = self._nearest(producer, lambda n: n.is_op(*ACTIVATIONS))
        if node is None:
            return None
        gate = self._graph.sole_use(node.output)
        if gate is not None and gate.is_op("Mul") and any(v.name in passed for v in gate.inputs):
            return self.of(gate.output.name)
        return self.of(node.output.name)

    def gamma(self, producer: str) -> tuple[Array, Units] | None:
        """Return the scale of the nearest BatchNormalization behind `producer` with the unit of each position, or None.

        A BatchNormalization behind an activation is another layer's.
        """
        node, _ = self._nearest(producer, lambda n: n.is_op("BatchNormalization"))
        values = node.constant(1) if node is not None else None
        place = self.of(node.output.name) if node is not None else None
        return (values, place.units) if values is not None and place is not None else None

    def reads(self, consumer: str) -> Place | None:
        """Return the place of the first computed input of the node `consumer` that holds channels of the group."""
        found = (
            self.of(v.name) for v in self._nodes[consumer].inputs if v.name and not isinstance(v, Constant)
        )
        return next((place for place in found if place is not None), None)

    def _nearest(self, producer: str, wanted: Callable[[Node], bool]) -> tuple[Node | None, set[str]]:
        """Return the nearest wanted node that the group's channels reach from `producer`, and the values passed.

        The search does not go beyond activations, and not to where the channels are contracted.
        """
        queue = deque(v for v in self._nodes[producer].outputs if v.name)
        passed = {value.name for value in queue}
        while queue:
            value: Variable = queue.popleft()
            for reader in value.consumers:
                made = [v for v in reader.outputs if v.name not in passed and self.of(v.name) is not None]
                if made and wanted(reader):
                    return reader, passed
                if made and not reader.is_op(*ACTIVATIONS):
                    passed.update(v.name for v in made)
                    queue.extend(made)
        return None, passed


def earlier_gamma(original: Model, model: Model, producer: str) -> Array | None:
    """Return the scale of the BatchNormalization that stood behind `producer` of `model` in `original`, or None.

    The node is found by the names that `model` followed through its edits; constants that scale or shift may stand
    between it and the BatchNormalization. Positions are those of the producer's output then.
    """
    for node in original.graph.nodes:
        if not node.is_op(*LINEAR) or model.aliases.get(node.name, node.name) != producer:
            continue
        follower = original.graph.sole_use(node.output)
        while follower is not None and _scales_or_shifts(follower):
            follower = original.graph.sole_use(follower.output)
        if follower is not None and follower.is_op("BatchNormalization"):
            return follower.constant(1)
    return None


def _scales_or_shifts(node: Node) -> bool:
    return node.is_op(*SCALE_OR_SHIFT) and any(isinstance(v, Constant) for v in node.inputs)
