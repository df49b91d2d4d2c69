"""What a model would take after a cut, without cutting it: the sum over its operators of times from tables."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from onnxcomp.analysis.channels import ChannelGroups
from onnxcomp.analysis.cost import Shapes, node_macs
from onnxcomp.analysis.cutaxes import CutAxes, CutAxis, Keep
from onnxcomp.compiler.cost.kernel_graphs import ConvKind, Maker
from onnxcomp.compiler.cost.kernel_times import KernelTimes, Timer, clock
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.graph import Constant, Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import COUNTED, ELEMENTWISE, FUSED_ACTIVATIONS, POOLING, RESHAPING, UNARY
from onnxcomp.runtime.inputs import noise
from onnxcomp.runtime.session import Session
from onnxcomp.runtime.steady import steady_ratio

__all__ = ["LatencyPrice", "measured_ratio", "structure"]

_NETWORK_SECONDS = 3.0
"""Time spent on the whole networks, which all estimates lean on."""

_TRUST = 1.3
"""How far the tables may be off by a common factor."""


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


Step = Callable[[_State], None]


class LatencyPrice:
    """Milliseconds of `model` as a function of the units kept: batch 1, one thread, at the sizes of `shapes`.

    `whole` is what the model takes that the pipeline received, `full` what `model` takes as it is; both are measured.
    `of` is an estimate that agrees with `full` where nothing is cut: what a run takes before its first operator stays,
    and what the tables say is scaled to what was measured. They are mostly right to some percent, and more of them are
    wrong by a share than by a number of microseconds (caches, a load at the time); what a sane scale cannot explain is
    taken to stay, whatever is cut. `timer` stands for the clock.
    """

    def __init__(
        self,
        model: Model,
        groups: ChannelGroups,
        shapes: Shapes,
        context: Context,
        timer: Timer | None = None,
    ) -> None:
        timer = timer or partial(clock, custom_op_libs=context.custom_op_libs)
        maker = Maker(model)
        self.whole, self.full, pace = _networks(context.original, model, maker.reference(), context, timer)
        times = KernelTimes(context, maker, timer, pace, 40)
        walk = _Walk(model, groups, shapes, times)
        self._walk = walk
        start, said = times.empty, walk.spend({})
        self._scale = min(max((self.full - start) / said, 1 / _TRUST), _TRUST) if said > 0 else 1.0
        self._rest = self.full - self._scale * said

    def of(self, keep: Keep) -> float:
        """Return the milliseconds that `model` would about take with only the units in `keep`."""
        return max(0.0, self._rest + self._scale * self._walk.spend(keep))


def measured_ratio(before: Model, after: Model, context: Context) -> float:
    """Return the time of `after` as a share of that of `before`: batch 1, one thread, measured in turns.

    The number is recorded under what decides about time: operators, their attributes and sizes, never the weights.

    Raises:
        SessionError: where one does not load or run.
    """

    def measure() -> float:
        context.progress("measuring the latency of the cut model", 0, 0)
        reference, candidate = (
            Session(m, threads=1, custom_op_libs=context.custom_op_libs) for m in (before, after)
        )
        feed = noise(before, context.input_shapes, context.seed)
        return steady_ratio(reference, candidate, feed).ratio

    first, second = (structure(model, context.input_shapes) for model in (before, after))
    return 1.0 if first == second else context.timings.get(f"ratio of {second} to {first}", measure)


def _networks(
    original: Model, model: Model, reference: Model, context: Context, timer: Timer
) -> tuple[float, float, float]:
    """Return the milliseconds of the `original`, of `model` and of `reference`, all at the pace of the first time."""
    first, second = (structure(m, context.input_shapes) for m in (original, model))
    found: list[float] = []

    def together(place: int) -> float:
        if not found:
            found.extend(measure(original, reference))
        return found[place]

    def measure(*models: Model) -> list[float]:
        context.progress("measuring the latency of the model", 0, 0)
        return timer(models, context.input_shapes, _NETWORK_SECONDS)

    def beside() -> float:
        slow, fast = measure(original, model)
        return fast * whole / slow

    whole = context.timings.get(f"network {first}", partial(together, 0))
    pace = context.timings.get("reference", partial(together, 1))
    full = whole if first == second else context.timings.get(f"network {second}", beside)
    return whole, full, pace


def structure(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a digest of what decides about the time of `model`: all but names, texts and the values of weights."""
    numbers: dict[str, int] = {"": -1}
    lines = [
        f"in {v.dtype} {shapes.get(v.name, v.shape)} {_number(v.name, numbers)}" for v in model.graph.inputs
    ]
    for node in model.graph.nodes:
        reads = [
            _stored(v) if isinstance(v, Constant) else str(_number(v.name, numbers)) for v in node.inputs
        ]
        makes = [_number(v.name, numbers) for v in node.outputs]
        attrs = sorted((name, _attribute(value)) for name, value in node.attrs.items())
        lines.append(f"{node.domain} {node.op} {attrs} {reads} {makes}")
    lines.append(f"out {[_number(v.name, numbers) for v in model.graph.outputs]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _number(name: str, numbers: dict[str, int]) -> int:
    return numbers.setdefault(name, len(numbers))


def _stored(constant: Constant) -> str:
    values = constant.values
    small = values.dtype.kind in "iub" and values.size <= 64
    return f"{values.dtype} {values.shape} {values.tolist() if small else ''}"


def _attribute(value: Any) -> str:
    if isinstance(value, str | int | float | bytes | list | tuple):
        return repr(value)
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} {shape}"


