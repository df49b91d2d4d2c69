"""How each operator hands the derivative at its output to its inputs, in ONNX operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxcomp.analysis.linear import LinearNode, linear_node
from onnxcomp.compiler.gradients.rules_attention import ATTENTION_RULES, product_of_values
from onnxcomp.compiler.gradients.tape import Grads, Tape
from onnxcomp.ir.graph import Node, Value, Variable

__all__ = ["RULES", "Rule"]


Rule = Callable[[Tape, Node], Grads | None]
"""Returns the derivatives at inputs of a node, whose outputs' are on the tape; None where that cannot be told."""


def _conv(tape: Tape, node: Node) -> Grads | None:
    linear, shape = linear_node(node), tape.shape(node.inputs[0])
    if linear is None or shape is None:
        return None
    if any(s != 1 for s in linear.window(shape[2:]).strides):
        return [(0, _transposed(tape, node, linear, shape[2:]))]
    return [(0, _flipped(tape, node, linear, shape[2:]))]


def _flipped(tape: Tape, node: Node, linear: LinearNode, spatial: tuple[int, ...]) -> Variable:
    """Return the adjoint of a convolution without strides: one with mirrored kernels, the fastest there is."""
    window, weight, group = linear.window(spatial), linear.weight_array(), linear.group
    blocks = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
    turned = np.flip(blocks.reshape(-1, *blocks.shape[2:]), tuple(range(2, weight.ndim)))
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    pads = [[r - pad[side] for r, pad in zip(reach, window.pads, strict=True)] for side in (0, 1)]
    if min(pads[0] + pads[1]) < 0:
        return _transposed(tape, node, linear, spatial)
    return tape.op(
        "Conv",
        [tape.grad(node), tape.constant(np.ascontiguousarray(turned))],
        group=group,
        dilations=list(window.dilations),
        pads=pads[0] + pads[1],
    )


def _transposed(tape: Tape, node: Node, linear: LinearNode, spatial: tuple[int, ...]) -> Variable:
    adjoint = linear.window(spatial).adjoint(spatial)
    return tape.op("ConvTranspose", [tape.grad(node), node.inputs[1]], group=linear.group, **adjoint)


def _conv_transpose(tape: Tape, node: Node) -> Grads | None:
    """Return the convolution with the same weight, which a transposed convolution is the adjoint of."""
    plain = node.attrs.get("auto_pad", "NOTSET") == "NOTSET" and not node.attrs.get("output_shape")
    if not plain or node.constant(1) is None:
        return None
    attrs = {k: v for k, v in node.attrs.items() if k in ("group", "strides", "dilations", "pads")}
    return [(0, tape.op("Conv", [tape.grad(node), node.inputs[1]], **attrs))]


_COPYING = (
    ("half_pixel", "round_prefer_floor"),
    ("asymmetric", "floor"),
    ("asymmetric", "round_prefer_floor"),
)
"""Rules by which a Resize to twice the size puts every value down twice."""


