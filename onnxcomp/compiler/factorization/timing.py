"""What alternatives take, timed beside the node that they stand in for, on its own shapes, in onnxruntime.

Several copies of what is timed read one input and are added up, and what they take beyond one copy counts: so conversions
of layout in front of the first and behind the last cancel. Times are taken at few ranks and drawn straight in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from onnxcomp.analysis.linear import linear_node
from onnxcomp.compiler.cost.kernel_times import clock
from onnxcomp.compiler.cost.latency import structure
from onnxcomp.compiler.factorization.candidates import Alternative, Place
from onnxcomp.compiler.factorization.chain import Chain, Layout, possible
from onnxcomp.compiler.passbase import Context
from onnxcomp.ir.builder import GraphBuilder
from onnxcomp.ir.graph import Value, Variable
from onnxcomp.ir.model import Model
from onnxcomp.numerics.arrays import Array, Shapes
from onnxcomp.numerics.forms import Form

__all__ = ["FormGraphs", "FormTimes"]


COPIES = 3
"""Copies beyond the first; what they take is counted."""

SECONDS = 0.06
"""Spent on the four models of one comparison: some hundred runs of an ordinary layer, of which the fastest counts."""

BLOCK = 16
"""Ranks are multiples of this where they are chosen for time: kernels work on so many channels at once."""

RATIOS = (0.15, 0.4, 0.8)
"""Shares of the node's own cost near which forms are timed."""


class FormTimes:
    """Times of alternatives as shares of the time of the node itself, kept in `context.timings`."""

    def __init__(self, model: Model, context: Context, shapes: Shapes) -> None:
        self._model, self._context, self._shapes = model, context, shapes
        self._graphs = FormGraphs(model, shapes)
        self._kinds: dict[str, str] = {}
        self._lines: dict[tuple[str, str, Layout], tuple[Array, Array]] = {}
        self._layouts: dict[tuple[str, str, tuple[int, ...]], Layout] = {}

    def of(self, place: Place, alternative: Alternative) -> float:
        """Return the time of `alternative` as a share of that of the node at `place`."""
        key = (self._kind(place), alternative.form.name, alternative.layout)
        if key not in self._lines:
            self._lines[key] = self._line(place, alternative)
        sizes, ratios = self._lines[key]
        size = sum(alternative.form.ranks)
        return float(_drawn(sizes, ratios, size))

    def layout(self, place: Place, form: Form, layouts: Sequence[Layout]) -> Layout:
        """Return the fastest of `layouts` for `form` at `place`."""
        key = (self._kind(place), form.name, form.ranks)
        if key not in self._layouts:
            open_layouts = [each for each in layouts if possible(form.name, place.node, each) is None]
            self._layouts[key] = min(open_layouts, key=lambda each: self._ratio(place, form, each))
        return self._layouts[key]

    def share(self, places: Sequence[Place]) -> dict[str, float]:
        """Return the time of the node at every place as a share of that of the whole model, by name."""
        found = {}
        for place in places:
            kind = self._kind(place)
            whole = structure(self._model, self._context.input_shapes)
            found[place.name] = self._context.timings.get(
                f"share of {kind} in {whole}", partial(self._measure_share, place)
            )
        return found

    # --- measuring ---------------------------------------------------------------------------------------------------
    def _kind(self, place: Place) -> str:
        """Return what decides about the time of the node at `place`, in words."""
        if place.name not in self._kinds:
            node = place.node
            attrs = {
                n: v
                for n, v in sorted(node.node.attrs.items())
                if n in ("strides", "pads", "dilations", "auto_pad", "group", "transB", "output_padding")
            }
            words = " ".join(
                f"{n}={','.join(map(str, v)) if isinstance(v, list) else v}" for n, v in attrs.items()
            )
            weight = "x".join(map(str, node.weight_array().shape))
            read = "x".join(map(str, self._shapes[node.input]))
            self._kinds[place.name] = f"{node.node.op} {weight} at {read} {words}".strip()
        return self._kinds[place.name]

    def _line(self, place: Place, alternative: Alternative) -> tuple[Array, Array]:
        form = alternative.form
        if form.name in ("depthwise", "pointwise"):
            ranks = [(r,) for r in range(1, max(4, form.ranks[0]) + 1) if r <= form.full()[0]]
            # A layout of several branches needs several.
            points = [
                (
                    r[0],
                    self._ratio(
                        place, place.form(form.name, r), "plain" if r[0] == 1 else alternative.layout
                    ),
                )
                for r in ranks
            ]
        else:
            points = [
                (sum(ranks), self._ratio(place, place.form(form.name, ranks), "plain"))
                for ranks in self._points(place, form)
            ]
        sizes, ratios = zip(*points, strict=True)
        return np.array(sizes, float), np.array(ratios, float)

    def _points(self, place: Place, form: Form) -> list[tuple[int, ...]]:
        """Return ranks at which the form is timed: multiples of the block (or half of it) near `RATIOS` of the cost."""
        full = form.full()
        unit = place.form(form.name, tuple(1 for _ in full))
        step = BLOCK if min(full) >= 2 * BLOCK else BLOCK // 2
        found: dict[tuple[int, ...], None] = {}
        for ratio in RATIOS:
            if form.name == "tucker":
                # The core grows with the square of the ranks, and is most of the cost.
                part = (ratio * place.parameters / (math.prod(full) * unit.taps * place.node.group)) ** 0.5
                wanted = tuple(part * f for f in full)
            else:
                wanted = (ratio * place.parameters / (unit.elements() * place.node.group),)
            found[
                tuple(
                    max(1, min(f, max(1, round(w / step)) * step)) for f, w in zip(full, wanted, strict=True)
                )
            ] = None
        return list(found)

    def _ratio(self, place: Place, form: Form, layout: Layout) -> float:
        ranks = "x".join(map(str, form.ranks))
        key = f"{form.name} {ranks} {layout} for {self._kind(place)}"
        return self._context.timings.get(key, partial(self._measure, place, form, layout))

    def _measure(self, place: Place, form: Form, layout: Layout) -> float:
        self._context.progress(f"timing {form.name} at {place.name}", 0, 0)
        few, many = (self._graphs.dense(place, copies) for copies in (1, 1 + COPIES))
        short, long = (self._graphs.replaced(place, form, layout, copies) for copies in (1, 1 + COPIES))
        times = clock([few, many, short, long], {}, SECONDS)
        own = max(times[1] - times[0], 1e-6)
        return max(0.0, times[3] - times[2]) / own

    def _measure_share(self, place: Place) -> float:
        self._context.progress(f"timing {place.name}", 0, 0)
        few, many = (self._graphs.dense(place, copies) for copies in (1, 1 + COPIES))
        libraries = self._context.custom_op_libs
        once, several, whole = clock(
            [few, many, self._model], self._context.input_shapes, 4 * SECONDS, custom_op_libs=libraries
        )
        return max(0.0, several - once) / COPIES / whole


