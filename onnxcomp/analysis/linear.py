"""Linear nodes as matrices: one view of Conv, ConvTranspose, Gemm and MatMul for everything that refits weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxcomp.ir.graph import Constant, Graph, Node, Value
from onnxcomp.ir.model import Model
from onnxcomp.ir.ops import LINEAR, WEIGHT_INPUTS, WRAPS_WEIGHTS
from onnxcomp.numerics.arrays import Array, Array64
from onnxcomp.numerics.patches import Window, at_positions, patches, resolve_pads, spread_patches

__all__ = ["Linear", "LinearNode", "linear_node", "not_refitted"]


class Linear(Protocol):
    """What refits weights sees of a place where `y = W x + b` is computed: one node, or several that stand in for one."""

    @property
    def node(self) -> Node:
        """The node that makes the output."""

    @property
    def input(self) -> str:
        """Name of the computed input."""

    @property
    def output(self) -> str:
        """Name of the output."""

    @property
    def group(self) -> int:
        """Number of independent blocks."""

    @property
    def has_bias(self) -> bool:
        """Whether a bias can be held."""

    def matrix(self) -> Array64:
        """Return the weight as `[g, o, d]`."""

    def bias(self) -> Array64:
        """Return the bias `[o]`, zeros where there is none."""

    def positions(self, x: Array) -> int:
        """Return how many output columns one sample of the batch `x` has."""

    def columns_in(self, x: Array, positions: Array | None) -> Array:
        """Return a batch of inputs as columns `[g, d, n]`, float32."""

    def columns_out(self, y: Array, positions: Array | None) -> Array:
        """Return a batch of outputs as columns `[g, o, n]`, float32."""

    def pick_out(self, y: Array, rows: Array) -> Array:
        """Return outputs `y` reduced to the channels `rows`."""

    def install(self, model: Model, matrix: Array64, bias: Array64 | None, suffix: str) -> None:
        """Store `matrix` `[g, o, d]` and `bias` `[o]`, None for the one there is."""


@dataclass(frozen=True)
class StoredLinear:
    """The weight and bias of a Conv, ConvTranspose, Gemm or MatMul, as the matrix of `y = W x + b`.

    Attributes:
        node: the node itself.
        data: index of the input that is computed (0, or 1 for `MatMul(constant, x)`).
        weight: index of the weight input.
        group: number of independent blocks.
        layout: `conv`, `spread` (ConvTranspose), `gemm` (`[n, k]`), `right` (`[..., k] @ W`) or `left` (`W @ [..., k, n]`).
        transposed: whether the stored weight has its inputs before its outputs.
    """

    node: Node
    data: int
    weight: int
    group: int
    layout: str
    transposed: bool

    @property
    def input(self) -> str:
        """Name of the computed input."""
        return str(self.node.inputs[self.data].name)

    @property
    def output(self) -> str:
        """Name of the output."""
        return self.node.output.name

    @property
    def out_axis(self) -> int:
        """The weight's axis of output channels."""
        return 1 if self.transposed else 0

    @property
    def in_axis(self) -> int:
        """The weight's axis of input channels."""
        return 0 if self.transposed else 1

    @property
    def has_bias(self) -> bool:
        """Whether the node can hold a bias of its own."""
        return self.layout in ("conv", "spread", "gemm")

    @property
    def spatial(self) -> bool:
        """Whether values are `[n, c, ...]` with positions behind the channels."""
        return self.layout in ("conv", "spread")

    def weight_array(self) -> Array:
        """Return the stored weight."""
        array = self.node.constant(self.weight)
        assert array is not None
        return array

    def matrix(self) -> Array64:
        """Return the weight as `[g, o, d]`."""
        array = self.weight_array()
        flat = array.swapaxes(0, 1) if self.transposed else array
        flat = flat.reshape(len(flat), -1)
        matrix: Array64 = flat.reshape(self.group, -1, flat.shape[1]).astype(np.float64)
        return matrix * float(self.node.attrs.get("alpha", 1.0)) if self.layout == "gemm" else matrix

    def bias(self) -> Array64:
        """Return the bias `[o]`, zeros where there is none."""
        array = self.node.constant(2) if self.has_bias else None
        count = self.weight_array().shape[self.out_axis]
        if array is None:
            return np.zeros(count)
        beta = float(self.node.attrs.get("beta", 1.0)) if self.layout == "gemm" else 1.0
        return np.broadcast_to(array.reshape(-1).astype(np.float64) * beta, (count,)).copy()

    def install(self, model: Model, matrix: Array64, bias: Array64 | None, suffix: str) -> None:
        """Store `matrix` `[g, o, d]` (and `bias` `[o]`, None for the one there is) as this node's own, in its dtype."""
        old = self.weight_array()
        outward = (old.shape[1], old.shape[0], *old.shape[2:]) if self.transposed else old.shape
        array = matrix.reshape(outward)
        array = array.swapaxes(0, 1) if self.transposed else array
        graph: Graph = model.graph
        graph.set_constant(self.node, self.weight, np.ascontiguousarray(array.astype(old.dtype)), suffix)
        if self.layout == "gemm":
            self.node.attrs.pop("alpha", None)
        if bias is None:
            return
        if self.layout == "gemm":
            self.node.attrs.pop("beta", None)
        if isinstance(self.node.input(2), Constant):
            graph.set_constant(self.node, 2, bias.astype(old.dtype), suffix)
        else:
            graph.set_input(
                self.node, 2, graph.add_constant(f"{self.node.name}.bias__{suffix}", bias.astype(old.dtype))
            )


