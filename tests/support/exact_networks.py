"""Random small networks for property tests: valid by construction, full of things that exact passes look for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxcomp.ir.model import Model
from onnxcomp.ir.parse import parse_model

__all__ = ["networks"]

Array = NDArray[Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]
Shape = tuple[int, ...]
"""Of a value without its batch axis: `[C, H, W]` or `[C]`."""


class _Builder:
    """The text of a network as it grows."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.shapes: dict[str, Shape] = {"x": (draw(st.integers(1, 4)), 5, 4)}
        self.weights: dict[str, Array] = {}
        self.lines: list[str] = []
        self.rng = np.random.default_rng(draw(st.integers(0, 99)))

    def node(self, op: str, inputs: list[str], shape: Shape, attributes: str = "", outputs: int = 1) -> str:
        names = [f"v{len(self.lines)}", *(f"v{len(self.lines)}_{i}" for i in range(1, outputs))]
        self.lines.append(f"{', '.join(names)} = {op}{attributes}({', '.join(inputs)})")
        self.shapes[names[0]] = shape
        return names[0]

    def store(self, values: Array) -> str:
        """Return the name of a constant; now and then an equal one serves again."""
        for name, known in self.weights.items():
            same = known.dtype == values.dtype and known.shape == values.shape and known.ndim > 1
            if same and self.draw(st.booleans()):
                return name
        name = f"c{len(self.weights)}"
        self.weights[name] = values
        return name

    def floats(self, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        return self.store(self.rng.uniform(low, high, shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.store(np.array(values, np.int64))

    def some(self, *ranks: int) -> str | None:
        """Return a value of one of these ranks, batch axis not counted: mostly the last one."""
        found = [name for name, shape in self.shapes.items() if len(shape) in ranks]
        return self.draw(st.sampled_from([found[-1]] * 4 + found[-3:])) if found else None

    def model(self) -> Model:
        outputs = {list(self.shapes)[-1], self.draw(st.sampled_from(list(self.shapes)[1:]))}
        results = ", ".join(f"float[N,{_text(self.shapes[name])}] {name}" for name in sorted(outputs))
        floats = {name: v for name, v in self.weights.items() if v.dtype == np.float32}
        integers = {name: v for name, v in self.weights.items() if name not in floats}
        weights = [f"float[{_text(v.shape)}] {name}" for name, v in floats.items()]
        weights += [f"int64[{v.size}] {name} = {{{_text(v)}}}" for name, v in integers.items()]
        signature = f"(float[N,{_text(self.shapes['x'])}] x) => ({results})"
        text = f'<ir_version: 8, opset_import: ["" : 17]> net {signature} <{", ".join(weights)}>'
        return parse_model(f"{text} {{ {' '.join(self.lines)} }}", floats)


def _text(sizes: Any) -> str:
    return ",".join(str(int(s)) for s in sizes)


def _convolution(b: _Builder) -> None:
    source = b.some(3)
    if source is None:
        return
    channels, height, width = b.shapes[source]
    groups = b.draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
    out = groups * b.draw(st.integers(1, 2))
    size = b.draw(st.integers(1, min(3, height, width)))
    pad = b.draw(st.integers(0, size - 1))
    inputs = [source, b.floats(out, channels // groups, size, size)]
    if b.draw(st.booleans()):
        inputs.append(b.floats(out))
    shape = (out, height + 2 * pad - size + 1, width + 2 * pad - size + 1)
    b.node("Conv", inputs, shape, f"<group={groups}, pads=[{_text([pad] * 4)}]>")


def _batchnorm(b: _Builder) -> None:
    source = b.some(1, 3)
    if source is None:
        return
    shape = b.shapes[source]
    parameters = [b.floats(shape[0]) for _ in range(3)] + [b.floats(shape[0], low=0.5, high=1.5)]
    b.node("BatchNormalization", [source, *parameters], shape)


def _arithmetic(b: _Builder) -> None:
    source = b.some(1, 3)
    if source is None:
        return
    shape = b.shapes[source]
    spread: Shape = b.draw(st.sampled_from([(), (shape[0], *(1,) * (len(shape) - 1)), shape[-1:], (1,)]))
    neutral = b.draw(st.sampled_from([None, 0.0, 1.0]))
    if neutral is None:
        constant = b.floats(*spread, low=0.5, high=1.5)
    else:
        constant = b.store(np.full(spread, neutral, np.float32))
    op = b.draw(st.sampled_from(["Add", "Sub", "Mul"] if neutral == 0 else ["Add", "Sub", "Mul", "Div"]))
    pair = [source, constant]
    b.node(op, pair[::-1] if op != "Div" and b.draw(st.booleans()) else pair, shape)


def _matrix(b: _Builder) -> None:
    source = b.some(1)
    if source is None:
        _flatten(b)
        return
    (size,) = b.shapes[source]
    out = b.draw(st.integers(1, 3))
    if b.draw(st.booleans()):
        b.node("MatMul", [source, b.floats(size, out)], (out,))
    else:
        inputs = [source, b.floats(out, size)] + ([b.floats(out)] if b.draw(st.booleans()) else [])
        b.node("Gemm", inputs, (out,), "<transB=1, alpha=0.5, beta=2.0>")


def _flatten(b: _Builder) -> None:
    source = b.some(3)
    if source is None:
        return
    flat = (math.prod(b.shapes[source]),)
    if b.draw(st.booleans()):
        b.node("Flatten", [source], flat)
    else:
        b.node("Reshape", [source, b.ints(*b.draw(st.sampled_from([(0, -1), (-1, flat[0])])))], flat)


def _no_op(b: _Builder) -> None:
    source = b.some(1, 3)
    if source is None:
        return
    shape = b.shapes[source]
    rank = len(shape) + 1
    match b.draw(st.integers(0, 7)):
        case 0:
            b.node("Identity", [source], shape)
        case 1:
            b.node("Dropout", [source], shape, outputs=2)
        case 2:
            b.node("Cast", [source], shape, "<to=1>")
        case 3:
            b.node("Reshape", [source, b.ints(0, *shape)], shape)
        case 4:
            b.node("Slice", [source, b.ints(0), b.ints(shape[0]), b.ints(1)], shape)
        case 5:
            b.node("Transpose", [source], shape, f"<perm=[{_text(range(rank))}]>")
        case 6:
            wide = b.node("Unsqueeze", [source, b.ints(1)], (1, *shape))
            b.node("Squeeze", [wide, b.ints(1)], shape)
        case _:
            b.node("Concat", [source], shape, "<axis=1>")


def _movement(b: _Builder) -> None:
    source = b.some(3)
    if source is None:
        return
    c, h, w = b.shapes[source]
    match b.draw(st.integers(0, 5)):
        case 0:
            b.node("Transpose", [source], (w, c, h), "<perm=[0,3,1,2]>")
        case 1:
            b.node("Pad", [source, b.ints(0, 0, 1, 0, 0, 0, 0, 1)], (c, h + 1, w + 1))
        case 2 if h > 1:
            b.node("Slice", [source, b.ints(1), b.ints(h), b.ints(2)], (c, h - 1, w))
        case 3:
            b.node("Slice", [source, b.ints(0), b.ints(w), b.ints(3), b.ints(2)], (c, h, (w + 1) // 2))
        case 4:
            b.node("Reshape", [source, b.ints(-1, h, c, w)], (h, c, w))
        case _:
            b.node("Concat", [source, source], (2 * c, h, w), "<axis=1>")


def _other(b: _Builder) -> None:
    source = b.some(1, 3)
    if source is None:
        return
    shape = b.shapes[source]
    others = [name for name, known in b.shapes.items() if known == shape]
    match b.draw(st.integers(0, 3)):
        case 0:
            b.node("Relu", [source], shape)
        case 1:
            b.node("Add", [source, b.draw(st.sampled_from(others))], shape)
        case 2:
            constant = b.node("Neg", [b.floats(shape[0], *(1,) * (len(shape) - 1))], ())
            del b.shapes[constant]
            b.node("Mul", [source, constant], shape)
        case _:
            sizes = b.node("Shape", [source], ())
            tail = b.node("Slice", [sizes, b.ints(1), b.ints(9)], ())
            target = b.node("Concat", [b.ints(-1), tail], (), "<axis=0>")
            for name in (sizes, tail, target):
                del b.shapes[name]
            b.node("Reshape", [source, target], shape)


_STEPS = (
    _convolution,
    _convolution,
    _batchnorm,
    _batchnorm,
    _arithmetic,
    _arithmetic,
    _matrix,
    _no_op,
    _movement,
    _other,
)


@st.composite
def networks(draw: Draw, least: int = 2, most: int = 9) -> Model:
    """Draw a network of one input `[N, C, 5, 4]` and one or two outputs, of `least` to `most` steps."""
    builder = _Builder(draw)
    for _ in range(draw(st.integers(least, most))):
        if math.prod(list(builder.shapes.values())[-1]) > 500:
            break
        draw(st.sampled_from(_STEPS))(builder)
    if len(builder.shapes) == 1:
        builder.node("Relu", ["x"], builder.shapes["x"])
    return builder.model()
