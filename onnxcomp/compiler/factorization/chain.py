"""Chains: the nodes that stand in for one linear node once its weights are a product of factors.

The last node of a chain has the name of the node it stands in for and makes its output, so that whatever names the node
(an exclude, a report, the original network's values) goes on naming the same place. To the walk that refits, a chain is
one node still: it reads the columns that the dense kernel would read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from onnxcomp.analysis.linear import LinearNode
from onnxcomp.ir.graph import Constant, Graph, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Array64
from onnxcomp.numerics.factoring import balanced
from onnxcomp.numerics.forms import Factors, Form

__all__ = ["Chain", "Layout", "Link", "lay_out", "possible"]


Layout: TypeAlias = Literal["plain", "concat", "sum"]
"""How what is there r times stands in the graph: as one convolution with r filters a channel, as r whose results are
joined, or as r branches that are added up."""

_WINDOW = ("strides", "dilations", "pads", "auto_pad", "kernel_shape", "output_padding", "output_shape")
"""Attributes that say where a kernel reads."""


@dataclass(frozen=True)
class Link:
    """One node with a weight: its operator, the attributes, the shape of the weight, and on which axes it has a kernel.

    `branch` numbers the branches of a layout with several; a link of branch -1 stands before or behind all of them.
    `sizes` are the spatial sizes it reads and makes.
    """

    op: str
    attrs: dict[str, Any]
    shape: tuple[int, ...]
    sizes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    branch: int = -1

    @property
    def elements(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample, where the sizes are known; of a matrix product for one row."""
        return self.elements * math.prod(self.sizes[0] if self.op == "ConvTranspose" else self.sizes[1])


