"""The operators of a model in order, with what each takes and the layout in which it leaves its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.cost import Shapes, node_macs
from onnxcomp.analysis.cutaxes import CutAxes, CutAxis, Keep
from onnxcomp.compiler.cost.kernel_graphs import ConvKind
from onnxcomp.compiler.cost.kernel_times import KernelTimes
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import COUNTED, ELEMENTWISE, FUSED_ACTIVATIONS, POOLING, RESHAPING, UNARY

__all__ = ["OperatorWalk", "attribute_text"]


@dataclass
class _Value:
    """A computed value: `elements` before the cut, its cut axes, its `channels` and where those left are counted."""

    elements: int
    axes: tuple[tuple[int, int], ...]
    channels: int
    channel_axis: int | None
    size: tuple[int, ...]


@dataclass
class _State:
    """What the walk over the operators knows: positions left of each axis, where values lie, the milliseconds so far."""

    left: list[int]
    blocked: list[bool]
    both: list[bool]
    joined: list[bool]
    spent: float = 0.0


OperatorStep = Callable[[_State], None]


def attribute_text(value: Any) -> str:
    """Return what of an attribute decides about time: tensors by their shape alone."""
    if isinstance(value, str | int | float | bytes | list | tuple):
        return repr(value)
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} {shape}"


class _Values:
    """The computed values of a model by number: their sizes, which axes of them are cut, in which layout they lie."""

    def __init__(self, groups: ChannelGroups, shapes: Shapes, times: KernelTimes) -> None:
        self._shapes, self._times = shapes, times
        self.cut = CutAxes(groups)
        self._axes: dict[CutAxis, int] = {}
        self.known: list[_Value] = []
        self.numbers: dict[str, int] = {}

    def state(self, keep: Keep) -> _State:
        """Return what is known before the first operator, with only the units in `keep`."""
        count = len(self.known)
        left = [axis.left(keep) for axis in self._axes]
        return _State(left, [False] * count, [False] * count, [False] * count)

    def value(self, name: str) -> int:
        """Return the number of the value `name`."""
        if name not in self.numbers:
            shape = self._shapes.get(name, ())
            cut = {number: self.axis(axis) for number, axis in self.cut.computed(name).items()}
            axes = tuple((place, shape[number]) for number, place in cut.items())
            self.numbers[name] = len(self.known)
            channels = shape[1] if len(shape) == 4 else 0
            self.known.append(_Value(math.prod(shape), axes, channels, cut.get(1), shape[2:]))
        return self.numbers[name]

    def axis(self, axis: CutAxis) -> int:
        """Return the number of a cut axis."""
        return self._axes.setdefault(axis, len(self._axes))

    def elements(self, state: _State, number: int) -> float:
        """Return the elements of value `number` that are left."""
        value = self.known[number]
        elements = float(value.elements)
        for axis, size in value.axes:
            elements *= state.left[axis] / size
        return elements

    def read(self, state: _State, number: int, *, blocked: bool) -> None:
        """Bring a value into the layout that its reader needs."""
        if state.blocked[number] != blocked and not state.both[number]:
            state.both[number] = True
            size = self.known[number].size
            if blocked or len(size) != 2:
                state.spent += self._times.convert(self.elements(state, number))
            else:
                state.spent += self._times.unpack((size[0], size[1]), self.channels(state, number))

    def channels(self, state: _State, number: int) -> int:
        """Return the channels of value `number` that are left."""
        value = self.known[number]
        return value.channels if value.channel_axis is None else state.left[value.channel_axis]


class _Steps:
    """What operators take, as steps over a state."""

    def __init__(self, model: Model, shapes: Shapes, values: _Values, times: KernelTimes) -> None:
        self._graph, self._shapes, self._values, self._times = model.graph, shapes, values, times

    def conv(self, node: Node, kind: ConvKind, read: int, made: int) -> OperatorStep:
        """Return the step of a convolution whose times stand in a table."""
        weight = node.inputs[1]
        cut = {
            number: self._values.axis(axis) for number, axis in self._values.cut.stored(weight.name).items()
        }
        outputs, inputs = weight.values.shape[:2]
        over, under = cut.get(0), cut.get(0 if kind.depthwise else 1)
        inputs = outputs if kind.depthwise else inputs
        times = self._times

        def step(state: _State) -> None:
            i = inputs if under is None else state.left[under]
            o = outputs if over is None else state.left[over]
            kernel = times.kernel(kind, i)
            unpack = kernel != "blocks" and state.blocked[read] and not state.both[read]
            if unpack:
                state.both[read] = True
            else:
                self._values.read(state, read, blocked=kernel == "blocks")
            state.blocked[made] = kernel != "plain"
            state.spent += times.conv(kind, i, o, unpack=unpack)

        return step

    def work(self, node: Node, reads: list[int]) -> OperatorStep:
        """Return the step of an operator whose time is taken to follow its multiply-accumulates."""
        weights = [v for v in node.inputs if isinstance(v, Constant) and v.values.ndim > 1]
        if node.is_op("MatMul") or not weights:
            cut = self._values.cut.of_product(node)
        else:
            cut = tuple(self._values.cut.stored(weights[0].name).values())
        axes = [(self._values.axis(axis), axis.size) for axis in cut]
        full = self._alone(node) if node_macs(node, self._shapes) else 0.0

        def step(state: _State) -> None:
            for number in reads:
                self._values.read(state, number, blocked=False)
            state.spent += full * math.prod(state.left[axis] / size for axis, size in axes)

        return step

    def join(self, node: Node, reads: list[int], made: int, convolved: set[int]) -> OperatorStep:
        """Return the step of an operator that joins values: an addition may be a part of the convolution before it."""
        same = len({self._values.known[number].elements for number in reads}) == 1
        fused = node.is_op("Add", "Sum") and any(
            self._values.numbers.get(v.name) in convolved and self._graph.sole_use(v) is node
            for v in node.inputs
        )

        def step(state: _State) -> None:
            blocked = same and all(state.blocked[number] for number in reads)
            state.blocked[made] = blocked
            for number in () if blocked else reads:
                self._values.read(state, number, blocked=False)
            if blocked and fused:
                state.joined[made] = True
            else:
                state.spent += self._times.move(self._values.elements(state, made))

        return step

    def same(self, node: Node, read: int, made: int, *, part_of_join: bool) -> OperatorStep:
        """Return the step of an operator that takes each channel by itself, in either layout."""
        # Pooling is vectorized over the channels of a block, and slow without one.
        plain = self._alone(node) if node.is_op(*POOLING) and self._values.known[read].elements else None
        whole = self._values.known[read].elements

        def step(state: _State) -> None:
            blocked = state.blocked[read]
            if plain is not None and self._values.channels(state, read) % self._times.block:
                blocked = False
                self._values.read(state, read, blocked=False)
            state.blocked[made] = blocked
            if plain is not None and not blocked:
                state.spent += plain * self._values.elements(state, read) / whole
            elif not (part_of_join and state.joined[read]):
                state.spent += self._times.move(max(self._values.elements(state, n) for n in (read, made)))

        return step

    def concat(self, reads: list[int], made: int) -> OperatorStep:
        """Return the step of a concatenation, which stays in blocks where all it joins are whole blocks."""

        def step(state: _State) -> None:
            block = self._times.block
            blocked = all(state.blocked[n] and self._values.channels(state, n) % block == 0 for n in reads)
            state.blocked[made] = blocked
            for number in () if blocked else reads:
                self._values.read(state, number, blocked=False)
            state.spent += self._times.move(self._values.elements(state, made))

        return step

    def plain(self, node: Node, reads: list[int], made: int) -> OperatorStep:
        """Return the step of any other operator: its time by itself, as it moves more or less."""
        free = node.is_op(*RESHAPING, "Identity", "Shape") or not self._values.known[made].elements
        full = 0.0 if free else self._alone(node)
        whole = self._values.known[made].elements

        def step(state: _State) -> None:
            for number in reads:
                self._values.read(state, number, blocked=False)
            if not free:
                state.spent += full * self._values.elements(state, made) / whole

        return step

    def _alone(self, node: Node) -> float:
        """Return the milliseconds of `node` as it is now, run by itself."""
        sizes = [str(self._shapes.get(v.name, v.shape)) for v in node.inputs if v.name]
        attrs = sorted((name, attribute_text(value)) for name, value in node.attrs.items())
        said = [str(v.values.tolist()) for v in node.inputs if isinstance(v, Constant) and v.values.size <= 8]
        key = " ".join([node.op, *(f"{n}={v}" for n, v in attrs), *sizes, *said])
        return self._times.node(node, self._shapes, key)


class OperatorWalk:
    """The operators of a model in order, each with what it costs and in which layout it leaves its result.

    Convolutions, what adds their results and what pools them may work on blocks of channels. A value is brought from one
    layout into the other at most once, where a reader needs it.
    """

    def __init__(self, model: Model, groups: ChannelGroups, shapes: Shapes, times: KernelTimes) -> None:
        self._graph, self._shapes = model.graph, shapes
        self._values = _Values(groups, shapes, times)
        self._make = _Steps(model, shapes, self._values, times)
        self._convolved: set[int] = set()
        self._steps: list[OperatorStep] = []
        for node in model.graph.nodes:
            self._add(node)

    def spend(self, keep: Keep) -> float:
        """Return the milliseconds of all operators with only the units in `keep`."""
        state = self._values.state(keep)
        for step in self._steps:
            step(state)
        return state.spent

    def _add(self, node: Node) -> None:
        """Append what `node` costs; what runs as a part of the node before costs nothing."""
        first = next((v for v in node.inputs if v.name and not isinstance(v, Constant)), None)
        if first is None or not node.outputs:
            return
        alone = self._graph.sole_use(first) is node
        if (
            alone
            and first.name in self._values.numbers
            and self._values.numbers[first.name] in self._convolved
        ):
            number = self._values.numbers[first.name]
            if node.is_op("BatchNormalization"):
                self._values.numbers[node.output.name] = number
                return
            if node.is_op(*FUSED_ACTIVATIONS):
                # Nothing more can become a part of that convolution.
                self._convolved.discard(number)
                self._values.numbers[node.output.name] = number
                return
        kind = self._kind(node)
        reads = [self._values.value(v.name) for v in node.inputs if v.name and not isinstance(v, Constant)]
        made = self._values.value(node.output.name)
        if kind is not None:
            self._convolved.add(made)
            self._steps.append(self._make.conv(node, kind, reads[0], made))
        elif node.is_op(*COUNTED):
            self._steps.append(self._make.work(node, reads))
        elif node.is_op(*ELEMENTWISE) and len(reads) > 1:
            self._steps.append(self._make.join(node, reads, made, self._convolved))
        elif node.is_op(*POOLING, *UNARY, *ELEMENTWISE, "Clip", "BatchNormalization"):
            part = alone and node.is_op(*FUSED_ACTIVATIONS)
            self._steps.append(self._make.same(node, reads[0], made, part_of_join=part))
        elif node.is_op("Concat"):
            self._steps.append(self._make.concat(reads, made))
        else:
            self._steps.append(self._make.plain(node, reads, made))

    def _kind(self, node: Node) -> ConvKind | None:
        """Return the kind of a convolution whose times stand in a table; None for other operators."""
        weight = node.constant(1) if node.is_op("Conv") else None
        size = self._shapes.get(node.inputs[0].name) if weight is not None else None
        if weight is None or size is None or weight.ndim != 4 or weight.dtype != np.float32:
            return None
        group = node.attrs.get("group", 1)
        depthwise = group > 1 and weight.shape[:2] == (group, 1)
        if group > 1 and not depthwise:
            return None
        return ConvKind.of(node, (size[2], size[3]), (weight.shape[2], weight.shape[3]), depthwise=depthwise)