class FormGraphs:
    """Makes the models in which nodes of `model` and what stands in for them are timed."""

    def __init__(self, model: Model, shapes: Shapes) -> None:
        self._model, self._shapes = model, shapes

    def dense(self, place: Place, copies: int) -> Model:
        """Return a model of `copies` of the node side by side, whose results are added up and rectified."""
        node = place.node.node
        graph = GraphBuilder(self._model)
        x = graph.input("onnxcomp.made", self._shapes[node.inputs[place.node.data].name])
        made = []
        for number in range(copies):
            inputs: list[Value] = []
            for index in range(len(node.inputs)):
                constant = node.constant(index)
                if index == place.node.data:
                    inputs.append(x)
                elif constant is not None:
                    inputs.append(graph.constant(f"w{number}.{index}", constant.astype(np.float32)))
                else:
                    inputs.append(Variable(""))
            made.append(graph.op(node.op, inputs, node.attrs, f"node{number}"))
        return graph.model(graph.op("Relu", [graph.added(made)]))

    def replaced(self, place: Place, form: Form, layout: Layout, copies: int) -> Model:
        """Return that model with `form` in the place of every copy."""
        model = self.dense(place, copies)
        untouched = {node.name: node for node in model.clone().graph.nodes}
        blocks = place.start(form, blind=True)
        for number in range(copies):
            template = linear_node(untouched[f"node{number}"])
            assert template is not None
            Chain.build(model, template, form, layout, blocks, place.spatial)
        return model


def _drawn(sizes: Array, ratios: Array, size: float) -> float:
    """Return the ratio at `size`: straight between the points, the first below them, and on in a line above."""
    order = np.argsort(sizes)
    sizes, ratios = sizes[order], ratios[order]
    if len(sizes) == 1:
        return float(ratios[0] * max(1.0, size / sizes[0]))
    if size <= sizes[0]:
        return float(ratios[0])
    if size >= sizes[-1]:
        slope = (ratios[-1] - ratios[-2]) / (sizes[-1] - sizes[-2])
        return float(ratios[-1] + max(0.0, slope) * (size - sizes[-1]))
    return float(np.interp(size, sizes, ratios))