# --- the walk --------------------------------------------------------------------------------------------------------
class _Walk:
    """The operators of a model in order, each with what it costs and in which layout it leaves its result.

    Convolutions, what adds their results and what pools them may work on blocks of channels. A value is brought from one
    layout into the other at most once, where a reader needs it.
    """

    def __init__(self, model: Model, groups: ChannelGroups, shapes: Shapes, times: KernelTimes) -> None:
        self._graph = model.graph
        self._shapes = shapes
        self._cut = CutAxes(groups)
        self._axes: dict[CutAxis, int] = {}
        self._values: list[_Value] = []
        self._numbers: dict[str, int] = {}
        self._convolved: set[int] = set()
        self._steps: list[Step] = []
        self._times = times
        for node in model.graph.nodes:
            self._add(node)

    def spend(self, keep: Keep) -> float:
        """Return the milliseconds of all operators with only the units in `keep`."""
        count = len(self._values)
        left = [axis.left(keep) for axis in self._axes]
        state = _State(left, [False] * count, [False] * count, [False] * count)
        for step in self._steps:
            step(state)
        return state.spent

    # --- values ---------------------------------------------------------------------------------------------
    def _value(self, name: str) -> int:
        if name not in self._numbers:
            shape = self._shapes.get(name, ())
            cut = {number: self._axis(axis) for number, axis in self._cut.computed(name).items()}
            axes = tuple((place, shape[number]) for number, place in cut.items())
            self._numbers[name] = len(self._values)
            channels = shape[1] if len(shape) == 4 else 0
            self._values.append(_Value(math.prod(shape), axes, channels, cut.get(1), shape[2:]))
        return self._numbers[name]

    def _axis(self, axis: CutAxis) -> int:
        return self._axes.setdefault(axis, len(self._axes))

    def _elements(self, state: _State, number: int) -> float:
        value = self._values[number]
        elements = float(value.elements)
        for axis, size in value.axes:
            elements *= state.left[axis] / size
        return elements

    def _read(self, state: _State, number: int, *, blocked: bool) -> None:
        """Bring a value into the layout that its reader needs."""
        if state.blocked[number] != blocked and not state.both[number]:
            state.both[number] = True
            size = self._values[number].size
            if blocked or len(size) != 2:
                state.spent += self._times.convert(self._elements(state, number))
            else:
                state.spent += self._times.unpack((size[0], size[1]), self._channels(state, number))

    def _channels(self, state: _State, number: int) -> int:
        value = self._values[number]
        return value.channels if value.channel_axis is None else state.left[value.channel_axis]

    # --- steps ----------------------------------------------------------------------------------------------
    def _add(self, node: Node) -> None:
        """Append what `node` costs; what runs as a part of the node before costs nothing."""
        first = next((v for v in node.inputs if v.name and not isinstance(v, Constant)), None)
        if first is None or not node.outputs:
            return
        alone = self._graph.sole_use(first) is node
        if alone and first.name in self._numbers and self._numbers[first.name] in self._convolved:
            number = self._numbers[first.name]
            if node.is_op("BatchNormalization"):
                self._numbers[node.output.name] = number
                return
            if node.is_op(*FUSED_ACTIVATIONS):
                # Nothing more can become a part of that convolution.
                self._convolved.discard(number)
                self._numbers[node.output.name] = number
                return
        kind = self._kind(node)
        reads = [self._value(v.name) for v in node.inputs if v.name and not isinstance(v, Constant)]
        made = self._value(node.output.name)
        if kind is not None:
            self._convolved.add(made)
            self._steps.append(self._conv(node, kind, reads[0], made))
        elif node.is_op(*COUNTED):
            self._steps.append(self._work(node, reads))
        elif node.is_op(*ELEMENTWISE) and len(reads) > 1:
            self._steps.append(self._join(node, reads, made))
        elif node.is_op(*POOLING, *UNARY, *ELEMENTWISE, "Clip", "BatchNormalization"):
            part = alone and node.is_op(*FUSED_ACTIVATIONS)
            self._steps.append(self._same(node, reads[0], made, part_of_join=part))
        elif node.is_op("Concat"):
            self._steps.append(self._concat(reads, made))
        else:
            self._steps.append(self._plain(node, reads, made))

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

    def _conv(self, node: Node, kind: ConvKind, read: int, made: int) -> Step:
        weight = node.inputs[1]
        cut = {number: self._axis(axis) for number, axis in self._cut.stored(weight.name).items()}
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
                self._read(state, read, blocked=kernel == "blocks")
            state.blocked[made] = kernel != "plain"
            state.spent += times.conv(kind, i, o, unpack=unpack)

        return step

    def _work(self, node: Node, reads: list[int]) -> Step:
        """Return the step of an operator whose time is taken to follow its multiply-accumulates."""
        weights = [v for v in node.inputs if isinstance(v, Constant) and v.values.ndim > 1]
        if node.is_op("MatMul") or not weights:
            cut = self._cut.of_product(node)
        else:
            cut = tuple(self._cut.stored(weights[0].name).values())
        axes = [(self._axis(axis), axis.size) for axis in cut]
        full = self._alone(node) if node_macs(node, self._shapes) else 0.0

        def step(state: _State) -> None:
            for number in reads:
                self._read(state, number, blocked=False)
            state.spent += full * math.prod(state.left[axis] / size for axis, size in axes)

        return step

    def _join(self, node: Node, reads: list[int], made: int) -> Step:
        """Return the step of an operator that joins values: an addition may be a part of the convolution before it."""
        same = len({self._values[number].elements for number in reads}) == 1
        fused = node.is_op("Add", "Sum") and any(
            self._numbers.get(v.name) in self._convolved and self._graph.sole_use(v) is node
            for v in node.inputs
        )

        def step(state: _State) -> None:
            blocked = same and all(state.blocked[number] for number in reads)
            state.blocked[made] = blocked
            for number in () if blocked else reads:
                self._read(state, number, blocked=False)
            if blocked and fused:
                state.joined[made] = True
            else:
                state.spent += self._times.move(self._elements(state, made))

        return step

    def _same(self, node: Node, read: int, made: int, *, part_of_join: bool) -> Step:
        """Return the step of an operator that takes each channel by itself, in either layout."""
        # Pooling is vectorized over the channels of a block, and slow without one.
        plain = self._alone(node) if node.is_op(*POOLING) and self._values[read].elements else None
        whole = self._values[read].elements

        def step(state: _State) -> None:
            blocked = state.blocked[read]
            if plain is not None and self._channels(state, read) % self._times.block:
                blocked = False
                self._read(state, read, blocked=False)
            state.blocked[made] = blocked
            if plain is not None and not blocked:
                state.spent += plain * self._elements(state, read) / whole
            elif not (part_of_join and state.joined[read]):
                state.spent += self._times.move(max(self._elements(state, n) for n in (read, made)))

        return step

    def _concat(self, reads: list[int], made: int) -> Step:
        def step(state: _State) -> None:
            block = self._times.block
            blocked = all(state.blocked[n] and self._channels(state, n) % block == 0 for n in reads)
            state.blocked[made] = blocked
            for number in () if blocked else reads:
                self._read(state, number, blocked=False)
            state.spent += self._times.move(self._elements(state, made))

        return step

    def _plain(self, node: Node, reads: list[int], made: int) -> Step:
        """Return the step of any other operator: its time by itself, as it moves more or less."""
        free = node.is_op(*RESHAPING, "Identity", "Shape") or not self._values[made].elements
        full = 0.0 if free else self._alone(node)
        whole = self._values[made].elements

        def step(state: _State) -> None:
            for number in reads:
                self._read(state, number, blocked=False)
            if not free:
                state.spent += full * self._elements(state, made) / whole

        return step

    def _alone(self, node: Node) -> float:
        """Return the milliseconds of `node` as it is now, run by itself."""
        sizes = [str(self._shapes.get(v.name, v.shape)) for v in node.inputs if v.name]
        attrs = sorted((name, _attribute(value)) for name, value in node.attrs.items())
        said = [str(v.values.tolist()) for v in node.inputs if isinstance(v, Constant) and v.values.size <= 8]
        key = " ".join([node.op, *(f"{n}={v}" for n, v in attrs), *sizes, *said])
        return self._times.node(node, self._shapes, key)
