"""What could stand in for each linear node of a model: forms, ranks, what they cost and what they get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from onnxcomp.analysis.cost import node_macs
from onnxcomp.analysis.linear import LinearNode, linear_node, not_refitted
from onnxcomp.compiler.factorization.chain import Layout, lay_out, possible
from onnxcomp.compiler.passbase import Context, PassLog
from onnxcomp.compiler.repair.columns import collect_moments, independent_samples
from onnxcomp.compiler.repair.refit import RIDGE_FLOOR, too_wide
from onnxcomp.compiler.repair.sites import shared_weight
from onnxcomp.ir.graph import Node
from onnxcomp.ir.model import Model
from onnxcomp.ir.scopes import inner_operators
from onnxcomp.numerics.arrays import Array, Shapes
from onnxcomp.numerics.factoring import Metric, fit
from onnxcomp.numerics.forms import FORMS, Factors, Form
from onnxcomp.runtime.overlap import in_order, workers

__all__ = [
    "Alternative",
    "Curve",
    "CurveSearch",
    "Place",
    "Price",
    "curves_of",
    "damped",
    "damping_of",
    "find_places",
    "with_metrics",
]


WAVE_BYTES = 256 * 2**20
"""Covariances held at once while they are collected; more nodes take more runs over the samples."""

LEVELS = (0.14, 0.27, 0.48, 0.8)
"""Shares of a node's own cost at which forms are fitted; errors in between are drawn from these."""

FIRST_LOOK = 0.4
"""Share of a node's own cost at which all forms are compared before the best are fitted more closely."""

CLOSE = 1.3
"""Forms whose error at the first look is within this factor of the least are fitted more closely."""

MOST = 2
"""Forms fitted more closely at most."""

GLANCE_STEPS = 15
"""Steps of a fit that only tells one form from another."""

LOOK_STEPS = 30
"""Steps of a fit that only tells how good a form is at a rank."""

NODE_BYTES = 160
"""What one more node takes in a file, about: names, attributes, the dimensions of its weight."""

STILL_TO_COME = {"cp": 0.7}
"""Share of its error that a form keeps once it is fitted to the end: forms of two factors are nearly there after a glance,
three factors are not (on VGG-9 and ResNet-20 they lose another 25 to 45 %)."""

FEW = 1e-6
"""Least relative error: below this float32 tells no more."""


