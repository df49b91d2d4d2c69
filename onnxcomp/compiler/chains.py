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
from numpy.typing import NDArray

from onnxcomp.analysis.linear import LinearNode
from onnxcomp.ir.graph import Constant, Node, Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.forms import Factors, Form

__all__ = ["Chain", "Layout", "Link", "lay_out", "possible"]

Array = NDArray[Any]
Array64 = NDArray[np.float64]

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
    if not node.spatial:
        return None if form == "channel" else f"a matrix product has no kernel that {form} could split"
    kernel = node.weight_array().shape[2:]
    taps, wide = math.prod(kernel), sum(k > 1 for k in kernel)
    if taps == 1:
        return None if form == "channel" else f"its kernel of one tap leaves {form} nothing to split"
    if form in ("vertical", "horizontal"):
        if len(kernel) != 2 or wide < 2:
            return f"its kernel has no two axes that {form} could split"
        if node.node.attrs.get("output_shape"):
            return "its output_shape belongs to both axes at once"
    per_block = node.weight_array().shape[node.in_axis]
    if form in ("depthwise", "pointwise") and node.group > 1 and per_block == 1:
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

        `blocks` are the factors of every block. The bias stays what it was.
        """
        graph = model.graph
        old = next(node for node in graph.nodes if node.name == template.node.name)
        links = lay_out(template, form, layout, spatial)
        builder = _Builder(model, old, template)
        nodes = [builder.add(link, links, layout) for link in links]
        last = builder.finish(nodes, links)
        chain = cls(template, form, layout, last, links, nodes)
        chain.install_factors(model, blocks, None)
        return chain

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
        return str(self.nodes[0].inputs[self._data].name)

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

    @property
    def _data(self) -> int:
        return self.template.data

    def matrix(self) -> Array64:
        """Return the product of the factors, `[g, o, d]`."""
        return np.stack([self.form.expand(block) for block in self.blocks]).astype(np.float64)

    def bias(self) -> Array64:
        """Return the bias `[o]`, zeros where there is none."""
        array = self.bias_holder.constant(2) if self.has_bias else None
        count = self.form.outputs * self.group
        return (
            np.zeros(count)
            if array is None
            else np.broadcast_to(array.reshape(-1), (count,)).astype(np.float64)
        )

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
        dtype = self.template.weight_array().dtype
        weights = _weights(self.form, self.layout, _balanced(self.form, blocks))
        for node, link, weight in zip(self.nodes, self.links, weights, strict=True):
            array = _stored(weight, link, self.template).astype(dtype)
            model.graph.set_constant(node, self._weight_index, np.ascontiguousarray(array), "refit")
        if bias is not None:
            holder = self.bias_holder
            if isinstance(holder.input(2), Constant):
                model.graph.set_constant(holder, 2, bias.astype(dtype), "refit")
            else:
                made = model.graph.add_constant(f"{self.node.name}.bias__refit", bias.astype(dtype))
                model.graph.set_input(holder, 2, made)

    @property
    def _weight_index(self) -> int:
        return self.template.weight

    @property
    def bias_holder(self) -> Node:
        """The node that has the bias: the last with a weight, or that of the first branch."""
        first = [n for n, link in zip(self.nodes, self.links, strict=True) if link.branch in (-1, 0)]
        return first[-1]


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


def _balanced(form: Form, blocks: Sequence[Factors]) -> list[Factors]:
    """Return the factors with the size of the product spread evenly over them: half precision and integers like that."""
    out = []
    for factors in blocks:
        sizes = [float(np.sqrt(np.mean(np.square(f, dtype=np.float64)))) for f in factors]
        if not all(size > 0 for size in sizes):
            out.append(factors)
            continue
        common = math.exp(sum(map(math.log, sizes)) / len(sizes))
        out.append(tuple(f * (common / size) for f, size in zip(factors, sizes, strict=True)))
    return out


class _Builder:
    """Puts the nodes of a chain into a graph, before the node that they replace."""

    def __init__(self, model: Model, old: Node, template: LinearNode) -> None:
        self._model, self._graph, self._old, self._template = model, model.graph, old, template
        self._value: Value = old.inputs[template.data]
        self._taken = {node.name for node in model.graph.nodes}
        self._joined: list[Variable] = []
        self._ends: list[Variable] = []

    def add(self, link: Link, links: Sequence[Link], layout: Layout) -> Node:
        """Insert the node of `link` and return it; its weight is put in later."""
        place = next(i for i, each in enumerate(links) if each is link)
        behind = links[place - 1] if place else None
        x = self._old.inputs[self._template.data]
        if link.branch >= 0 and (behind is None or behind.branch != link.branch):
            self._value = x
        elif link.branch < 0 and self._joined:
            self._value = self._concat()
        weight = self._graph.add_constant(f"{self._old.name}.{place}.weight", np.zeros(1, np.float32))
        inputs: list[Value] = [self._value, weight] if self._template.data == 0 else [weight, self._value]
        attrs = dict(link.attrs)
        if self._template.node.op == "Gemm" and self._old.attrs.get("transB"):
            attrs["transB"] = 1
        made = self._node(link.op, inputs, attrs)
        self._value = made.output
        following = links[place + 1] if place + 1 < len(links) else None
        ends = following is None or following.branch != link.branch
        if link.branch >= 0 and ends:
            (self._joined if layout == "concat" else self._ends).append(made.output)
        return made

    def finish(self, nodes: list[Node], links: Sequence[Link]) -> Node:
        """Add branches up, hand the old node's output, bias and name over, and remove it; return the last node."""
        graph, old = self._graph, self._old
        last = nodes[-1]
        for value in self._ends[1:]:
            last = self._node("Add", [self._ends[0] if value is self._ends[1] else last.output, value], {})
        bias = old.input(2) if self._template.has_bias else None
        if bias is not None:
            holder = [n for n, link in zip(nodes, links, strict=True) if link.branch in (-1, 0)][-1]
            graph.set_input(holder, 2, bias)
            if old.is_op("Gemm") and "beta" in old.attrs:
                holder.attrs["beta"] = old.attrs["beta"]
        output, name = old.output, old.name
        old.outputs[0] = Variable("")
        old.inputs.clear()
        graph.remove_nodes([old])
        last.outputs[0] = output
        last.name = name
        return last

    def _concat(self) -> Variable:
        made = self._node("Concat", list(self._joined), {"axis": 1})
        self._joined = []
        return made.output

    def _node(self, op: str, inputs: list[Value], attrs: dict[str, Any]) -> Node:
        name = self._graph.fresh_name(f"{self._old.name}.{op.lower()}", self._taken)
        self._taken.add(name)
        made = Variable(self._graph.fresh_name(f"{name}.out"), self._old.output.dtype)
        node = Node(op, name, attrs, inputs, [made])
        self._graph.insert(node, self._old)
        return node
