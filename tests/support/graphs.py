"""Random small convolutional networks: a plan of blocks, drawn by hypothesis, is built into a model.

Every block reads one of the values made so far (mostly the last) and makes a new last one, so that any order of blocks is
a network. Weights depend on the plan and the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from onnxcomp.ir.graph import Array, Graph, Node, Value, Variable
from onnxcomp.ir.model import Model

__all__ = ["BLOCKS", "TAILS", "Block", "Builder", "Feature", "Plan", "build", "plans"]

ACTIVATIONS = ("Relu", "Sigmoid", "HardSigmoid", "Softplus", "Tanh", "HardSwish", "LeakyRelu", "Elu")
"""Half of them are not zero at zero."""


@dataclass(frozen=True)
class Plan:
    """What to build: blocks with two free numbers each, how the network ends, and the seed of its weights."""

    blocks: tuple[tuple[str, int, int], ...]
    tail: str
    seed: int


@dataclass(frozen=True)
class Feature:
    """A value `[N, channels, size, size]`."""

    value: Value
    channels: int
    size: int


class Builder:
    """A network under construction; `features` are the values made so far."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("net", opset=17)
        image = Variable("image", np.dtype(np.float32), ("N", 3, 8, 8))
        self.graph.inputs.append(image)
        self.features = [Feature(image, 3, 8)]

    @property
    def last(self) -> Feature:
        """The value made last."""
        return self.features[-1]

    def pick(self, number: int) -> Feature:
        """Return the last value, or for every third number some earlier one that is no graph input."""
        made = self.features[1:]
        return made[number % len(made)] if number % 3 == 0 else self.last

    def weight(self, *shape: int) -> Array:
        """Return random values, scaled by the number of inputs where there are several axes."""
        spread = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.5
        return (self.rng.standard_normal(shape) * spread).astype(np.float32)

    def node(self, op: str, *operands: Value | Array | None, count: int = 1, **attrs: Any) -> Variable:
        """Add a node, arrays becoming stored tensors, and return its first output."""
        name = f"{op.lower()}{len(self.graph.nodes)}"
        inputs: list[Value] = []
        for place, operand in enumerate(operands):
            if operand is None:
                inputs.append(Variable(""))
            elif isinstance(operand, np.ndarray):
                inputs.append(self.graph.add_constant(f"{name}.{place}", operand))
            else:
                inputs.append(operand)
        outputs = [Variable(f"{name}:{index}") for index in range(count)]
        self.graph.nodes.append(Node(op, name, attrs, inputs, outputs))
        return outputs[0]

    def outputs(self) -> list[Variable]:
        """Return the outputs of the node added last."""
        return list(self.graph.nodes[-1].outputs)

    def add(self, value: Value, channels: int, size: int) -> None:
        """Make `value` the last feature."""
        self.features.append(Feature(value, channels, size))

    def conv(
        self, source: Feature, filters: int, kernel: int = 3, group: int = 1, bias: bool = True
    ) -> Variable:
        """Add a convolution that keeps the size."""
        weight = self.weight(filters, source.channels // group, kernel, kernel)
        operands = [source.value, weight, *([self.weight(filters)] if bias else [])]
        return self.node("Conv", *operands, group=group, pads=[kernel // 2] * 4)


def _conv(b: Builder, x: Feature, number: int) -> None:
    filters = 2 + number % 7
    b.add(b.conv(x, filters, 1 + 2 * (number % 2), bias=number % 5 != 0), filters, x.size)


def _activation(b: Builder, x: Feature, number: int) -> None:
    b.add(b.node(ACTIVATIONS[number % len(ACTIVATIONS)], x.value), x.channels, x.size)


def _clip(b: Builder, x: Feature, number: int) -> None:
    low = np.array(0.1 * (number % 3), np.float32)
    b.add(b.node("Clip", x.value, low, np.array(1.5, np.float32)), x.channels, x.size)


def _batchnorm(b: Builder, x: Feature, number: int) -> None:
    vectors = [b.weight(x.channels) for _ in range(3)]
    spread = b.rng.uniform(0.5, 1.5, x.channels).astype(np.float32)
    b.add(b.node("BatchNormalization", x.value, *vectors, spread), x.channels, x.size)


def _prelu(b: Builder, x: Feature, number: int) -> None:
    slope = b.weight(x.channels, 1, 1) if number % 2 else b.weight(1)
    b.add(b.node("PRelu", x.value, slope), x.channels, x.size)


def _stored_operand(b: Builder, x: Feature, number: int) -> None:
    shapes = [
        (x.channels, 1, 1),
        (1, x.channels, x.size, x.size),
        (x.size, x.size),
        (1,),
        (x.channels, x.size, 1),
    ]
    operands = [x.value, b.weight(*shapes[number % 5])]
    b.add(b.node("Add" if number % 3 else "Mul", *operands[:: 1 if number % 2 else -1]), x.channels, x.size)


def _residual(b: Builder, x: Feature, number: int) -> None:
    inner = 2 + number % 4
    first = b.node("Relu", b.conv(x, inner))
    second = b.conv(Feature(first, inner, x.size), x.channels)
    shortcut = b.conv(x, x.channels, 1) if number % 4 == 0 else x.value
    b.add(b.node("Add" if number % 2 else "Sub", second, shortcut), x.channels, x.size)


def _concat(b: Builder, x: Feature, number: int) -> None:
    fitting = [f for f in b.features if f.size == x.size and f.channels + x.channels <= 16]
    other = fitting[number % len(fitting)] if fitting else None
    if other is None:
        return
    b.add(
        b.node("Concat", x.value, other.value, axis=1 if number % 2 else -3),
        x.channels + other.channels,
        x.size,
    )


def _self_concat(b: Builder, x: Feature, number: int) -> None:
    if x.channels <= 8:
        b.add(b.node("Concat", x.value, x.value, axis=1), 2 * x.channels, x.size)


def _split(b: Builder, x: Feature, number: int) -> None:
    if x.channels < 3:
        return
    first = 1 + number % (x.channels - 1)
    sizes = np.array([first, x.channels - first], np.int64)
    b.node("Split", x.value, sizes, count=2, axis=1)
    left, right = b.outputs()
    wide = b.conv(Feature(left, first, x.size), 4)
    narrow = b.node("Sigmoid", b.conv(Feature(right, x.channels - first, x.size), 4, 1))
    b.add(b.node("Mul" if number % 2 else "Add", wide, narrow), 4, x.size)


def _grouped(b: Builder, x: Feature, number: int) -> None:
    group = next((g for g in (3, 2) if x.channels % g == 0), 1)
    filters = group * (1 + number % 3)
    b.add(b.conv(x, filters, 3, group), filters, x.size)


def _depthwise(b: Builder, x: Feature, number: int) -> None:
    filters = x.channels * (1 + number % 2 if x.channels <= 8 else 1)
    b.add(b.conv(x, filters, 3, x.channels), filters, x.size)


def _squeeze_excite(b: Builder, x: Feature, number: int) -> None:
    inner = 2 + number % 3
    pooled = b.node("GlobalAveragePool", x.value)
    squeezed = b.node("Relu", b.conv(Feature(pooled, x.channels, 1), inner, 1))
    gate = b.node("HardSigmoid", b.conv(Feature(squeezed, inner, 1), x.channels, 1))
    b.add(b.node("Mul", *((gate, x.value) if number % 2 else (x.value, gate))), x.channels, x.size)


def _slice(b: Builder, x: Feature, number: int) -> None:
    if x.channels < 3:
        return
    start = number % (x.channels - 1)
    ends = [x.channels, 2**31, -1] if start < x.channels - 2 else [x.channels, 2**31]
    end = ends[number % len(ends)]
    kept = len(range(x.channels)[start:end])
    bounds = [np.array([v], np.int64) for v in (start - x.channels if number % 2 else start, end, 1)]
    b.add(b.node("Slice", x.value, *bounds), kept, x.size)


def _pad_channels(b: Builder, x: Feature, number: int) -> None:
    before, after = number % 3, number % 2
    pads = np.array([0, before, 0, 0, 0, after, 0, 0], np.int64)
    b.add(b.node("Pad", x.value, pads, np.array(0.3, np.float32)), x.channels + before + after, x.size)


def _widen(b: Builder, x: Feature, number: int) -> None:
    """A shortcut without weights into more channels: the added ones are constant on one side of the sum."""
    before, after = 1 + number % 2, number % 3
    channels = x.channels + before + after
    pads = np.array([0, before, 0, 0, 0, after, 0, 0], np.int64)
    branch = b.conv(x, channels)
    b.add(b.node("Add", b.node("Pad", x.value, pads), branch), channels, x.size)


def _pad_space(b: Builder, x: Feature, number: int) -> None:
    if x.size < 8:
        pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        b.add(
            b.node("Pad", x.value, pads, mode="reflect" if number % 2 else "constant"), x.channels, x.size + 2
        )


def _pool(b: Builder, x: Feature, number: int) -> None:
    if x.size % 2 == 0 and x.size > 2:
        op = "MaxPool" if number % 2 else "AveragePool"
        b.add(b.node(op, x.value, kernel_shape=[2, 2], strides=[2, 2]), x.channels, x.size // 2)


def _shuffle(b: Builder, x: Feature, number: int) -> None:
    group = next((g for g in (2 + number % 3, 2, 3) if x.channels % g == 0), 1)
    wide = np.array([0, group, x.channels // group, x.size, x.size], np.int64)
    back = np.array([(-1, 0)[number % 2], x.channels, x.size, x.size], np.int64)
    mixed = b.node("Transpose", b.node("Reshape", x.value, wide), perm=[0, 2, 1, 3, 4])
    b.add(b.node("Reshape", mixed, back), x.channels, x.size)


def _channels_last(b: Builder, x: Feature, number: int) -> None:
    filters = 2 + number % 5
    last = b.node("Transpose", x.value, perm=[0, 2, 3, 1])
    made = b.node("Add", b.node("MatMul", last, b.weight(x.channels, filters)), b.weight(filters))
    b.add(b.node("Transpose", made, perm=[0, 3, 1, 2]), filters, x.size)


def _dropout(b: Builder, x: Feature, number: int) -> None:
    b.add(b.node("Dropout" if number % 2 else "Identity", x.value), x.channels, x.size)


Block = Callable[[Builder, Feature, int], None]
BLOCKS: dict[str, Block] = {
    "conv": _conv,
    "activation": _activation,
    "clip": _clip,
    "batchnorm": _batchnorm,
    "prelu": _prelu,
    "stored-operand": _stored_operand,
    "residual": _residual,
    "concat": _concat,
    "self-concat": _self_concat,
    "split": _split,
    "grouped": _grouped,
    "depthwise": _depthwise,
    "squeeze-excite": _squeeze_excite,
    "slice": _slice,
    "pad-channels": _pad_channels,
    "widen": _widen,
    "pad-space": _pad_space,
    "pool": _pool,
    "shuffle": _shuffle,
    "channels-last": _channels_last,
    "dropout": _dropout,
}
TAILS = ("flatten", "reshape", "pool", "mean", "conv", "left-matmul")


def _tail(b: Builder, tail: str) -> tuple[Variable, tuple[int, ...]]:
    """Add the end of the network; return its output and the shape of one sample of it."""
    x = b.last
    width = x.channels * x.size**2
    match tail:
        case "flatten":
            return b.node("Gemm", b.node("Flatten", x.value), b.weight(width, 5), b.weight(1, 5)), (5,)
        case "reshape":
            flat = b.node("Reshape", x.value, np.array([-1, width], np.int64))
            return b.node("Gemm", flat, b.weight(5, width), b.weight(5), transB=1), (5,)
        case "pool":
            pooled = b.node("Flatten", b.node("GlobalAveragePool", x.value))
            return b.node("Gemm", pooled, b.weight(5, x.channels), transB=1), (5,)
        case "mean":
            mean = b.node("ReduceMean", x.value, axes=[2, 3], keepdims=0)
            return b.node("MatMul", mean, b.weight(x.channels, 5)), (5,)
        case "conv":
            return b.conv(x, 4), (4, x.size, x.size)
        case _:
            flat = b.node("Reshape", x.value, np.array([0, x.channels, -1], np.int64))
            return b.node("MatMul", b.weight(5, x.channels), flat), (5, x.size**2)


def build(plan: Plan, blocks: Mapping[str, Block] = BLOCKS) -> Model:
    """Return the network of `plan`: a convolution, its blocks as `blocks` knows them, its tail."""
    builder = Builder(plan.seed)
    _conv(builder, builder.last, 6)
    for name, number, choice in plan.blocks:
        blocks[name](builder, builder.pick(choice), number)
    result, shape = _tail(builder, plan.tail)
    result.dtype, result.shape = np.dtype(np.float32), ("N", *shape)
    builder.graph.outputs.append(result)
    return Model(builder.graph)


def plans(most: int = 8, blocks: Sequence[str] = tuple(BLOCKS)) -> st.SearchStrategy[Plan]:
    """Return a strategy of plans with up to `most` blocks."""
    block = st.tuples(st.sampled_from(list(blocks)), st.integers(0, 59), st.integers(0, 11))
    return st.builds(
        Plan,
        st.lists(block, min_size=3, max_size=most).map(tuple),
        st.sampled_from(TAILS),
        st.integers(0, 2**16),
    )