@dataclass(frozen=True)
class Place:
    """A linear node that could be replaced.

    Attributes:
        node: of the model as it is; not edited.
        spatial: size of its input's spatial axes, for one sample.
        macs: of the node, for one sample.
        metrics: input covariance and output curvature, for every block; empty where nothing was measured.
        means: of the inputs, `[g, d]`.
    """

    node: LinearNode
    spatial: tuple[int, ...]
    macs: int
    metrics: tuple[Metric, ...] = ()
    means: Array | None = None

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.node.name

    @cached_property
    def weight(self) -> Array:
        """The dense weight `[g, o, d]`."""
        return self.node.matrix()

    @property
    def parameters(self) -> int:
        """Elements of the dense weight."""
        return int(self.node.weight_array().size)

    @property
    def bytes(self) -> int:
        """Bytes of the dense weight."""
        return int(self.node.weight_array().nbytes)

    def form(self, name: str, ranks: tuple[int, ...]) -> Form:
        """Return the form `name` of this node's weights with `ranks`."""
        _, o, d = self.weight.shape
        kernel = tuple(self.node.weight_array().shape[2:]) if self.node.spatial else ()
        return FORMS[name](o, d // math.prod(kernel), kernel, ranks)

    def alternative(self, form: Form, layout: Layout, error: float) -> Alternative:
        """Return what `form` costs here."""
        links = lay_out(self.node, form, layout, self.spatial)
        macs, elements = sum(link.macs for link in links), sum(link.elements for link in links)
        if not self.node.spatial:
            macs = macs * self.macs // max(1, self.parameters)
        size = self.node.weight_array().dtype.itemsize
        extra = (len(links) - 1 + (0 if layout == "plain" else form.ranks[0])) * NODE_BYTES
        return Alternative(form, layout, macs, elements, elements * size + extra, error)

    def start(self, form: Form, *, blind: bool = False) -> list[Factors]:
        """Return factors to start from for every block; `blind` leaves out what is known of the inputs."""
        d = self.weight.shape[2]
        metrics = (
            [np.eye(d)] * len(self.weight) if blind or not self.metrics else [m.inputs for m in self.metrics]
        )
        return [form.start(W, H) for W, H in zip(self.weight, metrics, strict=True)]

    def shifted_bias(self, form: Form, blocks: Sequence[Factors]) -> Array | None:
        """Return the bias `[o]` that keeps the mean of the outputs; None where there is none or no mean is known."""
        if self.means is None or not self.node.has_bias:
            return None
        missing = self.weight - np.stack([form.expand(block) for block in blocks])
        shifted: Array = self.node.bias() + np.einsum("god,gd->go", missing, self.means).reshape(-1)
        return shifted

    def fitted(self, form: Form, steps: int) -> tuple[list[Factors], float]:
        """Return the factors fitted to the weights under the place's metrics, and the relative error of the outputs."""
        eye = Metric(np.eye(self.weight.shape[2]))
        metrics = self.metrics or (eye,) * len(self.weight)
        found = [fit(form, W, metric, steps) for W, metric in zip(self.weight, metrics, strict=True)]
        wholes = [metric.of(W) for W, metric in zip(self.weight, metrics, strict=True)]
        whole = sum(wholes)
        error = sum(f.error * w for f, w in zip(found, wholes, strict=True)) / whole if whole > 0 else 0.0
        return [f.factors for f in found], error


@dataclass(frozen=True)
class Alternative:
    """A form that can stand in for a node: what it costs, and the share of the output's (weighed) variance it misses.

    `time` is its time as a share of the node's own, where that was measured.
    """

    form: Form
    layout: Layout
    macs: int
    parameters: int
    bytes: int
    error: float
    time: float | None = None

    def __str__(self) -> str:
        return f"{self.form.name} {'x'.join(map(str, self.form.ranks))}"


@dataclass(frozen=True)
class Curve:
    """The alternatives of one place that are worth considering, in order of falling cost."""

    place: Place
    alternatives: tuple[Alternative, ...]


def find_places(
    model: Model,
    ops: Collection[str],
    left_alone: Callable[[str], str | None],
    shapes: Shapes,
    log: PassLog,
) -> list[Place]:
    """Return the linear nodes of `model` among the operators `ops`, in order; what cannot be replaced is skipped in `log`."""
    found = []
    for node in model.graph.nodes:
        if inside := sorted(set(inner_operators(node)) & set(ops)):
            log.skip(
                node.name,
                f"its branches hold {' and '.join(inside)}, and what is inside a node stays as it is",
            )
        if not node.is_op(*ops) or node.input(0) is None:
            continue
        linear = linear_node(node)
        reason = _blocked(model, node, linear, left_alone, shapes)
        if reason:
            log.skip(node.name, reason)
            continue
        assert linear is not None
        spatial = shapes[linear.input][2:] if linear.spatial else ()
        found.append(Place(linear, tuple(spatial), node_macs(node, shapes)))
    return found


def _blocked(
    model: Model,
    node: Node,
    linear: LinearNode | None,
    left_alone: Callable[[str], str | None],
    shapes: Shapes,
) -> str | None:
    if reason := left_alone(node.name):
        return reason
    if linear is None:
        return not_refitted(node) or "its weight is computed, not stored"
    if linear.input not in shapes or linear.output not in shapes:
        return "its sizes are not known"
    return shared_weight(model, linear) or too_wide(linear)


def with_metrics(
    model: Model,
    places: Sequence[Place],
    outputs: Mapping[str, Array],
    context: Context,
    shapes: Shapes,
) -> Iterator[list[Place]]:
    """Yield the places, some at a time, with the covariance of their inputs on the calibration samples.

    `outputs` are the output curvatures, `[g, o, o]` by the node's name.
    """
    wave: list[Place] = []
    size = 0
    for place in places:
        g, _, d = place.weight.shape
        if wave and size + 8 * g * d * d > WAVE_BYTES:
            yield _measured(model, wave, outputs, context, shapes)
            wave, size = [], 0
        wave.append(place)
        size += 8 * g * d * d
    if wave:
        yield _measured(model, wave, outputs, context, shapes)


def _measured(
    model: Model, places: Sequence[Place], outputs: Mapping[str, Array], context: Context, shapes: Shapes
) -> list[Place]:
    moments = collect_moments(model, [p.node for p in places], context, shapes, "statistics")
    count = len(context.calibration) if context.calibration is not None else 0
    done = []
    for place in places:
        seen = moments[place.name]
        H = seen.covariance() if place.node.has_bias else seen.sum_xx / seen.count
        weigh = outputs.get(place.name)
        damping = damping_of(H.shape[1], independent_samples(count, seen.count / max(1, count)))
        metrics = [Metric(damped(h, damping), None if weigh is None else weigh[b]) for b, h in enumerate(H)]
        done.append(replace(place, metrics=tuple(metrics), means=seen.mean_x))
    return done


def damping_of(width: int, independent: float) -> float:
    """Return the share of the mean variance by which every input counts more than the samples say.

    Where samples are few beside the inputs, they vary in as many directions as there are samples, and a split that keeps
    just those would look perfect. Then all directions count nearly alike; with many samples their covariance is trusted.
    """
    return max(RIDGE_FLOOR, width / max(independent, 1.0)) ** 2


def damped(H: Array, damping: float) -> Array:
    """Return the covariance `[d, d]` with `damping` times its mean variance added to every input's."""
    size = max(float(np.trace(H)) / len(H), 1e-30)
    added: Array = H + damping * size * np.eye(len(H))
    return added


Price = Callable[[Place, "Alternative"], float]
"""Returns what an alternative costs as a share of what the node costs."""


@dataclass(frozen=True)
class CurveSearch:
    """Which alternatives of a place are considered.

    Attributes:
        forms: names of the forms.
        price: what alternatives cost, as a share of the node's own.
        layouts: how a form stands in the graph.
        min_saving: the share of the price that an alternative must save.
        align: what ranks are multiples of.
        rank: the only rank considered, or None.
    """

    forms: Sequence[str]
    price: Price
    layouts: Callable[[Place, Form], Layout]
    min_saving: float
    align: int = 1
    rank: int | None = None

    def alternative(self, place: Place, name: str, ranks: tuple[int, ...], error: float = 0.0) -> Alternative:
        """Return what the form `name` with `ranks` is at `place`."""
        form = place.form(name, ranks)
        return place.alternative(form, self.layouts(place, form), error)

    def price_of(self, place: Place, name: str, ranks: tuple[int, ...]) -> float:
        """Return the price of the form `name` with `ranks` at `place`."""
        return self.price(place, self.alternative(place, name, ranks))


def curves_of(places: Sequence[Place], search: CurveSearch, context: Context, log: PassLog) -> list[Curve]:
    """Return the alternatives of every place that `search` finds worth considering.

    What no form suits or none makes cheaper is skipped in `log` with its figures.
    """

    def work(place: Place) -> tuple[Curve | None, str]:
        return _curve(place, search)

    found = []
    for place, (curve, reason) in zip(places, in_order(work, places, workers(context.threads)), strict=True):
        if curve is None:
            log.skip(place.name, reason)
        else:
            found.append(curve)
    return found


def _curve(place: Place, search: CurveSearch) -> tuple[Curve | None, str]:
    reasons = {name: possible(name, place.node) for name in search.forms}
    open_forms = [name for name, reason in reasons.items() if reason is None]
    if not open_forms:
        return None, "; ".join(dict.fromkeys(r for r in reasons.values() if r))
    rank = search.rank
    ladders = {name: _ranks(place, name, search.align if rank is None else 1) for name in open_forms}
    if rank is not None:
        most = max(max(ladder[-1]) for ladder in ladders.values())
        ladders = {name: [r for r in ladder if max(r) == rank] for name, ladder in ladders.items()}
        ladders = {name: ladder for name, ladder in ladders.items() if ladder}
        if not ladders:
            return None, f"rank {rank} is more than it has; {most} is all"
    cheap = {
        name: [r for r in ladder if search.price_of(place, name, r) <= 1 - search.min_saving]
        for name, ladder in ladders.items()
    }
    if not any(cheap.values()):
        lowest = [search.alternative(place, name, ladder[0]) for name, ladder in ladders.items()]
        least = min(lowest, key=partial(search.price, place))
        return None, (
            f"nothing saves {search.min_saving:.0%}: the cheapest, {least}, takes "
            f"{search.price(place, least):.2f} of what it has"
        )
    cheap = {name: ladder for name, ladder in cheap.items() if ladder}
    if len(cheap) > 1 and rank is None:
        looks = {name: _look(place, name, ladder, search) for name, ladder in cheap.items()}
        best = min(looks.values())
        near = sorted((error, name) for name, error in looks.items() if error <= CLOSE * best + FEW)
        cheap = {name: cheap[name] for _, name in near[:MOST]}
    found = [
        search.alternative(place, name, ranks, error)
        for name, ladder in cheap.items()
        for ranks, error in _errors(place, name, ladder, search)
    ]
    return Curve(place, tuple(_undominated(place, found, search.price))), ""


def _ranks(place: Place, name: str, align: int) -> list[tuple[int, ...]]:
    """Return the ranks that are possible, ascending: multiples of `align`, of less where there are fewer than two of those."""
    full = place.form(name, (1, 1) if name == "tucker" else (1,)).full()
    if name in ("depthwise", "pointwise"):
        return [(r,) for r in range(1, full[0] + 1)]
    step = align
    while step > 1 and min(full) < 2 * step:
        step //= 2
    if name != "tucker":
        return [(r,) for r in range(step, full[0] + 1, step)]
    most = max(full)
    pairs = (tuple(max(1, round(f * k / most / step)) * step for f in full) for k in range(1, most + 1))
    return [pair for pair in dict.fromkeys(pairs) if all(r <= f for r, f in zip(pair, full, strict=True))]


def _look(place: Place, name: str, ladder: Sequence[tuple[int, ...]], search: CurveSearch) -> float:
    """Return the error of the form `name` at about `FIRST_LOOK` of the place's own cost."""
    near = min(ladder, key=lambda r: abs(search.price_of(place, name, r) - FIRST_LOOK))
    # Where a form comes in coarse steps only, one beside the point is judged by what it would miss at the point.
    share = max(1e-3, search.price_of(place, name, near))
    error = place.fitted(place.form(name, near), GLANCE_STEPS)[1]
    return error * STILL_TO_COME.get(name, 1.0) * share / FIRST_LOOK


def _errors(
    place: Place, name: str, ladder: Sequence[tuple[int, ...]], search: CurveSearch
) -> list[tuple[tuple[int, ...], float]]:
    """Return the ranks of `ladder` with their errors: fitted at some, drawn in between on a logarithmic scale."""
    prices = np.array([search.price_of(place, name, r) for r in ladder])
    points = sorted({int(np.argmin(abs(prices - level))) for level in LEVELS})
    if len(ladder) <= len(LEVELS):
        points = list(range(len(ladder)))
    gain = STILL_TO_COME.get(name, 1.0)
    fitted = [max(FEW, gain * place.fitted(place.form(name, ladder[p]), LOOK_STEPS)[1]) for p in points]
    # A fit from afar may end above one of fewer ranks: errors never rise with the rank.
    fitted = list(np.minimum.accumulate(fitted))
    sizes = np.array([sum(r) for r in ladder], float)
    # Without any rank all is missed; beyond the last fit nothing is promised.
    drawn = np.exp(np.interp(sizes, [0.0, *sizes[points]], [0.0, *np.log(fitted)]))
    return [(ranks, float(error)) for ranks, error in zip(ladder, drawn, strict=True)]


def _undominated(place: Place, found: Sequence[Alternative], price: Price) -> list[Alternative]:
    """Return the alternatives that no other beats in both price and error, in order of falling price."""
    kept: list[Alternative] = []
    least = math.inf
    for each in sorted(found, key=lambda a: (price(place, a), a.error)):
        if each.error < least:
            kept.append(each)
            least = each.error
    return kept[::-1]