def _text(node: Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _resize(tape: Tape, node: Node) -> Grads | None:
    """Sum over the places that one value was copied to: only whole multiples of the nearest value are undone."""
    shape, out = tape.shape(node.inputs[0]), tape.shape(node.output)
    mode = _text(node, "mode", "nearest")
    rule = (
        _text(node, "coordinate_transformation_mode", "half_pixel"),
        _text(node, "nearest_mode", "round_prefer_floor"),
    )
    if shape is None or out is None or len(shape) < 3 or mode != "nearest" or rule not in _COPYING:
        return None
    copies = [o // s for s, o in zip(shape[2:], out[2:], strict=True)]
    whole = all(s * n == o for s, n, o in zip(shape[2:], copies, out[2:], strict=True))
    if not whole or max(copies) > 2 or shape[:2] != out[:2]:
        return None
    mean = tape.op("AveragePool", [tape.grad(node)], kernel_shape=copies, strides=copies)
    return [(0, tape.op("Mul", [mean, tape.scalar(float(np.prod(copies)))]))]


def _gemm(tape: Tape, node: Node) -> Grads | None:
    linear = linear_node(node)
    if linear is None and node.is_op("MatMul"):
        return product_of_values(tape, node)
    if linear is None or linear.layout not in ("gemm", "right"):
        return None
    matrix = linear.matrix()[0].astype(np.float32)
    return [(linear.data, tape.op("MatMul", [tape.grad(node), tape.constant(matrix)]))]


def _batchnorm(tape: Tape, node: Node) -> Grads | None:
    scale, variance, shape = node.constant(1), node.constant(4), tape.shape(node.inputs[0])
    if scale is None or variance is None or shape is None or node.attrs.get("training_mode"):
        return None
    factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    factor = factor.reshape(1, -1, *[1] * (len(shape) - 2)).astype(np.float32)
    return [(0, tape.op("Mul", [tape.grad(node), tape.constant(factor)]))]


def _relu(tape: Tape, node: Node) -> Grads | None:
    return [(0, tape.mask(tape.op("Greater", [node.output, tape.scalar(0.0)]), tape.grad(node)))]


def _clip(tape: Tape, node: Node) -> Grads | None:
    grad = tape.grad(node)
    for index, test in ((1, "Greater"), (2, "Less")):
        bound = node.constant(index)
        if node.input(index) is not None and bound is None:
            return None
        if bound is not None:
            grad = tape.mask(tape.op(test, [node.output, tape.scalar(bound.item())]), grad)
    return [(0, grad)]


def _leaky(tape: Tape, node: Node) -> Grads | None:
    grad = tape.grad(node)
    slope: Value = (
        tape.scalar(float(node.attrs.get("alpha", 0.01))) if node.op == "LeakyRelu" else node.inputs[1]
    )
    positive = tape.op("Greater", [node.inputs[0], tape.scalar(0.0)])
    return [(0, tape.op("Where", [positive, grad, tape.op("Mul", [grad, slope])]))]


def _sigmoid(tape: Tape, node: Node) -> Grads | None:
    y = node.output
    slope = tape.op("Mul", [y, tape.op("Sub", [tape.scalar(1.0), y])])
    return [(0, tape.op("Mul", [tape.grad(node), slope]))]


def _tanh(tape: Tape, node: Node) -> Grads | None:
    y = node.output
    slope = tape.op("Sub", [tape.scalar(1.0), tape.op("Mul", [y, y])])
    return [(0, tape.op("Mul", [tape.grad(node), slope]))]


def _hard_sigmoid(tape: Tape, node: Node) -> Grads | None:
    grad = tape.op("Mul", [tape.grad(node), tape.scalar(float(node.attrs.get("alpha", 0.2)))])
    inside = tape.mask(tape.op("Greater", [node.output, tape.scalar(0.0)]), grad)
    return [(0, tape.mask(tape.op("Less", [node.output, tape.scalar(1.0)]), inside))]


def _hard_swish(tape: Tape, node: Node) -> Grads | None:
    # x * max(0, min(1, x / 6 + 1/2)): the derivative is 0 below -3, 1 above 3, x / 3 + 1/2 between.
    x = node.inputs[0]
    middle = tape.op("Add", [tape.op("Mul", [x, tape.scalar(1 / 3)]), tape.scalar(0.5)])
    above = tape.op("Where", [tape.op("Less", [x, tape.scalar(3.0)]), middle, tape.scalar(1.0)])
    slope = tape.op("Where", [tape.op("Greater", [x, tape.scalar(-3.0)]), above, tape.scalar(0.0)])
    return [(0, tape.op("Mul", [tape.grad(node), slope]))]


def _elementwise(tape: Tape, node: Node) -> Grads | None:
    grad, (a, b) = tape.grad(node), node.inputs[:2]
    found: Grads = []
    for index, value in enumerate((a, b)):
        if value not in tape.alive:
            continue
        part: Variable = grad
        if node.op == "Mul":
            part = tape.op("Mul", [grad, b if index == 0 else a])
        elif node.op == "Div":
            if index:
                return None
            part = tape.op("Div", [grad, b])
        elif node.op == "Sub" and index:
            part = tape.op("Neg", [grad])
        summed = tape.reduced(part, node, value)
        if summed is None:
            return None
        found.append((index, summed))
    return found


def _same(tape: Tape, node: Node) -> Grads | None:
    return [(0, tape.grad(node))]


def _reshape(tape: Tape, node: Node) -> Grads | None:
    return [(0, tape.like(tape.grad(node), node.inputs[0]))]


def _transpose(tape: Tape, node: Node) -> Grads | None:
    perm, shape = node.attrs.get("perm"), tape.shape(node.output)
    if shape is None:
        return None
    order = list(perm) if perm is not None else list(range(len(shape)))[::-1]
    return [(0, tape.op("Transpose", [tape.grad(node)], perm=[int(i) for i in np.argsort(order)]))]


def _mean(tape: Tape, node: Node) -> Grads | None:
    shape, out = tape.shape(node.inputs[0]), tape.shape(node.output)
    if shape is None or out is None:
        return None
    grad = tape.op("Mul", [tape.grad(node), tape.scalar(float(np.prod(out)) / float(np.prod(shape)))])
    if len(out) != len(shape):
        axes = node.constant(1) if node.input(1) is not None else node.attrs.get("axes")
        if axes is None:
            return None
        grad = tape.op("Unsqueeze", [grad, tape.constant(np.array(axes, np.int64))])
    return [(0, tape.op("Expand", [grad, tape.op("Shape", [node.inputs[0]])]))]


def _average_pool(tape: Tape, node: Node) -> Grads | None:
    shape, kernel = tape.shape(node.inputs[0]), node.attrs["kernel_shape"]
    pads = node.attrs.get("pads") or [0] * (2 * len(kernel))
    plain = node.attrs.get("auto_pad", "NOTSET") == "NOTSET" and not node.attrs.get("ceil_mode")
    if shape is None or not plain or (any(pads) and not node.attrs.get("count_include_pad")):
        return None
    if any(d != 1 for d in node.attrs.get("dilations") or [1]):
        return None
    strides = node.attrs.get("strides") or [1] * len(kernel)
    half = len(kernel)
    missing = [(size + pads[a] + pads[a + half] - kernel[a]) % strides[a] for a, size in enumerate(shape[2:])]
    weight = np.full((shape[1], 1, *kernel), 1.0 / float(np.prod(kernel)), np.float32)
    grad = tape.op(
        "ConvTranspose",
        [tape.grad(node), tape.constant(weight)],
        group=shape[1],
        strides=list(strides),
        pads=list(pads),
        output_padding=missing,
    )
    return [(0, grad)]


def _max_pool(tape: Tape, node: Node) -> Grads | None:
    """Send the derivative to where the largest value stood; of windows that overlap in it, only one is heard."""
    attrs = {k: v for k, v in node.attrs.items() if k in ("kernel_shape", "strides", "pads")}
    plain = node.attrs.get("auto_pad", "NOTSET") == "NOTSET" and not node.attrs.get("ceil_mode")
    if not plain or any(d != 1 for d in node.attrs.get("dilations") or [1]):
        return None
    if len(node.outputs) < 2:
        node.outputs.append(Variable(f"{node.name}.indices"))
    size = tape.op("Shape", [node.inputs[0]])
    return [(0, tape.op("MaxUnpool", [tape.grad(node), node.outputs[1], size], **attrs))]


def _pad(tape: Tape, node: Node) -> Grads | None:
    pads, shape = node.constant(1), tape.shape(node.inputs[0])
    mode = node.attrs.get("mode", b"constant")
    if pads is None or shape is None or mode not in ("constant", b"constant") or node.input(3) is not None:
        return None
    begin, end = pads[: len(shape)], pads[len(shape) :]
    axes = [a for a in range(1, len(shape)) if begin[a] or end[a]]
    if begin[0] or end[0] or (pads < 0).any():
        return None
    if not axes:
        return _same(tape, node)
    starts, ends = [int(begin[a]) for a in axes], [int(begin[a]) + shape[a] for a in axes]
    return [(0, _cut(tape, tape.grad(node), axes, starts, ends))]


def _cut(
    tape: Tape, value: Variable, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int]
) -> Variable:
    return tape.op("Slice", [value, *(tape.constant(np.array(n, np.int64)) for n in (starts, ends, axes))])


def _slice(tape: Tape, node: Node) -> Grads | None:
    shape = tape.shape(node.inputs[0])
    if shape is None or any(node.input(i) is not None and node.constant(i) is None for i in (1, 2, 3, 4)):
        return None
    starts, ends, axes, steps = (node.constant(i) for i in (1, 2, 3, 4))
    if starts is None or ends is None:
        return None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    grad = tape.grad(node)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = int(axis) % len(shape)
        places = np.arange(shape[at])[
            slice(int(start), int(end) if end > -shape[at] - 1 else None, int(step))
        ]
        if at == 0:
            return None
        grad = tape.spread(grad, at, places, shape[at], len(shape))
    return [(0, grad)]


def _concat(tape: Tape, node: Node) -> Grads | None:
    found: Grads = []
    start = 0
    for index, value in enumerate(node.inputs):
        shape = tape.shape(value)
        if shape is None:
            return None
        axis = int(node.attrs["axis"]) % len(shape)
        end = start + shape[axis]
        if value in tape.alive:
            found.append((index, _cut(tape, tape.grad(node), [axis], [start], [end])))
        start = end
    return found


def _split(tape: Tape, node: Node) -> Grads | None:
    zero = tape.scalar(0.0)
    parts = [tape.grads.get(v) or tape.op("Mul", [v, zero]) for v in node.outputs]
    return [(0, tape.op("Concat", parts, axis=int(node.attrs.get("axis", 0))))]


RULES: Mapping[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "BatchNormalization": _batchnorm,
    "Relu": _relu,
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "PRelu": _leaky,
    "Sigmoid": _sigmoid,
    "Tanh": _tanh,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Add": _elementwise,
    "Sub": _elementwise,
    "Mul": _elementwise,
    "Div": _elementwise,
    "Identity": _same,
    "Dropout": _same,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    **ATTENTION_RULES,
}
"""How each operator hands its output's derivative to its inputs; what is not here stops it."""