@dataclass(frozen=True)
class LinearNode(StoredLinear):
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight: what it reads and makes, as columns."""

    def window(self, spatial: tuple[int, ...]) -> Window:
        """Return where the kernel reads (or, of a ConvTranspose, writes), for an input of spatial size `spatial`."""
        attrs, ndim = self.node.attrs, len(spatial)
        kernel = tuple(self.weight_array().shape[2:])
        strides = tuple(attrs.get("strides") or [1] * ndim)
        dilations = tuple(attrs.get("dilations") or [1] * ndim)
        mode = attrs.get("auto_pad", "NOTSET")
        if self.layout == "spread" and (mode.startswith("SAME") or attrs.get("output_shape")):
            window = Window(kernel, strides, dilations, ((0, 0),) * ndim)
            total = np.subtract(self._spread_size(spatial, window), self.output_size(spatial))
            pads = tuple(
                (n // 2, n - n // 2) if mode == "SAME_UPPER" else (n - n // 2, n // 2) for n in total.tolist()
            )
        elif mode == "NOTSET":
            flat = attrs.get("pads") or [0] * (2 * ndim)
            pads = tuple((int(flat[a]), int(flat[a + ndim])) for a in range(ndim))
        else:
            pads = resolve_pads(mode, spatial, kernel, strides, dilations)
        return Window(kernel, strides, dilations, pads)

    def _spread_size(self, spatial: tuple[int, ...], window: Window) -> tuple[int, ...]:
        """Return the size of what a ConvTranspose makes (ONNX ConvTranspose-11)."""
        extra = self.node.attrs.get("output_padding") or [0] * len(spatial)
        return tuple(
            s * (size - 1) + int(more) + (k - 1) * d + 1 - sum(pad)
            for size, k, s, d, pad, more in zip(
                spatial, window.kernel, window.strides, window.dilations, window.pads, extra, strict=True
            )
        )

    def output_size(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial size of the output of a Conv or ConvTranspose for an input of size `spatial`."""
        attrs = self.node.attrs
        if self.layout == "conv":
            return self.window(spatial).output_size(spatial)
        if attrs.get("output_shape"):
            return tuple(int(size) for size in attrs["output_shape"][-len(spatial) :])
        if str(attrs.get("auto_pad", "NOTSET")).startswith("SAME"):
            strides = attrs.get("strides") or [1] * len(spatial)
            return tuple(size * int(s) for size, s in zip(spatial, strides, strict=True))
        return self._spread_size(spatial, self.window(spatial))

    def positions(self, x: Array) -> int:
        """Return how many output columns one sample of the batch `x` has."""
        if self.spatial:
            return int(np.prod(self.output_size(x.shape[2:])))
        if x.ndim == 1 or (x.ndim == 2 and self.layout != "left"):
            return 1
        rows = x.shape[-1] if self.layout == "left" else x.shape[-2]
        return int(np.prod(x.shape[1:-2], dtype=int) * rows)

    def columns_in(self, x: Array, positions: Array | None) -> Array:
        """Return a batch of inputs as columns `[g, d, n]`, float32, at the chosen output positions of every sample."""
        if self.layout == "conv":
            return patches(x, self.window(x.shape[2:]), self.group, positions)
        if self.layout == "spread":
            return spread_patches(x, self.window(x.shape[2:]), self.output_size(x.shape[2:]), positions)
        return _columns(x, self.layout, positions)

    def channels_in(self, x: Array, channels: int, rng: np.random.Generator, most: int = 256) -> Array:
        """Return a batch of inputs as columns of channels `[g, channels / g, n]`, at most `most` columns of a sample.

        Columns of one channel are those that `weight.reshape(o, channels, -1)` holds together: the pixels of a
        convolution's input, or the features that a Flatten made of one channel.
        """
        flat = x.reshape(len(x), channels, -1)
        if flat.shape[2] > most:
            flat = flat[:, :, np.sort(rng.choice(flat.shape[2], most, replace=False))]
        columns = np.ascontiguousarray(flat.swapaxes(0, 1), np.float32)
        return columns.reshape(self.group, channels // self.group, -1)

    def columns_out(self, y: Array, positions: Array | None) -> Array:
        """Return a batch of outputs as columns `[g, o, n]`, float32, matching `columns_in`."""
        if not self.spatial:
            return _columns(y, self.layout, positions)
        return at_positions(y, positions).reshape(self.group, y.shape[1] // self.group, -1)

    def pick_out(self, y: Array, rows: Array) -> Array:
        """Return outputs `y` reduced to the channels `rows`."""
        axis = {"conv": 1, "spread": 1, "gemm": 1, "right": -1, "left": max(-2, -y.ndim)}[self.layout]
        return y.take(rows, axis)


def _columns(x: Array, layout: str, positions: Array | None) -> Array:
    if x.ndim == 1:
        return np.array(x[None, :, None], np.float32)
    if layout == "left":
        x = x.swapaxes(-1, -2)
    if x.ndim > 2:
        flat = x.reshape(len(x), -1, x.shape[-1])
        x = (flat if positions is None else flat[:, positions]).reshape(-1, x.shape[-1])
    return np.ascontiguousarray(x.T, np.float32)[None]


def linear_node(node: Node) -> LinearNode | None:
    """Return `node` as a LinearNode, or None where it is not one (other operator, computed or integer weight)."""
    if node.is_op("Conv", "ConvTranspose"):
        weight, group = node.constant(1), int(node.attrs.get("group", 1))
        if (
            weight is None
            or weight.dtype.kind != "f"
            or (node.input(2) is not None and node.constant(2) is None)
        ):
            return None
        if node.is_op("Conv"):
            return LinearNode(node, 0, 1, group, "conv", False)
        return LinearNode(node, 0, 1, 1, "spread", True) if group == 1 else None
    if node.is_op("Gemm"):
        weight, bias = node.constant(1), node.constant(2)
        if weight is None or weight.dtype.kind != "f" or node.attrs.get("transA"):
            return None
        if node.input(2) is not None and (bias is None or (bias.ndim > 1 and bias.shape[0] != 1)):
            return None
        return LinearNode(node, 0, 1, 1, "gemm", not node.attrs.get("transB"))
    if node.is_op("MatMul"):
        for index in (1, 0):
            weight = node.constant(index)
            if weight is not None and weight.ndim == 2 and weight.dtype.kind == "f":
                return LinearNode(node, 1 - index, index, 1, "right" if index else "left", bool(index))
    return None


def not_refitted(node: Node) -> str | None:
    """Return why a node with a stored weight is no LinearNode, or None where it is one or has no stored weight."""
    if not node.is_op(*LINEAR) or linear_node(node) is not None:
        return None
    for index in WEIGHT_INPUTS[node.op]:
        wrapper, quantized = _maker(node.input(index)), False
        outermost = wrapper
        while wrapper is not None and wrapper.is_op(*WRAPS_WEIGHTS):
            quantized = quantized or wrapper.is_op("DequantizeLinear")
            if isinstance(wrapper.input(0), Constant) and outermost is not None:
                if quantized:
                    return "its weight is quantized, and a refit would leave the grid of the quantization"
                return f"its weight stands behind {outermost.op} {outermost.name!r}; fold constants first"
            wrapper = _maker(wrapper.input(0))
    if node.is_op("ConvTranspose") and node.constant(1) is not None and int(node.attrs.get("group", 1)) > 1:
        return "it is a transposed convolution in groups"
    return _other_form(node)


def _other_form(node: Node) -> str | None:
    """Return what keeps a node with a plain stored weight from being a LinearNode, None where it has no such weight."""
    stored = [a for index in WEIGHT_INPUTS[node.op] if (a := node.constant(index)) is not None]
    if not stored:
        return None
    weight, bias = stored[-1], node.constant(2)
    if weight.dtype.kind != "f":
        return f"its weight is stored as {weight.dtype}"
    if node.is_op("MatMul"):
        return (
            "its weight is a vector"
            if weight.ndim == 1
            else "its weight is a stack of matrices, one for each entry of a batch"
        )
    if node.attrs.get("transA"):
        return "it transposes what it reads (transA)"
    if node.input(2) is not None:
        return "its bias is computed, not stored" if bias is None else "its bias has a number for every row"
    return None


def _maker(value: Value | None) -> Node | None:
    return value.producer if value is not None else None