@dataclass(frozen=True)
class _Axes:
    """The window of a node, reduced to some of its spatial axes."""

    node: LinearNode
    spatial: tuple[int, ...]

    def link(
        self, makes: int, reads: int, group: int, axes: Sequence[int], before: Sequence[int], branch: int
    ) -> Link:
        """Return the link from `reads` to `makes` channels in `group` blocks with a kernel on `axes` alone.

        `before` are the axes on which kernels have been at work already.
        """
        node, ndim = self.node, len(self.spatial)
        done = node.output_size(self.spatial)
        kernel = [k if a in axes else 1 for a, k in enumerate(node.weight_array().shape[2:])]
        read = tuple(done[a] if a in before else self.spatial[a] for a in range(ndim))
        made = tuple(done[a] if a in (*before, *axes) else self.spatial[a] for a in range(ndim))
        turned = node.layout == "spread" and len(axes) > 0
        shape = (reads, makes // group) if turned else (makes, reads // group)
        attrs: dict[str, Any] = {"kernel_shape": kernel, "group": group}
        for name in _WINDOW[:-1] if axes else ():
            value = node.node.attrs.get(name)
            if value is not None and name != "kernel_shape":
                attrs[name] = self._reduced(name, value, axes)
        if axes and node.node.attrs.get("output_shape"):
            attrs["output_shape"] = list(made)
        return Link("ConvTranspose" if turned else "Conv", attrs, (*shape, *kernel), (read, made), branch)

    def _reduced(self, name: str, value: Any, axes: Sequence[int]) -> Any:
        if isinstance(value, str):
            return value
        ndim = len(self.spatial)
        nothing = 1 if name in ("strides", "dilations") else 0
        return [v if (i % ndim) in axes else nothing for i, v in enumerate(value)]


def lay_out(node: LinearNode, form: Form, layout: Layout, spatial: tuple[int, ...]) -> list[Link]:
    """Return the links, in order, of what stands in for `node` in `form`; `spatial` is the size of its input."""
    if not node.spatial:
        (m, r), (_, n) = form.shapes()
        return [Link(node.node.op, {}, (r, n)), Link(node.node.op, {}, (m, r))]
    g, o, c = node.group, form.outputs * node.group, form.channels * node.group
    whole, axes = tuple(range(len(spatial))), _Axes(node, spatial)
    r = form.ranks[0] * g

    def point(makes: int, reads: int, before: Sequence[int], branch: int = -1) -> Link:
        return axes.link(makes, reads, g, (), before, branch)

    if form.name == "channel":
        return [axes.link(r, c, g, whole, (), -1), point(o, r, whole)]
    if form.name == "first":
        return [point(r, c, ()), axes.link(o, r, g, whole, (), -1)]
    if form.name in ("vertical", "horizontal"):
        one, two = ((0,), (1,)) if form.name == "vertical" else ((1,), (0,))
        return [axes.link(r, c, g, one, (), -1), axes.link(o, r, g, two, one, -1)]
    if form.name == "tucker":
        q, r = r, form.ranks[1] * g
        return [point(r, c, ()), axes.link(q, r, g, whole, (), -1), point(o, q, whole)]
    if form.name == "cp":
        return [point(r, c, ()), axes.link(r, r, r, whole, (), -1), point(o, r, whole)]
    times = form.ranks[0]
    if form.name == "depthwise":
        if layout == "plain":
            return [axes.link(c * times, c, c, whole, (), -1), point(o, c * times, whole)]
        each = [axes.link(c, c, c, whole, (), j) for j in range(times)]
        if layout == "concat":
            return [*each, point(o, c * times, whole)]
        return [link for j in range(times) for link in (each[j], point(o, c, whole, j))]
    if layout == "plain":
        return [point(o * times, c, ()), axes.link(o, o * times, o, whole, (), -1)]
    return [link for j in range(times) for link in (point(o, c, (), j), axes.link(o, o, o, whole, (), j))]


def possible(form: str, node: LinearNode, layout: Layout = "plain") -> str | None:
    """Return why the form of this name cannot stand in for `node` in `layout`, or None where it can."""
    if layout != "plain" and form not in ("depthwise", "pointwise"):
        return f"{form} has no branches to lay out as {layout}"
    if form == "pointwise" and layout == "concat":
        return "the branches of pointwise are added up, not joined"
    if not node.spatial:
        return None if form == "channel" else f"a matrix product has no kernel that {form} could split"
    kernel = node.weight_array().shape[2:]
    if math.prod(kernel) == 1:
        return None if form == "channel" else f"its kernel of one tap leaves {form} nothing to split"
    if form in ("vertical", "horizontal"):
        if len(kernel) != 2 or 1 in kernel:
            return f"its kernel has no two axes that {form} could split"
        if node.node.attrs.get("output_shape"):
            return "its output_shape belongs to both axes at once"
    if node.group > 1 and node.weight_array().shape[node.in_axis] == 1:
        # Of a depthwise kernel next to nothing can be saved, and block by block it would be as long a work as all others.
        return "it is depthwise already"
    if form == "depthwise" and layout == "concat" and node.group > 1:
        return "the results of its blocks would have to be joined apart"
    return None


def _weights(form: Form, layout: Layout, blocks: Sequence[Factors]) -> list[Array]:
    """Return the weights of the links as `[outputs, inputs, taps]`, from the factors of every block."""
    kinds = [np.stack(parts) for parts in zip(*blocks, strict=True)]
    g, o, c, s, r = len(blocks), form.outputs, form.channels, form.taps, form.ranks[0]
    if form.name in ("channel", "first", "vertical", "horizontal"):
        A, B = kinds
        h, w = form.kernel if len(form.kernel) == 2 else (s, 1)
        inner, outer = {"channel": (s, 1), "first": (1, s), "vertical": (h, w), "horizontal": (w, h)}[
            form.name
        ]
        last = A.reshape(g, o, outer, r).swapaxes(2, 3).reshape(g * o, r, outer)
        return [B.reshape(g * r, c, inner), last]
    if form.name == "tucker":
        A, K, B = kinds
        q, r = form.ranks
        return [B.reshape(g * r, c, 1), K.reshape(g * q, r, s), A.reshape(g * o, q, 1)]
    if form.name == "cp":
        A, U, B = kinds
        return [B.reshape(g * r, c, 1), U.reshape(g * r, 1, s), A.reshape(g * o, r, 1)]
    if form.name == "depthwise":
        P, D = kinds
        if layout == "plain":
            return [D.reshape(g * c * r, 1, s), P.reshape(g * o, c * r, 1)]
        each = [D[:, :, j].reshape(g * c, 1, s) for j in range(r)]
        if layout == "concat":
            return [*each, P.swapaxes(2, 3).reshape(g * o, r * c, 1)]
        return [a for j in range(r) for a in (each[j], P[..., j].reshape(g * o, c, 1))]
    P, D = kinds
    if layout == "plain":
        return [P.reshape(g * o * r, c, 1), D.reshape(g * o, r, s)]
    return [a for j in range(r) for a in (P[:, :, j].reshape(g * o, c, 1), D[:, :, j].reshape(g * o, 1, s))]


@dataclass
class Chain:
    """What stands in for `template`, a linear node of the model before: `nodes` with weights, and `node` that ends it.

    It has the face of a LinearNode to what refits: columns in and out are those of the dense node.
    """

    template: LinearNode
    form: Form
    layout: Layout
    node: Node
    links: list[Link]
    nodes: list[Node]
    blocks: list[Factors] = field(default_factory=list)

    @classmethod
    def build(
        cls,
        model: Model,
        template: LinearNode,
        form: Form,
        layout: Layout,
        blocks: Sequence[Factors],
        spatial: tuple[int, ...],
    ) -> Chain:
        """Return the chain that takes the place of the node of `template`'s name in `model`, which is edited.

        `blocks` are the factors of every block. The bias stays what it was; the old weight stays registered.
        """
        old = next(node for node in model.graph.nodes if node.name == template.node.name)
        links = lay_out(template, form, layout, spatial)
        builder = _Builder(model.graph, old, template)
        arrays = _arrays(template, form, layout, links, blocks)
        nodes = [builder.add(place, links, array) for place, array in enumerate(arrays)]
        last = builder.finish(nodes, links)
        return cls(template, form, layout, last, links, nodes, list(blocks))

    def within(self, nodes: Mapping[str, Node]) -> Chain:
        """Return the chain as it stands in a clone of the model, whose nodes by name are `nodes`."""
        own = [nodes[node.name] for node in self.nodes]
        return Chain(
            self.template, self.form, self.layout, nodes[self.node.name], self.links, own, list(self.blocks)
        )

    # --- the face of a linear node ---------------------------------------------------------------------------------
    @property
    def input(self) -> str:
        """Name of the computed input."""
        return str(self.nodes[0].inputs[self.template.data].name)

    @property
    def output(self) -> str:
        """Name of the output."""
        return self.node.output.name

    @property
    def group(self) -> int:
        """Number of independent blocks."""
        return self.template.group

    @property
    def has_bias(self) -> bool:
        """Whether a bias can be held."""
        return self.template.has_bias

    def matrix(self) -> Array64:
        """Return the product of the factors, `[g, o, d]`."""
        return np.stack([self.form.expand(block) for block in self.blocks]).astype(np.float64)

    def bias(self) -> Array64:
        """Return the bias `[o]`, zeros where there is none."""
        count = self.form.outputs * self.group
        array = self.bias_holder.constant(2) if self.has_bias else None
        if array is None:
            return np.zeros(count)
        beta = float(self.bias_holder.attrs.get("beta", 1.0))
        return np.broadcast_to(array.reshape(-1).astype(np.float64) * beta, (count,)).copy()

    def positions(self, x: Array) -> int:
        """Return how many output columns one sample of the batch `x` has."""
        return self.template.positions(x)

    def columns_in(self, x: Array, positions: Array | None) -> Array:
        """Return a batch of inputs as the columns `[g, d, n]` of the dense node."""
        return self.template.columns_in(x, positions)

    def columns_out(self, y: Array, positions: Array | None) -> Array:
        """Return a batch of outputs as columns `[g, o, n]`."""
        return self.template.columns_out(y, positions)

    def pick_out(self, y: Array, rows: Array) -> Array:
        """Return outputs `y` reduced to the channels `rows`."""
        return self.template.pick_out(y, rows)

    def install(self, model: Model, matrix: Array64, bias: Array64 | None, suffix: str) -> None:
        """Store `bias` `[o]`; the weights are those of the factors, of which `matrix` is the product."""
        self.install_factors(model, self.blocks, bias)

    def install_factors(self, model: Model, blocks: Sequence[Factors], bias: Array64 | None) -> None:
        """Store the factors of every block, and `bias` `[o]` (None for the one there is)."""
        self.blocks = list(blocks)
        arrays = _arrays(self.template, self.form, self.layout, self.links, blocks)
        for node, array in zip(self.nodes, arrays, strict=True):
            model.graph.set_constant(node, self.template.weight, array, "refit")
        if bias is None:
            return
        holder, made = self.bias_holder, bias.astype(self.template.weight_array().dtype)
        holder.attrs.pop("beta", None)
        if isinstance(holder.input(2), Constant):
            model.graph.set_constant(holder, 2, made, "refit")
        else:
            name = f"{self.node.name}.bias__refit"
            model.graph.set_input(holder, 2, model.graph.add_constant(name, made))

    @property
    def bias_holder(self) -> Node:
        """The node that has the bias: the last with a weight, or that of the first branch."""
        return _bias_holder(self.nodes, self.links)


def _bias_holder(nodes: Sequence[Node], links: Sequence[Link]) -> Node:
    return [node for node, link in zip(nodes, links, strict=True) if link.branch in (-1, 0)][-1]


def _arrays(
    template: LinearNode, form: Form, layout: Layout, links: Sequence[Link], blocks: Sequence[Factors]
) -> list[Array]:
    """Return what the nodes of the links store as weights, in the dtype of `template`'s."""
    dtype = template.weight_array().dtype
    weights = _weights(form, layout, [balanced(factors) for factors in blocks])
    stored = (_stored(weight, link, template) for weight, link in zip(weights, links, strict=True))
    return [np.ascontiguousarray(array.astype(dtype)) for array in stored]


def _stored(weight: Array, link: Link, template: LinearNode) -> Array:
    """Return `weight` `[o, i, taps]` as the node of `link` stores it."""
    if not template.spatial:
        flat = weight[:, :, 0]
        return flat.T if template.transposed else flat
    if link.op == "ConvTranspose":
        # [o, i / g, taps] with o in blocks becomes [i, o / g, taps].
        g = int(link.attrs["group"])
        o, per, s = weight.shape
        blocks = weight.reshape(g, o // g, per, s).swapaxes(1, 2)
        return blocks.reshape(link.shape)
    return weight.reshape(link.shape)


class _Builder:
    """Puts the nodes of a chain into a graph, before the node that they replace."""

    def __init__(self, graph: Graph, old: Node, template: LinearNode) -> None:
        self._graph, self._old, self._template = graph, old, template
        self._value: Value = old.inputs[template.data]
        self._taken = graph.names()
        self._ends: list[Variable] = []

    def add(self, place: int, links: Sequence[Link], array: Array) -> Node:
        """Insert and return the node of the link at `place`, whose weight is `array`."""
        link = links[place]
        if link.branch >= 0 and (not place or links[place - 1].branch != link.branch):
            self._value = self._old.inputs[self._template.data]
        elif link.branch < 0 and self._ends:
            self._value = self._joined()
        weight = Constant(self._fresh(f"{self._old.name}.{place}.weight"), array)
        self._graph.constants[weight.name] = weight
        inputs: list[Value] = [self._value, weight] if self._template.data == 0 else [weight, self._value]
        attrs = dict(link.attrs)
        if self._old.is_op("Gemm") and self._old.attrs.get("transB"):
            attrs["transB"] = 1
        made = self._node(link.op, inputs, attrs)
        self._value = made.output
        if link.branch >= 0 and (place + 1 == len(links) or links[place + 1].branch != link.branch):
            self._ends.append(made.output)
        return made

    def finish(self, nodes: Sequence[Node], links: Sequence[Link]) -> Node:
        """Add branches up, hand the old node's output, bias and name over, and remove it; return the last node."""
        old, last = self._old, nodes[-1]
        for index, value in enumerate(self._ends[1:]):
            last = self._node("Add", [last.output if index else self._ends[0], value], {})
        bias = old.input(2) if self._template.has_bias else None
        if bias is not None:
            holder = _bias_holder(nodes, links)
            self._graph.set_input(holder, 2, bias)
            if old.is_op("Gemm") and "beta" in old.attrs:
                holder.attrs["beta"] = old.attrs["beta"]
        last.name, last.doc_string, last.metadata = old.name, old.doc_string, dict(old.metadata)
        output = old.output
        old.outputs[0] = Variable("")
        self._graph.remove_nodes([old])
        last.outputs[0] = output
        return last

    def _joined(self) -> Variable:
        """Return the ends of the branches, joined; they are ends no more."""
        ends, self._ends = self._ends, []
        return ends[0] if len(ends) == 1 else self._node("Concat", list(ends), {"axis": 1}).output

    def _node(self, op: str, inputs: list[Value], attrs: dict[str, Any]) -> Node:
        name = self._fresh(f"{self._old.name}.{op.lower()}")
        made = Variable(self._fresh(f"{name}.out"), self._old.output.dtype)
        node = Node(op, name, attrs, inputs, [made])
        self._graph.insert(node, self._old)
        return node

    def _fresh(self, base: str) -> str:
        name = self._graph.fresh_name(base, self._taken)
        self._taken.add(name)
        return name
